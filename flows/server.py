"""The Prefect server that a run reports to: the one that is configured, or one of our own that ends with us."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cgrpo_core.errors import UserError

START_TIMEOUT_S = 120
PR_SET_PDEATHSIG = 1


def configured_url() -> str | None:
    """Return the API URL that the environment or the active Prefect profile names."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    from prefect.settings import PREFECT_API_URL

    value = PREFECT_API_URL.value()
    return str(value) if value else None


def healthy(url: str, timeout_s: float = 2.0) -> bool:
    """Return whether a Prefect API answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout_s) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@contextmanager
def prefect_server(home: Path, while_it_starts: Callable[[], None] | None = None) -> Iterator[str]:
    """Yield the URL of a Prefect API that answers. Raises UserError when the configured one does not.

    while_it_starts: what can be done meanwhile; called when a server is started here, with the environment set for it.
    """
    url = configured_url()
    if url is not None:
        if not healthy(url, timeout_s=10):
            raise UserError(
                f"the Prefect server at {url} does not answer",
                "start it with `prefect server start`, or unset PREFECT_API_URL: cgrpo then starts one for the run",
            )
        yield url
        return
    process, url = start_server(home)
    try:
        with use_api(url, home):
            if while_it_starts is not None:
                while_it_starts()
            _await(process, url, home)
            yield url
    finally:
        stop_server(process)


@contextmanager
def use_api(url: str, home: Path) -> Iterator[None]:
    """Point this process and its children at a Prefect API, and put everything back afterwards."""
    names = {"PREFECT_API_URL": url, "PREFECT_HOME": str(home / "prefect")}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    try:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home / "prefect"}):
            yield
    finally:
        _send_pending_logs()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _send_pending_logs() -> None:
    """Let Prefect deliver its last log lines before the server goes; it would complain at exit that none answers."""
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=5)


def start_server(home: Path, port: int | None = None) -> tuple[subprocess.Popen[bytes], str]:
    """Start a Prefect server on loopback, its database under `home`; return its process and API URL."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}/api"
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    log = (home / "prefect" / "server.log").open("ab")
    environment = {**os.environ, "PREFECT_HOME": str(home / "prefect"), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(  # a session of its own: Ctrl-C is for the run, which then ends the server itself
        command, stdout=log, stderr=log, env=environment, start_new_session=True, preexec_fn=_die_with_parent
    )
    log.close()
    return process, url


def stop_server(process: subprocess.Popen[bytes]) -> None:
    """End a server that `start_server` started, with the processes it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(process: subprocess.Popen[bytes], url: str, home: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError("the Prefect server did not start", f"its log is {home / 'prefect' / 'server.log'}")
        time.sleep(0.2)


def _die_with_parent() -> None:
    """A killed run must not leave its server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
