"""Jobs of Slurm, by submitit. The checkout lies on a file system that the machines of the partition share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infotok.errors import InfotokError
from pipeline.locks import wait_for_lock
from pipeline.sweep.engines import task
from pipeline.sweep.engines.checkout import Checkout
from pipeline.sweep.engines.devices import check_share
from pipeline.sweep.engines.engine import Ended, Submitted, killed
from pipeline.sweep.jobs import Job

MINUTES, WARNING = 240, 120  # time of a job, and seconds before its end in which it writes a checkpoint
REQUEUED = 100  # times that a job may be queued again as its time was up
LOST = (
    "NODE_FAIL",
    "BOOT_FAIL",
    "PREEMPTED",
    "TIMEOUT",
    "REVOKED",
    "INTERRUPTED",
    "FINISHED",
)  # the last two are of submitit's `local`
POLL = 0.2  # seconds


class Running(Submitted):
    """A job of Slurm. ended: the file that says its exit code."""

    submitted: Any
    ended: Path


class Task:
    """What submitit sends: runs the program of `pipeline.sweep.engines.task`, and leaves its exit code in a file. When
    Slurm warns that the time is up, or the job is to make room, submitit calls `checkpoint` and queues it again."""

    _process: int = 0

    def __init__(self, program: str, order: dict, ended: str):
        self.program, self.order, self.ended = program, order, ended

    def __call__(self) -> int:
        process = subprocess.Popen([sys.executable, "-c", self.program, json.dumps(self.order)], stdin=subprocess.PIPE)
        assert process.stdin is not None
        self._process, self._open = process.pid, process.stdin
        while (code := process.poll()) is None:  # not `wait`, in which a signal's handler could not wait too
            time.sleep(POLL)
        with open(f"{self.ended}.tmp", "w") as file:
            file.write(str(code))
        os.replace(f"{self.ended}.tmp", self.ended)
        return code

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        self._open.close()  # which tells the program to end its stage with a checkpoint
        os.waitid(os.P_PID, self._process, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self.program, self.order, self.ended))


class Slurm:
    """most: jobs at once, in the queue or running; None for all that are ready. executor: submitit's."""

    def __init__(self, checkout: Checkout, executor: Any, most: int | None):
        self.checkout, self.executor, self.most = checkout, executor, most
        from submitit.core.utils import FailedJobError

        self._refused = FailedJobError
        self._running = 0
        self._program = Path(task.__file__).read_text()

    def submit(self, job: Job) -> Running | None:
        if self._running == self.most:
            return None
        one = Running(job, self.checkout.study.scratch / "logs")
        one.ended = one.log.with_suffix(".ended").absolute()
        one.ended.unlink(missing_ok=True)
        order = self.checkout.order(job, one.log.absolute(), one.path.absolute())
        try:
            one.submitted = self.executor.submit(Task(self._program, order, str(one.ended)))
        except self._refused as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            raise InfotokError(f"--slurm: sbatch refuses the job ({said[-1].strip()})") from None
        one.place = f"job {one.submitted.job_id}"
        self._running += 1
        return one

    def poll(self, one: Running) -> Ended | None:
        done = one.submitted.done()
        if not (ended := _code(one.ended)) and not done:
            return None
        ended = ended or self._without_code(one)
        one.path.unlink(missing_ok=True)
        self._running -= 1
        return ended

    def _without_code(self, one: Running) -> Ended:
        """Of a job that Slurm says has ended, and that wrote no exit code, at least none that is to be seen yet."""
        time.sleep(POLL)
        if ended := _code(one.ended):
            return ended
        state = one.submitted.state
        if state.split()[0] in LOST:
            return Ended(1, lost=f"Slurm says {state}")
        with open(one.log, "a") as log:
            log.write(f"error: Slurm says {state} of job {one.submitted.job_id}; {one.submitted.paths.stderr}\n")
        return Ended(1)

    def cancel(self, running: Sequence[Running]) -> None:
        for one in running:
            one.submitted.cancel(check=False)
        for one in running:
            while not one.submitted.done(force_check=True):
                time.sleep(POLL)
            if one.log.exists():
                with open(one.log, "a") as log:  # which the last process of the job holds
                    wait_for_lock(log)


def _code(file: Path) -> Ended | None:
    try:
        code = int(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return Ended(code, lost=killed(code))


@contextmanager
def slurm(
    lock: int,
    ahead: Sequence[Job],
    *,
    checkout: Checkout,
    most: int | None = None,
    gpus: float | None = None,
    settings: Sequence[str] = (),
    executor: str = "slurm",
) -> Iterator[Slurm]:
    """settings: of sbatch, `<option>=<value>`. gpus: of a job, whole ones. executor: submitit's kind; `local` runs the
    jobs on this machine.

    Raises:
        InfotokError: submitit is not installed; there is no Slurm; a setting is none; gpus are no whole number.
    """
    check_share(gpus)
    if gpus is not None and gpus < 1:
        raise InfotokError(
            f"--gpus-per-cell: {gpus:g} of a GPU is nothing that Slurm gives out; give 1 or more, or share GPUs within "
            "an allocation, by `--engine local` or a Ray cluster there"
        )
    try:
        import cloudpickle
        import submitit
    except ImportError:
        raise InfotokError("--engine slurm: submitit is not installed; `pip install -r requirements.lock`") from None
    if executor == "slurm" and (missing := [name for name in ("sbatch", "sacct") if shutil.which(name) is None]):
        raise InfotokError(f"--engine slurm: there is no {missing[0]} here; start the sweep where Slurm's commands are")
    cpus = int(os.environ.get("INFOTOK_THREADS") or 1) * int(os.environ.get("INFOTOK_PROCESSES") or 1)
    made = submitit.AutoExecutor(
        folder=str((checkout.study.scratch / "slurm").absolute()), cluster=executor, slurm_max_num_timeout=REQUEUED
    )
    made.update_parameters(
        name="infotok",
        cpus_per_task=cpus,
        gpus_per_node=None if gpus is None else int(gpus),
        timeout_min=MINUTES,
        slurm_signal_delay_s=WARNING,
        slurm_additional_parameters=dict(_setting(text) for text in settings),
    )
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)  # jobs start before they have a clone to import it from
    try:
        yield Slurm(checkout, made, most)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _setting(text: str) -> tuple[str, str | bool]:
    """`time=10:00:00` as option and value; an option alone is set."""
    name, equals, value = text.removeprefix("--").partition("=")
    if not name:
        raise InfotokError(f"--slurm: '{text}' is no option of sbatch; write them as partition=gpu")
    return name, value if equals else True
