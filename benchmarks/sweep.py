"""What `infotok sweep` gains over a serial `dvc repro`, and whether both make the same bytes.

The first two arms and the first seed of the grid, at every budget, in two temporary copies of the repository, one after
the other; everything is made anew, from data to report. Each runs once.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Result
from benchmarks.overhead import copied, run, smallest_params
from pipeline.config.params import Params


def measure(params: Params, quick: bool) -> Result:
    content, workers = smallest_params(params, 1) if quick else smaller_grid(params), os.cpu_count() or 1
    python = [sys.executable, "-m"]
    commands = {
        "dvc repro": [*python, "dvc", "repro", "--quiet"],
        "infotok sweep": [*python, "stages.cli", "sweep", "--jobs", str(workers)],
    }
    # A sweep leaves it to itself to log what has no steps, a `dvc repro` to the stages.
    variables = {"dvc repro": {"INFOTOK_TRACKING": ""}, "infotok sweep": {}}
    seconds, made = {}, {}
    for name, command in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            copied(Path(folder), content)
            seconds[name] = run(command, Path(folder), variables[name])
            made[name] = outputs(Path(folder))
    serial, parallel = made.values()
    same = sum(parallel.get(path) == digest for path, digest in serial.items())
    rows = [
        {
            "command": name,
            "total_s": taken,
            "times_as_fast": seconds["dvc repro"] / taken,
            "files": len(made[name]),
            "same_bytes": same if made[name].keys() == serial.keys() else 0,
        }
        for name, taken in seconds.items()
    ]
    settings = {"workers": workers, "grid": content["grid"], "train": content["train"]}
    return Result(settings, {"A grid from data to report": rows})


def smaller_grid(params: Params) -> dict:
    """These params with two arms and one seed."""
    content = params.model_dump(mode="json")
    grid = content["grid"]
    content["grid"] = grid | {"arm": grid["arm"][:2], "seed": grid["seed"][:1]}
    return content


def outputs(folder: Path) -> dict[str, str]:
    """Path -> digest of every file that the stages made."""
    files = [path for name in ("runs", "reports") for path in sorted((folder / name).rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
