"""The report of data of every kind: which tasks they allow, and what of the report is left."""

import base64
import csv
import io
import json
import re
import zlib

import pytest
from rich.console import Console
from synthetic import (
    DATA,
    Resources,
    analysed,
    changed,
    elastic_results,
    leave_data,
    leave_images,
    study_with,
    synthetic,
)

from pipeline.report.analysis import analyse
from pipeline.report.protocol import protocol
from pipeline.report.summary import headline_table
from pipeline.report.tables import headline, tables
from pipeline.report.texts import captions, findings
from pipeline.report.write import write_report
from pipeline.tracking.view import saved_view

SAID = {  # of data that are read: the tasks sentence and the headline's metrics
    "matching": (
        "Data: jsonl. Tasks: understanding (accuracy: the answer is right, by exact match after trimming and lowering "
        "case) and generation (retrieval: the judge finds the image's own caption among others).",
        ["accuracy", "retrieval", "retrieval, T=1"],
    ),
    "captions": (
        "Data: jsonl. Tasks: generation (retrieval: the judge finds the image's own caption among others). Left out: "
        "understanding, because the data have no questions.",
        ["retrieval", "retrieval, T=1"],
    ),
    "questions": (
        "Data: jsonl. Tasks: understanding (accuracy: the answer is right, by exact match after trimming and lowering "
        "case). Left out: generation, because the test images have no captions.",
        ["accuracy"],
    ),
}


@pytest.fixture(scope="module", params=list(SAID))
def read(request, tmp_path_factory):
    """The report of data that are read, and of which kind they are."""
    data = request.param
    params, results, judge = synthetic(data=data, families=("ar", "flow"))
    study = study_with(params, tmp_path_factory.mktemp(data))
    leave_data(study, data)
    leave_images(study, results, draws=data != "questions")
    return data, write_report(results, judge, study), study.reports


def test_data_of_any_kind_make_a_whole_report_that_says_which_tasks_they_allow(read):
    data, found, reports = read
    sentence, metrics = SAID[data]
    said, text = (reports / "ablation.md").read_text(), (reports / "page/index.html").read_text()
    assert sentence in said
    parser = Resources()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert sentence in "".join(parser.texts)
    assert list(dict.fromkeys(row[4] for row in headline(found).rows)) == metrics
    assert len(parser.loads) == 5  # no factors, no elastic training
    for whole in (said, text, (reports / "page/ablation.tex").read_text()):
        assert all(word not in whole for word in ("GenEval", "novel", "structure against nuisance"))
        assert ("retrieval" in whole) == (data != "questions")
        assert ("accuracy" in whole.lower()) == (data != "captions")
    assert ("both tasks" in said) == (data == "matching")
    assert "nan" not in said.lower()
    for finding in findings(found):
        assert len(re.findall(r"Accuracy|Retrieval", finding)) == len(found.tasks)
    content = json.loads((reports / "summary.json").read_text())
    assert ("retrieval" in content["ar"]) == (data != "questions")
    console = Console(width=100, file=io.StringIO())
    console.print(headline_table(found))
    assert all(name in console.file.getvalue() for name in metrics)


def test_columns_of_what_the_data_lack_are_absent(read):
    data, _, reports = read
    columns = next(csv.reader(io.StringIO((reports / "ablation.csv").read_text())))
    paired = {row["metric"] for row in csv.DictReader(io.StringIO((reports / "paired.csv").read_text()))}
    assert not [name for name in columns if re.search("geneval|novel|factor|structure|nuisance|tag", name)]
    assert any(name.startswith("understanding/") for name in columns) == (data != "captions")
    assert any(name.startswith("generation/") for name in columns) == (data != "questions")
    assert ("understanding/majority" in columns) == (data != "captions")
    generation, understanding = {"retrieval", "retrieval_t1", "gfid"}, {"accuracy"}
    wanted = {"matching": generation | understanding, "captions": generation, "questions": understanding}[data]
    assert paired == wanted | {"psnr", "rate_bits"}


def test_the_protocol_tells_what_was_read_left_out_and_found_twice(read):
    data, found, reports = read
    rows = dict(protocol(found))
    assert rows["data"] == ("jsonl, 32×32 pixels, path data/mine, fit pad, background white, file data.jsonl")
    assert rows["images"] == "1000 train, 120 validation, 130 test"
    assert rows["rejects"] == "3: caption is empty (2); image is <b>cut</b> | off (1)"
    assert rows["kept, but worth a look"] == "4: question in test has an answer that training never shows (4)"
    assert rows["images that are copies"] == "5 of one in the same split, 2 of one in another split"
    assert "image is &lt;b&gt;cut&lt;/b&gt; | off" in (reports / "page/index.html").read_text()
    judged = {key: value for key, value in rows.items() if key.startswith("judge, ")}
    assert judged == ({} if data == "questions" else {"judge, ceiling of retrieval (real test images)": "0.9"})
    assert ("temperatures tried" in rows) == (data != "questions")
    assert "generation" not in rows  # prompts per tag are of scenes
    blind = {key: value for key, value in rows.items() if "baseline" in key and key.startswith("flow")}
    assert [value[:5] for value in blind.values()] == ([] if data == "captions" else ["0.400", "0.250"])


def test_accuracy_stands_beside_what_it_is_without_the_image_and_retrieval_beside_ceiling_and_chance(read):
    data, found, _ = read
    blind = "Accuracy without the image: question only 0.400, majority 0.250."
    judged = "Retrieval of real test images: 0.900, the judge's ceiling; by guessing one of 25 captions: 0.040."
    notes = {table.title: table.note for table in [headline(found), *tables(found)]}
    whole = notes["Headline: validated arms against none-0-0"]
    assert (blind in whole, judged in whole) == (data != "captions", data != "questions")
    assert notes.get("flow: understanding by arm and token budget", blind) == blind
    assert notes.get("flow: generation by arm and token budget", judged) == judged
    assert ("Per family, token budget and estimator, accuracy on the validation split chooses β and γ" in whole) == (
        data == "questions"
    )
    # Of two families and two chosen arms.
    tests = {"matching": "8 tests of accuracy and retrieval", "captions": "4 tests of retrieval"}
    assert f"the {tests.get(data, '4 tests of accuracy')} of all chosen arms" in whole
    assert ("retrieval at T=1 is no claim of its own" in whole) == (data != "questions")


def test_captions_say_what_the_figures_show(read):
    data, found, _ = read
    said = captions(found)
    assert ("retrieval at temperature 1" in said["gains"]) == (data != "questions")
    assert ("accuracy" in said["gains"]) == (data != "captions")
    scores = {"matching": "both tasks' scores", "captions": "retrieval", "questions": "accuracy"}[data]
    assert said["information_plane"].startswith(f"Bits per image against {scores}.")
    assert ("question only and majority" in said["score_over_beta"]) == (data != "captions")
    assert ("the judge finds the image's own caption" in said["samples"]) == (data != "questions")
    assert "GenEval" not in "".join(said.values())
    of_scenes = captions(analysed())
    assert "accuracy, GenEval at the temperature and guidance that validation chose" in of_scenes["gains"]
    assert "the judge finds the prompt fulfilled" in of_scenes["samples"]


def test_images_are_counted_by_the_manifest_or_where_it_is_not_there_by_the_params(tmp_path):
    params, results, judge = synthetic(seeds=(0,))
    study = study_with(params, tmp_path)
    settled = "scenes, 32×32 pixels, nuisance 1"
    rows = dict(protocol(analyse(results, judge, study)))
    assert (rows["data"], rows["images"]) == (settled, "16000 train, 1000 validation, 1000 test, 1000 novel")
    assert "rejects" not in rows
    assert rows["generation"] == "16 prompts per tag, 8 images per prompt"
    leave_data(study)
    rows = dict(protocol(analyse(results, judge, study)))
    assert (rows["data"], rows["images"]) == (settled, "1000 train, 120 validation, 130 test, 90 novel")
    assert rows["rejects"] == "none"
    assert rows["judge, ceiling of its scores (objects)"] == "0.97"
    params, results, judge = synthetic(seeds=(0,), data="questions")
    assert dict(protocol(changed(params, results, judge)))["images"] == "–"


def test_many_question_families_are_left_to_the_csv():
    params, results, judge = synthetic(data="questions")
    for number in range(10):
        for stages in results.values():
            stages["understand"]["metrics"][f"understanding/family/kind_{number}"] = 0.5
    made = {table.title: table for table in tables(changed(params, results, judge))}
    table = made["ar: question families"]
    assert table.header[3:] == ["exist", *(f"kind {n}" for n in range(10)), "yes no", "question only", "majority"]
    for stages in results.values():
        stages["understand"]["metrics"]["understanding/family/one more"] = 0.5
    found = changed(params, results, judge)
    table = {table.title: table for table in tables(found)}["ar: question families"]
    assert table.header == ["K", "arm", "adds", "question only", "majority"]
    assert "each of the 13 families stands in ablation.csv" in table.note
    assert len(found.frame.filter(like="family/").columns) == 13


def test_budgets_of_one_training_are_of_the_tasks_there_are():
    for data, metrics in (("matching", {"accuracy", "retrieval"}), ("captions", {"retrieval"})):
        made = {table.title: table for table in tables(changed(*elastic_results(data=data)))}
        table = made["ar: one training, every budget"]
        assert {row[0] for row in table.rows} == metrics
        rows = {tuple(row[:3]): row[4:] for row in table.rows}
        assert [text[:5] for text in rows[("retrieval", "8", "ceb-0.01-1")]] == ["0.360", "0.460", "0.560", "0.610"]


def test_accuracy_that_needs_no_image_is_a_finding():
    params, results, judge = synthetic(data="matching")
    assert "without the image" not in findings(changed(params, results, judge))[0]
    for stages in results.values():
        stages["understand"]["metrics"]["understanding/question_only"] = 0.67  # ceb-0.01-1: .66
    assert "Neither exceeds accuracy without the image (0.670)." in findings(changed(params, results, judge))[0]


def state(manifest=None):
    packed = json.loads(saved_view(manifest)["mlflow.sharedViewState.infotok"])
    return packed["name"], json.loads(zlib.decompress(base64.b64decode(packed["state"].removeprefix("deflate;"))))


def test_the_saved_view_follows_the_tasks_that_the_data_allow():
    assert state() == state({"counts": {}}) == state(DATA["scenes"])
    assert state()[0] == "Beta against both tasks"
    wanted = {
        "matching": ("both tasks", ["understanding/accuracy", "generation/retrieval", "generation/retrieval_t1"]),
        "captions": ("retrieval", ["generation/retrieval", "generation/retrieval_t1"]),
        "questions": ("accuracy", ["understanding/accuracy"]),
    }
    for data, (named, metrics) in wanted.items():
        name, shown = state(DATA[data])
        assert name == f"Beta against {named}"
        columns = [column for column in shown["selectedColumns"] if column.startswith("metrics")]
        assert columns == [f"metrics.`{metric}`" for metric in [*metrics, "information/rate_bits"]]
        scores = [metric for metric in metrics if not metric.endswith("_t1")]
        assert shown["orderByKey"] == f"metrics.`{scores[-1]}`"
        assert [chart["metricKey"] for chart in shown["compareRunCharts"] if chart["type"] == "BAR"] == scores
        assert [chart["type"] for chart in shown["compareRunCharts"]].count("SCATTER") == 2 * len(scores) - 1
