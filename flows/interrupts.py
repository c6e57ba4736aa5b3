"""Ctrl-C and SIGTERM end a run in one way, whatever code they fall into."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT and SIGTERM leave the block as KeyboardInterrupt, so that engines and servers end with the run.

    A library that the signal falls into may turn the KeyboardInterrupt into an error of its own (pydantic does, in the
    middle of a serialization); such an error is the interruption too. Off the main thread the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception as error:  # whatever the signal broke on its way up; without a signal it rises as it is
        if received:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
