"""An MLflow store and the runs in it, as `pipeline.tracking.mirror` needs them.

One flat run per cell, found by its tags: kind (cell or tokenizer), cell, fingerprint and configuration
say what a run is; `logged.<stage>` and `source.<stage>` name the configuration and the code of the result it
shows; stage is the last one finished. Everything here raises what MLflow raises. mlflow takes 2 s to import,
so it is imported on first use.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from infotok.data.arrow import read_manifest
from infotok.errors import InfotokError
from pipeline.config.cells import Cell
from pipeline.config.recipes import fingerprint, parameters_of
from pipeline.config.study import Study, stage_key
from pipeline.graph import STAGES, ancestors
from pipeline.locks import try_lock
from pipeline.results import METRICS, parse_result
from pipeline.tracking.names import encoded
from pipeline.tracking.view import saved_view

log = logging.getLogger("infotok")

SQLITE = "sqlite:///"
BATCH = 1000  # metrics that one MLflow request may carry
PAGE = 1000  # runs that one may bring
LOCK_SECONDS = 60.0
EXPERIMENTS = (".dvc", "tmp", "exps")  # where DVC puts the copies in which experiments run
PROBE_SECONDS = 5.0
# A training run repeated from the start would mix two histories in one run, so it gets a new one.
WITH_HISTORY = [name for name, spec in STAGES.items() if spec.trains and spec.axes]
# Without these a store that is away would hold training up for minutes, and MLflow would report on its users.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def store_uri(study: Study) -> str:
    """Where MLflow keeps its runs: MLFLOW_TRACKING_URI, else `mlflow.db` in the repository's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{home(study)}/mlflow.db"


def home(study: Study) -> Path:
    """The repository's root; of a copy that `dvc exp run --temp` or a queue works in, and removes, the root of the
    repository that it is a copy of."""
    root = study.root.resolve()
    for folder in root.parents:
        if folder.parts[-3:] == EXPERIMENTS:
            return folder.parents[2]
    return root


@dataclass(frozen=True)
class Identity:
    """What makes a run the run of this stage and cell; `configuration` also tells studies apart."""

    kind: str
    key: str
    fingerprint: str
    configuration: str

    @classmethod
    def of(cls, study: Study, stage: str, cell: Cell) -> Identity:
        kind = "tokenizer" if stage == study.graph.tokenizer else "cell"
        basis = _basis(study, kind)
        mark = fingerprint(study, basis, cell)
        return cls(kind, stage_key(basis, cell), mark, f"{study.name}:{mark}")

    @property
    def name(self) -> str:
        return f"tokenizer-{self.key}" if self.kind == "tokenizer" else self.key


def _basis(study: Study, kind: str) -> str:
    """The stage whose configuration makes a run of this kind what it is."""
    return study.graph.tokenizer if kind == "tokenizer" else study.graph.trains


class Store:
    """An open MLflow store and this configuration's experiment. Its methods raise what MLflow raises."""

    def __init__(self, study: Study):
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        uri = store_uri(study)
        _probe(uri)
        from mlflow import MlflowClient

        for name in ("mlflow.tracking", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # They print errors, the first with a traceback, that are raised too.
        for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.study = study
        self._remembered: dict[tuple[str, ...], Any] | None = None
        # Several processes that create the same new database at once would crash.
        with _locked(study):
            self.client = MlflowClient(tracking_uri=uri)
            self.experiment = self._experiment(uri)

    def _experiment(self, uri: str) -> str:
        title = self.study.params.report.title
        found = self.client.get_experiment_by_name(title)
        if found is None:
            local = (home(self.study) / "mlartifacts").as_uri() if uri.startswith(SQLITE) else None
            made = self.client.create_experiment(title, artifact_location=local)
            found = self.client.get_experiment(made)
        elif found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        try:
            manifest = read_manifest(self.study.data)
        except InfotokError:  # nothing is prepared yet
            manifest = None
        for tag, value in saved_view(manifest).items():
            shown = json.loads(found.tags.get(tag, "{}"))
            if shown.get("state") != json.loads(value)["state"]:
                self.client.set_experiment_tag(found.experiment_id, tag, value)
        return found.experiment_id

    def remember(self) -> None:
        """Ask once for all runs of this study. From then on `find` answers as of now."""
        token, own = None, f"tags.configuration LIKE '{self.study.name}:%'"
        self._remembered = {}
        while True:
            page = self.client.search_runs([self.experiment], own, max_results=PAGE, page_token=token)
            for run in page:
                self._remembered.setdefault(_place(run.data.tags), run)
            if not (token := page.token):
                break

    def find(self, stage: str, cell: Cell) -> Run | None:
        """The run of this stage and cell under this configuration, if there is one."""
        if self._remembered is None:
            return self._search(stage, cell)
        identity = Identity.of(self.study, stage, cell)
        run = self._remembered.get((identity.kind, identity.key, identity.configuration))
        return Run(self, stage, cell, run) if run else None

    def _search(self, stage: str, cell: Cell) -> Run | None:
        identity = Identity.of(self.study, stage, cell)
        wanted = {"kind": identity.kind, "cell": identity.key, "fingerprint": identity.fingerprint}
        search = " and ".join(f"tags.{name} = '{value}'" for name, value in wanted.items())
        for run in self.client.search_runs([self.experiment], search):
            if run.data.tags.get("configuration") == identity.configuration:
                return Run(self, stage, cell, run)
        return None

    def run(self, stage: str, cell: Cell, *, fresh: bool = False) -> Run:
        """Find the run or create it. `fresh`: one that shows this stage already is put in MLflow's bin."""
        # Two stages of one cell that start at once must not make two runs.
        with _locked(self.study):
            found = self._search(stage, cell)
            if found and fresh and f"logged.{stage}" in found.tags:
                self.client.delete_run(found.id)
                found = None
            return found or Run(self, stage, cell, self._create(stage, cell))

    def _create(self, stage: str, cell: Cell):
        from mlflow.entities import Param

        identity = Identity.of(self.study, stage, cell)
        tags = {
            "cell": identity.key,
            "kind": identity.kind,
            "fingerprint": identity.fingerprint,
            "configuration": identity.configuration,
            "git": _commit(self.study.root.resolve()),
        }
        run = self.client.create_run(self.experiment, tags=tags, run_name=identity.name)
        settings = _settings(self.study, identity.kind, cell)
        params = [Param(name, str(value)) for name, value in settings.items()]
        self.client.log_batch(run.info.run_id, params=params)
        self._log_data(run.info.run_id)
        return run

    def _log_data(self, run: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        path = self.study.data / "manifest.json"
        if not path.exists():
            return
        content = path.read_bytes()
        data = Dataset(
            name=self.study.params.data.source,
            digest=hashlib.sha256(content).hexdigest()[:16],
            source_type="local",
            source=json.dumps({"uri": self.study.data.as_posix()}),
            profile=json.dumps(json.loads(content)),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(run, datasets=[DatasetInput(data, tags)])


class Run:
    """One stage's part of an MLflow run. Its methods raise what MLflow raises."""

    def __init__(self, store: Store, stage: str, cell: Cell, run):
        self.study, self.client, self.stage, self.cell = store.study, store.client, stage, cell
        self.id: str = run.info.run_id
        self.tags: dict[str, str] = run.data.tags
        self._steps: dict[str, set[int]] = {}
        self._uri = store_uri(store.study)

    def shows(self, result: dict) -> bool:
        """Whether this very result is in the store."""
        logged, source = self.tags.get(f"logged.{self.stage}"), self.tags.get(f"source.{self.stage}")
        return logged == result["fingerprint"] and source == result["source"]

    def history(self, points: list[tuple[int, dict[str, float], int]]) -> None:
        """Log (step, metrics, milliseconds) but for steps that are there already, as after a resume."""
        from mlflow.entities import Metric

        _probe(self._uri, create=False)
        fresh = []
        for step, metrics, at in points:
            for name, value in _numbers(metrics, self.stage).items():
                if name not in self._steps:
                    known = self.client.get_metric_history(self.id, name)
                    self._steps[name] = {metric.step for metric in known}
                if step not in self._steps[name]:
                    self._steps[name].add(step)
                    fresh.append(Metric(name, value, at, step))
        for start in range(0, len(fresh), BATCH):
            self.client.log_batch(self.id, metrics=fresh[start : start + BATCH])

    def finish(self, result: dict, images: dict[str, Path]) -> None:
        """Log a stage's metrics.json and images, and the tags that say so."""
        from mlflow.entities import Metric, RunTag
        from PIL import Image

        metrics = _numbers(result["metrics"], self.stage)
        if self.stage == self.study.graph.trains and (pretrained := self._pretrained()):
            metrics |= {f"pretrain/{name.removeprefix('pretrain/')}": v for name, v in pretrained.items()}
        for name, path in images.items():
            try:
                with Image.open(path) as image:
                    image.load()
                    self.client.log_image(self.id, image, artifact_file=f"samples/{name}.png")
            except OSError as error:
                log.warning("%s: is left out of MLflow (%s)", path, error)
        # `logged` goes last: a stage cut off before it is filled in again.
        tags = {
            "stage": self.stage,
            "warning": self._warnings(result),
            f"source.{self.stage}": result["source"],
            f"logged.{self.stage}": result["fingerprint"],
        }
        at = now()
        if f"logged.{self.stage}" in self.tags:
            # Of several values MLflow shows the last by the clock, which may have been set back since the earlier one.
            earlier = [point for name in metrics for point in self.client.get_metric_history(self.id, name)]
            at = max([at, *(point.timestamp + 1 for point in earlier)])
        self.client.log_batch(
            self.id,
            metrics=[Metric(name, value, at, 0) for name, value in metrics.items()],
            tags=[RunTag(name, value) for name, value in tags.items() if value],
        )

    def _warnings(self, result: dict) -> str:
        """All stages' warnings, `train: one, two; understand: three`; deletes a tag without any left."""
        tags = self.client.get_run(self.id).data.tags
        parts = [part for part in tags.get("warning", "").split("; ") if part]
        parts = [part for part in parts if not part.startswith(f"{self.stage}: ")]
        if result["warnings"]:
            parts.append(f"{self.stage}: " + ", ".join(w.replace("; ", ", ") for w in result["warnings"]))
        if not parts and "warning" in tags:
            self.client.delete_tag(self.id, "warning")
        return "; ".join(parts)

    def _pretrained(self) -> dict[str, float]:
        stage = self.study.graph.tokenizer
        found = read_stored(self.study.output(stage, self.cell))
        if not found or found["fingerprint"] != fingerprint(self.study, stage, self.cell):
            return {}
        return _numbers(found["metrics"], stage)


def read_stored(folder: Path) -> dict | None:
    """A stage's metrics.json; None when there is none, or (after a warning) when it is damaged."""
    path = folder / METRICS
    try:
        result = parse_result(path.read_text(encoding="utf-8"))
        return {name: result[name] for name in ("fingerprint", "source", "metrics", "warnings")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s: is damaged; left out of MLflow", path)
        return None


def _place(tags: dict[str, str]) -> tuple[str, ...]:
    """What an `Identity` is known by."""
    return tuple(tags.get(name, "") for name in ("kind", "cell", "configuration"))


def _settings(study: Study, kind: str, cell: Cell) -> dict:
    """The run's params: the axes, then the shared settings its fingerprint depends on."""
    settings = {"family": cell.family, "tokens": cell.tokens, "seed": cell.seed}
    if kind == "cell":
        settings = cell.as_dict()
        if cell.beta > 0:
            settings["log10_beta"] = round(math.log10(cell.beta), 4)
    for stage in ancestors(_basis(study, kind)):
        for section, values in parameters_of(study, stage, cell).items():
            settings |= {f"{section}.{name}": value for name, value in values.items()}
    return settings


def _numbers(metrics: dict, stage: str) -> dict[str, float]:
    """Metrics that are finite numbers, as floats, under names that MLflow takes; one without a group gets the stage in
    front.

    MLflow would store infinity as 1.8e308, which ruins a chart's axis.
    """
    numbers = {name: float(value) for name, value in metrics.items() if hasattr(value, "__float__")}
    named = {
        name if "/" in name else f"{STAGES[stage].group}/{name}": v for name, v in numbers.items() if math.isfinite(v)
    }
    return {encoded(name): value for name, value in named.items()}


def _probe(uri: str, create: bool = True) -> None:
    """Fail within 5 s on a local store that cannot be written, or that is gone where it is not to be made; MLflow would
    try for a minute, or write on into a file that was deleted."""
    if uri.startswith(SQLITE):
        path = quote(uri.removeprefix(SQLITE))
        address = f"file:{path}?mode={'rwc' if create else 'rw'}"
        with closing(sqlite3.connect(address, uri=True, timeout=PROBE_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ROLLBACK")


@contextmanager
def _locked(study: Study) -> Iterator[None]:
    """Hold this checkout's MLflow lock.

    Raises:
        TimeoutError: another process held it for a minute.
    """
    path = home(study) / ".ckpt" / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    with path.open("w") as file:
        while not try_lock(file):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} is held by another process")
            time.sleep(0.05)
        yield


@cache
def _commit(root: Path) -> str:
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "none"


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)
