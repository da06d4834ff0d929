"""Studies of pretrained models in a copy of this repository, run by the real `dvc repro`."""

import json
import shutil
from pathlib import Path

import yaml
from smoke import copy_of_the_code, one_line_error, run


def finished_study(folder: Path, name: str, content: dict, *tiny_options: str) -> Path:
    """A copy in which a study of tiny models has run."""
    folder = copy_of_the_code(folder)
    write(folder, name, content)
    for command in (["tiny", "tiny", *tiny_options], ["study", name]):
        done = run(folder, "stages.cli", *command)
        assert done.returncode == 0, done.stderr
    done = run(folder, "dvc", "repro", f"studies/{name}/dvc.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def write(folder: Path, name: str, content: dict) -> Path:
    """The params.yaml of a study."""
    path = folder / f"studies/{name}/params.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def result(folder: Path, name: str, stage: str, key: str) -> dict:
    return json.loads((folder / f"runs/{name}/{stage}/{key}/metrics.json").read_text())


def refused(folder: Path, name: str, content: dict, stage: str, *options: str) -> str:
    """What a stage says of a study `bad`, for which the data of another have been prepared, less `studies/bad/`."""
    write(folder, "bad", content)
    shutil.copytree(folder / f"runs/{name}/prepare", folder / "runs/bad/prepare", dirs_exist_ok=True)
    assert run(folder, "stages.cli", "study", "bad").returncode == 0
    return one_line_error(run(folder, f"stages.{stage}", "--study", "bad", *options)).replace("studies/bad/", "")


def line_of(content: dict, start: str) -> int:
    """The line of the one key, indented as deep as this, of a params.yaml of `write`."""
    (number,) = [n for n, text in enumerate(yaml.safe_dump(content).splitlines(), 1) if text.startswith(start)]
    return number
