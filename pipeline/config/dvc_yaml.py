"""The dvc.yaml of a study, written from the table of stages.

It is a real file in git, since DVC reads past commits from there. Of the parameters it holds only what DVC must know by
name: the axes, which it takes from params.yaml itself, and the file or folder that the data come from.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from infotok.errors import InfotokError
from infotok.files import write_text
from pipeline.config.recipes import PROJECT
from pipeline.config.study import DEFAULT, FOLDER, Study
from pipeline.graph import CONFIGURE, REPORT, STAGES, Spec

# What the report leaves in reports/<study>: for git, and apart from it what is made but not committed.
TABLES = ("ablation.csv", "paired.csv", "factorial.csv", "training.csv", "ablation.md", "figures", "page")
SUMMARY = "summary.json"
# Templates are those of .dvc/plots, which tell the arms of these files apart.
PLOTS = {
    "scores over beta": {"y": {"ablation.csv": "understanding/accuracy"}, "x": "beta", "template": "beta"},
    "training": {"y": {"training.csv": "train/loss"}, "x": "step", "template": "arms"},
}


def dvc_yaml(study: Study) -> str:
    """The text of a study's dvc.yaml."""
    stages = {CONFIGURE.name: _configure(study)}
    stages |= {spec.name: _stage(study, spec) for spec in study.graph.specs}
    stages[REPORT.name] = _report(study)
    base = "" if study.name == DEFAULT else "../../"
    plots = [
        {title: shown | {"y": {f"{base}{_reports(study)}/{file}": column for file, column in shown["y"].items()}}}
        for title, shown in PLOTS.items()
    ]
    head = (
        "# Written by `infotok study` from the stages of pipeline/graph.py: edit params.yaml instead. After a\n"
        f"# change of data.path, or of this folder's name, write it again: infotok study {study.name}\n"
    )
    return head + yaml.safe_dump({"stages": stages, "plots": plots}, sort_keys=False, width=120)


def _results(study: Study) -> str:
    return f"runs/{study.name}"


def _reports(study: Study) -> str:
    return f"reports/{study.name}"


def _command(study: Study, spec: Spec) -> str:
    options = [f"--{axis} ${{item.{axis}}}" for axis in spec.axes] + [" ".join(study.options)]
    return " ".join(["python", "-m", f"stages.{spec.name}", *options]).strip()


def _place(study: Study) -> dict[str, str]:
    """Where commands run and paths begin: the root, whatever folder dvc.yaml lies in."""
    return {} if study.name == DEFAULT else {"wdir": "../.."}


def _key(axes: tuple[str, ...]) -> str:
    return "-".join(f"${{item.{axis}}}" for axis in axes)


def _configure(study: Study) -> dict:
    file = "params.yaml" if study.name == DEFAULT else f"{FOLDER}/{study.name}/params.yaml"
    return _place(study) | {
        "cmd": _command(study, CONFIGURE),
        "params": [{file: None}],
        "deps": list(PROJECT),
        "outs": [f"{_results(study)}/recipes"],
    }


def _stage(study: Study, spec: Spec) -> dict:
    own, results = _key(spec.axes), _results(study)
    stage: dict = {"matrix": {axis: f"${{grid.{axis}}}" for axis in spec.axes}} if spec.axes else {}
    deps = [f"{results}/recipes/{spec.name}{'/' + own if own else ''}.json"]
    for name in spec.inputs:
        key = _key(STAGES[name].axes)
        deps.append(f"{results}/{name}" + (f"/{key}" if key else ""))
    if "source" in spec.plugins and (path := getattr(study.params.data, "path", None)):
        deps.append(path)
    if spec.weights:
        deps += study.params.weights
    return (
        stage
        | _place(study)
        | {
            "cmd": _command(study, spec),
            "deps": deps,
            "outs": [f"{results}/{spec.name}" + (f"/{own}" if own else "")],
        }
    )


def _report(study: Study) -> dict:
    results, reports = _results(study), _reports(study)
    return _place(study) | {
        "cmd": _command(study, REPORT),
        "deps": [f"{results}/recipes/{REPORT.name}.json", *(f"{results}/{name}" for name in study.graph.stages)],
        "outs": [{f"{reports}/{name}": {"cache": False}} for name in TABLES],
        "metrics": [{f"{reports}/{SUMMARY}": {"cache": False}}],
    }


def write_dvc_file(study: Study) -> bool:
    """Bring a study's dvc.yaml up to date; returns whether it changed."""
    text, path = dvc_yaml(study), study.dvc_file
    if path.is_file() and not path.is_symlink() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def check_dvc_file(study: Study) -> None:
    """That DVC would run this study and nothing else.

    Raises:
        InfotokError: its dvc.yaml is missing, or another study's, or of other parameters.
    """
    path: Path = study.dvc_file
    found = path.read_text(encoding="utf-8") if path.is_file() else None
    if found != dvc_yaml(study):
        what = "is missing" if found is None else "does not fit this study's folder and its data.path"
        raise InfotokError(f"{path}: {what}; write it with `infotok study {study.name}`")
