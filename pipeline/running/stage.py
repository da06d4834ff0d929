"""One stage at work: what it may read, its lock, its checkpoints, its progress, its result."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infotok.distributed import ALONE, World
from infotok.errors import InfotokError
from infotok.files import remove_leftovers, write_text
from infotok.options import Section
from infotok.training.checkpoints import Checkpoints
from pipeline.config.cells import Cell
from pipeline.config.recipes import fingerprint, source_digest
from pipeline.config.study import Study, stage_key
from pipeline.graph import STAGES, Spec
from pipeline.locks import try_lock, wait_for_lock
from pipeline.results import HISTORY, METRICS, read_result, write_result
from pipeline.running import progress
from pipeline.tracking.mirror import Tracker, pictures, track_stage

if TYPE_CHECKING:
    import torch

    from infotok.mllm.options import ModelConfig
    from pipeline.running.processes import Processes

log = logging.getLogger("infotok")
errors = Console(stderr=True, soft_wrap=True, highlight=False)
SHOWN = ("loss", "understanding", "generation", "reconstruction", "rate_bits")  # in the progress line

Config = TypeVar("Config", bound=Section)


class Stage:
    """One running stage."""

    def __init__(self, spec: Spec, study: Study, cell: Cell | None, tracker: Tracker, processes: Processes | None):
        self.spec, self.study, self.tracker, self.processes = spec, study, tracker, processes
        self._cell = cell
        self.folder = study.output(spec.name, cell)
        self.source = source_digest(study, spec.name, cell)
        self.label = " ".join(part for part in (spec.name, stage_key(spec.name, cell)) if part)
        self.warnings: list[str] = []
        self.started = time.monotonic()
        self._steps, self._progress, self._task = 0, None, None
        if self.first:
            progress.leave(spec.name)

    @property
    def cell(self) -> Cell:
        """The cell of a stage that has axes."""
        if self._cell is None:
            raise LookupError(f"stage {self.spec.name} runs once and has no cell")
        return self._cell

    @property
    def first(self) -> bool:
        """Whether this process is the one of the stage's processes that writes."""
        return self.processes is None or self.processes.first

    def config(self, kind: type[Config]) -> Config:
        """The section of params.yaml of this type. A stage reads the sections that the table of stages names, on which
        it depends, and no others."""
        for name in self.spec.sections:
            if isinstance(section := getattr(self.study.params, name), kind):
                return section
        raise LookupError(f"stage {self.spec.name} does not name a section {kind.__name__} in pipeline/graph.py")

    @property
    def model(self) -> ModelConfig:
        """The pretrained model of this stage's cell, of the section `models`."""
        if "models" not in self.spec.sections:
            raise LookupError(f"stage {self.spec.name} does not name the section models in pipeline/graph.py")
        return self.study.params.models[self.cell.family]

    def input(self, stage: str) -> Path:
        """The output folder of another stage, which must be one of this stage's inputs."""
        if stage not in self.spec.inputs:
            raise LookupError(f"stage {self.spec.name} does not name the input {stage} in pipeline/graph.py")
        return self.study.output(stage, self._cell)

    def remedy(self, stage: str) -> str:
        """What to do where an input is missing or damaged, which must be one of this stage's inputs."""
        if stage not in self.spec.inputs:
            raise LookupError(f"stage {self.spec.name} does not name the input {stage} in pipeline/graph.py")
        return self.study.remedy(stage, self._cell)

    def join(self, device: torch.device) -> World:
        """Connect the processes that run this stage together; says so where one was to share weights with others."""
        if self.processes is not None:
            return self.processes.join(device)
        for name in self.spec.sections:
            if getattr(getattr(self.study.params, name), "parallel", "") == "shard":
                errors.print(
                    f"{self.label}: {name}.parallel: shard changes nothing for one process; INFOTOK_PROCESSES or "
                    "torchrun starts several",
                    markup=False,
                )
        return ALONE

    def checkpoints(self) -> Checkpoints:
        """Where this stage keeps its resumable state; says so where there is some to go on from."""
        # By the code too: weights of two states of it in one training would pass as those of the second.
        mark = f"{fingerprint(self.study, self.spec.name, self._cell)}-{self.source}"
        kept = Checkpoints(self.study.checkpoints(self.spec.name, self._cell, mark))
        if self.first and (path := kept.latest()):
            errors.print(f"{self.label}: goes on from {path}", markup=False)
        return kept

    def warn(self, message: str) -> None:
        """Log a warning and keep it in the result, where MLflow and the report show it."""
        log.warning("%s: %s", self.label, message)
        self.warnings.append(message)

    def observe(self, step: int, values: dict[str, float]) -> None:
        """Show and track the values of one logged training step."""
        progress.leave(self.spec.name, step, self._steps)
        self.tracker.log(step, {f"{self.spec.group}/{name}": value for name, value in values.items()})
        if self._progress is not None and self._task is not None:
            text = "  ".join(f"{name} {values[name]:.3g}" for name in SHOWN if name in values)
            self._progress.update(self._task, completed=step, values=text)

    @contextmanager
    def progress(self, steps: int, beside: bool = False) -> Iterator[None]:
        """A progress line while training; nothing when the output is not a terminal, or others train beside it."""
        self._steps = steps
        if not errors.is_terminal or not self.first or beside:
            yield
            return
        columns = [TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, TextColumn("{task.fields[values]}"), console=errors) as self._progress:
            self._task = self._progress.add_task(self.label, total=steps, values="")
            yield
        self._progress = None

    def finish(self, metrics: dict[str, float], protocol: dict, history: list[dict] | None = None) -> dict:
        """Write history.jsonl and, last of all, metrics.json, which makes the result valid; mirror it in MLflow."""
        name = self.spec.name
        if history is not None:
            group = self.spec.group
            lines = [{k if k == "step" else f"{group}/{k}": v for k, v in line.items()} for line in history]
            write_text(self.folder / HISTORY, "".join(json.dumps(line) + "\n" for line in lines))
        result = write_result(
            self.study,
            name,
            self._cell,
            source=self.source,
            metrics=metrics,
            protocol=protocol,
            warnings=self.warnings,
        )
        write_text(self.study.duration_file(name, self._cell), f"{time.monotonic() - self.started:.2f}\n")
        self.tracker.finish(result, pictures(self.folder))
        return result


@contextmanager
def running(stage: str, study: Study, cell: Cell | None, processes: Processes | None = None) -> Iterator[Stage | None]:
    """Run one stage alone in its cell.

    A second process for the same stage and cell waits for the first (training goes on when its parent is killed), and
    yields None when that one has finished the work. processes: those that share the stage, where there are several.
    """
    spec = STAGES[stage]
    if "prepare" in spec.inputs and not (study.data / METRICS).is_file():
        raise InfotokError(f"{study.data}: holds no prepared data; run `{study.repro_of('prepare')}`")
    if processes is not None and not processes.first:
        if processes.hear():
            yield None
            return
        with track_stage(study, None, stage) as silent:
            yield Stage(spec, study, cell, silent, processes)
        processes.leave()
        return
    with _alone(study, stage, cell) as waited:
        done = waited and _is_done(study, stage, cell)
        if processes is not None:
            processes.tell(done)
        if done:
            yield None
            return
        remove_leftovers(study.output(stage, cell))
        with track_stage(study, cell, stage) as tracker:
            yield Stage(spec, study, cell, tracker, processes)
        if processes is not None:
            processes.leave()


def _is_done(study: Study, stage: str, cell: Cell | None) -> bool:
    try:
        read_result(study, stage, cell)
    except InfotokError:
        return False
    return True


@contextmanager
def _alone(study: Study, stage: str, cell: Cell | None) -> Iterator[bool]:
    """Hold the lock of one stage and cell; yields whether another process held it first."""
    path = study.lock_file(stage, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:
        waited = not try_lock(lock)
        if waited:
            print(f"{stage} {stage_key(stage, cell)} is running in another process; waiting for it", file=sys.stderr)
            wait_for_lock(lock)
        yield waited
