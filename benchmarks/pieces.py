"""Work in pieces, each in a process of its own and with a time limit of its own: what fails, hangs or dies loses
nothing of the others.

The process of the next piece imports what it needs while this one measures, on another core, and touches no device
before it is its turn.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from infotok.errors import InfotokError

if TYPE_CHECKING:  # a process that waits for its turn has no PyTorch to import for this
    from benchmarks.device import Row

READY = 120  # seconds in which a process must have imported what it needs
DONE, LATE = "done", "not done within its time"


@dataclass(frozen=True)
class Piece:
    """work: a function of a module, called with `given`, which can be pickled; returns tables. limit: seconds.
    otherwise: a piece that is done next if this one failed before its time was over, with less in it that may fail."""

    name: str
    work: Callable[..., dict[str, list[Row]]]
    given: tuple = ()
    limit: float = 60.0
    otherwise: Piece | None = None


def done_one_by_one(pieces: list[Piece], seconds: float, imports: str) -> Iterator[tuple[dict[str, list[Row]], Row]]:
    """Do pieces in their order; what has no time left of all the seconds is not done, and nothing after Ctrl-C or
    SIGTERM, which are raised again at the end.

    Args:
        imports: what the processes import before it is their turn.

    Yields:
        of each piece its tables, none where it was not done, and a row that says what became of it.
    """
    end, waiting = time.monotonic() + seconds, _Process(imports)
    stopped: BaseException | None = None
    left = list(pieces)
    try:
        while left:
            piece = left.pop(0)
            begin, tables, outcome = time.monotonic(), {}, "interrupted"
            if stopped is None and begin >= end:
                outcome = f"not begun: the {seconds / 60:.3g} minutes of all pieces were over; give more by --minutes"
            elif stopped is None:
                current = waiting
                try:
                    if left or piece.otherwise:
                        waiting = _Process(imports)
                    tables, outcome = current.do(piece, min(piece.limit, end - begin))
                    if outcome not in (DONE, LATE) and piece.otherwise:
                        left.insert(0, piece.otherwise)
                except (KeyboardInterrupt, SystemExit) as error:
                    stopped = error
                finally:
                    current.end()
            yield tables, {"piece": piece.name, "seconds": time.monotonic() - begin, "outcome": outcome}
    finally:
        waiting.end()
    if stopped is not None:
        raise stopped


class _Process:
    """A process that does one piece."""

    def __init__(self, imports: str):
        self.here, there = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, imports))
        self.process.start()
        there.close()

    def do(self, piece: Piece, seconds: float) -> tuple[dict[str, list[Row]], str]:
        """The tables and the outcome of a piece; the seconds begin when the process is ready."""
        try:
            if not self.here.poll(READY):
                return {}, f"its process was not ready in {READY} s"
            self.here.recv()
            self.here.send((piece.work, piece.given))
            if not self.here.poll(seconds):
                return {}, LATE
            return self.here.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join(READY)
            code = self.process.exitcode or 0
            return {}, f"its process died: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def end(self) -> None:
        """End the process, and all that it has started."""
        if self.here.closed:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # its session, where it has one by now
        self.process.kill()
        self.process.join()
        self.here.close()


def _serve(there: Connection, imports: str) -> None:
    os.setsid()  # Ctrl-C is for the parent, which ends this
    importlib.import_module(imports)
    there.send("ready")
    try:
        work, given = there.recv()
    except EOFError:  # the parent has ended
        sys.exit()
    try:
        there.send((work(*given), DONE))
    except Exception as error:
        there.send(({}, _said(error)))


def _said(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return (first if isinstance(error, InfotokError) else f"{type(error).__name__}: {first}")[:300]
