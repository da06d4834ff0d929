"""A mirror of the results in MLflow that can be rebuilt at any time.

What counts lies in the DVC outputs `metrics.json` and `history.jsonl`. Stages log live, and `rebuild` fills
in whatever a stage did not log: it was restored from DVC's cache, or the store was away, locked or deleted.
A stage never fails because of MLflow: it warns once and goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infotok.errors import InfotokError
from pipeline.config.cells import Cell
from pipeline.config.recipes import fingerprint
from pipeline.config.study import Study, stage_key
from pipeline.results import HISTORY, METRICS
from pipeline.tracking.store import SQLITE, WITH_HISTORY, Run, Store, now, read_stored, store_uri

log = logging.getLogger("infotok")

FEW = 5  # cells whose runs are asked for one by one
FLUSH_METRICS, FLUSH_SECONDS = 100, 2.0
REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")  # MLflow's codes of errors that are of one value, not of the store


def enabled(stage: str | None = None) -> bool:
    """Whether a stage, or this program at all, logs to MLflow.

    INFOTOK_TRACKING=off in the environment turns it off; INFOTOK_TRACKING=training leaves it to the stages that have
    something to log while they run, as `infotok sweep` does: it fills in the others itself, and each of them is
    spared the two seconds that importing MLflow takes.
    """
    mode = os.environ.get("INFOTOK_TRACKING", "").lower()
    if mode == "training":
        return stage is None or stage in WITH_HISTORY
    return mode != "off"


def initialise(study: Study) -> str | None:
    """Create the database, the experiment and its saved view; safe from several processes at once.

    Returns:
        The experiment's id, or None (after a warning) when the store cannot be used or tracking is off.
    """
    try:
        return Store(study).experiment if enabled() else None
    except Exception as error:
        log.warning("MLflow's store %s cannot be used (%s)", store_uri(study), _brief(error))
        return None


@contextmanager
def track_stage(study: Study, cell: Cell | None, stage: str) -> Iterator[Tracker]:
    """Log one stage live into its run; whatever goes wrong with MLflow is one warning.

    Args:
        cell: the stage's cell, of a tokenizer any that shares it; None for the stages that belong to no cell (prepare,
            judge, perceptual).
        stage: the stage's name. One that MLflow has no run of logs nothing.
    """
    tracker = Tracker(study, cell, stage)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)


def rebuild(study: Study, cells: list[Cell] | None = None) -> int:
    """Fill in what the store does not show yet, from the results on disk; idempotent.

    Results of another configuration, and those that MLflow refuses, are left out with a warning.

    Args:
        cells: the cells to look at, by default all of the grid.

    Returns:
        The number of stages filled in; 0 when tracking is off.

    Raises:
        InfotokError: the store cannot be used.
    """
    if not enabled():
        return 0
    filled = 0
    try:
        store, cells = Store(study), study.params.cells() if cells is None else cells
        if len(cells) > FEW:
            store.remember()
        for stage, cell, folder in _results(study, cells):
            try:
                filled += _fill(store, stage, cell, folder)
            except Exception as error:
                if getattr(error, "error_code", None) not in REFUSED:
                    raise
                log.warning("%s: is left out of MLflow, which refuses it (%s)", folder / METRICS, _brief(error))
    except Exception as error:
        uri = store_uri(study)
        remedy = "is the server up?"
        if uri.startswith(SQLITE):
            # Not by deleting: the file may hold what other studies and other programs have logged.
            remedy = "to fill in another file: `MLFLOW_TRACKING_URI=sqlite:///other.db infotok track`"
        raise InfotokError(f"{uri}: cannot be used as MLflow's store ({_brief(error)}); {remedy}") from None
    return filled


def fill_in(study: Study, cells: list[Cell]) -> bool:
    """`rebuild` of these cells where a store that cannot be used is a warning: a sweep goes on without it. Says whether
    it could be used."""
    try:
        rebuild(study, cells)
    except InfotokError as error:
        log.warning("%s", error)
        return False
    return True


class Tracker:
    """One running stage, as `track_stage` yields it. No method raises on account of MLflow."""

    def __init__(self, study: Study, cell: Cell | None, stage: str):
        self._run: Run | None = None
        self._label = f"{stage} {cell.key}" if cell else stage
        self._quiet = cell is None or stage not in study.graph.tracked or not enabled(stage)
        self._points: list[tuple[int, dict[str, float], int]] = []
        self._sent = time.monotonic()
        self._try(lambda: self._open(study, cell, stage))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep one step's metrics, sent every 2 s or 100 metrics. Names without a group get the stage's."""
        if self._quiet:
            return
        self._points.append((step, metrics, now()))
        waiting = sum(len(metrics) for _, metrics, _ in self._points)
        if waiting >= FLUSH_METRICS or time.monotonic() - self._sent >= FLUSH_SECONDS:
            self._try(self._flush)

    def finish(self, result: dict, images: dict[str, Path] | None = None) -> None:
        """Log the content of the stage's metrics.json, and images as `samples/<name>.png`."""
        self._try(self._flush)
        self._try(lambda: self._run.finish(result, images or {}))

    def close(self, status: str) -> None:
        """Send what is left and set the run's status: FINISHED, FAILED or KILLED."""
        self._try(self._flush)
        self._try(lambda: self._run.client.set_terminated(self._run.id, status))

    def _open(self, study: Study, cell: Cell | None, stage: str) -> None:
        self._run = Store(study).run(stage, cell, fresh=stage in WITH_HISTORY)
        self._run.client.update_run(self._run.id, status="RUNNING")

    def _flush(self) -> None:
        points, self._points, self._sent = self._points, [], time.monotonic()
        self._run.history(points)

    def _try(self, action: Callable[[], None]) -> None:
        if self._quiet:
            return
        try:
            action()
        except Exception as error:  # whatever a broken store raises, training goes on
            self._quiet = True
            log.warning(
                "MLflow no longer mirrors %s (%s); the stage goes on, `infotok track` fills it in later",
                self._label,
                _brief(error),
            )


def pictures(folder: Path) -> dict[str, Path]:
    """The PNG files that a stage left, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.png"))}


def _results(study: Study, cells: list[Cell]) -> Iterator[tuple[str, Cell, Path]]:
    """Every stage of these cells that MLflow shows, with the folder of its result."""
    for stage in study.graph.tracked:
        for cell in {stage_key(stage, cell): cell for cell in cells}.values():
            yield stage, cell, study.output(stage, cell)


def _fill(store: Store, stage: str, cell: Cell, folder: Path) -> bool:
    """Log one stage's result unless the store shows it; says whether it did."""
    if (result := read_stored(folder)) is None:
        return False
    if result["fingerprint"] != fingerprint(store.study, stage, cell):
        log.warning("%s: is from another configuration; left out of MLflow", folder / METRICS)
        return False
    found = store.find(stage, cell)
    if found and found.shows(result):
        return False
    run = store.run(stage, cell, fresh=stage in WITH_HISTORY)
    run.history(_history(folder))
    run.finish(result, pictures(folder))
    run.client.set_terminated(run.id)
    return True


def _history(folder: Path) -> list[tuple[int, dict[str, float], int]]:
    """The steps of history.jsonl; none without such a file, or (after a warning) if it is damaged."""
    path, at = folder / HISTORY, now()
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(line.pop("step"), line, at) for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, AttributeError):
        log.warning("%s: is damaged; left out of MLflow", path)
        return []


def _brief(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
