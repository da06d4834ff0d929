"""The report over a small grid whose means, deviations, differences and intervals are worked by hand."""

import csv
import io
import json
import math
import re
import shlex
import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from scipy import stats

from pipeline.analysis import analyse, cells_command, excludes_zero, shown
from pipeline.comparisons import budget_curve, gains
from pipeline.figures import draw_figures, information_plane, score_over_beta
from pipeline.galleries import training
from pipeline.page import command, findings, latex, latex_text, page, seeds_sentence, write_report
from pipeline.params import load_params
from pipeline.results import Layout
from pipeline.tables import (
    headline,
    headline_table,
    summary,
    table_by_arm,
    table_of_budgets,
    table_over_beta,
    tables,
)

ROOT = Path(__file__).parent.parent

# Accuracy and GenEval of seeds 0, 1, 2. ceb-0.01 gains .02, .04, .06 and so on average .04, with a standard
# deviation of the differences of .02; on the test split ceb-0.03 is the best, on validation ceb-0.01.
ACCURACY = {"none-0": [0.60, 0.62, 0.64], "vib-0.003": [0.61, 0.62, 0.63], "ceb-0.003": [0.61, 0.63, 0.65],
            "ceb-0.01": [0.62, 0.66, 0.70], "ceb-0.03": [0.80, 0.81, 0.82]}  # fmt: skip
VALIDATION = {"none-0": 0.60, "vib-0.003": 0.55, "ceb-0.003": 0.62, "ceb-0.01": 0.70, "ceb-0.03": 0.65}
GFID = {"none-0": 12.0, "vib-0.003": 13.0, "ceb-0.003": 11.0, "ceb-0.01": 9.0, "ceb-0.03": 10.0}


FIGURES = ["gains", "score_over_beta", "budget_curve", "information_plane", "structure_nuisance", "factors", "samples",
           "training"]  # fmt: skip


def synthetic(seeds=(0, 1, 2), tokens=(8,), families=("ar",)):
    """Params and results of every cell, all worked by hand above."""
    params = load_params(ROOT / "params.yaml")
    update = {"arm": list(ACCURACY), "seed": list(seeds), "tokens": list(tokens), "family": list(families)}
    params = params.model_copy(update={"grid": params.grid.model_copy(update=update)})
    results = {}
    for cell in params.cells():
        accuracy, validation = ACCURACY[cell.arm][cell.seed], VALIDATION[cell.arm]
        understand = {
            "understanding/accuracy": accuracy,
            "understanding/accuracy_novel": accuracy - 0.1,
            "understanding/question_only": 0.4,
            "understanding/validation": validation,
            "understanding/family/exist": 0.8,
            "information/structure_bits": 5.0,
            "information/nuisance_bits": 2.0,
            "information/factor/shape": 2.0,
            "information/factor/hue": 1.0,
        }
        generate = {
            "generation/geneval": accuracy - 0.05,
            "generation/geneval_t1": accuracy - 0.2,
            "generation/validation": validation,
            "generation/temperature": 0.7,
            "generation/guidance": 2.0,
            "generation/gfid": GFID[cell.arm],
            "generation/tag/color_attr": 0.3,
        }
        train = {"reconstruction/psnr": 20.0, "information/rate_bits": 30.0 - 100 * cell.beta}
        if cell.family != "flow":
            train["information/dead_codes"] = 3.0
        protocol = {"reference": {"split": "test", "images": 1000}, "note": "a|b <i>&_%"}
        warnings = ["codebook collapsed"] if cell.arm == "ceb-0.03" else []

        def result(metrics, warnings=(), cell=cell, protocol=protocol):
            return {
                "cell": cell.as_dict(),
                "metrics": metrics,
                "protocol": protocol,
                "warnings": list(warnings),
            }

        results[cell] = {
            "train": result(train, warnings),
            "understand": result(understand),
            "generate": result(generate),
        }
    judge = {"metrics": {"judge/objects": 0.97}, "protocol": {"steps": 600}, "warnings": []}
    return params, results, judge


def analysed(root=Path("nowhere"), **grid):
    params, results, judge = synthetic(**grid)
    return analyse(results, judge, Layout(params, root), params)


def leave_images(layout, cells):
    """What the train and generate stages leave beside their metrics."""
    size = layout.params.data.image_size
    for cell in cells:
        folder = layout.stage("generate", cell)
        folder.mkdir(parents=True)
        noise = np.random.default_rng(cell.seed).integers(0, 255, (2 * size, 3 * size, 3), np.uint8)
        Image.fromarray(noise).save(folder / "samples.png")
        Image.fromarray(noise).save(folder / "reconstructions.png")
        content = {
            "prompts": ["a red circle", "two <b> & rings"],
            "columns": 3,
            "correct": [[True, False, True]] * 2,
        }
        (folder / "samples.json").write_text(json.dumps(content))
        folder = layout.stage("train", cell)
        folder.mkdir(parents=True)
        lines = [{"step": s, "train/loss": 1 / (1 + s), "train/rate_bits": 30 + s} for s in range(20)]
        (folder / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report written twice from the same results."""
    root = tmp_path_factory.mktemp("report")
    params, results, judge = synthetic(seeds=(0, 1), tokens=(4, 8))
    params = params.model_copy(update={"report": params.report.model_copy(update={"title": "A <b> & B"})})
    layout = Layout(params, root)
    leave_images(layout, results)
    write_report(results, judge, layout, params)
    shutil.copytree(layout.reports, root / "first")
    write_report(results, judge, layout, params)
    return layout.reports, root / "first"


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
    reference = stats.ttest_rel(ACCURACY["ceb-0.01"], ACCURACY["none-0"]).confidence_interval(0.95)
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(reference))
    assert excludes_zero(row.to_dict()) == "no"
    # ceb-0.003 gains exactly .01 on every seed: the interval has no width.
    assert rows.loc[("ceb", 0.003, "accuracy")].ci_low == pytest.approx(0.01)
    assert "none" not in set(analysed().paired.estimator)


def test_paired_csv_has_exactly_its_columns(written):
    rows = list(csv.reader(io.StringIO((written[0] / "paired.csv").read_text())))
    assert ",".join(rows[0]) == (
        "family,estimator,beta,tokens,metric,baseline,infotok,difference,ci_low,ci_high,seeds,"
        "excludes_zero,p_value,chosen,p_holm,command"
    )
    assert all(len(row) == 16 for row in rows)
    assert rows[1][:5] == ["ar", "vib", "0.003", "4", "accuracy"]
    remade = {tuple(row[1:5]): row[-1] for row in rows[1:]}
    assert remade[("ceb", "0.01", "8", "geneval")] == "infotok sweep --only 'ar-none-0-8-*' --only 'ar-ceb-0.01-8-*'"
    # Only claims of chosen arms are adjusted.
    assert {tuple(row[1:3] + row[4:5]) for row in rows[1:] if row[-2]} == {
        (*arm, metric) for arm in (("vib", "0.003"), ("ceb", "0.01")) for metric in ("accuracy", "geneval")
    }


def test_a_rows_command_names_its_profile_and_matches_its_cells_alone():
    params, *_ = synthetic(families=("ar", "mask"), tokens=(4, 8))
    full = params.model_copy(
        update={"paths": params.paths.model_copy(update={"params": "profiles/full/params.yaml"})}
    )
    text = cells_command(full, "ar", "ceb", 0.003, 8)
    assert text == (
        "infotok sweep --params profiles/full/params.yaml --only 'ar-none-0-8-*' --only 'ar-ceb-0.003-8-*'"
    )
    globs = shlex.split(text)[5::2]
    matched = [cell.key for cell in params.cells() if any(fnmatchcase(cell.key, glob) for glob in globs)]
    assert matched == [f"ar-{arm}-8-{seed}" for arm in ("none-0", "ceb-0.003") for seed in (0, 1, 2)]


def test_p_values_and_holms_adjustment_are_the_hand_worked_ones():
    rows = analysed().paired.set_index(["estimator", "beta", "metric"])
    # Differences .02, .04, .06: t = 2√3, and with two degrees of freedom p = 1 − √(6/7) = .0741799.
    assert rows.loc[("ceb", 0.01, "accuracy")].p_value == pytest.approx(0.0741799, abs=1e-7)
    # vib-0.003 differs by +.01, 0, −.01 and so on average by nothing.
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


def test_arms_without_a_twin_are_skipped():
    params, results, judge = synthetic(tokens=(4, 8))
    results = {cell: r for cell, r in results.items() if cell.arm != "none-0" or cell.tokens == 8}
    found = analyse(results, judge, Layout(params), params)
    assert set(found.paired.tokens) == {8}
    assert {choice.tokens for choice in found.choices} == {4, 8}
    assert {row[1] for row in headline(found).rows} == {"8"}


def test_only_seeds_of_both_arms_are_paired():
    params, results, judge = synthetic()
    results = {cell: r for cell, r in results.items() if (cell.arm, cell.seed) != ("none-0", 2)}
    row = (
        analyse(results, judge, Layout(params), params)
        .paired.set_index(["beta", "metric"])
        .loc[(0.01, "accuracy")]
    )
    assert (row.seeds, row.baseline, row.difference) == (2, pytest.approx(0.61), pytest.approx(0.03))


def test_validation_chooses_and_not_test():
    found = analysed()
    chosen = {choice.estimator: choice for choice in found.choices}
    assert chosen["ceb"].arm == "ceb-0.01"  # ceb-0.03 is far better on test
    assert chosen["ceb"].validation == pytest.approx(0.70)
    assert (chosen["ceb"].best, chosen["vib"].best) == (True, False)
    assert (chosen["ceb"].edge, chosen["vib"].edge) == (False, False)
    assert found.best("ar").arm == "ceb-0.01"
    assert summary(found)["ar"]["best"]["arm"] == "ceb-0.01"


def test_what_choosing_on_validation_leaves_of_chance_is_as_the_note_says():
    # Paired differences of three betas without effect over five seeds, the worst case: both splits see the same luck.
    differences = np.random.default_rng(0).normal(0, 1, (20000, 3, 5))
    chosen = differences[np.arange(20000), differences.mean(-1).argmax(1)]
    upward = (stats.ttest_1samp(chosen, 0, axis=1).pvalue < 0.05) & (chosen.mean(1) > 0)
    assert 0.06 < upward.mean() < 0.07
    assert "up to 7 % of cases instead of 2.5 %" in headline(analysed()).note


def test_an_optimum_at_the_edge_of_the_grid_is_said():
    params, results, judge = synthetic()
    for cell, stages in results.items():
        if cell.arm == "ceb-0.03":
            stages["understand"]["metrics"]["understanding/validation"] = 0.99
    found = analyse(results, judge, Layout(params), params)
    assert found.best("ar").edge
    assert "lies at the edge of the grid" in findings(found)[0]
    assert "edge" not in findings(analysed())[0]


def test_headline_says_whether_the_interval_excludes_zero():
    rows = {(row[2], row[3]): row for row in headline(analysed()).rows}
    assert rows[("ceb-0.01", "accuracy")] == [
        "ar", "8", "ceb-0.01", "accuracy", "0.620", "0.660", "+0.040", "+6.5 %", "[−0.010, +0.090]", "no", "0.297"
    ]  # fmt: skip
    assert rows[("vib-0.003", "accuracy")][6:] == ["+0.000", "+0.0 %", "[−0.025, +0.025]", "no", "1.000"]
    assert rows[("ceb-0.01", "GenEval, T=1")][-1] == "–"  # no claim of its own
    params, results, judge = synthetic(seeds=(0, 1))
    for cell, stages in results.items():
        stages["understand"]["metrics"]["understanding/accuracy"] = {"none": 0.5, "ceb": 0.6, "vib": 0.4}[
            cell.estimator
        ] + cell.seed / 100
    rows = {(row[2], row[3]): row for row in headline(analyse(results, judge, Layout(params), params)).rows}
    assert rows[("ceb-0.01", "accuracy")][-2:] == ["yes", "<0.001"]
    assert rows[("vib-0.003", "accuracy")][-2:] == ["yes, below", "<0.001"]


def test_means_deviations_and_bold():
    frame = analysed().frame
    table = table_over_beta(frame, "ar", ["understanding/accuracy", "generation/gfid"], "t")
    assert table.header == ["estimator", "β", "accuracy, K=8", "gFID, K=8"]
    cells = {tuple(row[:2]): row[2:] for row in table.rows}
    assert cells[("ceb", "0.01")] == ["0.660 ± 0.040", "9.00 ± 0.00"]
    assert cells[("none", "0")] == ["0.620 ± 0.020", "12.00 ± 0.00"]
    names = [tuple(row[:2]) for row in table.rows]
    assert names[0] == ("none", "0")
    # Highest accuracy, but lowest gFID.
    assert table.bold == {(names.index(("ceb", "0.03")), 2), (names.index(("ceb", "0.01")), 3)}


def test_bold_is_per_token_budget_and_absent_where_all_are_alike():
    frame = analysed(tokens=(4, 8)).frame
    table = table_by_arm(frame, "ar", ["generation/gfid", "reconstruction/psnr"], "t")
    assert {(table.rows[r][0], table.rows[r][2], table.header[c]) for r, c in table.bold} == {
        ("4", "0.01", "gFID"),
        ("8", "0.01", "gFID"),
    }
    # Neither direction of the rate is better.
    assert not table_by_arm(frame, "ar", ["information/rate_bits"], "t").bold


def test_missing_metrics_are_blank_and_unknown_ones_kept():
    params, results, judge = synthetic(families=("ar", "flow"))
    next(iter(results.values()))["train"]["metrics"]["train/peak_memory"] = 1.5
    broken = next(cell for cell in results if cell.arm == "vib-0.003" and cell.family == "ar")
    results[broken]["generate"]["metrics"]["generation/gfid"] = math.nan
    found = analyse(results, judge, Layout(params), params)
    flow = found.frame[found.frame.family == "flow"]
    assert flow["information/dead_codes"].isna().all()
    assert found.frame.columns[-1] == "train/peak_memory"
    shown = {table.title: table for table in tables(found)}
    assert shown["ar: use of codes and dimensions, dependence"].header[3:] == ["dead codes"]
    assert "flow: use of codes and dimensions, dependence" not in shown
    text = found.frame.to_csv(index=False)
    assert "nan" not in text.lower()
    row = found.paired.set_index(["family", "estimator", "metric"]).loc[("ar", "vib", "gfid")]
    assert row.seeds == 2


def test_a_grid_without_validation_or_images_still_reports(tmp_path):
    params, results, judge = synthetic(seeds=(0,))
    for stages in results.values():
        stages["generate"]["metrics"].clear()
        stages["understand"]["metrics"].pop("understanding/validation")
    found = write_report(results, judge, Layout(params, tmp_path), params)
    assert found.choices == []
    assert "nothing to compare" in findings(found)[0]
    assert (tmp_path / params.paths.reports / "index.html").stat().st_size > 1000


def test_one_seed_gives_no_interval():
    found = analysed(seeds=(0,))
    assert found.paired[["ci_low", "ci_high"]].isna().all().all()
    assert {tuple(row[-3:]) for row in headline(found).rows} == {("one seed", "no interval", "–")}
    assert found.paired[["p_value", "p_holm"]].isna().all().all()
    assert "With one seed no interval" in seeds_sentence(found)
    assert "one seed gives no interval" in findings(found)[0]
    assert "±" not in "".join(cell for row in tables(found)[0].rows for cell in row)
    assert "ci_low" not in summary(found)["ar"]["best"]["accuracy"]


def test_seeds_sentence_counts_its_reach():
    # t(.975, 2) / sqrt(3) = 4.30265 / 1.73205 = 2.48
    text = seeds_sentence(analysed())
    assert "With 3 seeds" in text
    assert "2.48 standard deviations" in text
    assert "Of the 6 headline intervals about 0.3" in text  # two estimators, three metrics


def test_summary_is_strict_json_of_numbers_and_names():
    content = summary(analysed(seeds=(0, 1), tokens=(4, 8)))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["cells"] == 20
    assert content["judge"] == {"objects": 0.97}
    assert content["ar"]["k4"]["accuracy"]["difference"] == pytest.approx(0.03)
    assert set(content["ar"]) == {"best", "k4", "k8"}


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_headline_table_prints(seeds):
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(headline_table(summary(analysed(seeds=seeds))))
    text = console.file.getvalue()
    assert "ceb-0.01" in text
    assert ("one seed" if len(seeds) == 1 else "[−0.010, +0.090]") in text
    assert "…" not in text


def test_latex_escapes():
    assert latex_text(r"a_b & 5 % of $x^2 {y} \z #1 ~") == (
        r"a\_b \& 5 \% of \$x\textasciicircum{}2 \{y\} \textbackslash{}z \#1 \textasciitilde{}"
    )
    text = latex(analysed())
    assert text.isascii()
    for table in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        lines = [line for line in table[1].splitlines() if line.endswith(r"\\")]
        assert len(lines) == 3 * 2 + 1 or len(lines) == 5 + 1
        assert all(len(re.findall(r"(?<!\\)&", line)) == len(table[0]) - 1 for line in lines)
    assert re.search(r"(?<!\\)%", text.split("\n", 1)[1]) is None
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(rf"\{rule}") == text.count(r"\begin{table}")


def test_markdown_tables_are_well_formed(written):
    text = (written[0] / "ablation.md").read_text()
    blocks = [block.splitlines() for block in re.split(r"\n\n+", text) if block.startswith("|")]
    assert len(blocks) >= 8
    for block in blocks:
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block}
        assert len(columns) == 1, block[0]
        assert re.fullmatch(r"\|(:--\||--:\|)+", block[1])
    assert "**" in text
    assert "a\\|b &lt;i>" in text  # the protocol's awkward value
    assert "codebook collapsed (ar-ceb-0.03-4-0, " in text
    assert "`dvc repro`" in text
    assert "nan" not in text.lower().replace("nuisance", "")


class Resources(HTMLParser):
    """Collects tags that are left open and everything a browser would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.tables = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.loads += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")
        ]
        self.tables += tag == "table"
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_whole_and_loads_nothing(written):
    text = (written[0] / "index.html").read_text()
    parser = Resources()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.tables >= 8
    assert len(parser.loads) == 7
    assert all(value.startswith("data:image/png;base64,") for value in parser.loads)
    assert "http://" not in text
    assert "https://" not in text
    assert "<script" not in text
    assert "<title>A &lt;b&gt; &amp; B</title>" in text
    assert "<i>" not in text
    assert "prefers-color-scheme: dark" in text


def test_hostile_names_stay_text():
    params, results, judge = synthetic(seeds=(0,))
    next(iter(results.values()))["train"]["warnings"] = ['<img src="https://x.org/a.png">']
    text = page(analyse(results, judge, Layout(params), params), [])
    parser = Resources()
    parser.feed(text)
    assert parser.loads == []


def test_files_repeat_byte_for_byte(written):
    now, first = written
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    figures = [name for name in FIGURES if name != "budget_curve"]  # no cell is an elastic training
    expected = ["ablation.csv", "ablation.md", "ablation.tex", "index.html", "paired.csv", "summary.json"]
    assert names == sorted(
        [*expected, *(f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg"))]
    )
    for name in names:
        assert (now / name).read_bytes() == (first / name).read_bytes(), name
    assert b"<dc:date>" not in (now / "figures/factors.svg").read_bytes()


def test_ablation_csv_has_a_row_per_cell(written):
    rows = list(csv.DictReader(io.StringIO((written[0] / "ablation.csv").read_text())))
    assert len(rows) == 20
    assert list(rows[0])[:6] == ["family", "estimator", "beta", "tokens", "seed", "understanding/accuracy"]
    assert [row["beta"] for row in rows if row["tokens"] == "4" and row["seed"] == "0"] == (
        ["0", "0.003", "0.003", "0.01", "0.03"]
    )


def test_command_names_the_profile():
    params, *_ = synthetic()
    assert command(params) == "dvc repro"
    full = params.model_copy(
        update={"paths": params.paths.model_copy(update={"params": "profiles/full/params.yaml"})}
    )
    assert command(full) == "dvc repro profiles/full/dvc.yaml"


def points(ax, marker="o"):
    """x, y and face color of the single markers of a panel."""
    lines = [line for line in ax.get_lines() if line.get_marker() == marker and len(line.get_xdata()) == 1]
    return [(line.get_xdata()[0], line.get_ydata()[0], line.get_markerfacecolor()) for line in lines]


def test_gains_show_differences_intervals_and_whether_they_exclude_zero():
    params, results, judge = synthetic(families=("ar", "mask"))
    for cell, stages in results.items():
        # In the mask family ceb-0.01 gains .02, .021, .022: an interval of .021 ± 4.30265 × .001 / √3.
        if (cell.family, cell.arm) == ("mask", "ceb-0.01"):
            base = results[cell.baseline()]["understand"]["metrics"]["understanding/accuracy"]
            stages["understand"]["metrics"]["understanding/accuracy"] = base + 0.02 + cell.seed / 1000
    axes = np.array(gains(analyse(results, judge, Layout(params), params)).axes).reshape(2, 3)
    assert [ax.get_title() for ax in axes[0]] == ["accuracy", "GenEval", "GenEval, T=1"]
    assert [text.get_text() for text in axes[0, 0].get_yticklabels()] == ["K = 8", "vib-0.003", "ceb-0.01"]
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
        if (cell.arm, cell.tokens) == ("ceb-0.01", 4):
            stages["understand"]["metrics"]["understanding/accuracy"] += cell.seed  # differences of .02 and 1.04
    ax = gains(analyse(results, judge, Layout(params), params)).axes[0]
    low, high = ax.get_xlim()
    assert [(x, y) for x, y, _ in points(ax, "<") + points(ax, ">")] == [(low, 2), (high, 2)]
    assert all(low < x < high for x, *_ in points(ax))
    single = gains(analysed(seeds=(0,))).axes[0]
    assert [(x, face) for x, _, face in points(single)] == [(pytest.approx(x), "white") for x in (0.01, 0.02)]
    params, results, judge = synthetic()
    alone = {cell: r for cell, r in results.items() if cell.arm != "none-0"}
    assert gains(analyse(alone, judge, Layout(params), params)) is None


def elastic_results(**grid):
    """As above, K = 8 being an elastic training that loses .1 a halving, .05 less under ceb-0.01."""
    params, results, judge = synthetic(tokens=(4, 8), **grid)
    for cell, stages in results.items():
        if cell.tokens == 8:
            score, kept = ACCURACY[cell.arm][cell.seed], 0.05 * (cell.arm == "ceb-0.01")
            for halvings, k in ((1, 4), (2, 2), (3, 1)):
                loss = 0.1 * halvings - kept
                stages["understand"]["metrics"][f"understanding/accuracy_at_{k}"] = score - loss
                stages["generate"]["metrics"][f"generation/geneval_at_{k}"] = score - 0.05 - loss
    return params, results, judge


def test_scores_of_an_elastic_training_have_labels_an_order_and_differences():
    assert (shown("generation/geneval_at_2").label, shown("generation/geneval_at_2").better) == ("GenEval, k=2", 1)
    assert shown("train/geneval_at_2").better == 0
    params, results, judge = elastic_results()
    for stages in results.values():
        stages["understand"]["metrics"]["understanding/accuracy_at_16"] = 0.7  # follows 4, though "16" < "4"
    found = analyse(results, judge, Layout(params), params)
    names = [name for name in found.frame.columns if "_at_" in name]
    assert names == [f"understanding/accuracy_at_{k}" for k in (1, 2, 4, 16)] + [
        f"generation/geneval_at_{k}" for k in (1, 2, 4)
    ]
    row = found.paired.set_index(["estimator", "beta", "tokens", "metric"]).loc[("ceb", 0.01, 8, "accuracy_at_2")]
    assert (row.baseline, row.difference) == (pytest.approx(0.42), pytest.approx(0.09))
    assert math.isnan(row.p_holm)  # no claim of its own


def test_table_of_budgets_holds_one_training_at_every_budget():
    params, results, judge = elastic_results()
    found = analyse(results, judge, Layout(params), params)
    table = table_of_budgets(found.frame, "ar", "t")
    assert table.header == ["metric", "K", "estimator", "β", "k=1", "k=2", "k=4", "k=8"]
    assert len(table.rows) == 2 * 5  # K = 4 is no elastic training
    rows = {tuple(row[:4]): row[4:] for row in table.rows}
    assert [text[:5] for text in rows[("accuracy", "8", "none", "0")]] == ["0.320", "0.420", "0.520", "0.620"]
    assert [text[:5] for text in rows[("GenEval", "8", "ceb", "0.01")]] == ["0.360", "0.460", "0.560", "0.610"]
    best = {(table.rows[r][3], table.header[c]) for r, c in table.bold if table.rows[r][0] == "accuracy"}
    assert best == {("0.03", f"k={k}") for k in (1, 2, 4, 8)}
    assert "ar: one training, every budget" in {table.title for table in tables(found)}
    assert "ar: one training, every budget" not in {table.title for table in tables(analysed())}


def test_budget_curve_draws_the_elastic_training_beside_one_training_per_budget():
    assert budget_curve(analysed(tokens=(4, 8))) is None
    params, results, judge = elastic_results()
    accuracy, geneval = budget_curve(analyse(results, judge, Layout(params), params)).axes
    curves = {line.get_marker(): line for line in accuracy.get_lines() if len(line.get_xdata()) > 1}
    assert list(curves["o"].get_xdata()) == [1, 2, 4, 8]
    drawn = sorted(line.get_ydata()[0] for line in accuracy.get_lines() if len(line.get_xdata()) == 4)
    assert drawn == pytest.approx([0.32, 0.41])  # none-0, and ceb-0.01, which validation chose
    diamonds = points(accuracy, "D")
    assert [(round(x), y) for x, y, _ in diamonds] == [(4, pytest.approx(0.62)), (4, pytest.approx(0.66))]
    assert [label.get_text() for label in geneval.get_xticklabels()] == ["1", "2", "4", "8"]


def test_beta_of_hsic_is_not_per_nat():
    params, results, judge = synthetic()
    renamed = {replace(c, estimator="hsic") if c.estimator == "vib" else c: r for c, r in results.items()}
    figure = score_over_beta(analyse(renamed, judge, Layout(params), params))
    below = {ax.get_title(loc="left"): figure.axes[2 + i].get_xlabel() for i, ax in enumerate(figure.axes[:2])}
    assert below == {"hsic": "β per unit of dependence", "ceb": "β per nat per image"}


@pytest.mark.parametrize(("channel", "discrete"), [("sampled", "rate R"), ("deterministic", "code entropy")])
def test_each_family_is_placed_by_the_bits_it_has(channel, discrete):
    params, results, judge = synthetic(families=("ar", "flow"))
    params = params.model_copy(update={"tokenizer": params.tokenizer.model_copy(update={"channel": channel})})
    for cell, stages in results.items():
        if cell.family == "ar":
            stages["understand"]["metrics"]["information/code_entropy_bits"] = 40.0
    figure = information_plane(analyse(results, judge, Layout(params), params))
    assert [ax.get_xlabel() for ax in figure.axes[::2]] == [
        f"{discrete}, bits per image", "rate R, bits per image"
    ]  # fmt: skip


def test_metrics_of_priors_and_dependence_are_shown_where_a_family_has_them():
    params, results, judge = synthetic(families=("ar", "flow"))
    for cell, stages in results.items():
        metrics = stages["understand"]["metrics"]
        metrics |= {"information/autoregressive_rate_bits": 21.234, "information/conditional_rate_bits": 12.0}
        metrics |= {"information/dependence": 0.4321, "information/dependence_text": 0.2}
        if cell.family == "flow":
            metrics["information/active_dimensions"] = 60.0
    made = {table.title: table for table in tables(analyse(results, judge, Layout(params), params))}
    information = made["flow: information in the tokens"]
    assert information.header[3:] == ["rate", "rate, AR prior", "rate given caption"]
    assert information.rows[0][4] == "21.23 ± 0.00"
    use = "{}: use of codes and dimensions, dependence"
    assert made[use.format("ar")].header[3:] == ["dead codes", "CKA(X,Z)", "CKA(Z,T)"]
    assert made[use.format("flow")].header[3:] == ["active dimensions", "CKA(X,Z)", "CKA(Z,T)"]
    assert made[use.format("flow")].rows[0][3:5] == ["60.0 ± 0.0", "0.432 ± 0.000"]


def test_training_curves_of_families_that_log_different_parts(tmp_path):
    params, results, judge = synthetic(seeds=(0,), families=("ar", "flow"))
    layout = Layout(params, tmp_path)
    leave_images(layout, results)
    for cell in results:
        if cell.family == "flow":
            path = layout.stage("train", cell) / "history.jsonl"
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("\n".join(json.dumps({k: v for k, v in line.items() if "rate" not in k}) for line in lines))
    axes = training(analyse(results, judge, layout, params)).axes
    assert [len(ax.get_lines()) for ax in axes] == [3, 3, 3, 0]  # ar: loss, rate; flow: loss alone


def test_a_grid_of_three_families_and_four_estimators_fits_a_page(tmp_path, monkeypatch):
    params, results, judge = elastic_results(seeds=(0,), families=("ar", "mask", "flow"))
    twins = {"vib-0.003": "dib", "ceb-0.01": "hsic"}
    results |= {replace(c, estimator=twins[c.arm]): r for c, r in results.items() if c.arm in twins}
    found = analyse(results, judge, Layout(params, tmp_path), params)
    sizes = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: sizes.append(tuple(figure.get_size_inches())))
    assert draw_figures(found) == FIGURES[:6]
    assert all(width <= 12.5 and height <= 13 for width, height in sizes), sizes
