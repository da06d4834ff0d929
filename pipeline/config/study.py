"""A study: one params.yaml, and where its results lie.

The params.yaml in the repository's root is the study `default`; every other study is a folder of `studies/`, which
holds its own params.yaml and dvc.yaml. Results lie in `runs/<study>`, tables in `reports/<study>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from infotok.errors import InfotokError, SettingError
from pipeline.config.cells import Cell
from pipeline.graph import STAGES, Graph

if TYPE_CHECKING:
    from pipeline.config.params import AnyParams

DEFAULT = "default"
FOLDER = "studies"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MARKS = ("dvc.yaml", "params.yaml", "pipeline", "stages")  # what a checkout's root holds


def find_root() -> Path:
    """The checkout around the current directory, found upwards as git and DVC find theirs; else the one whose code this
    is."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if all((folder / mark).exists() for mark in MARKS):
            return folder
    return Path(__file__).resolve().parents[2]


def stage_key(stage: str, cell: Cell | None) -> str:
    """What tells one run of a stage from its others: the values of its axes, e.g. `ar-ceb-0.01-1-8-0`; a tokenizer
    serves all arms. Nothing for a stage that runs once."""
    return "-".join(str(getattr(cell, axis)) for axis in STAGES[stage].axes) if stage in STAGES else ""


def stage_name(stage: str, cell: Cell | None) -> str:
    """The stage as DVC names it, e.g. `train@ar-ceb-0.01-1-8-0`."""
    key = stage_key(stage, cell)
    return f"{stage}@{key}" if key else stage


@dataclass(frozen=True)
class Study:
    """The paths of one study, relative to `root`, the checkout, which commands make the current directory."""

    name: str = DEFAULT
    root: Path = Path()

    def __post_init__(self):
        """Raises InfotokError for a name that is no folder's name."""
        if not NAME.fullmatch(self.name):
            raise InfotokError(
                f"'{self.name}' cannot name a study; use letters, digits, '-', '_' and '.', as its folder in "
                f"{FOLDER}/ does"
            )

    @property
    def folder(self) -> Path:
        """Where params.yaml and dvc.yaml lie."""
        return self.root if self.name == DEFAULT else self.root / FOLDER / self.name

    @property
    def params_file(self) -> Path:
        return self.folder / "params.yaml"

    @property
    def dvc_file(self) -> Path:
        return self.folder / "dvc.yaml"

    @property
    def options(self) -> list[str]:
        """The words that name this study on a command line."""
        return [] if self.name == DEFAULT else ["--study", self.name]

    @property
    def repro(self) -> str:
        """The command that makes everything of this study."""
        return "dvc repro" if self.name == DEFAULT else f"dvc repro {FOLDER}/{self.name}/dvc.yaml"

    def repro_of(self, stage: str, cell: Cell | None = None) -> str:
        """The command that makes one stage of this study. Of a cell that the grid lacks DVC does not know: by hand."""
        if cell is not None and all(stage_key(stage, one) != stage_key(stage, cell) for one in self.params.cells()):
            axes = [f"--{axis} {getattr(cell, axis)}" for axis in STAGES[stage].axes]
            return " ".join(["infotok", stage, *self.options, *axes])
        prefix = "" if self.name == DEFAULT else f"{FOLDER}/{self.name}/dvc.yaml:"
        return f"dvc repro {prefix}{stage_name(stage, cell)}"

    def remedy(self, stage: str, cell: Cell | None = None) -> str:
        """What to do where the result of a stage is missing or damaged."""
        folder, again = self.output(stage, cell), f"run `{self.repro_of(stage, cell)}`"
        return f"delete {folder} and {again}" if folder.exists() else again

    @cached_property
    def params(self) -> AnyParams:
        """The parameters, checked.

        Raises:
            InfotokError: with file, line, key and remedy, for anything that a run could not use.
        """
        from pipeline.config.params import load_params

        if self.name != DEFAULT and not self.folder.is_dir():
            raise InfotokError(
                f"--study: there is no folder {FOLDER}/{self.name}; known: {', '.join(names(self.root))}; "
                f"make one with `infotok study {self.name}`"
            )
        return load_params(self.params_file)

    def located(self, error: SettingError) -> InfotokError:
        """A setting that cannot be used, with file and line: of its key, or of the section that has it by default."""
        from pipeline.config.yaml_file import YamlFile

        return InfotokError(f"{self.params_file}:{YamlFile(self.params_file).line(error.key)}: {error}")

    @property
    def graph(self) -> Graph:
        """The stages that this study has."""
        return self.params.graph

    @property
    def results(self) -> Path:
        return self.root / "runs" / self.name

    @property
    def reports(self) -> Path:
        return self.root / "reports" / self.name

    @property
    def data(self) -> Path:
        """The prepared data."""
        return self.output("prepare")

    def output(self, stage: str, cell: Cell | None = None) -> Path:
        """The output folder of a stage; `cell` is None for those that run once."""
        return self.results / stage / stage_key(stage, cell)

    def recipe(self, stage: str, cell: Cell | None = None) -> Path:
        """The file that says what a stage's result depends on."""
        name = f"{stage}/{key}" if (key := stage_key(stage, cell)) else stage
        return self.results / "recipes" / f"{name}.json"

    @property
    def scratch(self) -> Path:
        """Where lies what no result depends on: checkpoints, locks, logs, durations."""
        return self.root / ".ckpt" / self.name

    @property
    def kept(self) -> Path:
        """Where checkpoints lie, and the locks of those who write them: in this checkout, or on storage that machines
        share, so that each can go on with what another began."""
        shared = self.params.paths.checkpoints
        return Path(shared) / self.name if shared else self.scratch

    def checkpoints(self, stage: str, cell: Cell | None, mark: str) -> Path:
        """The folder of a stage's resumable state; mark: of the configuration and the code."""
        return self.kept / "checkpoints" / stage / stage_key(stage, cell) / mark

    def duration_file(self, stage: str, cell: Cell | None) -> Path:
        """The file that says how many seconds a stage took when it last ran here."""
        return self.scratch / "seconds" / stage / (stage_key(stage, cell) or "once")

    def lock_file(self, stage: str, cell: Cell | None) -> Path:
        return self.kept / "locks" / stage / (stage_key(stage, cell) or "once")


def names(root: Path) -> list[str]:
    """All studies of a checkout."""
    return [DEFAULT, *sorted(path.parent.name for path in (root / FOLDER).glob("*/params.yaml"))]
