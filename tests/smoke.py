"""The study `smoke` in a copy of this repository, run by the real `dvc repro`."""

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import yaml

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
    """From now on, the stages that this process starts come from a worker, as those of a sweep do."""
    if worker_module.VARIABLE not in os.environ:
        os.environ |= _worker.enter_context(worker_module.worker())


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


ALL_STAGES = """
import sys
from stages.cli import make_study
from stages.common import COMMANDS, stage_command

def run(name, **axes):
    stage_command(COMMANDS[name])(study="mine", **axes)

make_study(name="mine")
tokens, arms = int(sys.argv[1]), sys.argv[2:]
for name in ("configure", "prepare", "judge", "perceptual"):
    run(name)
run("pretrain", family="ar", tokens=tokens, seed=0)
for arm in arms:
    for name in ("train", "understand", "generate"):
        run(name, family="ar", arm=arm, tokens=tokens, seed=0)
run("report")
"""


def all_stages(folder, params):
    """Run a study `mine` of one family, budget and seed."""
    (folder / "studies" / "mine").mkdir()
    (folder / "studies" / "mine" / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-c", ALL_STAGES, str(params["grid"]["tokens"][0]), *params["grid"]["arm"]]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done
