"""A signal ends the block as KeyboardInterrupt, also where a library turns that into an error of its own."""

import os
import signal

import pytest

from flows.interrupts import interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_as_keyboard_interrupt_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_an_error_that_the_signal_was_turned_into_is_the_interruption():
    def library():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            raise ValueError("cannot serialize") from interrupt

    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        library()
    assert isinstance(caught.value.__cause__, ValueError)


def test_errors_without_a_signal_stay_what_they_are():
    with pytest.raises(ValueError, match="its own"), interruptible():
        raise ValueError("its own")
