"""The end of a job by Ctrl-C or SIGTERM: never with a traceback, and in order once there is something to tidy up."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


def leave_at_once() -> None:
    """Let signals end the process as they find it, which suits imports and what runs at the interpreter's exit."""
    for number in ENDING:
        _handle(number, lambda number, _: os._exit(128 + number))


def pass_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does just then; to be called again where a library has set its own handler."""
    _handle(signal.SIGTERM, _interrupt)


@contextmanager
def in_order() -> Iterator[None]:
    """Let signals interrupt the block, so that it closes what it has opened; then end the process by their exit code.

    Raises:
        SystemExit: with 130 after Ctrl-C and 143 after SIGTERM, however the block has taken them.
    """
    earlier = {number: signal.getsignal(number) for number in ENDING}
    # Ray Train and Ray Tune set handlers of their own; what has come is read from the interpreter's wake-up pipe.
    received, wakeup = os.pipe()
    for end in (received, wakeup):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    numbers: list[int] = []

    def look() -> list[int]:
        with suppress(BlockingIOError):  # nothing has come since
            numbers.extend(number for number in os.read(received, 1 << 12) if number in ENDING)
        return numbers

    loud = sys.unraisablehook
    # What an interruption leaves half made complains when it is collected, up to the end of the process.
    sys.unraisablehook = lambda problem: None if numbers or look() else loud(problem)
    _handle(signal.SIGINT, signal.default_int_handler)
    pass_on_sigterm()
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        look()
        os.close(received)
        os.close(wakeup)
        if numbers:
            sys.exit(128 + numbers[0])
        sys.unraisablehook = loud


def _handle(number: int, handler: "signal._HANDLER") -> None:
    if signal.getsignal(number) != signal.SIG_IGN:  # as shells do with Ctrl-C for what runs in the background
        signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # who sends it twice may not break what is being tidied up
    handler = signal.getsignal(signal.SIGINT)
    (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)
