"""What the pipeline costs beside training: `dvc repro` and `infotok sweep` of grids of 5, 20 and 50 cells whose every
stage does next to nothing, in temporary copies of the repository.

With MLflow, and for the middle grid without it; then again, with nothing to do. The processes of `dvc repro`'s stages
are timed by a script that stands where DVC finds `python`; what is left of the whole is DVC's own. A sweep runs one
job at a time here and forks its stages from a worker. Each grid runs once. What DVC's books alone cost in larger grids
the benchmark `books` says.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import yaml

from benchmarks.common import Result, in_turns, spread
from benchmarks.device import Row
from infotok.errors import InfotokError
from pipeline.config.params import Params
from pipeline.sweep.jobs import environment

ROOT = Path(__file__).parent.parent
CODE = ("infotok", "pipeline", "stages", "dvc.yaml", ".dvcignore", ".gitignore")
CELLS = (5, 20, 50)
ARMS = ("none-0-0", "vib-0.01-1", "dib-0.01-1", "ceb-0.01-1", "hsic-1-1")
IMPORTS = {
    "nothing": "",
    "parameters and results": "import pipeline.config.params, pipeline.results",
    "torch": "import torch",
    "torch, the backbone": "import torch; from transformers import LlamaForCausalLM",
    "MLflow": "import mlflow",
    "DVC": "import dvc.repo",
}
TIMED_PYTHON = """#!/bin/sh
start=$(date +%s.%N)
{python} "$@"
status=$?
echo "$2 $start $(date +%s.%N)" >> {log}
exit $status
"""


def measure(params: Params, quick: bool) -> Result:
    rows, stages = [], []
    for cells in (1,) if quick else CELLS:
        row, processes = _grid(params, cells, tracking="on")
        rows += [row, _grid(params, cells, tracking="on", swept=True)[0]]
        stages += [{"cells": cells, "stage": name} | spread(taken) for name, taken in processes.items()]
        if cells == 20:
            rows += [_grid(params, cells, tracking="off", swept=swept)[0] for swept in (False, True)]
    actions = {name: lambda code=code: run([sys.executable, "-c", code], ROOT) for name, code in IMPORTS.items()}
    seconds = in_turns(actions, rounds=1 if quick else 10, warmup=1)
    imports = [{"a python process that imports": name} | spread(taken) for name, taken in seconds.items()]
    settings = {"arms": ARMS, "params": smallest_params(params, 1)}
    tables = {"Stages that do next to nothing": rows, "Processes of dvc repro": stages, "Imports": imports}
    return Result(settings, tables)


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


def _grid(params: Params, cells: int, tracking: str, swept: bool = False) -> tuple[Row, dict[str, list[float]]]:
    """`dvc repro` or a sweep of one grid, and by stage the seconds of the processes of `dvc repro`."""
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name) / "repository", Path(name) / "processes.log"
        folder.mkdir()
        copied(folder, smallest_params(params, cells))
        python = Path(name) / "bin" / "python"
        python.parent.mkdir()
        python.write_text(TIMED_PYTHON.format(python=shlex.quote(sys.executable), log=shlex.quote(str(log))))
        python.chmod(0o755)
        variables = {"INFOTOK_TRACKING": tracking, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
        command = ["stages.cli", "sweep", "--jobs", "1"] if swept else ["dvc", "repro", "--quiet"]
        command = [sys.executable, "-m", *command]
        (total, processor) = timed(command, folder, variables)
        lines = log.read_text().splitlines() if log.exists() else []
        nothing = sorted(timed(command, folder, variables) for _ in range(3))
    processes = defaultdict(list)
    for module, start, end in map(str.split, lines):
        processes[module.removeprefix("stages.")].append(float(end) - float(start))
    within = sum(map(sum, processes.values()))
    row: Row = {
        "command": "infotok sweep" if swept else "dvc repro",
        "cells": cells,
        "MLflow": tracking,
        "total_s": total,
        "processor_s": processor,
        "processor_per_cell_s": processor / cells,
        "processes_s": within if lines else "",
        "DVC_s": total - within if lines else "",
        "nothing_to_do_s": nothing[1][0],
        "nothing_to_do_processor_s": nothing[1][1],
    }
    return row, processes


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
