"""The report's charts: what they draw of a grid worked by hand, and that they fit a page."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic import FIGURES, analysed, changed, elastic_results, leave_images, study_with, synthetic

from pipeline.report.analysis import analyse
from pipeline.report.comparisons import budget_curve, gains
from pipeline.report.curves import training
from pipeline.report.figures import information_plane, score_over_beta
from pipeline.report.galleries import gallery_cells, samples
from pipeline.report.style import SOFT
from pipeline.report.write import save_figures


def points(ax, marker="o"):
    """x, y and face color of the single markers of a panel."""
    lines = [line for line in ax.get_lines() if line.get_marker() == marker and len(line.get_xdata()) == 1]
    return [(line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor()) for line in lines]


def test_gains_show_differences_intervals_and_whether_they_exclude_zero():
    params, results, judge = synthetic(families=("ar", "mask"))
    for cell, stages in results.items():
        # In the mask family ceb-0.01-1 gains .02, .021, .022: an interval of .021 ± 4.30265 × .001 / √3.
        if (cell.family, cell.arm) == ("mask", "ceb-0.01-1"):
            base = results[cell.baseline()]["understand"]["metrics"]["understanding/accuracy"]
            stages["understand"]["metrics"]["understanding/accuracy"] = base + 0.02 + cell.seed / 1000
    axes = np.array(gains(changed(params, results, judge)).axes).reshape(2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["accuracy", "GenEval", "GenEval, T=1"]
    assert [text.get_text() for text in axes[0, 0].get_yticklabels()] == ["K = 8", "vib-0.003-1", "ceb-0.01-1"]
    assert [text.get_fontweight() for text in axes[0, 0].get_yticklabels()[1:]] == ["normal", "bold"]
    (vib, ceb), (_, mask) = points(axes[0, 0]), points(axes[1, 0])
    assert vib == (pytest.approx(0), 1, "white")
    assert ceb == (pytest.approx(0.04), 2, "white")
    assert mask[:2] == (pytest.approx(0.021), 2)
    assert mask[2] != "white"
    whiskers = [line.get_xdata() for line in axes[1, 0].get_lines() if list(line.get_ydata()) == [2, 2]]
    half = 4.30265 * 0.001 / math.sqrt(3)
    assert [tuple(ends) for ends in whiskers] == [pytest.approx((0.021 - half, 0.021 + half), abs=1e-6)]
    assert axes[0, 1].get_xlim() == axes[1, 2].get_xlim()  # GenEval at both samplings on one scale
    assert all(ax.get_xlim()[0] < 0 < ax.get_xlim()[1] for ax in axes.flat)


def test_gains_mark_an_interval_that_leaves_the_panel_and_need_no_interval():
    params, results, judge = synthetic(seeds=(0, 1), tokens=(4, 8, 16))
    for cell, stages in results.items():
        if (cell.arm, cell.tokens) == ("ceb-0.01-1", 4):
            stages["understand"]["metrics"]["understanding/accuracy"] += cell.seed  # differences of .02 and 1.04
    ax = gains(changed(params, results, judge)).axes[0]
    low, high = ax.get_xlim()
    assert [(x, y) for x, y, _ in points(ax, "<") + points(ax, ">")] == [(low, 2), (high, 2)]
    assert all(low < x < high for x, *_ in points(ax))
    single = gains(analysed(seeds=(0,))).axes[0]
    assert [(x, face) for x, _, face in points(single)] == [(pytest.approx(x), "white") for x in (0.01, 0.02)]
    params, results, judge = synthetic()
    alone = {cell: r for cell, r in results.items() if cell.arm != "none-0-0"}
    assert gains(changed(params, alone, judge)) is None


def test_budget_curve_draws_the_elastic_training_beside_one_training_per_budget():
    assert budget_curve(analysed(tokens=(4, 8))) is None
    params, results, judge = elastic_results()
    accuracy, geneval = budget_curve(changed(params, results, judge)).axes
    curves = {line.get_marker(): line for line in accuracy.get_lines() if len(line.get_xdata()) > 1}
    assert list(curves["o"].get_xdata()) == [1, 2, 4, 8]
    drawn = sorted(line.get_ydata()[0] for line in accuracy.get_lines() if len(line.get_xdata()) == 4)
    assert drawn == pytest.approx([0.32, 0.41])  # none-0-0, and ceb-0.01-1, which validation chose
    diamonds = points(accuracy, "D")
    assert [(round(x), y) for x, y, _ in diamonds] == [(4, pytest.approx(0.62)), (4, pytest.approx(0.66))]
    assert [label.get_text() for label in geneval.get_xticklabels()] == ["1", "2", "4", "8"]


def test_beta_of_hsic_is_not_per_nat():
    params, results, judge = synthetic()
    renamed = {replace(c, estimator="hsic") if c.estimator == "vib" else c: r for c, r in results.items()}
    figure = score_over_beta(changed(params, renamed, judge))
    below = {ax.get_title(loc="left"): figure.axes[2 + i].get_xlabel() for i, ax in enumerate(figure.axes[:2])}
    assert below == {"hsic": "β per unit of dependence", "ceb": "β per nat per image"}


@pytest.mark.parametrize(("channel", "discrete"), [("sampled", "rate R"), ("deterministic", "code entropy")])
def test_each_family_is_placed_by_the_bits_it_has(channel, discrete):
    params, results, judge = synthetic(families=("ar", "flow"))
    params = params.model_copy(update={"tokenizer": params.tokenizer.model_copy(update={"channel": channel})})
    for cell, stages in results.items():
        if cell.family == "ar":
            stages["understand"]["metrics"]["information/code_entropy_bits"] = 40.0
    figure = information_plane(changed(params, results, judge))
    assert [ax.get_xlabel() for ax in figure.axes[::2]] == [
        f"{discrete}, bits per image", "rate R, bits per image"
    ]  # fmt: skip


def test_training_curves_of_families_that_log_different_parts(tmp_path):
    params, results, judge = synthetic(seeds=(0,), families=("ar", "flow"))
    study = study_with(params, tmp_path)
    leave_images(study, results)
    for cell in results:
        if cell.family == "flow":
            path = study.output("train", cell) / "history.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("\n".join(json.dumps({k: v for k, v in line.items() if "rate" not in k}) for line in lines))
    axes = training(analyse(results, judge, study)).axes
    assert [len(ax.get_lines()) for ax in axes] == [3, 3, 3, 0]  # ar: loss, rate; flow: loss alone


def test_a_grid_of_three_families_and_four_estimators_fits_a_page(tmp_path, monkeypatch):
    params, results, judge = elastic_results(seeds=(0,), families=("ar", "mask", "flow"))
    twins = {"vib-0.003-1": "dib", "ceb-0.01-1": "hsic"}
    results |= {replace(c, estimator=twins[c.arm]): r for c, r in results.items() if c.arm in twins}
    found = analyse(results, judge, study_with(params, tmp_path))
    sizes = []

    original = Figure.savefig

    def measured(figure, file, **options):
        sizes.append(tuple(figure.get_size_inches()))
        original(figure, file, **options | {"dpi": 10})

    monkeypatch.setattr(Figure, "savefig", measured)
    assert save_figures(found) == FIGURES[:6]
    assert all(width <= 12.5 and height <= 13 for width, height in sizes), sizes


def floors(ax):
    """Heights of a panel's lines of the score without the image."""
    return [line.get_ydata()[0] for line in ax.get_lines() if line.get_color() == SOFT and line.get_marker() == "None"]


def test_accuracy_without_the_image_is_drawn_where_it_lies_near():
    params, results, judge = synthetic(data="matching")
    for stages in results.values():
        # The curves reach from .60 to .82.
        stages["understand"]["metrics"] |= {"understanding/question_only": 0.55, "understanding/majority": 0.30}
    figure = score_over_beta(changed(params, results, judge))
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["accuracy (understanding)", "retrieval (generation)"]
    assert [floors(ax) for ax in figure.axes] == [[0.55], [0.55], [], []]
    assert figure.axes[0].get_ylim()[0] < 0.55
    labels = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert labels == [["K=8, γ=1"], ["K=8, γ=1", "question only"], ["K=8, γ=1"], ["K=8, γ=1"]]
    for stages in results.values():
        stages["understand"]["metrics"]["understanding/majority"] = 0.56
    figure = score_over_beta(changed(params, results, judge))
    assert floors(figure.axes[1]) == pytest.approx([0.55, 0.56])
    heights = [text.xy[1] for text in figure.axes[1].texts[1:]]
    assert heights[1] - heights[0] > 0.012  # moved apart


@pytest.mark.parametrize(
    ("data", "axis"), [("captions", "retrieval (generation)"), ("questions", "accuracy (understanding)")]
)
def test_a_single_task_has_the_panels_to_itself(data, axis):
    found = analysed(data=data, families=("ar", "flow"))
    assert {ax.get_ylabel() for ax in score_over_beta(found).axes} == {axis, ""}
    assert [ax.get_ylabel() for ax in information_plane(found).axes] == [axis, axis]
    titles = [ax.get_title() for ax in gains(found).axes[: len(found.tasks[0].headline)]]
    assert titles == {"captions": ["retrieval", "retrieval, T=1"], "questions": ["accuracy"]}[data]


def test_gains_of_retrieval_share_a_scale_with_its_plain_form_which_is_pale():
    params, results, judge = synthetic(data="matching")
    for cell, stages in results.items():
        stages["generate"]["metrics"]["generation/retrieval_t1"] += 0.1 * (cell.arm == "ceb-0.01-1")
    accuracy, chosen, plain = gains(changed(params, results, judge)).axes
    assert chosen.get_xlim() == plain.get_xlim()
    assert chosen.get_xlim()[1] > 0.15 > accuracy.get_xlim()[1]
    colors = [
        [line.get_color() for line in ax.get_lines() if line.get_marker() == "o"] for ax in (accuracy, chosen, plain)
    ]
    assert colors[0] == colors[1] != colors[2]


def test_budget_curve_of_a_single_task_has_one_panel():
    (ax,) = budget_curve(changed(*elastic_results(data="captions"))).axes
    assert ax.get_ylabel() == "retrieval (generation)"


@pytest.mark.parametrize("data", ["matching", "questions"])
def test_samples_show_reconstructions_where_nothing_is_drawn(data, tmp_path):
    params, results, judge = synthetic(data=data, seeds=(0,))
    study = study_with(params, tmp_path)
    leave_images(study, results, draws=data != "questions")
    figure = samples(analyse(results, judge, study))
    rows = [[label.get_text() for label in ax.get_yticklabels()] for ax in figure.axes]
    below = ["test image", "reconstructed"]
    if data == "questions":
        assert rows == [below, []]
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert titles == ["baseline none-0-0", "ceb-0.01-1"]
    else:
        assert rows == [["a red circle", "two <b> & rings at $\\5 and 6$\neach"], below, [], []]
        assert [ax.get_title(loc="left") for ax in figure.axes[::2]] == [
            "baseline none-0-0: 67% right",
            "ceb-0.01-1: 67% right",
        ]
    figure.savefig(tmp_path / "drawn.svg")  # a caption's dollar signs are no mathematics
    boxes = [ax.get_position() for ax in figure.axes]
    assert all(min(box.x0, box.y0) >= 0 and max(box.x1, box.y1) <= 1 for box in boxes)


def test_samples_need_both_arms_images_and_shorten_long_captions(tmp_path):
    params, results, judge = synthetic(data="captions", seeds=(0,))
    study = study_with(params, tmp_path)
    leave_images(study, results)
    found = analyse(results, judge, study)
    baseline, arm = (study.output("generate", cell) for cell in gallery_cells(found)[0])
    for folder in (baseline, arm):
        content = json.loads((folder / "samples.json").read_text()) | {"prompts": ["word " * 60, "a red circle"]}
        (folder / "samples.json").write_text(json.dumps(content))
    first, _ = (label.get_text() for label in samples(found).axes[0].get_yticklabels())
    assert (len(first.splitlines()), first[-1]) == (4, "…")
    (arm / "samples.json").unlink()
    assert len(samples(found).axes) == 2
    (arm / "reconstructions.png").unlink()
    assert samples(found) is None
