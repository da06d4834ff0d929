"""Several trainings side by side in one process, which take turns from step to step.

On a GPU each has a stream of its own, on which its recorded steps are replayed (`infotok.training.graph`): a small step
fills little of a GPU, and several run there at once. None sees the others: its numbers are those that it has alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from infotok.errors import InfotokError
from infotok.stopping import Stopped, deferred
from infotok.training.loop import Training

SETTLING, WINDOW = 30, 50  # rounds in which steps are recorded, and those that are then timed
GAIN = 1.1  # of the steps a second of all, without which twice as many trainings do not pay
FREE = 0.1  # of a GPU's memory, left for what steps of other shapes need


def many_streams() -> None:
    """Let 32 streams of a GPU run at once, not 8; to be called before anything of CUDA."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


class Room(Protocol):
    """Says whether one more training may begin."""

    def another(self, at_work: int) -> bool:
        """Whether there is room for one beside so many."""

    def went_round(self, at_work: int) -> None:
        """So many trainings have made a step each."""

    def is_full(self, at_work: int) -> None:
        """There was no memory for more than so many."""


@dataclass
class Places:
    """Room for a number of trainings."""

    most: int

    def another(self, at_work: int) -> bool:
        return at_work < self.most

    def went_round(self, at_work: int) -> None:
        pass

    def is_full(self, at_work: int) -> None:
        self.most = max(1, at_work)


@dataclass
class Measured:
    """Room on a GPU: first for one training, then for twice as many as long as memory for them is free and the last
    doubling has brought GAIN times the steps a second. Trainings are taken to be of one size.

    used, free: bytes that this process has taken of the GPU, and those that nobody has; total: of the whole GPU.
    clock: seconds, once the GPU has done what it was given.
    """

    used: Callable[[], int]
    free: Callable[[], int]
    total: int
    clock: Callable[[], float]
    most: int = 1
    _rounds: int = 0
    _since: float = 0.0
    _rate: float = 0.0
    _final: bool = False

    @classmethod
    def on(cls, device: torch.device) -> Measured:
        def clock() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

        total = torch.cuda.mem_get_info(device)[1]
        return cls(lambda: torch.cuda.memory_reserved(device), lambda: torch.cuda.mem_get_info(device)[0], total, clock)

    def another(self, at_work: int) -> bool:
        return at_work < self.most

    def went_round(self, at_work: int) -> None:
        if self._final or at_work < self.most:
            self._rounds = 0
            return
        self._rounds += 1
        if self._rounds == SETTLING:
            self._since = self.clock()
        if self._rounds == SETTLING + WINDOW:
            rate = at_work * WINDOW / (self.clock() - self._since)
            self._rounds = 0
            self._grow(at_work, rate)

    def _grow(self, at_work: int, rate: float) -> None:
        each = self.used() / at_work
        fits = at_work + int((self.free() - FREE * self.total) / each)
        self._final = rate < GAIN * self._rate or fits <= at_work
        self._rate = rate
        if not self._final:
            self.most = min(2 * at_work, fits)

    def is_full(self, at_work: int) -> None:
        self.most, self._final = max(1, at_work), True


def room(most: int | None, device: torch.device) -> Room:
    """Room for `most`; None: on a GPU as many as pay, elsewhere one."""
    if most is not None:
        return Places(most)
    return Measured.on(device) if device.type == "cuda" else Places(1)


@dataclass
class Turn:
    """A training that is under way, or that begins with its first turn."""

    name: str
    begin: Callable[[], Training]
    device: torch.device
    training: Training | None = None
    stream: Any = field(default=None)

    def take(self, number: int | None) -> None:
        """One step, or the beginning."""
        with self._own_stream():
            if self.training is None:
                self.training = self.begin()
                next(self.training)
            else:
                self.training.send(number)

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        if self.device.type != "cuda":
            yield
            return
        self.stream = self.stream or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self.stream):
            yield


def side_by_side(
    trainings: Iterable[tuple[str, Callable[[], Training]]],
    room: Room,
    device: torch.device,
    ended: Callable[[str, list[dict] | str], None],
) -> None:
    """Train all, as many at once as there is room for; the others begin as places become free.

    Args:
        trainings: names, and what begins each.
        ended: called with a name and the history, or with what ended that training alone.

    Raises:
        Stopped: SIGTERM or SIGINT came; every training that had begun has written its checkpoint.
    """
    waiting = [Turn(name, begin, device) for name, begin in trainings]
    at_work: list[Turn] = []
    with deferred() as signals:
        while (waiting or at_work) and not signals:
            if waiting and room.another(len(at_work)):  # one a round, so that they do not all read numbers at once
                at_work.append(waiting.pop(0))
            for turn in list(at_work):
                try:
                    turn.take(None)
                except StopIteration as done:
                    at_work.remove(turn)
                    ended(turn.name, done.value)
                except torch.OutOfMemoryError as error:
                    at_work.remove(turn)
                    if not at_work:
                        ended(turn.name, _reason(error))
                    else:  # it goes on from its checkpoint when another has ended
                        room.is_full(len(at_work))
                        waiting.append(Turn(turn.name, turn.begin, device))
                except Exception as error:  # whatever it is, the others go on
                    at_work.remove(turn)
                    ended(turn.name, _reason(error))
                if signals:
                    break
            room.went_round(len(at_work))
        if signals:
            kept = [turn.name for turn in at_work if _stopped(turn, signals[0])]
            raise Stopped(signals[0], f"kept in checkpoints: {', '.join(kept)}" if kept else "")


def _stopped(turn: Turn, number: int) -> bool:
    """End a training after its step; whether it has kept what it has done."""
    try:
        if turn.training is not None:
            turn.take(number)
    except Stopped as stopped:
        return "kept" in str(stopped)
    except Exception:
        return False
    return False


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    said = lines[0] if lines else ""
    return said if isinstance(error, InfotokError) else f"{type(error).__name__}: {said}"
