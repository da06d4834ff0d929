"""What compression and consistency add, alone and together, on four arms worked by hand."""

import csv
import io

import numpy as np
import pytest
from scipy import stats
from synthetic import FOUR, analysed, changed, study_with, synthetic

from pipeline.report.latex import latex
from pipeline.report.markdown import markdown
from pipeline.report.page import page
from pipeline.report.tables import tables
from pipeline.report.texts import findings
from pipeline.report.write import write_report

# By hand, of accuracy: none-0-1 adds .01, .02, .03; ceb-0.01-0 .01 each time; ceb-0.01-1 .02, .04, .06.
MEANS = {
    "gamma": 0.02,
    "beta": 0.01,
    "both": 0.04,
    "interaction": 0.01,  # .00, .01, .02
    "beta_after_gamma": 0.02,  # .01, .02, .03
    "gamma_after_beta": 0.03,  # .01, .03, .05
}


def effects(found, arm=("ceb", 0.01, 1.0)):
    return found.factorial.set_index(["estimator", "beta", "gamma", "metric", "effect"]).loc[arm]


def test_effects_of_a_whole_factorial_are_the_hand_worked_ones():
    rows = effects(analysed(arms=FOUR)).loc["accuracy"]
    assert dict(rows.difference) == pytest.approx(MEANS)
    assert set(rows.seeds) == {3}
    # Student's t at 97.5 %, two degrees of freedom, is 4.30265; a deviation of .01 reaches 4.30265 × .01 / √3.
    half = 4.30265 * 0.01 / 3**0.5
    assert (rows.ci_low["interaction"], rows.ci_high["interaction"]) == pytest.approx(
        (0.01 - half, 0.01 + half), abs=1e-6
    )
    assert dict(rows.excludes_zero) == {
        "gamma": "no", "beta": "yes", "both": "no", "interaction": "no", "beta_after_gamma": "no",
        "gamma_after_beta": "no",
    }  # fmt: skip
    assert (rows.ci_low["beta"], rows.ci_high["beta"]) == pytest.approx((0.01, 0.01))  # alike on every seed


def test_intervals_are_scipys_of_the_contrast_of_every_seed():
    params, results, judge = synthetic(arms=FOUR)
    generator = np.random.default_rng(0)
    rate = {arm: generator.normal(30, 2, 3) for arm in FOUR}
    for cell, stages in results.items():
        stages["train"]["metrics"]["information/rate_bits"] = float(rate[cell.arm][cell.seed])
    rows = effects(changed(params, results, judge)).loc["rate_bits"]
    neither, consistency, compression, both = (rate[arm] for arm in FOUR)
    contrasts = {
        "gamma": consistency - neither,
        "beta": compression - neither,
        "both": both - neither,
        "interaction": both - consistency - compression + neither,
        "beta_after_gamma": both - consistency,
        "gamma_after_beta": both - compression,
    }
    for effect, values in contrasts.items():
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        row = rows.loc[effect]
        assert (row.difference, row.ci_low, row.ci_high) == pytest.approx((values.mean(), *interval))
        assert row.excludes_zero == ("yes" if interval.low > 0 or interval.high < 0 else "no")


@pytest.mark.parametrize(
    ("missing", "left"),
    [
        ("ceb-0.01-0", {"gamma", "both", "beta_after_gamma"}),
        ("none-0-1", {"beta", "both", "gamma_after_beta"}),
        ("none-0-0", {"beta_after_gamma", "gamma_after_beta"}),
    ],
)
def test_of_three_arms_what_they_can_tell_is_told(missing, left):
    found = analysed(arms=[arm for arm in FOUR if arm != missing])
    rows = effects(found).loc["accuracy"]
    assert set(rows.index) == left
    assert dict(rows.difference) == pytest.approx({effect: MEANS[effect] for effect in left})


def test_two_arms_are_no_factorial_and_each_budget_and_family_has_its_own():
    assert analysed(arms=["none-0-0", "ceb-0.01-1"]).factorial.empty
    found = analysed(arms=FOUR, tokens=(4, 8), families=("ar", "mask")).factorial
    accuracy = found[(found.metric == "accuracy") & (found.effect == "interaction")]
    assert set(zip(accuracy.family, accuracy.tokens, strict=True)) == {(f, k) for f in ("ar", "mask") for k in (4, 8)}


def test_effects_add_up_where_an_arm_lacks_a_seed():
    params, results, judge = synthetic(arms=FOUR)
    results = {cell: stages for cell, stages in results.items() if (cell.arm, cell.seed) != ("ceb-0.01-0", 2)}
    rows = effects(changed(params, results, judge)).loc["accuracy"]
    assert set(rows.seeds) == {2}
    assert rows.difference["both"] == pytest.approx(rows.difference[["gamma", "beta", "interaction"]].sum())
    assert rows.difference["gamma"] == pytest.approx(0.015)


def test_metrics_that_explain_are_taken_apart_too():
    found = analysed(arms=FOUR)
    assert set(found.factorial.metric) == {
        "accuracy", "geneval", "geneval_t1", "rate_bits", "structure_bits", "nuisance_bits"
    }  # fmt: skip
    # The synthetic rate falls by 100 beta, whatever gamma.
    rate = effects(found).loc["rate_bits"].difference
    assert (rate["beta"], rate["gamma"], rate["beta_after_gamma"]) == pytest.approx((-1, 0, -1))


def factorial_table(found):
    return next(table for table in tables(found) if table.title == "ar: what compression and consistency add")


def test_the_table_shows_every_effect_with_its_interval():
    table = factorial_table(analysed(arms=FOUR))
    assert table.header == [
        "K", "arm with both", "metric", "seeds", "γ alone adds", "β alone adds", "both add", "beyond the sum",
        "β adds to γ", "γ adds to β",
    ]  # fmt: skip
    assert table.rows[0] == [
        "8", "ceb-0.01-1", "accuracy", "3", "+0.020 [−0.005, +0.045]", "+0.010 [+0.010, +0.010]",
        "+0.040 [−0.010, +0.090]", "+0.010 [−0.015, +0.035]", "+0.020 [−0.005, +0.045]", "+0.030 [−0.020, +0.080]",
    ]  # fmt: skip
    assert {table.header[column] for row, column in table.bold if row == 0} == {"β alone adds"}
    three = factorial_table(analysed(arms=["none-0-0", "none-0-1", "ceb-0.01-1"], seeds=(0,)))
    assert three.header[4:] == ["γ alone adds", "both add", "β adds to γ"]
    assert three.rows[0][3:] == ["1", "+0.010", "+0.020", "+0.010"]  # one seed gives no interval


def test_the_table_keeps_every_whole_factorial_and_of_the_others_what_validation_chose():
    found = analysed(arms=[*FOUR, "ceb-0.003-1", "ceb-0.03-1", "vib-0.003-1"])
    assert {row[1] for row in factorial_table(found).rows} == {"ceb-0.01-1", "vib-0.003-1"}
    assert set(found.factorial.beta[found.factorial.estimator == "ceb"]) == {0.003, 0.01, 0.03}
    params, results, judge = synthetic(arms=[*FOUR, "ceb-0.03-1"])
    for stages in results.values():
        stages["understand"]["metrics"].pop("understanding/validation")
        stages["generate"]["metrics"].pop("generation/validation")
    assert {row[1] for row in factorial_table(changed(params, results, judge)).rows} == {"ceb-0.01-1", "ceb-0.03-1"}


def test_every_form_of_the_report_holds_the_table(tmp_path):
    params, results, judge = synthetic(arms=FOUR)
    found = write_report(results, judge, study_with(params, tmp_path))
    for text in (markdown(found, []), page(found, [])):
        assert "what compression and consistency add" in text
        assert "+0.010 [−0.015, +0.035]" in text
    assert "$\\gamma$ alone adds" in latex(found)
    rows = list(csv.DictReader(io.StringIO((found.study.reports / "factorial.csv").read_text())))
    assert list(rows[0]) == [
        "family", "estimator", "beta", "gamma", "tokens", "metric", "effect", "difference", "ci_low", "ci_high",
        "seeds", "excludes_zero", "chosen",
    ]  # fmt: skip
    assert len(rows) == 6 * 6
    assert {row["chosen"] for row in rows} == {"True"}


def test_the_finding_says_what_compression_adds_to_consistency():
    text = findings(analysed(arms=FOUR))[0]
    assert "validation chooses ceb-0.01-1 (both)" in text
    assert "Of that, β adds to consistency alone: accuracy +0.020 [−0.005, +0.045], GenEval +0.020" in text
    assert "β adds" not in findings(analysed())[0]  # nothing to compare with
