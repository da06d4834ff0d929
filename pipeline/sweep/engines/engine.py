"""What a sweep asks of an engine: to submit a job, to say whether it has ended, to cancel what runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.sweep import watch

if TYPE_CHECKING:
    from pipeline.sweep.jobs import Job


class Submitted(watch.Watched):
    """A job that an engine has taken. log: the file on this machine that holds its output once it has ended. path: the
    file on this machine that holds its progress meanwhile."""

    def __init__(self, job: Job, logs: Path):
        super().__init__(job.name, logs / f"{job.name}.json")
        self.job, self.log = job, logs / f"{job.name}.log"
        self.path.unlink(missing_ok=True)

    def reason(self) -> str:
        """The error that its log ends with, as a line of its own; nothing without one."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return next((f"\n  {line}" for line in reversed(lines) if line.startswith("error: ")), "")


@dataclass(frozen=True)
class Ended:
    """How a job has ended. code: of its exit. lost: why it ended without a fault of its own, as when its machine went
    away; such a job is worth another try."""

    code: int
    lost: str = ""


def killed(code: int) -> str:
    """Why a stage that ended with this exit code is worth another try: somebody killed it. Nothing of other codes."""
    return f"killed by signal {code - 128}" if code - 128 in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT) else ""


class Engine(Protocol):
    """Where jobs run."""

    def submit(self, job: Job) -> Submitted | None:
        """Take a job; None while there is no room for it."""

    def poll(self, one: Submitted) -> Ended | None:
        """How a job has ended, None while it runs or waits. Never waits itself."""

    def cancel(self, running: Sequence[Submitted]) -> None:
        """Interrupt jobs, and wait until all of them have ended, their checkpoints written."""


# Opens an engine. Takes the descriptor of the sweep's lock, and the jobs that have something to do, as files show.
Opener = Callable[[int, "Sequence[Job]"], AbstractContextManager[Engine]]
