"""SIGTERM (of Slurm, `kill`) and SIGINT (Ctrl-C): a command ends at once, training after the step it is in."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal asked this program to end. Like Ctrl-C, it passes by whatever catches errors.

    number: the signal. kept: what was saved on its account, a clause such as `step 12 is kept in <file>`.
    """

    def __init__(self, number: int, kept: str = ""):
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f" ({kept})" if kept else ""))
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` wherever the program is when a signal comes."""

    def stop(number: int, frame) -> None:
        raise Stopped(number)

    with _handled_by(stop):
        yield


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Collect the numbers of signals that come, for a loop that ends at a good moment; what it did not answer comes
    again at the end."""
    received: list[int] = []
    with _handled_by(lambda number, frame: received.append(number)):
        yield received
    if received:
        signal.raise_signal(received[0])


@contextmanager
def _handled_by(handler: Callable) -> Iterator[None]:
    """Handlers can be set in the main thread alone. What was ignored stays ignored, as by a script's `command &`."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: old for n in SIGNALS if (old := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
