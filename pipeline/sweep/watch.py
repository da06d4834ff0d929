"""How far the jobs of a sweep are, as their stages tell (`pipeline.running.progress`), in one table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table


@dataclass
class Watched:
    """A running job as its progress file tells it. started: by the monotonic clock, as is all time here. place: where
    it runs, if not here."""

    name: str
    path: Path
    started: float = field(default_factory=time.monotonic)
    stage: str = ""
    step: int = 0
    steps: int = 0
    place: str = ""
    _first: tuple[int, float] = (0, 0.0)  # where the stage was when first seen, so that resumed steps cost nothing

    def look(self) -> None:
        """Read the file again."""
        try:
            seen = json.loads(self.path.read_text())
        except (OSError, ValueError):  # not yet written
            return
        if not seen:  # it has not begun
            return
        if seen["stage"] != self.stage:
            self._first = (seen["step"], time.monotonic())
        self.stage, self.step, self.steps = seen["stage"], seen["step"], seen["steps"]

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def left_in_stage(self) -> float | None:
        """Seconds that the stage's steps so far foretell; None without steps."""
        first, since = self._first
        if self.step <= first:
            return None
        return (time.monotonic() - since) / (self.step - first) * (self.steps - self.step)


def table(watched: list[Watched], left: Callable[[Watched], float | None], footer: str) -> Table:
    """One row per running job: what it does, how far it is, and how long it may still take."""
    out = Table(box=None, caption=footer, caption_justify="left", caption_style="")
    places = ("on",) if any(one.place for one in watched) else ()
    for name in ("running", *places, "stage", "step", "for", "left"):
        out.add_column(name, justify="left" if name in ("running", "on", "stage") else "right", no_wrap=True)
    for one in watched:
        step = f"{one.step}/{one.steps}" if one.steps else ""
        place = (one.place,) if places else ()
        out.add_row(one.name, *place, one.stage, step, duration(one.elapsed), duration(left(one)))
    return out


def duration(seconds: float | None) -> str:
    """Seconds as `45 s`, `3 min`, `2 h 05 min`; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
