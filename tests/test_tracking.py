"""The MLflow mirror on a real store: one run per cell, rebuilt from results, and never in training's way."""

import base64
import json
import logging
import socket
import sqlite3
import subprocess
import sys
import time
import zlib
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from infotok.errors import InfotokError
from pipeline.config.recipes import fingerprint
from pipeline.config.study import Study
from pipeline.results import write_result
from pipeline.tracking import store
from pipeline.tracking.mirror import fill_in, initialise, rebuild, store_uri, track_stage
from pipeline.tracking.names import decoded
from pipeline.tracking.server import serve
from pipeline.tracking.view import saved_view

ROOT = Path(__file__).parent.parent
METRICS = {
    "pretrain": {"reconstruction/psnr": 19.0},
    "train": {"information/rate_bits": 31.5, "collapsed": False},
    "understand": {"understanding/accuracy": 0.75, "information/structure_bits": 5.0},
    "generate": {"generation/geneval": 0.6, "generation/gfid": None},
}
OPEN = """
import sys
from pathlib import Path
from pipeline.config.study import Study
from pipeline.tracking.mirror import initialise, rebuild
print({"initialise": initialise, "rebuild": rebuild}[sys.argv[2]](Study(root=Path(sys.argv[1]))))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The repository's params with two cells, results under tmp_path."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("INFOTOK_TRACKING", raising=False)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["grid"] = {"family": ["ar"], "arm": ["none-0-0", "ceb-0.01-1"], "tokens": [8], "seed": [0]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    study = Study(root=tmp_path)
    study.data.mkdir(parents=True)
    (study.data / "manifest.json").write_text(json.dumps({"counts": {"train": 16000}}))
    return study


def in_process(study, action):
    """A fresh process running `initialise` or `rebuild`, as another stage or `infotok track` would."""
    command = [sys.executable, "-c", OPEN, str(study.root), action]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out.strip()


def write(study, stage, cell, source="code", warnings=()):
    """A finished stage's metrics.json."""
    values = {"source": source, "protocol": {}, "warnings": list(warnings)}
    return write_result(study, stage, cell, metrics=METRICS[stage], **values)


def finish_cell(study, cell):
    """What DVC leaves of one finished cell, without MLflow."""
    write(study, "pretrain", cell)
    write(study, "train", cell, warnings=["codebook collapsed"])
    lines = [{"step": step, "train/loss": 1 / step, "train/rate_bits": 30.0} for step in range(1, 151)]
    (study.output("train", cell) / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    write(study, "understand", cell)
    write(study, "generate", cell)
    Image.new("RGB", (4, 4)).save(study.output("generate", cell) / "samples.png")


def runs(study, kind="cell"):
    client = MlflowClient(tracking_uri=store_uri(study))
    experiment = client.get_experiment_by_name(study.params.report.title).experiment_id
    return client, client.search_runs([experiment], f"tags.kind = '{kind}'")


def shown(study):
    """Everything a reader sees of the cells, but for times and ids."""
    client, found = runs(study)
    content = {}
    for run in found:
        history = client.get_metric_history(run.info.run_id, "train/loss")
        steps = [(point.step, point.value) for point in history]
        images = [file.path for file in client.list_artifacts(run.info.run_id, "samples")]
        tags = {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        content[run.info.run_name] = [run.info.status, run.data.metrics, run.data.params, tags, steps, images]
    return content


def test_one_run_per_cell_with_steps(study):
    cell = study.params.cells()[1]
    with track_stage(study, cell, "pretrain") as tracker:
        tracker.log(10, {"loss": 2.0})
        tracker.finish(write(study, "pretrain", cell))
    with track_stage(study, cell, "train") as tracker:
        for step in range(1, 6):
            tracker.log(step, {"train/loss": 1 / step, "train/rate_bits": 30.0 + step})
        tracker.finish(write(study, "train", cell, warnings=["codebook collapsed", "3 dead; more"]))
    for stage in ("understand", "generate"):
        result = write(study, stage, cell)
        image = study.output(stage, cell) / "samples.png"
        Image.new("RGB", (4, 4)).save(image)
        with track_stage(study, cell, stage) as tracker:
            tracker.finish(result, {"samples": image})

    client, (run,) = runs(study)
    assert run.info.run_name == "ar-ceb-0.01-1-8-0"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / step) for step in range(1, 6)]
    metrics = run.data.metrics
    assert metrics["understanding/accuracy"] == 0.75
    assert metrics["generation/geneval"] == 0.6
    assert metrics["pretrain/reconstruction/psnr"] == 19.0
    assert metrics["train/collapsed"] == 0.0
    assert "generation/gfid" not in metrics
    params, tags = run.data.params, run.data.tags
    axes = [params[name] for name in ("family", "estimator", "beta", "tokens", "seed", "arm", "log10_beta")]
    assert axes == ["ar", "ceb", "0.01", "8", "0", "ceb-0.01-1", "-2.0"]
    assert params["train.steps"] == str(study.params.train.steps)
    assert tags["stage"] == "generate"
    assert tags["warning"] == "train: codebook collapsed, 3 dead, more"
    assert tags["git"] == "none"
    assert tags["logged.train"] == fingerprint(study, "train", cell)
    images = client.list_artifacts(run.info.run_id, "samples")
    assert [image.path for image in images] == ["samples/samples.png"]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.tags[0].value) == ("scenes", "training")
    assert json.loads(data.dataset.profile)["counts"] == {"train": 16000}

    _, (tokenizer,) = runs(study, "tokenizer")
    assert tokenizer.info.run_name == "tokenizer-ar-8-0"
    assert tokenizer.data.metrics == {"pretrain/loss": 2.0, "reconstruction/psnr": 19.0}
    assert rebuild(study) == 0  # all of it was logged live


def test_resumed_training_repeats_no_step_and_a_new_training_gets_a_new_run(study):
    cell = study.params.cells()[0]

    def cut_off():
        with track_stage(study, cell, "train") as tracker:
            tracker.log(1, {"train/loss": 3.0})
            tracker.log(2, {"train/loss": 2.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut_off()
    client, (failed,) = runs(study)
    assert failed.info.status == "FAILED"
    with track_stage(study, cell, "train") as tracker:
        tracker.log(2, {"train/loss": 2.0})
        tracker.log(3, {"train/loss": 1.0})
        tracker.finish(write(study, "train", cell))
    _, (resumed,) = runs(study)
    assert resumed.info.run_id == failed.info.run_id
    history = client.get_metric_history(resumed.info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2, 3]
    with track_stage(study, cell, "train") as tracker:
        tracker.log(1, {"train/loss": 9.0})
    _, (repeated,) = runs(study)
    assert repeated.info.run_id != resumed.info.run_id
    assert repeated.data.metrics == {"train/loss": 9.0}


def test_rebuild_restores_a_deleted_store(study, caplog, monkeypatch):
    for cell in study.params.cells():
        finish_cell(study, cell)
    assert rebuild(study) == 7  # a shared tokenizer, and three stages of two cells
    before = shown(study)
    assert set(before) == {"ar-none-0-0-8-0", "ar-ceb-0.01-1-8-0"}
    status, metrics, _, tags, steps, images = before["ar-ceb-0.01-1-8-0"]
    assert status == "FINISHED"
    assert metrics["generation/geneval"] == 0.6
    assert tags["warning"] == "train: codebook collapsed"
    assert steps == [(step, 1 / step) for step in range(1, 151)]
    assert images == ["samples/samples.png"]
    (study.root / "mlflow.db").unlink()
    # In processes of their own: MLflow keeps a deleted database open in this one.
    assert output(in_process(study, "rebuild")) == "7"
    assert output(in_process(study, "rebuild")) == "0"
    copy = study.root / "copy.db"
    (study.root / "mlflow.db").rename(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    assert shown(study) == before

    # Code that changed is told by its digest, and a configuration that changed by its fingerprint.
    cell = study.params.cells()[0]
    write(study, "understand", cell, source="newer code")
    assert rebuild(study) == 1
    assert rebuild(study) == 0
    other = Study(root=study.root)
    raw = yaml.safe_load(study.params_file.read_text())
    study.params_file.write_text(yaml.safe_dump(raw | {"generation": {"prompts": 7}}))
    write(other, "generate", cell)
    (study.output("train", cell) / "metrics.json").write_text("{")
    assert rebuild(study) == 0
    assert "another configuration" in caplog.text
    assert "is damaged" in caplog.text


def test_families_of_any_name_are_shown_live_and_when_filled_in(study, monkeypatch):
    families = ["count (number)", "x|y", "attr@1", "what's this?", "a//b", "色"]
    values = {f"understanding/family/{name}": index / 10 for index, name in enumerate(families)}
    monkeypatch.setitem(METRICS, "understand", values)
    live, later = study.params.cells()[:2]
    with track_stage(study, live, "understand") as tracker:
        tracker.finish(write(study, "understand", live))
    write(study, "understand", later)
    assert rebuild(study) == 1
    for run in runs(study)[1]:
        assert {decoded(name): value for name, value in run.data.metrics.items()} == values


def test_what_mlflow_refuses_stops_nothing_else(study, caplog):
    first, second = study.params.cells()[:2]
    for cell in (first, second):
        finish_cell(study, cell)
    history = study.output("train", first) / "history.jsonl"
    history.write_text(json.dumps({"step": "one", "train/loss": 1.0}) + "\n")
    assert rebuild(study) == 2 + 3 + 2 - (first.tokens == second.tokens)
    (line,) = [record.message for record in caplog.records]
    assert f"train/{first.key}/metrics.json: is left out of MLflow, which refuses it (" in line
    with_training = {run.info.run_name for run in runs(study)[1] if "logged.train" in run.data.tags}
    assert with_training == {second.key}


@pytest.mark.parametrize("broken", ["folder", "garbage", "away"])
def test_training_goes_on_without_a_store(study, broken, caplog, monkeypatch):
    if broken == "folder":
        (study.root / "mlflow.db").mkdir()
    elif broken == "garbage":
        (study.root / "mlflow.db").write_bytes(b"no database " * 1000)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{study.root}/missing/mlflow.db")
    cell, steps = study.params.cells()[0], 0
    with caplog.at_level(logging.WARNING, "infotok"), track_stage(study, cell, "train") as tracker:
        for step in range(300):
            tracker.log(step, {"train/loss": 1.0})
            steps += 1
        tracker.finish(write(study, "train", cell))
    assert steps == 300
    assert len(caplog.records) == 1
    assert "no longer mirrors train ar-none-0-0-8-0" in caplog.text
    assert initialise(study) is None
    with pytest.raises(InfotokError, match=r"as MLflow's store.*MLFLOW_TRACKING_URI=sqlite:///other\.db"):
        rebuild(study)
    if broken != "away":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{study.root}/other.db")  # as it says
        assert rebuild(study) == 1


@pytest.mark.parametrize("fault", ["locked", "deleted", "server gone", "server silent"])
def test_a_store_that_breaks_in_mid_run_is_one_warning_and_filled_in_later(study, fault, caplog, capfd, monkeypatch):
    monkeypatch.setattr(store, "PROBE_SECONDS", 0.2)
    cell, database = study.params.cells()[0], study.root / "mlflow.db"
    lines = [{"step": step, "train/loss": 1 / step} for step in range(1, 301)]
    (study.output("train", cell)).mkdir(parents=True)
    (study.output("train", cell) / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    with caplog.at_level(logging.WARNING, "infotok"), track_stage(study, cell, "train") as tracker:
        for line in lines:
            if line["step"] == 151:  # a hundred are sent
                assert caplog.records == []
                if fault == "locked":
                    other = sqlite3.connect(database, isolation_level=None)
                    other.execute("BEGIN EXCLUSIVE")
                elif fault == "deleted":
                    database.unlink()
                else:
                    server = socket.create_server(("127.0.0.1", 0))  # which takes connections and answers nothing
                    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
                    tracker._run.client = MlflowClient(f"http://127.0.0.1:{server.getsockname()[1]}")
                    if fault == "server gone":
                        server.close()
            tracker.log(line["step"], {"train/loss": line["train/loss"]})
        tracker.finish(write(study, "train", cell))
    (warning,) = caplog.records
    assert "no longer mirrors train ar-none-0-0-8-0" in warning.message
    assert "Traceback" not in capfd.readouterr().err
    if fault == "locked":
        other.close()
    elif fault == "server silent":
        server.close()
    # In a process of its own: MLflow keeps a deleted database open in this one.
    assert output(in_process(study, "rebuild")) == "1"
    with closing(sqlite3.connect(database)) as whole:
        shown = "SELECT step FROM metrics JOIN runs USING (run_uuid) WHERE lifecycle_stage = 'active' AND key = ?"
        assert [step for (step,) in whole.execute(f"{shown} ORDER BY step", ["train/loss"])] == list(range(1, 301))


def test_a_result_made_again_after_the_clock_was_set_back_is_the_one_shown(study, monkeypatch):
    cell, clock = study.params.cells()[0], time.time
    for source, accuracy, behind in (("code", 0.75, 0), ("newer code", 0.5, 3600), ("newest code", 0.25, 7200)):
        monkeypatch.setattr(time, "time", lambda behind=behind: clock() - behind)
        monkeypatch.setitem(METRICS, "understand", {"understanding/accuracy": accuracy})
        result = write(study, "understand", cell, source=source)
        with track_stage(study, cell, "understand") as tracker:
            tracker.finish(result)
        _, (run,) = runs(study)
        assert run.data.metrics["understanding/accuracy"] == accuracy
    assert rebuild(study) == 0


def test_processes_may_initialise_a_fresh_store_at_once(study):
    processes = [in_process(study, "initialise") for _ in range(4)]
    assert len({output(process) for process in processes}) == 1
    client = MlflowClient(tracking_uri=store_uri(study))
    names = [experiment.name for experiment in client.search_experiments()]
    assert names.count(study.params.report.title) == 1


def test_saved_view_has_the_grids_columns(study):
    experiment = MlflowClient(tracking_uri=store_uri(study)).get_experiment(initialise(study))
    value = experiment.tags["mlflow.sharedViewState.infotok"]
    assert json.loads(value)["state"] == json.loads(saved_view()["mlflow.sharedViewState.infotok"])["state"]
    packed = json.loads(value)["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert state["searchFilter"] == "tags.kind = 'cell'"
    axes = [f"params.`{name}`" for name in ("family", "estimator", "beta", "gamma", "tokens", "seed")]
    scores = ["understanding/accuracy", "generation/geneval", "generation/geneval_t1"]
    bits = [f"information/{name}_bits" for name in ("rate", "structure", "nuisance")]
    assert state["selectedColumns"] == axes + [f"metrics.`{name}`" for name in scores + bits]
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["type"] for chart in state["compareRunCharts"]} == {"PARALLEL", "SCATTER", "BAR"}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_tracking_can_be_off(study, monkeypatch):
    monkeypatch.setenv("INFOTOK_TRACKING", "off")
    cell = study.params.cells()[0]
    with track_stage(study, cell, "train") as tracker:
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish(write(study, "train", cell))
    assert initialise(study) is None
    assert rebuild(study) == 0
    assert not (study.root / "mlflow.db").exists()
    with pytest.raises(InfotokError, match="INFOTOK_TRACKING"):
        serve(study)


def test_tracking_can_be_left_to_the_stages_that_train(study, monkeypatch):
    monkeypatch.setenv("INFOTOK_TRACKING", "training")
    cell = study.params.cells()[0]
    finish_cell(study, cell)
    with track_stage(study, cell, "understand") as tracker:
        tracker.finish(json.loads((study.output("understand", cell) / "metrics.json").read_text()))
    assert not Path(store_uri(study).removeprefix("sqlite:///")).exists()
    with track_stage(study, cell, "train") as tracker:
        tracker.finish(json.loads((study.output("train", cell) / "metrics.json").read_text()))
    (run,) = runs(study)[1]
    assert "logged.understand" not in run.data.tags
    fill_in(study, [cell])
    (run,) = runs(study)[1]
    assert {"logged.train", "logged.understand", "logged.generate"} <= set(run.data.tags)


def test_a_port_in_use_is_named(study):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InfotokError, match="--port"):
            serve(study, taken.getsockname()[1])
