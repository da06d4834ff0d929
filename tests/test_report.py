"""The report's tables, texts and files over a grid worked by hand."""

import csv
import io
import json
import math
import re
import shutil

import pytest
from rich.console import Console
from synthetic import FIGURES, Resources, analysed, changed, elastic_results, leave_images, of_full_profile, synthetic

from pipeline.report.page import command, findings, latex, latex_text, page, seeds_sentence, write_report
from pipeline.report.tables import (
    headline,
    headline_table,
    summary,
    table_by_arm,
    table_of_budgets,
    table_over_beta,
    tables,
)
from pipeline.running.results import Layout


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


def test_paired_csv_has_exactly_its_columns(written):
    rows = list(csv.reader(io.StringIO((written[0] / "paired.csv").read_text())))
    assert ",".join(rows[0]) == (
        "family,estimator,beta,tokens,metric,baseline,infotok,difference,ci_low,ci_high,seeds,"
        "excludes_zero,p_value,chosen,p_holm,command"
    )
    assert all(len(row) == 16 for row in rows)
    assert rows[1][:5] == ["ar", "vib", "0.003", "4", "accuracy"]
    remade = {tuple(row[1:5]): row[-1] for row in rows[1:]}
    assert (
        remade[("ceb", "0.01", "8", "geneval")] == "infotok sweep --only 'ar-none-0-0-8-*' --only 'ar-ceb-0.01-1-8-*'"
    )
    # Only claims of chosen arms are adjusted.
    assert {tuple(row[1:3] + row[4:5]) for row in rows[1:] if row[-2]} == {
        (*arm, metric) for arm in (("vib", "0.003"), ("ceb", "0.01")) for metric in ("accuracy", "geneval")
    }


def test_ablation_csv_has_a_row_per_cell(written):
    rows = list(csv.DictReader(io.StringIO((written[0] / "ablation.csv").read_text())))
    assert len(rows) == 20
    assert list(rows[0])[:6] == ["family", "estimator", "beta", "tokens", "seed", "understanding/accuracy"]
    assert [row["beta"] for row in rows if row["tokens"] == "4" and row["seed"] == "0"] == (
        ["0", "0.003", "0.003", "0.01", "0.03"]
    )


def test_headline_says_whether_the_interval_excludes_zero():
    rows = {(row[2], row[3]): row for row in headline(analysed()).rows}
    assert rows[("ceb-0.01-1", "accuracy")] == [
        "ar", "8", "ceb-0.01-1", "accuracy", "0.620", "0.660", "+0.040", "+6.5 %", "[−0.010, +0.090]", "no", "0.297"
    ]  # fmt: skip
    assert rows[("vib-0.003-1", "accuracy")][6:] == ["+0.000", "+0.0 %", "[−0.025, +0.025]", "no", "1.000"]
    assert rows[("ceb-0.01-1", "GenEval, T=1")][-1] == "–"  # no claim of its own
    params, results, judge = synthetic(seeds=(0, 1))
    for cell, stages in results.items():
        stages["understand"]["metrics"]["understanding/accuracy"] = {"none": 0.5, "ceb": 0.6, "vib": 0.4}[
            cell.estimator
        ] + cell.seed / 100
    rows = {(row[2], row[3]): row for row in headline(changed(params, results, judge)).rows}
    assert rows[("ceb-0.01-1", "accuracy")][-2:] == ["yes", "<0.001"]
    assert rows[("vib-0.003-1", "accuracy")][-2:] == ["yes, below", "<0.001"]


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
    broken = next(cell for cell in results if cell.arm == "vib-0.003-1" and cell.family == "ar")
    results[broken]["generate"]["metrics"]["generation/gfid"] = math.nan
    found = changed(params, results, judge)
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


def test_table_of_budgets_holds_one_training_at_every_budget():
    params, results, judge = elastic_results()
    found = changed(params, results, judge)
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


def test_metrics_of_priors_and_dependence_are_shown_where_a_family_has_them():
    params, results, judge = synthetic(families=("ar", "flow"))
    for cell, stages in results.items():
        metrics = stages["understand"]["metrics"]
        metrics |= {"information/autoregressive_rate_bits": 21.234, "information/conditional_rate_bits": 12.0}
        metrics |= {"information/dependence": 0.4321, "information/dependence_text": 0.2}
        if cell.family == "flow":
            metrics["information/active_dimensions"] = 60.0
    made = {table.title: table for table in tables(changed(params, results, judge))}
    information = made["flow: information in the tokens"]
    assert information.header[3:] == ["rate", "rate, AR prior", "rate given caption"]
    assert information.rows[0][4] == "21.23 ± 0.00"
    use = "{}: use of codes and dimensions, dependence"
    assert made[use.format("ar")].header[3:] == ["dead codes", "CKA(X,Z)", "CKA(Z,T)"]
    assert made[use.format("flow")].header[3:] == ["active dimensions", "CKA(X,Z)", "CKA(Z,T)"]
    assert made[use.format("flow")].rows[0][3:5] == ["60.0 ± 0.0", "0.432 ± 0.000"]


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
    assert "ceb-0.01-1" in text
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
    assert "codebook collapsed (ar-ceb-0.03-1-4-0, " in text
    assert "`dvc repro`" in text
    assert "nan" not in text.lower().replace("nuisance", "")


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
    text = page(changed(params, results, judge), [])
    parser = Resources()
    parser.feed(text)
    assert parser.loads == []


def test_files_repeat_byte_for_byte(written):
    now, first = written
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    figures = [name for name in FIGURES if name != "budget_curve"]  # no cell is an elastic training
    expected = ["ablation.csv", "ablation.md", "ablation.tex", "index.html", "paired.csv", "summary.json"]
    assert names == sorted([*expected, *(f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg"))])
    for name in names:
        assert (now / name).read_bytes() == (first / name).read_bytes(), name
    assert b"<dc:date>" not in (now / "figures/factors.svg").read_bytes()


def test_command_names_the_profile():
    params, *_ = synthetic()
    assert command(params) == "dvc repro"
    full = of_full_profile(params)
    assert command(full) == "dvc repro studies/estimators/dvc.yaml"
