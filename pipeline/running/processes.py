"""Several processes for one stage: those that torchrun started, or that INFOTOK_PROCESSES asks for."""

from __future__ import annotations

import logging
import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from infotok.errors import InfotokError
from pipeline.config.study import Study
from pipeline.graph import STAGES

if TYPE_CHECKING:
    import torch

    from infotok.distributed import World

VARIABLE = "INFOTOK_PROCESSES"
DONE, GO = b"done", b"go"


def wanted() -> int:
    """How many processes INFOTOK_PROCESSES asks for; 1 without it, and where they run already.

    Raises:
        InfotokError: it is no number of processes.
    """
    text = os.environ.get(VARIABLE) or "1"
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InfotokError(f"{VARIABLE}: '{text}' is no number of processes; set it to 1 or more, or unset it")
    return 1 if "WORLD_SIZE" in os.environ else int(text)


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
        InfotokError: the processes cannot share the stage's batch evenly.
    """
    if not STAGES[stage].shared or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    check_batch(stage, study, int(os.environ["WORLD_SIZE"]))
    return Processes()


class Processes:
    """The processes that run one stage together, this one among them.

    The first holds the stage's lock, computes what one process computes alone, and writes all results.
    """

    def __init__(self):
        from torch.distributed.rendezvous import rendezvous

        self._store, self.rank, self.size = next(rendezvous("env://"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, done: bool) -> None:
        """Let the others go on, or say that another run has done the work."""
        self._store.set("lock", DONE if done else GO)

    def hear(self) -> bool:
        """Wait for the first process, which may wait long for the lock; returns whether the work is done."""
        self._store.wait(["lock"], timedelta(days=365))
        return self._store.get("lock") == DONE

    def join(self, device: torch.device) -> World:
        """Connect the processes for computing on a device each."""
        from infotok.distributed import join

        return join(self._store, self.rank, self.size, device)

    def leave(self) -> None:
        """Disconnect."""
        from infotok.distributed import leave

        leave()


def check_batch(stage: str, study: Study, count: int) -> None:
    """Raises InfotokError where `count` processes do not divide the batch of a stage."""
    batch = getattr(study.params, stage).batch
    if batch % count:
        raise InfotokError(
            f"{study.params_file}: '{stage}.batch' is {batch}, which {count} processes cannot share evenly; "
            f"make it a multiple of {count}, or start another number of processes"
        )
