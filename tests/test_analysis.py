"""The numbers of the report: differences, intervals, tests and choices over a grid worked by hand."""

import copy
import math
import shlex
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import pytest
from scipy import stats
from synthetic import ACCURACY, FOUR, analysed, changed, elastic_results, study_with, synthetic

from pipeline.report.analysis import cells_command, luck_of_choice
from pipeline.report.frame import excludes_zero
from pipeline.report.metrics import ordered, shown
from pipeline.report.summary import summary
from pipeline.report.tables import headline
from pipeline.report.texts import findings


def test_paired_differences_are_the_hand_worked_ones():
    rows = analysed().paired.set_index(["estimator", "beta", "metric"])
    row = rows.loc[("ceb", 0.01, "accuracy")]
    assert (row.baseline, row.infotok, row.difference, row.seeds) == (
        pytest.approx(0.62), pytest.approx(0.66), pytest.approx(0.04), 3
    )  # fmt: skip
    # Student's t at 97.5 %, two degrees of freedom: 4.30265; .02 / sqrt(3) * 4.30265 = .0496828.
    assert (row.ci_low, row.ci_high) == (
        pytest.approx(-0.0096828, abs=1e-6),
        pytest.approx(0.0896828, abs=1e-6),
    )
    reference = stats.ttest_rel(ACCURACY["ceb-0.01-1"], ACCURACY["none-0-0"]).confidence_interval(0.95)
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(reference))
    assert excludes_zero(row.to_dict()) == "no"
    # ceb-0.003-1 gains exactly .01 on every seed: the interval has no width.
    assert rows.loc[("ceb", 0.003, "accuracy")].ci_low == pytest.approx(0.01)
    assert "none" not in set(analysed().paired.estimator)


def test_a_rows_command_names_its_study_and_matches_its_cells_alone():
    params, *_ = synthetic(families=("ar", "mask"), tokens=(4, 8))
    full = study_with(params, name="estimators")
    text = cells_command(full, "ar", "ceb", 0.003, 1.0, 8)
    assert text == ("infotok sweep --study estimators --only 'ar-none-0-0-8-*' --only 'ar-ceb-0.003-1-8-*'")
    globs = shlex.split(text)[5::2]
    matched = [cell.key for cell in params.cells() if any(fnmatchcase(cell.key, glob) for glob in globs)]
    assert matched == [f"ar-{arm}-8-{seed}" for arm in ("none-0-0", "ceb-0.003-1") for seed in (0, 1, 2)]


def test_p_values_and_holms_adjustment_are_the_hand_worked_ones():
    rows = analysed().paired.set_index(["estimator", "beta", "metric"])
    # Differences .02, .04, .06: t = 2√3, and with two degrees of freedom p = 1 − √(6/7) = .0741799.
    assert rows.loc[("ceb", 0.01, "accuracy")].p_value == pytest.approx(0.0741799, abs=1e-7)
    # vib-0.003-1 differs by +.01, 0, −.01 and so on average by nothing.
    assert rows.loc[("vib", 0.003, "accuracy")].p_value == pytest.approx(1)
    # Four claims, of two chosen arms: GenEval differs as accuracy does, so 4 × .0741799 and 1.
    assert rows.loc[("ceb", 0.01, "accuracy")].p_holm == pytest.approx(0.2967196, abs=1e-6)
    assert rows.loc[("ceb", 0.01, "geneval")].p_holm == pytest.approx(0.2967196, abs=1e-6)
    assert rows.loc[("vib", 0.003, "geneval")].p_holm == pytest.approx(1)
    assert math.isnan(rows.loc[("ceb", 0.03, "accuracy")].p_holm)  # far better on test, but not chosen
    assert math.isnan(rows.loc[("ceb", 0.01, "geneval_t1")].p_holm)
    assert dict(rows.xs("accuracy", level="metric").chosen) == {
        ("vib", 0.003): True, ("ceb", 0.003): False, ("ceb", 0.01): True, ("ceb", 0.03): False
    }  # fmt: skip
    # Another family doubles the claims: 8 × .0741799.
    two = analysed(families=("ar", "mask")).paired.set_index(["family", "estimator", "beta", "metric"])
    assert two.loc[("mask", "ceb", 0.01, "accuracy")].p_holm == pytest.approx(0.5934392, abs=1e-6)
    assert "the 8 tests of accuracy and GenEval" in headline(analysed(families=("ar", "mask"))).note


def test_consistency_alone_is_a_candidate_and_the_baseline_is_none():
    found = analysed(arms=FOUR)
    # Of ceb the arm with both terms validates highest (.70 against .61); consistency alone (.64) stands beside it.
    assert [(choice.arm, choice.tried, choice.best) for choice in found.choices] == [
        ("none-0-1", 1, False), ("ceb-0.01-1", 2, True)
    ]  # fmt: skip
    assert {row[2:4] for row in map(tuple, headline(found).rows)} == {
        ("none-0-1", "consistency alone"), ("ceb-0.01-1", "both")
    }  # fmt: skip
    rows = found.paired.set_index(["estimator", "beta", "gamma", "metric"])
    assert rows.loc[("none", 0.0, 1.0, "accuracy")].difference == pytest.approx(0.02)
    assert rows.loc[("ceb", 0.01, 0.0, "accuracy")].difference == pytest.approx(0.01)
    # Claims are two tasks of two chosen arms, compression alone is none.
    assert rows.p_holm.notna().sum() == 4
    assert math.isnan(rows.loc[("ceb", 0.01, 0.0, "accuracy")].p_holm)
    params, results, judge = synthetic(arms=FOUR)
    for cell, stages in results.items():
        if cell.arm == "none-0-1":
            stages["understand"]["metrics"]["understanding/validation"] = 0.99
    found = changed(params, results, judge)
    assert found.best("ar").arm == summary(found)["ar"]["arm"] == "none-0-1"
    assert "validation chooses none-0-1 (consistency alone)" in findings(found)[0]
    assert "No arm with compression validates higher." in findings(found)[0]


def test_arms_that_tie_on_validation_are_said_to_tie():
    def told(scores):
        params, results, judge = synthetic(arms=FOUR)
        for cell, stages in results.items():
            for stage, task in (("understand", "understanding"), ("generate", "generation")):
                stages[stage]["metrics"][f"{task}/validation"] = scores.get(cell.arm, 0.5)
        return findings(changed(params, results, judge))[0]

    same = told({})
    assert "on validation all arms tie (0.500), so that it chooses none; this is none-0-1 (consistency alone)" in same
    assert "validation chooses" not in same
    assert "prefers" not in same
    assert "On validation it ties with none-0-0 (0.600)." in told({"none-0-0": 0.6, "none-0-1": 0.6})
    assert "Validation itself prefers none-0-0 to it (0.500 against 0.600)." in told({"none-0-0": 0.6})


def test_a_gamma_at_the_edge_of_those_tried_is_said_and_one_between_is_not():
    params, results, judge = synthetic(arms=FOUR)
    for gamma in (0.5, 2.0):  # beside 1, which validates at .64 and at .70 with compression
        results |= {replace(c, gamma=gamma): copy.deepcopy(r) for c, r in results.items() if c.gamma == 1}
    for cell, stages in results.items():
        if cell.arm in ("none-0-2", "ceb-0.01-1"):
            stages["understand"]["metrics"]["understanding/validation"] = 0.9
    chosen = {choice.estimator: choice for choice in changed(params, results, judge).choices}
    assert (chosen["none"].arm, chosen["none"].edges, chosen["none"].tried) == ("none-0-2", "γ", 3)
    assert (chosen["ceb"].arm, chosen["ceb"].edges, chosen["ceb"].tried) == ("ceb-0.01-1", "", 4)


def test_arms_without_a_baseline_are_skipped():
    params, results, judge = synthetic(tokens=(4, 8))
    results = {cell: r for cell, r in results.items() if cell.arm != "none-0-0" or cell.tokens == 8}
    found = changed(params, results, judge)
    assert set(found.paired.tokens) == {8}
    assert {choice.tokens for choice in found.choices} == {4, 8}
    assert {row[1] for row in headline(found).rows} == {"8"}


def test_only_seeds_of_both_arms_are_paired():
    params, results, judge = synthetic()
    results = {cell: r for cell, r in results.items() if (cell.arm, cell.seed) != ("none-0-0", 2)}
    row = changed(params, results, judge).paired.set_index(["beta", "metric"]).loc[(0.01, "accuracy")]
    assert (row.seeds, row.baseline, row.difference) == (2, pytest.approx(0.61), pytest.approx(0.03))


def test_validation_chooses_and_not_test():
    found = analysed()
    chosen = {choice.estimator: choice for choice in found.choices}
    assert chosen["ceb"].arm == "ceb-0.01-1"  # ceb-0.03-1 is far better on test
    assert chosen["ceb"].validation == pytest.approx(0.70)
    assert (chosen["ceb"].best, chosen["vib"].best) == (True, False)
    assert (chosen["ceb"].edges, chosen["vib"].edges) == ("", "")
    assert found.best("ar").arm == "ceb-0.01-1"
    assert summary(found)["ar"]["arm"] == "ceb-0.01-1"


def test_what_choosing_on_validation_leaves_of_chance_is_said_of_this_reports_arms_and_seeds():
    assert luck_of_choice(1, 5) == pytest.approx(0.025, abs=0.004)
    # Another simulation: three arms without effect over five seeds, one training's luck in both splits.
    differences = np.random.default_rng(1).normal(0, 1, (20000, 3, 5))
    chosen = differences[np.arange(20000), differences.mean(-1).argmax(1)]
    upward = (stats.ttest_1samp(chosen, 0, axis=1).pvalue < 0.05) & (chosen.mean(1) > 0)
    assert luck_of_choice(3, 5) == pytest.approx(upward.mean(), abs=0.006)
    share = f"{100 * luck_of_choice(3, 3):.0f} %"
    wanted = f"of 3 arms without effect the chosen one excludes zero upward in up to {share} of cases instead of 2.5 %"
    assert wanted in headline(analysed()).note
    assert "(simulated, 3 seeds)" in headline(analysed()).note
    # Nothing to say of one arm an estimator, nor of intervals that one seed does not give.
    for quiet in (analysed(arms=["none-0-0", "none-0-1", "ceb-0.01-1"]), analysed(seeds=(0,))):
        assert "simulated" not in headline(quiet).note


def test_an_optimum_at_the_edge_of_the_grid_is_said():
    params, results, judge = synthetic()
    for cell, stages in results.items():
        if cell.arm == "ceb-0.03-1":
            stages["understand"]["metrics"]["understanding/validation"] = 0.99
    found = changed(params, results, judge)
    assert found.best("ar").edges == "β"
    assert "Its β lies at the edge of the grid" in findings(found)[0]
    assert "edge" not in findings(analysed())[0]


def test_scores_of_an_elastic_training_have_labels_an_order_and_differences():
    assert (shown("generation/geneval_at_2").label, shown("generation/geneval_at_2").better) == ("GenEval, k=2", 1)
    assert shown("train/geneval_at_2").better == 0
    params, results, judge = elastic_results()
    for stages in results.values():
        stages["understand"]["metrics"]["understanding/accuracy_at_16"] = 0.7  # follows 4, though "16" < "4"
    found = changed(params, results, judge)
    names = [name for name in found.frame.columns if "_at_" in name]
    assert names == [f"understanding/accuracy_at_{k}" for k in (1, 2, 4, 16)] + [
        f"generation/geneval_at_{k}" for k in (1, 2, 4)
    ]
    row = found.paired.set_index(["estimator", "beta", "tokens", "metric"]).loc[("ceb", 0.01, 8, "accuracy_at_2")]
    assert (row.baseline, row.difference) == (pytest.approx(0.42), pytest.approx(0.09))
    assert math.isnan(row.p_holm)  # no claim of its own


@pytest.mark.parametrize(("data", "claims"), [("matching", 4), ("captions", 2)])
def test_retrieval_is_paired_and_claimed_in_the_place_of_geneval(data, claims):
    found = analysed(data=data)
    rows = found.paired.set_index(["estimator", "beta", "metric"])
    assert {"geneval", "geneval_t1"}.isdisjoint(found.paired.metric)
    assert ("accuracy" in set(found.paired.metric)) == (data == "matching")
    assert rows.loc[("ceb", 0.01, "retrieval")].difference == pytest.approx(0.04)
    assert rows.loc[("ceb", 0.01, "retrieval")].p_holm == pytest.approx(claims * 0.0741799, abs=1e-6)
    assert math.isnan(rows.loc[("ceb", 0.01, "retrieval_t1")].p_holm)


@pytest.mark.parametrize("data", ["captions", "questions"])
def test_a_single_task_chooses_by_its_own_validation(data):
    chosen = {choice.estimator: choice for choice in analysed(data=data).choices}
    assert (chosen["ceb"].arm, chosen["ceb"].validation) == ("ceb-0.01-1", pytest.approx(0.70))
    assert [task.name for task in analysed(data=data).tasks] == [{"captions": "generation"}.get(data, "understanding")]


def test_metrics_have_one_order_in_which_families_of_any_name_follow_the_known_ones():
    names = ["zeta/x", "information/rate_bits", "generation/retrieval_at_4", "generation/retrieval", "alpha/x"]
    names += [f"understanding/family/{name}" for name in ("yes_no", "relation", "a/b", "exist")]
    assert ordered([*names, "understanding/accuracy_at_16", "understanding/accuracy_at_4"]) == [
        *(f"understanding/family/{name}" for name in ("exist", "relation", "a/b", "yes_no")),
        "generation/retrieval",
        "information/rate_bits",
        "understanding/accuracy_at_4",
        "understanding/accuracy_at_16",
        "generation/retrieval_at_4",
        "alpha/x",
        "zeta/x",
    ]
    assert (shown("understanding/family/a/b").label, shown("understanding/family/yes_no").label) == ("a/b", "yes no")
    assert shown("understanding/family/yes_no").better == 1
    assert list(analysed(data="matching").frame.filter(like="family/")) == [
        "understanding/family/exist", "understanding/family/yes_no"
    ]  # fmt: skip
