"""Jobs as tasks of a Ray cluster, which chooses the machine of each and the GPU.

The cluster must ask for Ray's token: its raylets listen on all interfaces, and who can reach them can run code there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from infotok.errors import InfotokError
from pipeline.sweep.engines import task
from pipeline.sweep.engines.checkout import Checkout
from pipeline.sweep.engines.devices import check_share
from pipeline.sweep.engines.engine import Ended, Submitted, killed
from pipeline.sweep.jobs import Job

LOOK = 1.0  # seconds between looks at the progress of jobs
CONNECT, ANSWER = 5.0, 60.0  # seconds to reach a cluster, and for it to say its state
TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
DOCS = "docs/several_machines.md shows how to start one"


class Running(Submitted):
    """A job's task. reference: Ray's, of what it returns."""

    reference: Any


class Ray:
    """most: jobs at once; None for as many as the cluster has room for. gpus, cpus: of a job."""

    def __init__(self, checkout: Checkout, most: int | None, gpus: float, cpus: int):
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.checkout, self.most = ray, checkout, most
        self._running = 0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._board = ray.remote(num_cpus=0, scheduling_strategy=here)(_board_class()).remote()
        self._asked: Any = None
        self._looked, self._told = 0.0, {}
        # The sweep itself submits again what a lost machine ran.
        self._run = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_function())
        self._program = Path(task.__file__).read_text()

    def submit(self, job: Job) -> Running | None:
        if self._running == self.most:
            return None
        one = Running(job, self.checkout.study.scratch / "logs")
        one.place = "waits for room"
        self._told.pop(one.name, None)
        order = self.checkout.order(job, log="", progress="")
        one.reference = self._run.options(name=job.name).remote(self._program, order, job.name, self._board)
        self._running += 1
        return one

    def poll(self, one: Running) -> Ended | None:
        self._look()
        if told := self._told.get(one.name):
            if one.place != told["place"]:
                one.place, one.started = told["place"], time.monotonic()
            one.path.write_text(json.dumps(told["progress"]))
        if not self.ray.wait([one.reference], timeout=0)[0]:
            return None
        one.path.unlink(missing_ok=True)
        self._running -= 1
        errors = self.ray.exceptions
        try:
            code, said = self.ray.get(one.reference)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            return Ended(1, lost=_first_sentence(error))
        except errors.RayError as error:
            one.log.write_text(f"error: {_first_sentence(error)}\n")
            return Ended(1)
        one.log.write_text(said)
        return Ended(code, lost=killed(code))

    def cancel(self, running: Sequence[Running]) -> None:
        references = [one.reference for one in running]
        for reference in references:
            self.ray.cancel(reference)
        if references:
            self.ray.wait(references, num_returns=len(references))

    def _look(self) -> None:
        """Read what the machines have told of their jobs, without waiting for it."""
        if self._asked is None and time.monotonic() - self._looked > LOOK:
            self._asked, self._looked = self._board.read.remote(), time.monotonic()
        elif self._asked is not None and self.ray.wait([self._asked], timeout=0)[0]:
            try:
                self._told = self.ray.get(self._asked)
            except self.ray.exceptions.RayError:  # the sweep goes on without the table's columns
                self._told = {}
            self._asked = None


def _board_class() -> type:
    """Ray sends what is defined in a function as it is, so that workers need no code of this project."""

    class Board:
        """Where the tasks tell how far they are."""

        def __init__(self) -> None:
            self.told: dict[str, dict] = {}

        def tell(self, name: str, place: str, progress: dict) -> None:
            self.told[name] = {"place": place, "progress": progress}

        def read(self) -> dict[str, dict]:
            return self.told

    return Board


def _function():
    """As of `_board_class`."""

    def run(program: str, order: dict, name: str, board: Any) -> tuple[int, str]:
        """Exit code and output of the program. A task that waited in `subprocess.run` could not be cancelled; between
        two looks of this one Ray raises KeyboardInterrupt."""
        import json
        import socket
        import subprocess
        import sys
        import tempfile
        import time
        from pathlib import Path

        with tempfile.TemporaryDirectory(prefix="infotok-") as folder:
            log, progress = Path(folder, "log"), Path(folder, "progress")
            order |= {"log": str(log), "progress": str(progress)}
            process = subprocess.Popen([sys.executable, "-c", program, json.dumps(order)], stdin=subprocess.PIPE)
            before = None
            try:
                while process.poll() is None:
                    told = progress.read_text() if progress.exists() else "{}"
                    if told != before:
                        board.tell.remote(name, socket.gethostname(), json.loads(told))
                        before = told
                    time.sleep(0.2)
            finally:
                process.stdin.close()  # which tells the program to end its stage with a checkpoint
                process.wait()
            return process.returncode, log.read_text(errors="replace")

    return run


def _first_sentence(error: Exception) -> str:
    return str(error).strip().splitlines()[0].split(". ")[0].rstrip(".") or type(error).__name__


@contextmanager
def cluster(
    lock: int, ahead: Sequence[Job], *, checkout: Checkout, most: int | None = None, gpus: float | None = None
) -> Iterator[Ray]:
    """Connect to the cluster that RAY_ADDRESS names, else to the one that this machine belongs to.

    gpus: of a job; without it one where the cluster has any.

    Raises:
        InfotokError: Ray is not installed; there is no cluster; it asks for no token, or for another one; none of its
            machines has what a job takes.
    """
    check_share(gpus)
    try:
        import ray
    except ImportError:
        raise InfotokError("--engine ray: Ray is not installed; `pip install -r requirements.lock`") from None
    _check_cluster()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with open(checkout.study.scratch / "logs" / "ray.log", "w") as log, redirect_stdout(log):  # of its machines
            try:
                ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InfotokError(
                    f"Ray refuses this machine ({_first_sentence(error)}); the sweep starts on a machine of the cluster"
                ) from None
            for number, handler in handlers.items():  # Ray sets its own
                signal.signal(number, handler)
            yield Ray(checkout, most, *_resources(ray, gpus))
    finally:
        ray.shutdown()


def _check_cluster() -> None:
    """
    Raises:
        InfotokError: as of `cluster`.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"at RAY_ADDRESS={address}" if address else "here (RAY_ADDRESS is not set)"
    if address.startswith("ray://"):
        raise InfotokError(f"RAY_ADDRESS: {address} is of Ray's client; start the sweep on a machine of the cluster")
    nobody = f"no Ray cluster answers {where}; {DOCS}"
    if address not in ("", "auto") and not _listens(address):
        raise InfotokError(nobody)
    others = {name: value for name, value in os.environ.items() if name not in TOKEN}
    # The token of the default file would be taken too, were the mode not named.
    own, without = (_status(e) for e in (os.environ, others | {"RAY_AUTH_MODE": "disabled"}))
    answers = [process.communicate()[0] for process in (own, without)]
    if without.returncode == 0:
        raise InfotokError(
            f"the Ray cluster {where} asks for no token, and its raylets listen on all interfaces, so that anybody who "
            "reaches them can run code there; stop it, `ray get-auth-token --generate`, and start it with "
            f"RAY_AUTH_MODE=token on every machine; {DOCS}"
        )
    refused = ["uthentication" in answer for answer in answers]
    if own.returncode == 0 and refused[1]:
        return
    if refused[0]:
        raise InfotokError(
            f"the Ray cluster {where} asks for its token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or "
            "RAY_AUTH_TOKEN) to the one that it was started with"
        )
    raise InfotokError(nobody)


def _listens(address: str) -> bool:
    """Whether anything listens there. Ray itself would try for the better part of a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT).close()
    except (OSError, ValueError):
        return False
    return True


def _status(environment: Any) -> subprocess.Popen:
    """`ray status`, started."""
    command = ["timeout", str(ANSWER), sys.executable, "-m", "ray.scripts.scripts", "status"]
    return subprocess.Popen(command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _resources(ray: Any, gpus: float | None) -> tuple[float, int]:
    """GPUs and CPUs of a job.

    Raises:
        InfotokError: no machine of the cluster has them.
    """
    cpus = int(os.environ.get("INFOTOK_THREADS") or 1) * int(os.environ.get("INFOTOK_PROCESSES") or 1)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus is None:
        gpus = float(any(machine.get("GPU", 0) >= 1 for machine in machines))
    if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
        raise InfotokError(
            f"a job takes {cpus} CPUs and {gpus:g} GPUs, which no machine of the Ray cluster has; --gpus-per-cell, "
            "INFOTOK_THREADS and INFOTOK_PROCESSES decide about it"
        )
    return gpus, cpus
