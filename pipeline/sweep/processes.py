"""The processes of a sweep: one sweep a workspace, its jobs in process groups of their own, ended together."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infotok.errors import InfotokError
from pipeline.locks import try_lock, wait_for_lock


@contextmanager
def only_sweep(root: Path) -> Iterator[int]:
    """Hold the workspace's sweep lock; yields its file descriptor, which the jobs hold too.

    Raises:
        InfotokError: another sweep holds it, or a job that a killed one left running.
    """
    path = root / ".ckpt" / "sweep.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as lock:
        if not try_lock(lock):
            lock.seek(0)
            raise InfotokError(
                f"another sweep, process {lock.read().strip() or 'unknown'}, or a job that it left is running in this "
                "workspace; wait for it or end it"
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield lock.fileno()


def start(command: list[str], log: Path, lock: int, environment: dict[str, str]) -> subprocess.Popen:
    """Start a job that writes to a log of its own."""
    # Of a script's `infotok sweep &`. Unlike SIG_IGN, a handler is not handed on to the job, which `stop` interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    with open(log, "w") as output:
        # Whatever the job starts writes to the log too and keeps this lock, until the last of it has ended.
        try_lock(output)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,
            pass_fds=(lock,),
        )


def stop(jobs: Iterable[tuple[subprocess.Popen, Path]]) -> None:
    """Interrupt jobs, given with their logs, and wait until all that they started has ended, checkpoints written."""
    jobs = list(jobs)
    for process, _ in jobs:
        # Not SIGTERM, on which DVC would end before its stage.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    for process, log in jobs:
        process.wait()
        with open(log, "a") as output:
            wait_for_lock(output)


@contextmanager
def beside(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """Run a command while something else is done; at the end it has ended, by force where that raises."""
    process = subprocess.Popen(command, env=environment)
    try:
        yield process
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
