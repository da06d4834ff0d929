"""Recipes: what a stage's result depends on, its parameters and its code.

    runs/<study>/recipes/<stage>[/<cell>].json
    {"stage", "cell", "parameters": {section: {key: value}}, "code": {file: digest}}

The stage `configure` writes them; in DVC every other stage depends on its recipe and on the folders that it reads. So
a stage runs again when a value that it reads has changed, in params.yaml or as a default in the code, or a file that it
imports, and only then. A stage imports what its module `stages/<name>.py` imports and what these import in turn, found
by reading the import statements, and the modules that its cell or the data name: one family, one estimator, one source.
The frame around all stages (`FRAME`) is left out: it hands the parameters in and takes the results away.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infotok.files import write_text
from pipeline.config.cells import NONE, Cell
from pipeline.config.study import Study
from pipeline.graph import REPORT, STAGES, Spec, ancestors

if TYPE_CHECKING:
    from pipeline.config.params import AnyParams

PROJECT = ("infotok", "pipeline", "stages")
# What runs around a stage's work, the same for all of them; no number of a result comes from it.
FRAME = (
    "pipeline.config",
    "pipeline.graph",
    "pipeline.running",
    "pipeline.sweep",
    "pipeline.tracking",
    "stages.common",
)
# How processes share a training, which changes the order of sums and no more than how many they are.
SHARING: Any = {"pretrain": {"parallel"}, "train": {"parallel"}}
PLUGINS = {
    "source": "infotok.data.sources",
    "family": "infotok.models.families",
    "estimator": "infotok.information.estimators",
    "adapter": "infotok.mllm.adapters",
}


def modules_of(spec: Spec, params: AnyParams, cell: Cell | None) -> list[str]:
    """The modules whose imports a stage's result depends on."""
    chosen = {"source": params.data.source}
    if cell is not None:
        chosen |= {"family": cell.family, "estimator": cell.estimator}
    if "adapter" in spec.plugins and cell is not None:
        chosen["adapter"] = params.kind_of(cell.family)
    plugins = [f"{PLUGINS[kind]}.{chosen[kind]}" for kind in spec.plugins if chosen[kind] != NONE]
    return [f"stages.{spec.name}", *plugins]


def imported(modules: list[str], root: Path) -> list[str]:
    """The project's files that these modules need when they are imported, themselves and the packages around them among
    them, but for the frame: paths relative to the root, sorted."""
    found: set[str] = set()
    seen: set[str] = set()
    ahead = list(modules)
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        if (path := _file(name, root)) is None or path in found:
            continue
        found.add(path)
        parts = name.split(".")
        ahead += [".".join(parts[:n]) for n in range(1, len(parts))]
        ahead += [one for one in _imports(path, _stamp(root / path), root) if not _in_frame(one)]
    return sorted(found)


def _in_frame(name: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in FRAME)


def _file(module: str, root: Path) -> str | None:
    """The file of a module of this project, None for any other name, such as a function's."""
    name = module.replace(".", "/")
    return next((path for path in (f"{name}.py", f"{name}/__init__.py") if os.path.isfile(f"{root}/{path}")), None)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes whenever a file is written, so that an edit between two looks is seen."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(4096)
def _imports(path: str, stamp: tuple[int, int], root: Path) -> tuple[str, ...]:
    """Names that a file imports from this project, each a module or something in one. What only the type checker
    imports is left out."""
    out: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for other in node.orelse:
                visit(other)
            return
        if isinstance(node, ast.Import):
            out.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            out.extend([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((root / path).read_bytes(), path))
    return tuple(name for name in dict.fromkeys(out) if name.split(".")[0] in PROJECT)


@lru_cache(4096)
def _digest(path: Path, stamp: tuple[int, int]) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def code_of(study: Study, stage: str, cell: Cell | None) -> dict[str, str]:
    """Digest by file of the code that a stage's result depends on."""
    spec = REPORT if stage == REPORT.name else STAGES[stage]
    return dict(_code(tuple(modules_of(spec, study.params, cell)), study.root, tuple(_stamps(study.root))))


@lru_cache(256)
def _code(modules: tuple[str, ...], root: Path, stamps: tuple) -> dict[str, str]:
    """By file the digest of what these modules import. stamps: of all files of the project; what is the same for the
    cells of a grid is found once, as long as none changes."""
    return {file: _digest(root / file, _stamp(root / file)) for file in imported(list(modules), root)}


def _stamps(root: Path) -> Iterator[tuple[str, int, int]]:
    """Every module of the project with its `_stamp`."""
    ahead = [path for path in (f"{root}/{package}" for package in PROJECT) if os.path.isdir(path)]
    while ahead:
        with os.scandir(ahead.pop()) as entries:
            for entry in entries:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    yield entry.path, status.st_mtime_ns, status.st_size
                elif entry.is_dir() and entry.name != "__pycache__":
                    ahead.append(entry.path)


def source_digest(study: Study, stage: str, cell: Cell | None) -> str:
    """One digest of that code. A result holds it, since code that is edited while a stage runs would pass for the code
    that made the result."""
    return _short(code_of(study, stage, cell))


def parameters_of(study: Study, stage: str, cell: Cell | None = None) -> dict[str, Any]:
    """The sections that a stage reads, defaults filled in, as JSON, without `SHARING`; of `models` the cell's alone."""
    every = [name for name in type(study.params).model_fields if name != "paths"]  # on which no result depends
    names = every if stage == REPORT.name else STAGES[stage].sections
    values = study.params.model_dump(mode="json", include=set(names), exclude=SHARING)
    if cell is not None and "models" in values:
        values["models"] = values["models"][cell.family]
    return {name: values[name] for name in names}


def recipe_of(study: Study, stage: str, cell: Cell | None) -> dict[str, Any]:
    """The content of a recipe."""
    return {
        "stage": stage,
        "cell": _axes(stage, cell),
        "parameters": parameters_of(study, stage, cell),
        "code": code_of(study, stage, cell),
    }


def fingerprint(study: Study, stage: str, cell: Cell | None) -> str:
    """Short hash of everything in the configuration that a result depends on, by way of its inputs too."""
    return _short({name: [_axes(name, cell), parameters_of(study, name, cell)] for name in ancestors(stage)})


def _axes(stage: str, cell: Cell | None) -> dict[str, Any] | None:
    """The values of a stage's axes; the weights of an arm as numbers beside its name."""
    axes = STAGES[stage].axes if stage in STAGES else ()
    if cell is None or not axes:
        return None
    return cell.as_dict() if "arm" in axes else {axis: getattr(cell, axis) for axis in axes}


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def runs_of(study: Study) -> list[tuple[str, Cell | None]]:
    """Every run of every stage of a study's grid, in the order of the table of stages."""
    out: dict[tuple[str, str], tuple[str, Cell | None]] = {}
    for spec in study.graph.specs:
        for cell in study.params.cells() if spec.axes else [None]:
            out.setdefault((spec.name, str(study.recipe(spec.name, cell))), (spec.name, cell))
    return list(out.values())


def write_recipes(study: Study) -> int:
    """Write the recipes of all stages of a study's grid, remove those of cells that left it; returns how many."""
    wanted = {study.recipe(stage, cell): (stage, cell) for stage, cell in [*runs_of(study), (REPORT.name, None)]}
    for path, (stage, cell) in wanted.items():
        write_text(path, json.dumps(recipe_of(study, stage, cell), indent=1, sort_keys=True) + "\n")
    for path in (study.results / "recipes").rglob("*.json"):
        if path not in wanted:
            path.unlink()
    return len(wanted)
