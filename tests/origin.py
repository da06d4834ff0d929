"""A small git repository with a DVC remote, and clones of it: what machines of a sweep share."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.overhead import copied, smallest_params
from infotok.files import write_text
from pipeline.config.params import load_params

ROOT = Path(__file__).parent.parent
CONFIG = """[core]
    remote = shared
    analytics = false
    check_update = false
['remote "shared"']
    url = {}
"""
NAMED = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def environment(**variables: str) -> dict[str, str]:
    """Of commands that import the code of the folder that they run in."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | NAMED | {"PATH": path, "PYTHONPATH": "", "INFOTOK_TRACKING": "off"} | variables


def run(folder: Path, *command: str, **variables: str) -> str:
    """What a command says that must end well."""
    done = subprocess.run(
        command, cwd=folder, env=environment(**variables), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path) -> None:
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "all")


def clone(origin: Path, folder: Path) -> Path:
    run(origin.parent, "git", "clone", "--quiet", str(origin), str(folder))
    return folder


def project(folder: Path, steps: int) -> Path:
    """This project with a grid of two cells that train for so many steps, as a repository `origin` in a folder. Its
    remote and its checkpoints lie beside it."""
    origin = folder / "origin"
    origin.mkdir()
    content = smallest_params(load_params(ROOT / "params.yaml"), 1)
    content["grid"]["arm"] = ["none-0-0", "vib-0.01-1"]
    content["train"] |= {"steps": steps, "checkpoint_every": 10}
    content["paths"] = {"checkpoints": str(folder / "checkpoints")}
    copied(origin, content)
    run(origin, sys.executable, "-m", "dvc", "remote", "add", "--default", "shared", str(folder / "remote"))
    commit(origin)
    return origin


def stages(folder: Path, commands: dict[str, str]) -> Path:
    """Stages that are a command each and make the file of their name, as a repository `origin` in a folder."""
    origin = folder / "origin"
    origin.mkdir()
    run(origin, "git", "init", "--quiet", "--initial-branch", "main")
    lines = ["stages:"]
    for name, command in commands.items():
        lines += [f"  {name}:", f"    cmd: {command}", "    deps: [input]", f"    outs: [{name}.txt]"]
    write_text(origin / "dvc.yaml", "\n".join(lines) + "\n")
    write_text(origin / "input", "DVC's run cache is of stages that read something\n")
    write_text(origin / ".gitignore", "*.txt\n")
    write_text(origin / ".dvc/config", CONFIG.format(folder / "remote"))
    commit(origin)
    return origin
