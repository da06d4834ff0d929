"""What DVC's books cost in grids of 5 to 200 cells: processor time of the three stages of one cell, whose commands
write a line and nothing else here, by `dvc repro --single-item` and as a job of a sweep.

DVC reads and writes all of dvc.lock after every stage. A job of a sweep has its entries in a file of its own
(`pipeline.sweep.repro`), from which they are added to dvc.lock with those of others, every few minutes and at the end.
Each command runs once.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import Result
from benchmarks.device import Row
from benchmarks.overhead import copied, run, smallest_params, timed
from pipeline.config.dvc_yaml import SUMMARY, TABLES
from pipeline.config.params import Params
from pipeline.config.study import Study, stage_name
from pipeline.graph import CONFIGURE, REPORT
from pipeline.sweep.dvc_lock import DvcLock

CELLS = (5, 20, 50, 200)
STAND_IN = """#!/bin/sh
[ "$2" = stages.configure ] && exec {python} "$@"
[ "$2" = stages.report ] && mkdir -p reports/default && cd reports/default && exec touch {report}
stage=${{2#stages.}}; shift 2; key=
while [ $# -gt 0 ]; do key=$key-$2; shift 2; done
folder=runs/default/$stage/${{key#-}}
mkdir -p $folder && echo $stage$key > $folder/made
"""


def measure(params: Params, quick: bool) -> Result:
    rows = [_grid(params, cells) for cells in CELLS[: 1 if quick else None]]
    return Result({"params": smallest_params(params, CELLS[0])}, {"Processor seconds of DVC's own work": rows})


def _grid(params: Params, cells: int) -> Row:
    with tempfile.TemporaryDirectory() as name:
        folder, python = Path(name) / "repository", Path(name) / "bin" / "python"
        folder.mkdir()
        copied(folder, smallest_params(params, cells))
        python.parent.mkdir()
        python.write_text(STAND_IN.format(python=shlex.quote(sys.executable), report=" ".join([*TABLES, SUMMARY])))
        python.chmod(0o755)
        variables = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
        study = Study(root=folder)
        stages = [CONFIGURE.name, *study.graph.stages, REPORT.name]
        cell = study.params.cells()[-1]
        own = [stage_name(stage, cell) for stage in study.graph.of_cells]

        def job(lock: DvcLock, name: str, stages: list[str]) -> list[str]:
            return [sys.executable, "-m", "pipeline.sweep.repro", str(lock.lend(name, stages)), "dvc.yaml", *stages]

        def change() -> None:
            """The inputs of the cell's stages."""
            for stage in study.graph.of_cells:
                with open(study.recipe(stage, cell), "a") as recipe:
                    recipe.write("\n")

        lock = DvcLock(study)
        run(job(lock, "all", stages), folder, variables)
        start = time.process_time()
        lock.close()
        added = time.process_time() - start
        change()
        dvc = [sys.executable, "-m", "dvc", "repro"]
        plain = timed([*dvc, "--single-item", *own], folder, variables)[1]
        change()
        swept = timed(job(DvcLock(study), "one", own), folder, variables)[1]
        run([*dvc, "--quiet"], folder, variables)
        nothing = timed([*dvc, "--quiet"], folder, variables)[1]
    return {
        "cells": cells,
        "dvc repro --single-item": plain,
        "a job of a sweep": swept,
        "entries added to dvc.lock": added,
        "dvc repro, nothing to do": nothing,
    }
