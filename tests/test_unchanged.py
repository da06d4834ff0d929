"""What a sweep takes for unchanged, against what the real DVC says of the same repository: three stages that take no
time, with code, parameters, data, outputs and a report."""

import logging
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from infotok.files import write_text
from pipeline.config.study import Study
from pipeline.sweep.unchanged import MLFLOW, changed, keep, look

STAGES = {
    "first": {
        "cmd": "mkdir -p runs/default/first/in && cp data.txt params.yaml runs/default/first/in",
        "deps": ["infotok", "data.txt"],
        "params": ["value"],
        "outs": ["runs/default/first"],
    },
    "second": {
        "matrix": {"number": [1, 2]},
        "cmd": "mkdir -p runs/default/second && cp -r runs/default/first runs/default/second/${item.number}",
        "deps": ["runs/default/first"],
        "outs": ["runs/default/second/${item.number}"],
    },
    "report": {
        "cmd": "mkdir -p reports/default && cp -r runs/default/second reports/default/page",
        "deps": ["runs/default/second"],
        "outs": [{"reports/default/page": {"cache": False}}],
    },
}
MADE = Path("runs/default/second/1/in/data.txt")


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """Such a repository, made and found up to date; it is the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFOTOK_TRACKING", "off")
    # DVC's handlers keep the streams of the test that first ran DVC in this process, which are closed by now.
    monkeypatch.setattr(logging.getLogger("dvc"), "handlers", [])
    write_text(Path("dvc.yaml"), yaml.safe_dump({"stages": STAGES}))
    write_text(Path("params.yaml"), "value: 1\n")
    write_text(Path("data.txt"), "data")
    write_text(Path("infotok/models/code.py"), "code")
    write_text(Path("pipeline/code.py"), "code")
    write_text(Path("stages/code.py"), "code")
    write_text(Path(".dvcignore"), "__pycache__/\n")
    subprocess.run(["git", "init", "--quiet"], check=True)
    from dvc.repo import Repo

    Repo.init().close()
    study = Study()
    study.__dict__["params"] = SimpleNamespace(data=SimpleNamespace(path="data.txt"), weights=[])
    assert MLFLOW in changed(study)  # as is all of which nothing is known
    repro()
    keep_now(study)
    return study


def keep_now(study: Study) -> None:
    keep(study, look(study), mirrored=True)
    assert changed(study) == set()


def repro() -> list[str]:
    """The stages that DVC has made or restored."""
    from dvc.repo import Repo

    with Repo() as repo:
        return [stage.name for stage in repo.reproduce()]


def status() -> dict:
    """What DVC finds changed."""
    from dvc.repo import Repo

    with Repo() as repo:
        return repo.status()


def test_whatever_dvc_would_run_has_changed(study):
    def forget() -> None:  # as the dvc.lock of a commit that lacked the stage
        lock = yaml.safe_load(Path("dvc.lock").read_text())
        del lock["stages"]["second@1"]
        Path("dvc.lock").write_text(yaml.safe_dump(lock))

    def evict() -> None:
        for path in Path(".dvc/cache/files/md5").rglob("*"):
            if path.is_file() and path.read_text() == "data":
                path.unlink()

    assert status() == {}
    for part, change in {
        "inputs": lambda: Path("params.yaml").write_text("value: 2\n"),
        "inputs ": lambda: Path("data.txt").write_text("atad"),  # of the same size
        "inputs  ": lambda: Path("infotok/models/code.py").write_text("more code"),
        "inputs   ": lambda: Path("infotok/models/another.py").write_text("code"),
        "results": MADE.unlink,
        "results ": lambda: MADE.write_text("other"),
        "results  ": lambda: MADE.with_name("further").touch(),
        "reports": lambda: Path("reports/default/page/1/in/data.txt").write_text("other"),
        "dvc.lock": forget,
        "inputs    ": lambda: Path("data.txt").write_text("data"),
        "cache": evict,
    }.items():
        change()
        assert changed(study) == {part.strip()}
        assert status() != {}
        assert repro() != []
        assert changed(study) != set()
        keep_now(study)


def test_what_is_of_no_account_to_dvc_stays_unseen(study):
    write_text(Path("infotok/models/__pycache__/code.pyc"), "compiled")
    write_text(Path("runs/other/first/made"), "of another study")
    write_text(Path("README.md"), "words")
    assert status() == {}
    assert changed(study) == set()


def test_an_edit_while_dvc_looks_is_not_taken_for_what_it_saw(study):
    before = look(study)
    Path("infotok/models/code.py").write_text("edited")
    keep(study, before, mirrored=True)
    assert "inputs" in changed(study)
    before = look(study)
    MADE.write_text("other")
    keep(study, before, mirrored=True)
    assert "results" in changed(study)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"look": {}, "objects": 3}'])
def test_a_damaged_record_is_none(study, content):
    (record,) = study.scratch.glob("*.json")
    record.write_text(content)
    assert changed(study) != set()


def test_mlflow_is_filled_in_where_its_file_has_changed_and_by_a_server_each_time(study, monkeypatch):
    monkeypatch.delenv("INFOTOK_TRACKING")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert changed(study) == {MLFLOW}
    Path("mlflow.db").write_text("runs")
    keep_now(study)
    os.utime("mlflow.db", ns=(0, 0))
    assert changed(study) == {MLFLOW}
    keep(study, look(study), mirrored=False)  # as where the store could not be used
    assert changed(study) == {MLFLOW}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    keep(study, look(study), mirrored=True)
    assert changed(study) == {MLFLOW}
