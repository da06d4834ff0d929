"""The study `smoke` in a copy of this repository, run by the real `dvc repro`."""

import atexit
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import yaml

from pipeline.config.dvc_yaml import write_dvc_file
from pipeline.config.study import Study
from pipeline.running import worker as worker_module

ROOT = Path(__file__).parent.parent
CODE = ["infotok", "pipeline", "stages", "studies", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"]
STUDY, PARAMS, FILE = ["--study", "smoke"], "studies/smoke/params.yaml", "studies/smoke/dvc.yaml"
CELLS = ["ar-none-0-0-4-0", "ar-ceb-0.01-1-4-0"]
CELL = [*STUDY, "--family", "ar", "--arm", "ceb-0.01-1", "--tokens", "4", "--seed", "0"]
MADE_BY_OTHERS = shutil.ignore_patterns("__pycache__", "dvc.lock")


_worker = ExitStack()
atexit.register(_worker.close)


def start_worker() -> None:
    """From now on, the stages that this process starts come from a worker, as those of a sweep do. A stage that does
    not wait until it is ready would load all libraries once more."""
    if worker_module.VARIABLE in os.environ:
        return
    os.environ |= _worker.enter_context(worker_module.worker())
    end = time.monotonic() + 120
    while not os.path.exists(os.environ.get(worker_module.VARIABLE, os.curdir)) and time.monotonic() < end:
        time.sleep(0.05)


def environment() -> dict[str, str]:
    """The stages' `python` is this one, and they import the copy's code, not the installed one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def ran(said: str) -> list[str]:
    """The stages that DVC ran, rather than restored, without the file that they stand in."""
    lines = [line for line in said.splitlines() if line.startswith("Running stage")]
    return [line.split("'")[1].split(":")[-1] for line in lines]


def one_line_error(process: subprocess.CompletedProcess) -> str:
    """The single line of a refused command."""
    assert process.returncode == 2, process.stdout + process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copy_of_the_code(folder: Path) -> Path:
    """A copy in which stages can run."""
    start_worker()
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=MADE_BY_OTHERS)
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All that the pipeline made."""
    made = sorted([*folder.glob("runs/smoke/**/*"), *folder.glob("reports/smoke/**/*")])
    return {str(path.relative_to(folder)): path.read_bytes() for path in made if path.is_file()}


ONE_BY_ONE = """
import json, sys
from stages.common import COMMANDS, stage_command
for name, options in json.loads(sys.argv[1]):
    stage_command(COMMANDS[name])(**options)
"""


def run_stages(folder: Path, study: str, stages: list[tuple[str, dict]], **variables: str) -> None:
    """Run stages, each with its cell's axes, in one process: what they share is imported once."""
    program = folder / "stages/one_by_one.py"  # a stage to the worker
    program.write_text(ONE_BY_ONE)
    given = json.dumps([(name, axes | {"study": study}) for name, axes in stages])
    try:
        done = run(folder, "stages.one_by_one", given, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        program.unlink()


def run_all_stages(folder: Path, params: dict) -> None:
    """Run a study `mine` of one family, budget and seed."""
    study = Study("mine", folder)
    study.folder.mkdir(parents=True)
    study.params_file.write_text(yaml.safe_dump(params))
    write_dvc_file(study)
    (family,), (tokens,) = params["grid"]["family"], params["grid"]["tokens"]
    shared = {"family": family, "tokens": tokens, "seed": 0}
    stages: list[tuple[str, dict]] = [(name, {}) for name in ("configure", "prepare", "judge", "perceptual")]
    stages += [("pretrain", shared)]
    for arm in params["grid"]["arm"]:
        stages += [(name, shared | {"arm": arm}) for name in ("train", "understand", "generate")]
    run_stages(folder, "mine", [*stages, ("report", {})])
