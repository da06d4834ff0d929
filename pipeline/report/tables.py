"""The report's tables as text, from an analysis of all cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from infotok.evaluation.statistics import mean_and_deviation
from pipeline.report.analysis import COLUMNS, Analysis, Choice, excludes_zero, present
from pipeline.report.metrics import FAMILY, HEADLINE, METRICS, PAIRED, TASKS, Metric, Task, elastic, shown

MISSING = "–"
FAMILIES = 12  # of questions, at most, that a table has columns for


@dataclass(frozen=True)
class Table:
    """A table as text; `labels` leading columns name the row, `bold` holds (row, column) of best values."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int
    bold: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    note: str = ""


def interval(row: dict, digits: int = 3) -> str:
    """A 95 % interval as text."""
    if math.isnan(row["ci_low"]):
        return "one seed" if row["seeds"] == 1 else MISSING
    return f"[{signed(row['ci_low'], digits)}, {signed(row['ci_high'], digits)}]"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def p_text(value: float) -> str:
    """A p-value to three digits."""
    return MISSING if math.isnan(value) else "<0.001" if value < 0.0005 else f"{value:.3f}"


def beta_text(beta: float) -> str:
    """Beta in its canonical plain decimal."""
    return f"{beta:.10f}".rstrip("0").rstrip(".") if beta else "0"


def _score(values: pd.Series, metric: Metric) -> tuple[str, float]:
    """Mean ± sd over seeds as text, and the mean rounded as shown (NaN when missing)."""
    values = values.dropna()
    if values.empty:
        return MISSING, math.nan
    mean, deviation = mean_and_deviation(list(values))
    text = f"{mean:.{metric.digits}f}"
    if len(values) > 1:
        text += f" ± {deviation:.{metric.digits}f}"
    return text.replace("-", "−"), round(mean, metric.digits)


def _best(means: list[float], better: int) -> set[int]:
    """Indices of the best values, none where all are alike."""
    known = {value for value in means if not math.isnan(value)}
    if not better or len(known) < 2:
        return set()
    top = max(known) if better > 0 else min(known)
    return {index for index, value in enumerate(means) if value == top}


def table_over_beta(frame: pd.DataFrame, family: str, names: list[str], title: str, note: str = "") -> Table:
    """Rows: arms. Columns: every metric at every token budget. Best of a column in bold."""
    frame = frame[frame.family == family]
    names = [name for name in names if present(frame, name)]
    columns = [(name, tokens) for name in names for tokens in sorted(frame.tokens.unique())]
    groups = dict(list(frame.groupby(["estimator", "beta"], sort=False)))
    rows, bold = [[arm[0], beta_text(arm[1])] for arm in groups], set()
    for index, (name, tokens) in enumerate(columns):
        metric = shown(name)
        scores = [_score(group.loc[group.tokens == tokens, name], metric) for group in groups.values()]
        for row, (text, _) in zip(rows, scores, strict=True):
            row.append(text)
        bold |= {(row, index + 2) for row in _best([mean for _, mean in scores], metric.better)}
    header = ["estimator", "β", *(f"{shown(name).label}, K={tokens}" for name, tokens in columns)]
    return Table(title, header, rows, 2, frozenset(bold), note)


def table_by_arm(frame: pd.DataFrame, family: str, names: list[str], title: str, note: str = "") -> Table:
    """Rows: arms within token budgets. Columns: metrics. Best of a column within a budget in bold."""
    frame = frame[frame.family == family]
    names = [name for name in names if present(frame, name)]
    rows, bold = [], set()
    for tokens in sorted(frame.tokens.unique()):
        start = len(rows)
        groups = frame[frame.tokens == tokens].groupby(["estimator", "beta"], sort=False)
        rows += [[str(tokens), arm[0], beta_text(arm[1])] for arm, _ in groups]
        for index, name in enumerate(names):
            metric = shown(name)
            scores = [_score(group[name], metric) for _, group in groups]
            for row, (text, _) in zip(rows[start:], scores, strict=True):
                row.append(text)
            bold |= {(start + row, index + 3) for row in _best([mean for _, mean in scores], metric.better)}
    header = ["K", "estimator", "β", *(shown(name).label for name in names)]
    return Table(title, header, rows, 3, frozenset(bold), note)


def table_of_budgets(frame: pd.DataFrame, family: str, title: str) -> Table:
    """Rows: tasks and arms of elastic trainings. Columns: the first k tokens alone, up to K itself."""
    frame = frame[frame.family == family]
    at = {task.score: names for task in TASKS if (names := elastic(frame, task.score))}
    elastic_names = [name for names in at.values() for name in names.values()]
    frame = frame[frame[elastic_names].notna().any(axis=1)]
    budgets = sorted({k for names in at.values() for k in names} | set(frame.tokens)) if len(frame) else []
    rows, bold = [], set()
    for score, names in at.items():
        metric = shown(score)
        for tokens in sorted(frame.tokens.unique()):
            start = len(rows)
            groups = frame[frame.tokens == tokens].groupby(["estimator", "beta"], sort=False)
            rows += [[metric.label, str(tokens), arm[0], beta_text(arm[1])] for arm, _ in groups]
            for index, k in enumerate(budgets):
                name = score if k == tokens else names.get(k) if k < tokens else None
                scores = [_score(group[name], metric) if name else (MISSING, math.nan) for _, group in groups]
                for row, (text, _) in zip(rows[start:], scores, strict=True):
                    row.append(text)
                bold |= {(start + row, index + 4) for row in _best([mean for _, mean in scores], metric.better)}
    header = ["metric", "K", "estimator", "β", *(f"k={k}" for k in budgets)]
    note = (
        "Trained with nested dropout over K tokens and evaluated on the first k of them alone; k = K is the plain "
        "score. Best of a column within a metric and K in bold."
    )
    return Table(title, header, rows, 4, frozenset(bold), note)


def headline(analysis: Analysis) -> Table:
    """none-0-0 against the beta chosen on validation, per family, token budget and estimator."""
    header = ["family", "K", "chosen arm", "metric", "none-0-0", "InfoTok", "difference", "relative"]
    header += ["95 % interval", "excludes zero", "p, Holm"]
    rows, bold = [], set()
    for choice in analysis.choices:
        for metric in HEADLINE:
            if (row := analysis.comparison(choice, metric)) is None:
                continue
            gain = row["difference"] / row["baseline"] if row["baseline"] > 0 else math.nan
            relative = MISSING if math.isnan(gain) else f"{signed(100 * gain, 1)} %"
            if choice.best:
                bold.add((len(rows), 2))
            scores = [f"{row['baseline']:.3f}", f"{row['infotok']:.3f}", signed(row["difference"]), relative]
            names = [choice.family, str(choice.tokens), choice.arm, METRICS[PAIRED[metric]].label]
            below = ", below" if row["ci_high"] < 0 else ""
            rows.append([*names, *scores, interval(row), row["excludes_zero"] + below, p_text(row["p_holm"])])
    tests = int(analysis.paired.p_holm.notna().sum())
    note = " ".join([_choosing(analysis.tasks, tests), *floors(analysis).values()]) if rows else ""
    return Table("Headline: validated InfoTok arm against its β = 0 twin", header, rows, 4, frozenset(bold), note)


def _choosing(tasks: list[Task], tests: int) -> str:
    """How β was chosen, and what chance and Holm's adjustment count."""
    score = (
        f"{tasks[0].label} on the validation split" if len(tasks) == 1 else "the mean of both tasks' validation scores"
    )
    unclaimed = "".join(f"; {task.label} at T=1 is no claim of its own" for task in tasks if task.plain)
    return (
        f"β is chosen per family, token budget and estimator by {score}; the arm in "
        "bold validates best of its budget. All numbers are of the test split, means over seeds: validation chooses, "
        "test reports, so no correction counts the β tried. The luck of a training is in both splits and stays: of "
        "three β without effect the chosen one excludes zero upward in up to 7 % of cases instead of 2.5 % (simulated, "
        "5 seeds). The intervals and whether they exclude zero are of each row alone. p, Holm: two-sided paired "
        f"t-tests, adjusted by Holm's step-down method over the {tests} test{'s' * (tests != 1)} of "
        f"{' and '.join(task.label for task in tasks)} of all chosen arms of this report{unclaimed}."
    )


def floors(analysis: Analysis) -> dict[str, str]:
    """By task, a sentence of what its score is without looking, or where the judge gives it, of real images."""
    frame, judge, said = analysis.frame, analysis.judge.get("metrics", {}), {}
    for task in analysis.tasks:
        known = [f"{shown(name).label} {frame[name].mean():.3f}" for name in task.floors if present(frame, name)]
        if known:
            said[task.name] = f"{task.title} without the image: {', '.join(known)}."
        real, chance = (judge.get(f"judge/{task.claim}{part}") for part in ("", "_chance"))
        if real is not None and chance is not None:
            said[task.name] = (
                f"{task.title} of real test images: {real:.3f}, the judge's ceiling; by chance: {chance:.3f}."
            )
    return said


def _under(frame: pd.DataFrame, prefix: str) -> list[str]:
    return [name for name in frame.columns if name.startswith(prefix)]


def tables(analysis: Analysis) -> list[Table]:
    """All tables after the headline, family by family."""
    frame, made = analysis.frame, []
    blind, drawn = (floors(analysis).get(name, "") for name in ("understanding", "generation"))
    understanding = ["understanding/accuracy", "understanding/accuracy_novel"]
    generation = ["geneval", "geneval_t1", "geneval_novel", "retrieval", "retrieval_t1", "gfid", "kid"]
    generation = [f"generation/{name}" for name in generation]
    questions, asked = _under(frame, FAMILY), ""
    if len(questions) > FAMILIES:
        asked = f"Accuracy of each of the {len(questions)} families stands in ablation.csv: too many for a table."
        questions = []
    questions += ["understanding/question_only", "understanding/majority"]
    information = ["rate_bits", "autoregressive_rate_bits", "conditional_rate_bits", "code_entropy_bits"]
    information += ["lower_bits", "upper_bits", "generator_nll_bits", "capacity_bits"]
    use = ["perplexity", "dead_codes", "active_dimensions", "dependence", "dependence_text"]
    information, use = ([f"information/{name}" for name in names] for names in (information, use))
    structure = [f"information/{name}_bits" for name in ("structure", "nuisance")]
    structure += _under(frame, "information/factor/")
    bits = "Bits per image; no value is better in itself."
    used = (
        "No value is better in itself, except fewer dead codes. CKA: dependence between 0 and 1 of images X and tokens "
        "Z, of tokens and captions T."
    )
    usable = "Usable bits per image: what a small probe reads out of the tokens about each factor."
    for family in frame.family.unique():
        made += [
            table_over_beta(frame, family, understanding, f"{family}: understanding over β and token budget", blind),
            table_over_beta(frame, family, generation, f"{family}: generation over β and token budget", drawn),
            table_of_budgets(frame, family, f"{family}: one training, every budget"),
            table_by_arm(frame, family, _under(frame, "generation/tag/"), f"{family}: GenEval tags"),
            table_by_arm(frame, family, questions, f"{family}: question families", asked),
            table_by_arm(frame, family, _under(frame, "reconstruction/"), f"{family}: reconstruction"),
            table_by_arm(frame, family, information, f"{family}: information in the tokens", bits),
            table_by_arm(frame, family, use, f"{family}: use of codes and dimensions, dependence", used),
            table_by_arm(frame, family, structure, f"{family}: structure against nuisance", usable),
        ]
    return [table for table in made if len(table.header) > table.labels]


def summary(analysis: Analysis) -> dict:
    """The headline as DVC metrics: numbers and names in nested dicts, values that are not finite left out."""

    def numbers(choice: Choice) -> dict:
        found = {"arm": choice.arm, "validation": choice.validation, "validation_baseline": choice.baseline}
        for metric in HEADLINE:
            if row := analysis.comparison(choice, metric):
                found[metric] = {name: row[name] for name in (*COLUMNS[1:6], "p_value", "p_holm")}
        return found

    families = {}
    for family in analysis.frame.family.unique():
        if best := analysis.best(family):
            families[family] = {"best": {"tokens": best.tokens} | numbers(best)}
            for choice in analysis.choices:
                if choice.family == family and choice.best:
                    families[family].setdefault(f"k{choice.tokens}", numbers(choice))
    ceiling = {name.split("/")[-1]: value for name, value in analysis.judge.get("metrics", {}).items()}
    whole = {"cells": len(analysis.frame), "seeds": int(analysis.frame.seed.nunique())}
    return _finite(whole | {"judge": ceiling} | families)


def _finite(value):
    """Floats at six significant digits, without those that are not finite."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if not isinstance(part, float) or math.isfinite(part)}
        return {key: _finite(part) for key, part in kept.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def headline_table(summary: dict):
    """The content of summary.json as a `rich.table.Table` for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    title = f"Validated InfoTok arm against its β = 0 twin, {summary['seeds']} seed(s)"
    table = RichTable(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "none-0-0 → InfoTok", "change, 95 % interval", "p, Holm"):
        table.add_column(name, no_wrap=True)
    families = {name: found for name, found in summary.items() if isinstance(found, dict) and "best" in found}
    for family, budgets in families.items():
        for budget, found in budgets.items():
            if budget == "best":
                continue
            table.add_row(Text(f"{family}, K={budget[1:]}, {found['arm']}", style="bold"))
            for metric in HEADLINE:
                if not (row := found.get(metric)):
                    continue
                row = {"ci_low": math.nan, "ci_high": math.nan, "seeds": summary["seeds"]} | row
                color = "green" if row["difference"] > 0 else "red"
                table.add_row(
                    f"  {METRICS[PAIRED[metric]].label}",
                    f"{row['baseline']:.3f} → {row['infotok']:.3f}",
                    # Text in brackets would be read as markup.
                    Text(f"{signed(row['difference'])} {interval(row)}"),
                    p_text(row.get("p_holm", math.nan)),
                    style=f"bold {color}" if excludes_zero(row) == "yes" else None,
                )
    return table
