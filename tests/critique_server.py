"""An OpenAI-compatible HTTP server that does what a script says, misbehaving included; it keeps what it was asked."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback import serving


@dataclass
class Say:
    """An answer with this text."""

    text: str | None
    finish_reason: str = "stop"
    delay_s: float = 0.0


@dataclass
class Status:
    """An error status, with headers and a message."""

    code: int
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Raw:
    """A body of any bytes under status 200; `reset` closes the connection hard after it."""

    body: bytes
    reset: bool = False
    promised: int | None = None  # content length that is announced, if not the true one


Answer = Say | Status | Raw
Script = Callable[[dict[str, Any], int], Answer]  # (body of the request, how often it was asked so far) -> answer


@dataclass
class CritiqueServer:
    """A server at work: its address, and what it was asked, with the headers."""

    base_url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def times(self, part: str) -> int:
        """How many requests had `part` in their messages."""
        return sum(part in json.dumps(body["messages"]) for body in self.asked)


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice]}
    return json.dumps({**answer, "usage": usage}).encode()


@contextmanager
def critique_server(script: Script, port: int = 0) -> Iterator[CritiqueServer]:
    """Serve on loopback until the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                before = sum(one["messages"] == body["messages"] for one in served.asked)
                served.asked.append(body)
                served.headers.append({name.lower(): value for name, value in self.headers.items()})
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
            try:
                self._answer(script(body, before))
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client gave up
            finally:
                with lock:
                    served.at_once -= 1

        def _answer(self, answer: Answer) -> None:
            if isinstance(answer, Say):
                time.sleep(answer.delay_s)
                self._send(200, completion(answer.text, answer.finish_reason), {})
            elif isinstance(answer, Status):
                body = json.dumps({"error": {"message": answer.message, "type": "t", "code": "c"}}).encode()
                self._send(answer.code, body, answer.headers)
            else:
                self._send(200, answer.body, {}, answer.promised)
                if answer.reset:
                    linger = struct.pack("ii", 1, 0)  # close by RST, not FIN
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    self.connection.close()

        def _send(self, code: int, body: bytes, headers: dict[str, str], promised: int | None = None) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body) if promised is None else promised))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()
            if promised is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    served = CritiqueServer(f"http://127.0.0.1:{server.server_port}/v1")
    with serving(server):
        yield served
