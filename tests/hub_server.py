"""A server on loopback that speaks the hub's protocol for a few files: their listing, their headers, their bytes."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from loopback import serving


@dataclass
class Hub:
    """A server at work: its address, and the requests that it answered."""

    url: str
    asked: list[str] = field(default_factory=list)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _entry(directory: Path, path: Path) -> dict[str, object]:
    body = path.read_bytes()
    name = str(path.relative_to(directory))
    return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


@contextmanager
def hub_server(repo: str, commit: str, directory: Path, kind: str) -> Iterator[Hub]:
    """Serve the files of a directory as the repository `repo` at `commit`; kind: "models" or "datasets"."""
    prefix = "" if kind == "models" else f"/{kind}"
    hub = Hub(url="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if path == f"/api/{kind}/{repo}/tree/{commit}":
                return self._send(json.dumps([_entry(directory, p) for p in _files(directory)]).encode(), with_body)
            resolve = f"{prefix}/{repo}/resolve/{commit}/"
            file = directory / path.removeprefix(resolve)
            if path.startswith(resolve) and file.is_file():
                return self._send(file.read_bytes(), with_body)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def _send(self, body: bytes, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield hub
