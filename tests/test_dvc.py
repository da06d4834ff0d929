"""What DVC's users do, with the real DVC in a repository with commits: experiments, comparisons, copied studies."""

import csv
import io
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from smoke import CELLS, FILE, PARAMS, ROOT, STUDY, copy_of_the_code, one_line_error, ran, run

from pipeline.config.dvc_yaml import dvc_yaml
from pipeline.config.study import Study, names

NAMED = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "a")
NAMED |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "a@b")
VARIABLES = {"INFOTOK_TRACKING": "off"} | NAMED
CELL = CELLS[0]  # the only one of the default study here
ONCE = ("prepare", "perceptual", "judge")


@pytest.mark.parametrize("name", names(ROOT))
def test_the_dvc_yaml_of_every_study_is_what_its_parameters_and_the_table_of_stages_give(name):
    study = Study(name, ROOT)
    assert not study.dvc_file.is_symlink()
    assert study.dvc_file.read_text() == dvc_yaml(study)


def dvc(folder: Path, *command: str) -> str:
    """What a DVC command says that must end well."""
    done = run(folder, "dvc", *command, **VARIABLES)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def repository(workspace, tmp_path_factory):
    """The finished study `smoke` and a default study of one of its cells, whose results are the same; all committed.

    Reports are in git, as those of all studies but `smoke` are.
    """
    folder = tmp_path_factory.mktemp("repository") / "checkout"
    ignored = shutil.ignore_patterns("mlflow.db", "mlartifacts", "tmp", ".git")
    shutil.copytree(workspace, folder, symlinks=True, ignore=ignored)
    for path in (folder / "studies").iterdir():
        if path.name != "smoke":
            shutil.rmtree(path)
    text = (folder / ".gitignore").read_text()
    assert "/reports/smoke/\n" in text
    (folder / ".gitignore").write_text(text.replace("/reports/smoke/\n", ""))
    params = (folder / PARAMS).read_text()
    (folder / "params.yaml").write_text(params.replace("arm: [none-0-0, ceb-0.01-1]", "arm: [none-0-0]"))
    for stage in ONCE:
        shutil.copytree(folder / "runs/smoke" / stage, folder / "runs/default" / stage)
    shutil.copytree(folder / "runs/smoke/pretrain", folder / "runs/default/pretrain")
    for stage in ("train", "understand", "generate"):
        shutil.copytree(folder / "runs/smoke" / stage / CELL, folder / "runs/default" / stage / CELL)
    for stage in ("configure", "report"):
        done = run(folder, f"stages.{stage}", **VARIABLES)
        assert done.returncode == 0, done.stderr
    git(folder, "init", "--quiet", "--initial-branch", "main")
    for name, value in (("user.name", "a"), ("user.email", "a@b")):
        git(folder, "config", name, value)
    git(folder, "add", "--all")
    dvc(folder, "commit", "--force", "--quiet", "dvc.yaml")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "finished")
    assert "Data and pipelines are up to date" in dvc(folder, "status")
    return folder


@pytest.fixture
def finished(repository):
    """The repository as it was committed."""
    yield repository
    git(repository, "reset", "--hard", "--quiet")
    dvc(repository, "checkout", "--quiet", "--force")


@pytest.mark.xdist_group("smoke")
@pytest.mark.parametrize(
    ("prefix", "target", "cells", "file"),
    [("", [], [CELL], "params.yaml"), (f"{PARAMS}:", [FILE], CELLS, PARAMS)],
    ids=["default", "smoke"],
)
def test_an_experiment_runs_what_depends_on_the_parameter_and_dvc_compares_it(finished, prefix, target, cells, file):
    name = f"ten-steps-of-{'smoke' if target else 'default'}"
    said = dvc(finished, "exp", "run", "--name", name, "--set-param", f"{prefix}train.steps=10", *target)
    again = [f"{stage}@{cell}" for cell in cells for stage in ("train", "understand", "generate")]
    assert sorted(ran(said)) == sorted(["configure", *again, "report"])
    summary = f"reports/{'smoke' if target else 'default'}/summary.json"

    steps = {"train.steps": {"old": 40, "new": 10, "diff": -30}}
    assert json.loads(dvc(finished, "params", "diff", "--json")) == {file: steps}
    differing = json.loads(dvc(finished, "metrics", "diff", "--json")).keys()
    assert differing == {summary} if target else differing <= {summary}  # so small, the root's may score the same
    (revision,) = [one for one in json.loads(dvc(finished, "exp", "show", "--json")) if one["rev"] != "workspace"]
    (made,) = [one["revs"][0] for one in revision["experiments"] if one["name"] == name]
    for shown, steps in ((revision, 40), (made, 10)):
        assert shown["data"]["params"][file]["data"]["train"]["steps"] == steps
        assert shown["data"]["metrics"][summary]["data"]["cells"] == len(cells)
    rows = list(csv.DictReader(io.StringIO(dvc(finished, "exp", "show", "--csv", "--only-changed"))))
    values = {row["Experiment"] or row["rev"]: row[f"{file}:train.steps"] for row in rows}
    assert (values["main"], values[name]) == ("40", "10")

    title = f"{(target or ['dvc.yaml'])[0]}::training"
    chart = json.loads(dvc(finished, "plots", "diff", "HEAD", "--show-vega", "--targets", title))
    assert chart["spec"]["encoding"]["color"]["field"] == "arm"
    curves = {(value["rev"], int(value["step"])) for value in chart["data"]["values"]}
    assert curves == {("workspace", 10), *(("HEAD", step) for step in (10, 20, 30, 40))}


@pytest.mark.xdist_group("smoke")
def test_an_experiment_beside_the_workspace_leaves_it_as_it_is(finished):
    command = ["dvc", "exp", "run", "--temp", "--set-param", "generation.prompts=2"]
    done = run(finished, *command, **NAMED)  # MLflow on
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(ran(done.stdout)) == ["configure", f"generate@{CELL}", "report"]
    client = MlflowClient(f"sqlite:///{finished}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (tracked,) = client.search_runs(experiments, "tags.kind = 'cell'")
    assert tracked.data.tags["cell"] == CELL
    assert tracked.data.metrics["generation/geneval"] >= 0
    assert client.list_artifacts(tracked.info.run_id, "samples")
    assert git(finished, "status", "--porcelain") == ""
    shown = json.loads(dvc(finished, "exp", "show", "--json"))
    prompts = [
        revision["data"]["params"]["params.yaml"]["data"]["generation"]["prompts"]
        for one in shown
        for experiment in one["experiments"] or []
        for revision in experiment["revs"]
    ]
    assert 2 in prompts


@pytest.mark.xdist_group("smoke")
def test_a_queued_experiment_is_in_mlflow_too(finished):
    client = MlflowClient(f"sqlite:///{finished}/mlflow.db")

    def drawn():
        """How often MLflow was told of drawings of the cell."""
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.cell = '{CELL}'")
        return sum(len(client.get_metric_history(one.info.run_id, "generation/geneval")) for one in runs)

    before = drawn()
    for command in (["exp", "run", "--queue", "--set-param", "generation.prompts=3"], ["queue", "start"]):
        done = run(finished, "dvc", *command, **NAMED)  # MLflow on
        assert done.returncode == 0, done.stdout + done.stderr
    deadline = time.monotonic() + 300
    while "Success" not in (said := dvc(finished, "queue", "status")):
        assert "Failed" not in said, dvc(finished, "queue", "logs", said.splitlines()[1].split()[0])
        assert time.monotonic() < deadline
        time.sleep(1)
    assert drawn() == before + 1


@pytest.mark.xdist_group("smoke")
def test_a_default_changed_in_the_code_runs_what_reads_it(finished):
    path = finished / "infotok/evaluation/understanding.py"
    text = path.read_text()
    assert text.count("    batch: Count = ") == 1
    path.write_text(text.replace("    batch: Count = ", "    batch: Count = 1"))
    assert ran(dvc(finished, "repro")) == ["configure", f"understand@{CELL}", "report"]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A copy of the repository in which nothing has run."""
    folder = copy_of_the_code(tmp_path_factory.mktemp("unfinished"))
    for path in (folder / "studies").iterdir():
        if path.name != "smoke":
            shutil.rmtree(path)
    return folder


def test_a_copied_study_is_refused_until_its_dvc_yaml_is_written(unfinished):
    shutil.copytree(unfinished / "studies/smoke", unfinished / "studies/mine")
    try:
        for command in (["sweep"], ["plan"]):
            line = one_line_error(run(unfinished, "stages.cli", *command, "--study", "mine", **VARIABLES))
            assert line.startswith("error: studies/mine/dvc.yaml: does not fit this study's folder")
            assert line.endswith("write it with `infotok study mine`")
        refused = run(unfinished, "dvc", "repro", "studies/mine/dvc.yaml", **VARIABLES)
        assert refused.returncode != 0
        assert "Running stage" not in refused.stdout
        assert "studies/mine/dvc.yaml" in refused.stderr
        assert "studies/smoke/dvc.yaml" in refused.stderr
        assert run(unfinished, "stages.cli", "study", "mine").returncode == 0
        would = dvc(unfinished, "repro", "--dry", "studies/mine/dvc.yaml:configure")
        assert "python -m stages.configure --study mine" in would
    finally:
        shutil.rmtree(unfinished / "studies/mine")


def test_a_renamed_study_is_refused_before_anything_runs(unfinished):
    (unfinished / "studies/smoke").rename(unfinished / "studies/mine")
    try:
        refused = run(unfinished, "dvc", "repro", "studies/mine/dvc.yaml", **VARIABLES)
        assert refused.returncode != 0
        assert ran(refused.stdout) == []
        (line,) = refused.stderr.strip().splitlines()
        assert line.endswith("dependency 'studies/smoke/params.yaml' does not exist")
        line = one_line_error(run(unfinished, "stages.cli", "plan", "--study", "mine"))
        assert line.endswith("write it with `infotok study mine`")
    finally:
        (unfinished / "studies/mine").rename(unfinished / "studies/smoke")


@pytest.fixture
def archive(unfinished, tmp_path):
    """A copy without git, as a downloaded archive is one."""
    folder = tmp_path / "infotok-main"
    shutil.copytree(unfinished, folder, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    return folder


def refused_by_all(folder: Path) -> str:
    """What every command says that would run the grid."""
    said = {one_line_error(run(folder, "stages.cli", command, *STUDY, **VARIABLES)) for command in ("plan", "sweep")}
    assert not (folder / "runs/smoke").exists()
    (line,) = said
    return line


def test_a_copy_without_git_is_told_what_to_do_before_anything_runs(archive):
    line = refused_by_all(archive)
    assert line.startswith(f"error: {archive}: is no git repository")
    assert "run `git init` there, or `dvc config --local core.no_scm true`" in line
    dvc(archive, "config", "--local", "core.no_scm", "true")
    assert run(archive, "stages.cli", "plan", *STUDY).returncode == 0
    dvc(archive, "repro", "--quiet", f"{FILE}:configure")
    (archive / ".dvc/config.local").unlink()
    subprocess.run(["git", "init", "--quiet"], cwd=archive, check=True)
    assert run(archive, "stages.cli", "plan", *STUDY).returncode == 0
    shutil.rmtree(archive / ".dvc")
    assert "has no folder .dvc" in one_line_error(run(archive, "stages.cli", "sweep", *STUDY, **VARIABLES))
    dvc(archive, "init")
    assert run(archive, "stages.cli", "plan", *STUDY).returncode == 0


@pytest.mark.parametrize("link", ["runs", "runs/smoke", "reports", "reports/smoke"])
def test_results_behind_a_link_are_refused_before_anything_runs(archive, tmp_path, link):
    subprocess.run(["git", "init", "--quiet"], cwd=archive, check=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = archive / link
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(scratch)
    (line,) = {
        one_line_error(run(archive, *command, *STUDY, **VARIABLES))
        for command in (["stages.cli", "sweep"], ["stages.cli", "plan"], ["stages.configure"])
    }
    assert line.startswith(f"error: {link}: is a link, and DVC keeps no results behind links; remove it")
    assert list(scratch.iterdir()) == []
    if link == "runs":  # what the message advises
        path.unlink()
        dvc(archive, "cache", "dir", "--local", str(scratch))
        dvc(archive, "config", "--local", "cache.type", "symlink")
        dvc(archive, "repro", "--quiet", f"{FILE}:configure")
        (recipe, *_) = (archive / "runs/smoke/recipes").glob("*.json")
        assert recipe.is_symlink()
        assert scratch in recipe.resolve().parents


def listed(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.xdist_group("smoke")
def test_commands_work_from_any_directory_as_from_the_root(finished, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    ours = {"PYTHONPATH": str(finished)}  # what an installed command imports

    def said(folder: Path, *command: str, **variables: str) -> str:
        done = run(folder, "infotok", *command, *STUDY, **ours | variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    places = {"within": finished / "studies/smoke", "outside": outside}
    stray = {name: listed(place) for name, place in places.items()}
    for command in ("status", "plan"):
        at_the_root = said(finished, command)
        for place in places.values():
            assert said(place, command) == at_the_root
    assert "done 8" in said(outside, "status")  # four stages of two cells
    for name, place in places.items():
        assert said(place, "track", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/{name}.db") == "7 stages filled in\n"
    before = (finished / "runs/smoke/perceptual/metrics.json").stat().st_mtime_ns
    said(outside, "perceptual", INFOTOK_TRACKING="off")
    assert (finished / "runs/smoke/perceptual/metrics.json").stat().st_mtime_ns > before
    assert git(finished, "status", "--porcelain") == ""
    assert {name: listed(place) for name, place in places.items()} == stray
