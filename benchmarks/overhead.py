"""What the pipeline costs beside training: `infotok sweep` of grids of 5, 50 and 200 cells whose every stage does next
to nothing, with MLflow, in temporary copies of the repository; then the same again, with nothing to do, and `dvc repro`
with nothing to do.

A sweep runs one job at a time here. Each grid runs once, and its row is written when it is done: started again with
the same code on the same machine, the benchmark goes on with the grids that are missing. Each is measured in seconds,
and in seconds of a processor (`_cpu`). `cell_cpu` is what a cell more costs than in the smaller grid. What DVC's books
alone cost the benchmark `books` says. The table `Before` is of `dvc repro` before stages were forked and dvc.lock was
left to sweeps; it stays as it was measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.common import RESULTS, Result, machine
from benchmarks.device import Row
from infotok.errors import InfotokError
from pipeline.config.params import Params
from pipeline.sweep.jobs import environment

ROOT = Path(__file__).parent.parent
CODE = ("infotok", "pipeline", "stages", "dvc.yaml", ".dvcignore", ".gitignore")
CELLS = (5, 50, 200)
ARMS = ("none-0-0", "vib-0.01-1", "dib-0.01-1", "ceb-0.01-1", "hsic-1-1")
GRIDS, BEFORE = "Sweeps of stages that do next to nothing", "Before"
FORMER = "dvc repro of stages that do next to nothing"  # the table's name in the file that was written then
SAME = ("cpu", "cores", "python", "torch")  # of a machine


def measure(params: Params, quick: bool, folder: Path = RESULTS) -> Iterator[Result]:
    """folder: where an earlier result lies, which this one goes on from."""
    earlier = {} if quick else _earlier(folder / "overhead.json")
    tables = earlier.get("tables", {})
    before: list[Row] = tables.get(BEFORE) or tables.get(FORMER, [])
    here = {name: machine()[name] for name in SAME}
    settings = {"arms": ARMS, "params": smallest_params(params, 1), "code": _code(), "machine": here}
    same = earlier.get("settings") == json.loads(json.dumps(settings))
    rows: list[Row] = tables.get(GRIDS, []) if same else []
    for cells in (1,) if quick else CELLS:
        if all(row["cells"] != cells for row in rows):
            rows.append(_grid(params, cells, rows[-1] if rows else None))
        yield Result(settings, {GRIDS: rows} | ({BEFORE: before} if before else {}))


def _earlier(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _code() -> str:
    """One digest of all that a grid is run with."""
    files = sorted(path for name in CODE for path in [ROOT / name, *(ROOT / name).rglob("*.py")] if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def smallest_params(params: Params, cells: int) -> dict:
    """These params with a grid of so many cells, of up to five arms, of which every stage does as little as it may."""
    arms = min(cells, len(ARMS))
    few = dict.fromkeys(("train", "validation", "test", "novel"), 16)
    changes = {
        "grid": {"family": ["ar"], "arm": list(ARMS[:arms]), "tokens": [4], "seed": list(range(cells // arms))},
        "data": few,
        "judge": {"steps": 1, "batch": 8},
        "perceptual": {"steps": 1, "batch": 8},
        "tokenizer": {"codebook": 8, "width": 8, "hidden": 8, "blocks": 0},
        "pretrain": {"steps": 1, "batch": 8},
        "backbone": {"name": "llama", "width": 8, "layers": 1, "heads": 1},
        "train": {"steps": 1, "batch": 8},
        "understanding": {"probe_images": 16, "probe_steps": 1},
        "generation": {"prompts": 1, "images": 1, "temperatures": [1.0], "guidance": [1.0]},
    }
    content = params.model_dump(mode="json")
    for section, values in changes.items():
        content[section] |= values
    return content


def copied(folder: Path, content: dict) -> None:
    """Make a folder a repository of its own, with this code and these params."""
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    run(["git", "init", "--quiet"], folder)


def _grid(params: Params, cells: int, fewer: Row | None) -> Row:
    """A sweep of one grid, and what follows with nothing to do. fewer: the row of a smaller grid."""
    sweep = [sys.executable, "-m", "stages.cli", "sweep", "--jobs", "1"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "repository"
        folder.mkdir()
        copied(folder, smallest_params(params, cells))

        def said(what: str, command: list[str]) -> tuple[float, float]:
            print(f"{cells} cells: {what} ...", end=" ", flush=True)
            seconds, processor = timed(command, folder)
            print(f"{seconds:.1f} s, {processor:.1f} s of the processor", flush=True)
            return seconds, processor

        row: Row = {"cells": cells}
        row["sweep"], row["sweep_cpu"] = whole = said("infotok sweep", sweep)
        more = cells - int(fewer["cells"]) if fewer else 0
        row["cell_cpu"] = (whole[1] - float(fewer["sweep_cpu"])) / more if fewer and more > 0 else ""
        # The first run after a sweep sees to MLflow; the second finds that nothing has changed since.
        for name, what, command in (
            ("again", "the same again", sweep),
            ("again2", "and again", sweep),
            ("repro", "dvc repro", [sys.executable, "-m", "dvc", "repro", "--quiet"]),
        ):
            row[name], row[f"{name}_cpu"] = said(what, command)
    return row


def timed(command: list[str], folder: Path, variables: dict[str, str] | None = None) -> tuple[float, float]:
    """Seconds of a command, and of the processors that it and all that it started used."""
    before = os.times()
    seconds = run(command, folder, variables)
    after = os.times()
    return seconds, sum(after[2:4]) - sum(before[2:4])


def run(command: list[str], folder: Path, variables: dict[str, str] | None = None) -> float:
    """Seconds of a command that must end well; it imports the code of its folder, not what is installed."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment() | {"PYTHONPATH": ""} | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate()
    except BaseException:  # interrupted: DVC's stages would go on without it
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if process.returncode:
        raise InfotokError(f"{' '.join(command)} failed:\n{said[-2000:]}")
    return time.perf_counter() - start
