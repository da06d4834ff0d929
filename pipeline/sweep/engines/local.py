"""Jobs side by side on this machine, each a `dvc repro --single-item` in this checkout (`pipeline.sweep.repro`), or the
training of several cells in one process (`stages.together`)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from pipeline.config.study import Study
from pipeline.graph import CONFIGURE
from pipeline.running import progress
from pipeline.running.worker import worker
from pipeline.sweep.dvc_lock import DvcLock, dvc_lock
from pipeline.sweep.engines.devices import VARIABLE, Devices
from pipeline.sweep.engines.engine import Ended, Submitted
from pipeline.sweep.jobs import Job, environment
from pipeline.sweep.processes import start, stop


class Running(Submitted):
    """A job's process, and the GPUs that it has."""

    process: subprocess.Popen
    devices: list[str]


class Local:
    """`dvc --wait-for-lock repro --single-item` takes DVC's lock only around its bookkeeping, so that jobs run side by
    side, and leaves dvc.lock to the sweep; results equal those of one `dvc repro`. Training logs to MLflow as it goes.

    workers: how many jobs at once. options: more of `dvc repro`, such as `--pull`. lock: the sweep's, which the jobs
    hold too. variables: more of their environment.
    """

    def __init__(
        self,
        study: Study,
        workers: int,
        devices: Devices,
        entries: DvcLock,
        options: Sequence[str] = (),
        lock: int = -1,
        variables: dict[str, str] | None = None,
    ):
        self.study, self.workers, self.devices, self.entries = study, workers, devices, entries
        self.options, self.lock, self.variables = options, lock, variables or {}
        self._running = 0

    def submit(self, job: Job) -> Running | None:
        if self._running == self.workers or (devices := self.devices.take()) is None:
            return None
        one = Running(job, self.study.scratch / "logs")
        one.devices = devices
        variables = environment() | self.variables | {progress.VARIABLE: str(one.path.absolute())}
        variables |= {VARIABLE: ",".join(devices)} if devices else {}
        one.process = start(self._command(job), one.log, self.lock, variables)
        self._running += 1
        return one

    def _command(self, job: Job) -> list[str]:
        python = [sys.executable, "-m"]
        if job.ahead:
            most = [] if job.most is None else ["--most", str(job.most)]
            return [
                *python,
                "stages.together",
                *self.study.options,
                *most,
                *(cell.key for _, cell in job.stages if cell),
            ]
        entries = str(self.entries.lend(job.name, job.targets))
        return [*python, "pipeline.sweep.repro", entries, str(self.study.dvc_file), *self.options, *job.targets]

    def poll(self, one: Running) -> Ended | None:
        self.entries.add_from_time_to_time()
        if one.process.poll() is None:
            return None
        one.path.unlink(missing_ok=True)
        self.devices.give_back(one.devices)
        self._running -= 1
        return Ended(one.process.returncode)

    def cancel(self, running: Sequence[Running]) -> None:
        stop((one.process, one.log) for one in running)


@contextmanager
def local(
    lock: int,
    ahead: Sequence[Job],
    *,
    study: Study,
    workers: int,
    options: Sequence[str] = (),
    gpus: float | None = None,
) -> Iterator[Local]:
    """Open the engine, with a worker that forks its stages where there is something to do.

    Raises:
        InfotokError: `gpus`, the share of GPUs of a job, is not to be had.
    """
    devices = Devices.here(gpus)
    forking = worker() if any(job.name != CONFIGURE.name for job in ahead) else nullcontext({})
    with forking as variables, dvc_lock(study) as entries:
        yield Local(study, workers, devices, entries, options, lock, variables)
