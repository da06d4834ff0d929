"""The whole pipeline at the size of the study `smoke`, run by the real `dvc repro` in a copy of this repository."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image
from smoke import (
    CELL,
    CELLS,
    FILE,
    PARAMS,
    STUDY,
    contents,
    copy_of_the_code,
    environment,
    one_line_error,
    ran,
    run,
    run_stages,
    sha256,
)

from pipeline.config.study import Study
from pipeline.sweep.due import due

pytestmark = pytest.mark.xdist_group("smoke")  # one worker makes the finished run

METRICS = {
    "understanding": ["accuracy", "accuracy_novel", "question_only"],
    "generation": ["geneval", "geneval_t1", "geneval_novel", "gfid"],
    "reconstruction": ["psnr", "objects"],
    "information": ["rate_bits", "code_entropy_bits", "perplexity", "structure_bits", "nuisance_bits"],
}
ARMS = ["none-0-0", "ceb-0.01-1"]
NAMES = [f"{group}/{name}" for group, names in METRICS.items() for name in names]


def test_the_report_holds_every_cell_with_the_names_others_rely_on(workspace):
    reports = workspace / "reports" / "smoke"
    ablation = pd.read_csv(reports / "ablation.csv")
    assert list(ablation.columns[:6]) == ["family", "estimator", "beta", "gamma", "tokens", "seed"]
    assert ablation.estimator.tolist() == ["none", "ceb"]
    assert ablation[NAMES].notna().all().all()
    paired = pd.read_csv(reports / "paired.csv")
    wanted = ["family", "estimator", "beta", "gamma", "tokens", "metric", "baseline", "infotok", "difference"]
    wanted += ["ci_low", "ci_high", "seeds", "excludes_zero", "p_value", "chosen", "p_holm", "command"]
    assert list(paired.columns) == wanted
    row = paired[paired.metric == "accuracy"].iloc[0]
    accuracy = dict(zip(ablation.estimator, ablation["understanding/accuracy"], strict=True))
    assert row.difference == pytest.approx(accuracy["ceb"] - accuracy["none"], abs=1e-5)
    assert json.loads((reports / "summary.json").read_text())["cells"] == 2
    assert pd.read_csv(reports / "training.csv").groupby("arm").step.max().to_dict() == dict.fromkeys(ARMS, 40)
    assert list(pd.read_csv(reports / "factorial.csv").columns[:2]) == ["family", "estimator"]
    assert "\\toprule" in (reports / "page" / "ablation.tex").read_text()
    figures = {path.name for path in (reports / "figures").glob("*.png")}
    assert {"score_over_beta.png", "information_plane.png", "samples.png", "structure_nuisance.png"} <= figures
    for name in figures:
        with Image.open(reports / "figures" / name) as image:
            assert image.width >= 820
            assert image.height >= 200
        assert (reports / "page" / "figures" / name).with_suffix(".svg").exists()


def test_a_sweep_makes_the_bytes_of_a_serial_run(workspace, tmp_path):
    folder = copy_of_the_code(tmp_path)
    swept = run(folder, "stages.cli", "sweep", "--jobs", "2", *STUDY, INFOTOK_WORKER="")
    assert swept.returncode == 0, swept.stdout + swept.stderr
    serial, parallel = contents(workspace), contents(folder)
    assert serial.keys() == parallel.keys()
    assert [name for name in serial if serial[name] != parallel[name]] == []
    locks = [(made / FILE).with_suffix(".lock").read_text() for made in (workspace, folder)]
    assert yaml.safe_load(locks[0]) == yaml.safe_load(locks[1])
    assert sorted(locks[0].splitlines()) == sorted(locks[1].splitlines())  # as DVC writes it, in another order
    logs = [path.read_text() for path in folder.glob(".ckpt/smoke/logs/*.log")]
    assert len(logs) == 7
    assert [said for said in logs if "lock file" in said] == []  # which no job reads or writes


# `stages.together`, which a signal hits when the second cell has made so many steps.
TOGETHER_BUT = """
import os, sys
from pipeline.running.stage import Stage
from stages.common import single
from stages.together import together
number, at = int(sys.argv.pop(1)), int(sys.argv.pop(1))
own = Stage.observe
def observe(self, step, values):
    own(self, step, values)
    if step == at and self.cell.estimator == "ceb":
        os.kill(os.getpid(), number)
Stage.observe = observe
single(together)
"""


def test_cells_that_train_in_one_process_make_the_bytes_that_they_make_alone(workspace, tmp_path, monkeypatch):
    """Interrupted, killed, and then by a sweep, in which DVC runs their stages and nothing after them."""
    folder = tmp_path / "copy"
    shutil.copytree(workspace, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    monkeypatch.chdir(folder)
    study = Study("smoke")
    shutil.rmtree(folder / "runs/smoke/train")
    assert due(study, "train", study.params.cells()) == []  # which DVC has in its cache
    for stage, entry in yaml.safe_load((folder / FILE).with_suffix(".lock").read_text())["stages"].items():
        if stage.startswith("train@"):
            digest = entry["outs"][0]["md5"]
            (folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    assert [cell.key for cell in due(study, "train", study.params.cells())] == CELLS
    (folder / "but.py").write_text(TOGETHER_BUT)

    def kept():
        found = folder.glob(".ckpt/smoke/checkpoints/train/*/*/step-*.safetensors")
        return {path.parents[1].name: int(path.stem.removeprefix("step-")) for path in sorted(found)}

    options = ["--most", "2", *STUDY, *CELLS]
    stopped = run(folder, "but", str(int(signal.SIGTERM)), "20", *options, INFOTOK_WORKER="")
    assert stopped.returncode == 143, stopped.stderr
    assert f"stopped by SIGTERM (kept in checkpoints: {', '.join(CELLS)})" in stopped.stderr
    before = kept()
    assert before == {CELLS[0]: 21, CELLS[1]: 20}
    killed = run(folder, "but", str(int(signal.SIGKILL)), "30", *options, INFOTOK_WORKER="")
    assert killed.returncode == -signal.SIGKILL
    assert kept() == {CELLS[0]: 30, CELLS[1]: 20}  # killed before its own was written
    swept = run(folder, "stages.cli", "sweep", "--jobs", "2", "--together", "2", *STUDY)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert contents(folder) == contents(workspace)
    locks = [(made / FILE).with_suffix(".lock").read_text() for made in (workspace, folder)]
    assert yaml.safe_load(locks[0]) == yaml.safe_load(locks[1])
    logs = {path.stem: path.read_text() for path in folder.glob(".ckpt/smoke/logs/*.log")}
    for cell in CELLS:
        assert f"train {cell}: goes on from" in logs["together-ar-4"]
        assert f"{cell}: trained" in logs["together-ar-4"]
        assert "step-00000040.safetensors" in logs[cell]
        assert ran(logs[cell]) == [f"train@{cell}"]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    for one in client.search_runs([e.experiment_id for e in client.search_experiments()], "tags.kind = 'cell'"):
        steps = [point.step for point in client.get_metric_history(one.info.run_id, "train/generation")]
        assert sorted(steps) == [0, 10, 20, 30, 40]  # 0: of the result
    assert set(shown_in_mlflow(folder)) == set(CELLS)
    assert kept() == {}


def test_every_metrics_file_carries_its_protocol(workspace):
    protocol = json.loads((workspace / "runs/smoke/generate" / CELLS[0] / "metrics.json").read_text())["protocol"]
    assert {"temperature", "guidance", "top_k", "geneval", "chosen", "seeds", "gfid"} <= set(protocol)


def shown_in_mlflow(folder: Path) -> dict[str, dict[str, float]]:
    """Cell -> metrics of its one MLflow run."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'cell'")
    assert len({run.data.tags["cell"] for run in runs}) == len(runs)
    return {run.data.tags["cell"]: run.data.metrics for run in runs}


def test_one_mlflow_run_per_cell_also_after_the_store_was_deleted(workspace):
    before = shown_in_mlflow(workspace)
    assert sorted(before) == sorted(CELLS)
    assert all(set(NAMES) <= set(metrics) for metrics in before.values())
    (workspace / "mlflow.db").rename(workspace / "gone.db")
    rebuilt = run(workspace, "stages.cli", "track", *STUDY)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert shown_in_mlflow(workspace) == before


def test_a_second_repro_does_nothing(workspace):
    again = run(workspace, "dvc", "repro", FILE)
    assert again.returncode == 0
    assert "Running stage" not in again.stdout
    assert "up to date" in again.stdout


NEW = "ar-dib-0.01-1-4-0"


@pytest.fixture
def grown(workspace, tmp_path):
    """A copy of the workspace with one more arm in its grid."""
    folder = tmp_path / "grown"
    shutil.copytree(workspace, folder, symlinks=True)
    path = folder / PARAMS
    path.write_text(path.read_text().replace("ceb-0.01-1]", "ceb-0.01-1, dib-0.01-1]"))
    return folder


def checkpoints(folder: Path, key: str) -> list[Path]:
    return list(folder.glob(f".ckpt/smoke/checkpoints/train/{key}/*/step-*.safetensors"))


def kill_after_first_checkpoint(folder: Path, key: str) -> bool:
    """Start one cell's training and kill -9 DVC and all its children; says whether a checkpoint was left."""
    command = [sys.executable, "-m", "dvc", "repro", "--force", "--single-item", f"{FILE}:train@{key}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True, **quiet)
    while process.poll() is None and not checkpoints(folder, key):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return bool(checkpoints(folder, key))


def test_a_new_cell_runs_alone_and_killed_training_ends_with_the_weights_of_an_undisturbed_run(grown):
    new = [f"{stage}@{NEW}" for stage in ("train", "understand", "generate")]
    plan = run(grown, "stages.cli", "plan", *STUDY).stdout
    assert [line.strip() for line in plan.splitlines() if "@" in line] == new

    # A run may end between its first checkpoint and the signal: it left nothing to resume.
    assert any(kill_after_first_checkpoint(grown, NEW) for _ in range(5))
    weights = grown / "runs/smoke/train" / NEW / "model.safetensors"
    assert not weights.exists()
    resumed = run(grown, "dvc", "repro", FILE)
    said = resumed.stdout + resumed.stderr
    assert resumed.returncode == 0, said
    assert f"train {NEW}: goes on from " in said
    assert not checkpoints(grown, NEW)
    assert sorted(ran(said)) == sorted(["configure", *new, "report"])

    after_the_kill = sha256(weights)
    undisturbed = run(grown, "dvc", "repro", "--force", "--single-item", f"{FILE}:train@{NEW}")
    assert "Running stage" in undisturbed.stdout
    assert "goes on from" not in undisturbed.stdout + undisturbed.stderr
    assert sha256(weights) == after_the_kill


@pytest.fixture
def elastic(workspace):
    """A study whose tokenizers serve every budget, with the data, features and judge of the finished run."""
    folder = workspace / "studies/elastic"
    folder.mkdir()
    raw = yaml.safe_load((workspace / PARAMS).read_text())
    raw["tokenizer"]["nested_dropout"] = 0.5
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))
    for once in ("prepare", "perceptual", "judge"):
        shutil.copytree(workspace / "runs/smoke" / once, workspace / "runs/elastic" / once)
    yield workspace
    for left in (folder, workspace / "runs/elastic"):
        shutil.rmtree(left)


@pytest.mark.parametrize(("family", "arm"), [("mask", "vib-0.01-1"), ("flow", "hsic-0.1-1")])
def test_the_other_families_go_through_every_stage_at_every_budget(elastic, family, arm):
    if family == "mask":
        path = elastic / "studies/elastic/params.yaml"
        raw = yaml.safe_load(path.read_text())
        raw["train"] |= {"target_bits": 9.0, "prior": "autoregressive"}
        path.write_text(yaml.safe_dump(raw))
    axes = {"family": family, "tokens": 4, "seed": 0}
    of_arm = [(stage, axes | {"arm": arm}) for stage in ("train", "understand", "generate")]
    run_stages(elastic, "elastic", [("pretrain", axes), *of_arm], INFOTOK_TRACKING="off")

    results = elastic / "runs/elastic"
    metrics, protocol = {}, {}
    for stage in ("train", "understand", "generate"):
        result = json.loads((results / stage / f"{family}-{arm}-4-0" / "metrics.json").read_text())
        metrics |= result["metrics"]
        protocol |= result["protocol"]
    kind = {"mask": ["perplexity", "code_entropy_bits"], "flow": ["active_dimensions"]}[family]
    names = ["rate_bits", "autoregressive_rate_bits", "lower_bits", "upper_bits", "conditional_rate_bits", *kind]
    wanted = [f"information/{name}" for name in [*names, "dependence", "dependence_text", "structure_bits"]]
    wanted += [f"{name}_at_{budget}" for name in ("understanding/accuracy", "generation/geneval") for budget in (1, 2)]
    wanted += ["train/consistency", "train/beta", "generation/gfid", "reconstruction/psnr"]
    wanted += ["train/penalty_independent"] if family == "flow" else []
    assert all(math.isfinite(metrics[name]) for name in wanted)
    assert {"decoding_steps", "choice_temperature", "ode_steps"} <= set(protocol)
    history = (results / "train" / f"{family}-{arm}-4-0" / "history.jsonl").read_text()
    assert len({json.loads(line)["train/beta"] for line in history.splitlines()}) > 1


def test_results_of_another_configuration_are_refused(workspace):
    path, page = workspace / PARAMS, workspace / "reports/smoke/page/index.html"
    text, before = path.read_text(), sha256(page)
    try:
        path.write_text(text.replace("learning_rate: 0.006", "learning_rate: 0.005"))
        refused = run(workspace, "stages.report", *STUDY)
    finally:
        path.write_text(text)
    line = one_line_error(refused)
    assert f"runs/smoke/train/{CELLS[0]}/metrics.json: is from another configuration" in line
    assert line.endswith(f"run `dvc repro {FILE}:train@{CELLS[0]}`")
    assert sha256(page) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tokens", "5"], "--tokens: a 32 x 32 image cannot be cut into 5 equal patches"),
        (["--arm", "ceb--0.01-1"], "--arm: arm 'ceb--0.01-1' is not <estimator>-<beta>"),
        (["--arm", "ceb-0-1"], "--arm: arm 'ceb-0-1' has beta 0, which no estimator weighs; write none-0-1"),
        (["--arm", "CEB-0.01-1"], "such as ceb-0.01-1; none-0-0 is the baseline; known estimators: none, ceb, "),
        (["--seed", "-1"], "--seed: -1 is no seed; use 0 or more, below 2^63"),
        (["--seed", "9223372036854775808"], "--seed: 9223372036854775808 is no seed"),
        (["--family", "arr"], "--family: 'arr' is unknown; known: "),
        (["--study", "smoky"], "--study: there is no folder studies/smoky; known: default, "),
        (["--study", "../smoke"], "'../smoke' cannot name a study"),
    ],
)
def test_a_bad_option_is_named(workspace, options, says):
    assert says in one_line_error(run(workspace, "stages.train", *CELL, *options))


def test_two_processes_pretrain_and_train_a_cell_that_is_not_in_the_grid(workspace):
    cell = [*STUDY, "--family", "flow", "--tokens", "4", "--seed", "3"]

    def in_two(stage, *options):
        command = [sys.executable, "-m", f"stages.{stage}", *cell, *options]
        variables = environment() | {"INFOTOK_PROCESSES": "2", "INFOTOK_TRACKING": "off"}
        return subprocess.run(command, cwd=workspace, env=variables, capture_output=True, text=True, check=False)

    tokenizer, trained = (workspace / "runs/smoke" / name for name in ("pretrain/flow-4-3", "train/flow-none-0-0-4-3"))
    try:
        note, error = in_two("train", "--arm", "none-0-0").stderr.splitlines()
        assert note.startswith(f"note: --family flow, --seed 3: not in the grid of {PARAMS}; it runs all the same")
        assert "tokenizer.safetensors: is missing" in error
        assert "--arm: arm 'cebra'" in one_line_error(in_two("train", "--arm", "cebra"))
        for folder, done in ((tokenizer, in_two("pretrain")), (trained, in_two("train", "--arm", "none-0-0"))):
            assert done.returncode == 0, done.stderr
            result = json.loads((folder / "metrics.json").read_text())
            assert all(math.isfinite(value) for value in result["metrics"].values())
            steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").read_text().splitlines()]
            assert steps == [10, 20, 30, 40]
            assert not list(workspace.glob(f".ckpt/smoke/checkpoints/*/{folder.name}/*"))
        # Neither checkpoints nor half of a file by a second writer.
        assert {path.name for path in trained.iterdir()} == {
            "history.jsonl", "metrics.json", "model.safetensors", "text.json"
        }  # fmt: skip
    finally:
        for folder in (tokenizer, trained):
            shutil.rmtree(folder, ignore_errors=True)  # else the report would be out of date
