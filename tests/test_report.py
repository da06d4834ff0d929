"""The report's tables, texts and files over a grid worked by hand."""

import csv
import io
import json
import math
import re
import shutil

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console
from synthetic import (
    FIGURES,
    FOUR,
    Resources,
    analysed,
    changed,
    elastic_results,
    leave_images,
    study_with,
    synthetic,
)

from infotok.errors import InfotokError
from pipeline.report.analysis import analyse
from pipeline.report.curves import training_table
from pipeline.report.latex import latex, latex_text
from pipeline.report.page import page
from pipeline.report.summary import headline_table, summary
from pipeline.report.tables import headline, table_by_arm, table_by_budget, table_of_budgets, tables
from pipeline.report.texts import findings, seeds_sentence
from pipeline.report.write import rewrite_report, write_report


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report written twice from the same results."""
    root = tmp_path_factory.mktemp("report")
    params, results, judge = synthetic(seeds=(0, 1), tokens=(4, 8))
    params = params.model_copy(update={"report": params.report.model_copy(update={"title": "A <b> & B"})})
    study = study_with(params, root)
    leave_images(study, results)
    write_report(results, judge, study)
    shutil.copytree(study.reports, root / "first")
    write_report(results, judge, study)
    return study.reports, root / "first"


def test_paired_csv_has_exactly_its_columns(written):
    rows = list(csv.reader(io.StringIO((written[0] / "paired.csv").read_text())))
    assert ",".join(rows[0]) == (
        "family,estimator,beta,gamma,tokens,metric,baseline,infotok,difference,ci_low,ci_high,seeds,"
        "excludes_zero,p_value,chosen,p_holm,command"
    )
    assert all(len(row) == 17 for row in rows)
    assert rows[1][:6] == ["ar", "vib", "0.003", "1", "4", "accuracy"]
    remade = {tuple(row[1:6]): row[-1] for row in rows[1:]}
    assert remade[("ceb", "0.01", "1", "8", "geneval")] == (
        "infotok sweep --only 'ar-none-0-0-8-*' --only 'ar-ceb-0.01-1-8-*'"
    )
    # Only claims of chosen arms are adjusted.
    assert {tuple(row[1:3] + row[5:6]) for row in rows[1:] if row[-2]} == {
        (*arm, metric) for arm in (("vib", "0.003"), ("ceb", "0.01")) for metric in ("accuracy", "geneval")
    }


def test_ablation_csv_has_a_row_per_cell(written):
    rows = list(csv.DictReader(io.StringIO((written[0] / "ablation.csv").read_text())))
    assert len(rows) == 20
    axes = ["family", "estimator", "beta", "gamma", "tokens", "seed"]
    assert list(rows[0])[:7] == [*axes, "understanding/accuracy"]
    assert [row["beta"] for row in rows if row["tokens"] == "4" and row["seed"] == "0"] == (
        ["0", "0.003", "0.003", "0.01", "0.03"]
    )


def test_headline_says_whether_the_interval_excludes_zero():
    rows = {(row[2], row[4]): row for row in headline(analysed()).rows}
    assert rows[("ceb-0.01-1", "accuracy")] == [
        "ar", "8", "ceb-0.01-1", "both", "accuracy", "0.620", "0.660", "+0.040", "+6.5 %", "[−0.010, +0.090]", "no",
        "0.297",
    ]  # fmt: skip
    assert rows[("vib-0.003-1", "accuracy")][7:] == ["+0.000", "+0.0 %", "[−0.025, +0.025]", "no", "1.000"]
    assert rows[("ceb-0.01-1", "GenEval, T=1")][-1] == "–"  # no claim of its own
    params, results, judge = synthetic(seeds=(0, 1))
    for cell, stages in results.items():
        stages["understand"]["metrics"]["understanding/accuracy"] = {"none": 0.5, "ceb": 0.6, "vib": 0.4}[
            cell.estimator
        ] + cell.seed / 100
    rows = {(row[2], row[4]): row for row in headline(changed(params, results, judge)).rows}
    assert rows[("ceb-0.01-1", "accuracy")][-2:] == ["yes", "<0.001"]
    assert rows[("vib-0.003-1", "accuracy")][-2:] == ["yes, below", "<0.001"]


def test_means_deviations_and_bold():
    frame = analysed().frame
    table = table_by_budget(frame, "ar", ["understanding/accuracy", "generation/gfid"], "t")
    assert table.header == ["arm", "adds", "accuracy, K=8", "gFID, K=8"]
    cells = {tuple(row[:2]): row[2:] for row in table.rows}
    assert cells[("ceb-0.01-1", "both")] == ["0.660 ± 0.040", "9.00 ± 0.00"]
    assert cells[("none-0-0", "neither")] == ["0.620 ± 0.020", "12.00 ± 0.00"]
    names = [tuple(row[:2]) for row in table.rows]
    assert names[0] == ("none-0-0", "neither")
    # Highest accuracy, but lowest gFID.
    assert table.bold == {(names.index(("ceb-0.03-1", "both")), 2), (names.index(("ceb-0.01-1", "both")), 3)}


def test_bold_is_per_token_budget_and_absent_where_all_are_alike():
    frame = analysed(tokens=(4, 8)).frame
    table = table_by_arm(frame, "ar", ["generation/gfid", "reconstruction/psnr"], "t")
    assert {(table.rows[r][0], table.rows[r][1], table.header[c]) for r, c in table.bold} == {
        ("4", "ceb-0.01-1", "gFID"),
        ("8", "ceb-0.01-1", "gFID"),
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
    assert table.header == ["metric", "K", "arm", "adds", "k=1", "k=2", "k=4", "k=8"]
    assert len(table.rows) == 2 * 5  # K = 4 is no elastic training
    rows = {tuple(row[:3]): row[4:] for row in table.rows}
    assert [text[:5] for text in rows[("accuracy", "8", "none-0-0")]] == ["0.320", "0.420", "0.520", "0.620"]
    assert [text[:5] for text in rows[("GenEval", "8", "ceb-0.01-1")]] == ["0.360", "0.460", "0.560", "0.610"]
    best = {(table.rows[r][2], table.header[c]) for r, c in table.bold if table.rows[r][0] == "accuracy"}
    assert best == {("ceb-0.03-1", f"k={k}") for k in (1, 2, 4, 8)}
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
    found = write_report(results, judge, study_with(params, tmp_path))
    assert found.choices == []
    assert "nothing to compare" in findings(found)[0]
    assert (found.study.reports / "page/index.html").stat().st_size > 1000


def test_one_seed_gives_no_interval():
    found = analysed(seeds=(0,))
    assert found.paired[["ci_low", "ci_high"]].isna().all().all()
    assert {tuple(row[-3:]) for row in headline(found).rows} == {("one seed", "no interval", "–")}
    assert found.paired[["p_value", "p_holm"]].isna().all().all()
    assert "Holm's" not in headline(found).note
    assert "0 test" not in headline(found).note
    assert "With one seed no interval" in seeds_sentence(found)
    params, results, judge = synthetic(seeds=(0,))
    whole = changed(params, results, judge, "estimators")
    assert "Add seeds to grid.seed in studies/estimators/params.yaml" in seeds_sentence(whole)
    assert "one seed gives no interval" in findings(found)[0]
    assert "±" not in "".join(cell for row in tables(found)[0].rows for cell in row)
    assert "ci_low" not in summary(found)["ar"]["accuracy"]


def test_seeds_sentence_counts_its_reach():
    # t(.975, 2) / sqrt(3) = 4.30265 / 1.73205 = 2.48
    text = seeds_sentence(analysed())
    assert "With 3 seeds" in text
    assert "2.48 standard deviations" in text
    assert "Of the 6 headline intervals about 0.3" in text  # two estimators, three metrics


def test_summary_is_strict_json_of_numbers_and_names():
    content = summary(analysed(seeds=(0, 1), tokens=(4, 8), arms=FOUR))
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["cells"] == 16
    assert content["judge"] == {"objects": 0.97}
    assert (content["ar"]["arm"], content["ar"]["tokens"]) == ("ceb-0.01-1", 4)
    assert content["ar"]["accuracy"]["difference"] == pytest.approx(0.03)
    assert content["ar"]["consistency_alone"] == {"accuracy": pytest.approx(0.015), "geneval": pytest.approx(0.015)}

    def numbers(value):
        return sum(map(numbers, value.values())) if isinstance(value, dict) else isinstance(value, (int, float))

    assert numbers(content["ar"]) <= 20


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_headline_table_prints(seeds):
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(headline_table(analysed(seeds=seeds, arms=FOUR)))
    text = console.file.getvalue()
    assert re.search(r"none-0-1 +consistency alone", text)
    assert re.search(r"ceb-0.01-1 +both", text)
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
        assert len(lines) in (3 * 2 + 1, 5 + 1)
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


def test_html_is_whole_and_loads_the_figures_beside_it_alone(written):
    text = (written[0] / "page/index.html").read_text()
    parser = Resources()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.tables >= 8
    assert len(parser.loads) == 7
    assert all((written[0] / "page" / value).is_file() for value in parser.loads)
    assert all(re.fullmatch(r"figures/[a-z_]+\.svg", value) for value in parser.loads)
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
    expected = ["ablation.csv", "ablation.md", "factorial.csv", "paired.csv", "summary.json", "training.csv"]
    expected += ["page/ablation.tex", "page/index.html"]
    expected += [f"{folder}/{name}" for name in figures for folder, name in
                 (("figures", f"{name}.png"), ("page/figures", f"{name}.svg"))]  # fmt: skip
    assert names == sorted(expected)
    for name in names:
        assert (now / name).read_bytes() == (first / name).read_bytes(), name
    assert b"<dc:date>" not in (now / "page/figures/factors.svg").read_bytes()


def test_a_report_is_made_again_from_its_numbers_alone(written, tmp_path):
    """A frame whose results are gone, and with rows in any order: the same numbers, figures and tables again."""
    params, *_ = synthetic(seeds=(0, 1), tokens=(4, 8))
    study = study_with(params, tmp_path)
    (study.reports / "figures").mkdir(parents=True)
    header, *rows = (written[0] / "ablation.csv").read_text().splitlines()
    (study.reports / "ablation.csv").write_text("\n".join([header, *rows[::-1]]) + "\n")
    shutil.copy(written[0] / "figures/samples.png", study.reports / "figures/samples.png")
    found = rewrite_report(study, judge={"metrics": {"judge/objects": 0.97}})
    for name in ("paired.csv", "factorial.csv"):
        paths = study.reports / name, written[0] / name
        again, before = (pd.read_csv(path, keep_default_na=False, na_values=[""]) for path in paths)
        again, before = (table.sort_values(list(before.columns[:7]), ignore_index=True) for table in (again, before))
        pd.testing.assert_frame_equal(again, before, atol=1e-6)  # six digits are what ablation.csv keeps
    assert list(found.frame.estimator.unique()) == ["none", "ceb", "vib"]  # as they first stand there, none before all
    contents = [json.loads((folder / "summary.json").read_text()) for folder in (study.reports, written[0])]
    assert contents[0] == contents[1]
    # The gallery, which no number holds, stays as it was; training curves there are none.
    names = {path.stem for path in (study.reports / "figures").iterdir()}
    assert names == set(FIGURES) - {"budget_curve", "training"}
    assert (study.reports / "figures/samples.png").read_bytes() == (written[0] / "figures/samples.png").read_bytes()
    parser = Resources()
    parser.feed((study.reports / "page/index.html").read_text())
    assert "../figures/samples.png" in parser.loads
    assert "Warnings of the stages\n\n- not known" in (study.reports / "ablation.md").read_text()
    assert all((study.reports / "page" / value).is_file() for value in parser.loads)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is missing"),
        ("family,estimator,beta,tokens,seed\nar,none,0,8,0\n", "has no column 'gamma'"),
        ("", "cannot be read"),
    ],
)
def test_a_report_that_cannot_be_made_again_says_why(tmp_path, text, says):
    params, *_ = synthetic()
    study = study_with(params, tmp_path)
    study.reports.mkdir(parents=True)
    if text is not None:
        (study.reports / "ablation.csv").write_text(text)
    with pytest.raises(InfotokError, match=f"ablation.csv:?1?: {says}"):
        rewrite_report(study)


def test_pngs_are_small_and_have_few_colors(written):
    files = sorted((written[0] / "figures").glob("*.png"))
    images = {path.stem: Image.open(path) for path in files}
    assert all(image.mode == "P" and image.width >= 820 for image in images.values())
    # The gallery here is of random pixels, which nothing compresses.
    assert sum(path.stat().st_size for path in files if path.stem != "samples") < 250_000


def test_training_curves_are_means_over_seeds_of_windows_of_steps(written, tmp_path):
    rows = list(csv.DictReader(io.StringIO((written[0] / "training.csv").read_text())))
    assert list(rows[0]) == ["family", "arm", "tokens", "step", "train/loss", "train/rate_bits"]
    assert len(rows) == 5 * 2 * 20  # arms, budgets and all 20 logged steps, which are few enough
    assert {row["arm"] for row in rows} == {
        "none-0-0", "vib-0.003-1", "ceb-0.003-1", "ceb-0.01-1", "ceb-0.03-1"
    }  # fmt: skip
    assert (rows[1]["step"], rows[1]["train/loss"]) == ("1", "0.5")
    params, results, judge = synthetic(seeds=(0, 1), arms=["none-0-0"])
    study = study_with(params, tmp_path)
    for cell in results:
        folder = study.output("train", cell)
        folder.mkdir(parents=True)
        lines = [{"step": step, "train/loss": step + 10 * cell.seed} for step in range(1, 101)]
        (folder / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    table = training_table(analyse(results, judge, study))
    # 100 steps make 50 windows of two; of seeds 0 and 1 the mean is 5 above the mean of the steps.
    assert list(table.step) == list(range(2, 101, 2))
    assert list(table["train/loss"]) == pytest.approx([step - 0.5 + 5 for step in table.step])
