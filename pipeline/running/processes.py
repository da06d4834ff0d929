"""Several processes for one stage: those that torchrun started, or that INFOTOK_PROCESSES asks for."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

from infotok.errors import InfotokError
from pipeline.config.study import Study
from pipeline.graph import STAGES

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

    from infotok.distributed import World

VARIABLE = "INFOTOK_PROCESSES"
ANNOUNCING = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
DONE, GO = b"done", b"go"
JOINING = 300.0  # seconds within which all processes must have started
STEP = 5.0  # seconds that one try to connect takes, in which no signal is heard
POLL = 0.1


def wanted() -> int:
    """How many processes INFOTOK_PROCESSES asks for; 1 without it, and where they run already.

    Raises:
        InfotokError: it is no number of processes.
    """
    text = os.environ.get(VARIABLE) or "1"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InfotokError(f"{VARIABLE}: '{text}' is no number of processes; set it to 1 or more, or unset it")
    return 1 if os.environ.get("WORLD_SIZE") else int(text)


def launch(stage: str, options: list[str], count: int) -> None:
    """Run `python -m stages.<stage>` in processes of this machine, as torchrun does, until all have ended.

    Raises:
        SystemExit: one has failed and the others were ended; with its exit code.
        InfotokError: one was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the process that fails says why itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(1, 1, count, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=stage, max_restarts=0)
    try:
        elastic_launch(config, sys.executable)("-m", f"stages.{stage}", *options)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise InfotokError(
                f"process {rank} of {count} was killed by signal {-failure.exitcode}; training goes on from its last "
                "checkpoint when it is started again"
            ) from None
        raise SystemExit(failure.exitcode) from None
    except SignalException as error:  # the processes have been ended
        raise SystemExit(128 + error.sigval) from None


def joined(stage: str, study: Study) -> Processes | None:
    """The processes of torchrun that this one belongs to; None where it is alone.

    Raises:
        InfotokError: the variables that announce them contradict each other, or the processes cannot share the stage's
            batch evenly.
    """
    if not STAGES[stage].shared or (group := announced()) is None:
        return None
    check_batch(stage, study, group.size)
    return Processes(group)


@dataclass(frozen=True)
class Group:
    """Processes as torchrun announces them. agent: torchrun itself keeps the store by which they meet."""

    rank: int
    size: int
    host: str
    port: int
    agent: bool


def announced() -> Group | None:
    """What WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT say; None where no or one process is announced.

    Raises:
        InfotokError: they are no such numbers, or not all are set.
    """
    size = _number("WORLD_SIZE", "1", 1, 2**31)
    if size == 1:
        return None
    return Group(
        rank=_number("RANK", "", 0, size - 1),
        size=size,
        host=os.environ.get("MASTER_ADDR") or _contradiction("MASTER_ADDR", "is not set"),
        port=_number("MASTER_PORT", "", 1, 65535),
        agent=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _number(variable: str, default: str, least: int, most: int) -> int:
    text = os.environ.get(variable) or default
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        _contradiction(variable, f"'{text}' is not from {least} to {most}" if text else "is not set")
    return int(text)


def _contradiction(variable: str, problem: str) -> NoReturn:
    size = "" if variable == "WORLD_SIZE" else f", while WORLD_SIZE is {os.environ.get('WORLD_SIZE')}"
    raise InfotokError(
        f"{variable}: {problem}{size}; for one process unset {', '.join(ANNOUNCING)}, "
        "for several start the stage by torchrun"
    )


class Processes:
    """The processes that run one stage together, this one among them.

    The first holds the stage's lock, computes what one process computes alone, and writes all results.
    """

    def __init__(self, group: Group):
        """Meet the others.

        Raises:
            InfotokError: they did not all come within JOINING seconds.
        """
        self.rank, self.size = group.rank, group.size
        self._store = _meet(group)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, done: bool) -> None:
        """Let the others go on, or say that another run has done the work."""
        self._store.set("lock", DONE if done else GO)

    def hear(self) -> bool:
        """Wait for the first process, which may wait long for the lock; returns whether the work is done."""
        while not self._store.check(["lock"]):  # its own waiting would not hear signals
            time.sleep(POLL)
        return self._store.get("lock") == DONE

    def join(self, device: torch.device) -> World:
        """Connect the processes for computing on a device each."""
        from infotok.distributed import join

        return join(self._store, self.rank, self.size, device)

    def leave(self) -> None:
        """Disconnect."""
        from infotok.distributed import leave

        leave()


def _meet(group: Group) -> Store:
    """The store by which processes talk, once all of them are connected to it. Waits in steps, between which signals
    are heard."""
    from torch.distributed import DistStoreError, PrefixStore, TCPStore

    deadline, told, store = time.monotonic() + JOINING, False, None
    where = f"{group.host}:{group.port}"
    while True:
        try:
            if store is None:
                keeps = group.rank == 0 and not group.agent
                if not keeps:  # a store that cannot be reached writes into the terminal
                    socket.create_connection((group.host, group.port), timeout=STEP).close()
                tcp = TCPStore(
                    group.host, group.port, is_master=keeps, timeout=timedelta(seconds=STEP), wait_for_workers=False
                )
                store = PrefixStore(f"infotok/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", tcp)
                store.set(f"here/{group.rank}", "")
            missing = [rank for rank in range(group.size) if not store.check([f"here/{rank}"])]
            if not missing:
                tcp.set_timeout(timedelta(minutes=30))  # of what they do together
                return store
            waited_for = f"process {', '.join(map(str, missing))} of {group.size}"
        except (DistStoreError, OSError, RuntimeError) as error:
            if "EADDRINUSE" in str(error) or "address already in use" in str(error):
                raise InfotokError(f"MASTER_PORT: {group.port} is in use on this machine; name a free one") from None
            store, waited_for = None, f"process 0 of {group.size}"
        if time.monotonic() > deadline:
            raise InfotokError(
                f"{waited_for} did not come to {where} within {JOINING:.0f} s, as WORLD_SIZE, RANK, MASTER_ADDR and "
                "MASTER_PORT announce; start all of them, or unset these for one process"
            )
        if not told and time.monotonic() > deadline - JOINING + STEP:
            print(
                f"process {group.rank} waits for {waited_for} at {where}; where none will come, unset "
                f"{', '.join(ANNOUNCING)}",
                file=sys.stderr,
                flush=True,
            )
            told = True
        time.sleep(POLL)


def check_batch(stage: str, study: Study, count: int) -> None:
    """Raises InfotokError where `count` processes do not divide the batch of a stage."""
    batch = getattr(study.params, stage).batch
    if batch % count:
        raise InfotokError(
            f"{study.params_file}: '{stage}.batch' is {batch}, which {count} processes cannot share evenly; "
            f"make it a multiple of {count}, or start another number of processes"
        )
