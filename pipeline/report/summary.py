"""The headline in few numbers: `summary.json`, which DVC compares as metrics, and the terminal's table."""

from __future__ import annotations

import math

from pipeline.config.cells import NONE
from pipeline.report.analysis import Analysis, Choice
from pipeline.report.frame import excludes_zero, terms_of
from pipeline.report.metrics import HEADLINE, METRICS, PAIRED
from pipeline.report.tables import interval, p_text, signed

CEILINGS = ("judge/objects", "judge/retrieval", "judge/retrieval_chance")  # of what the judge gives


def summary(analysis: Analysis) -> dict:
    """The headline as DVC metrics: nested numbers and names, at most some 20 a family; what is not finite is left out.

    Per family the best validated arm and its differences to the baseline, and beside it the differences of consistency
    alone at the same token budget. All other arms stand in paired.csv.
    """
    families = {}
    for family in analysis.frame.family.unique():
        if (best := analysis.best(family)) is None:
            continue
        found = {"arm": best.arm, "tokens": best.tokens, "validation": best.validation}
        found["validation_baseline"] = best.baseline
        for task in analysis.tasks:
            for metric in task.headline:
                if row := analysis.comparison(best, metric):
                    names = ["baseline", "infotok", "difference"]
                    names += ["ci_low", "ci_high", "p_holm"] if metric == task.claim else []
                    found[metric] = {name: row[name] for name in names}
        if (other := _consistency(analysis, best)) and other != best:
            rows = {task.claim: analysis.comparison(other, task.claim) for task in analysis.tasks}
            found["consistency_alone"] = {metric: row["difference"] for metric, row in rows.items() if row}
        families[family] = found
    metrics = analysis.judge.get("metrics", {})
    ceiling = {name.removeprefix("judge/"): metrics[name] for name in CEILINGS if name in metrics}
    whole = {"cells": len(analysis.frame), "seeds": int(analysis.frame.seed.nunique())}
    return _finite(whole | ({"judge": ceiling} if ceiling else {}) | families)


def headline_table(analysis: Analysis):
    """The best validated arm of every family and token budget, and consistency alone, as a `rich.table.Table`."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    title = f"Validated arms against none-0-0, {analysis.frame.seed.nunique()} seed(s)"
    table = RichTable(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("", "none-0-0 → InfoTok", "change, 95 % interval", "p, Holm"):
        table.add_column(name, no_wrap=True)
    for choice in analysis.choices:
        if not choice.best and choice.estimator != NONE:
            continue
        names = f"{choice.family}, K={choice.tokens}", choice.arm, terms_of(choice.terms)
        table.add_row(*names, style="bold" if choice.best else None)
        for metric in HEADLINE:
            if (row := analysis.comparison(choice, metric)) is None:
                continue
            color = "green" if row["difference"] > 0 else "red"
            table.add_row(
                f"  {METRICS[PAIRED[metric]].label}",
                f"{row['baseline']:.3f} → {row['infotok']:.3f}",
                # Text in brackets would be read as markup.
                Text(f"{signed(row['difference'])} {interval(row)}"),
                p_text(row["p_holm"]),
                style=f"bold {color}" if excludes_zero(row) == "yes" else None,
            )
    return table


def _consistency(analysis: Analysis, best: Choice) -> Choice | None:
    """The chosen arm of consistency alone at the budget of a chosen arm."""
    return next((c for c in analysis.chosen(best.family, best.tokens) if c.estimator == NONE), None)


def _finite(value):
    """Floats at six significant digits, without those that are not finite."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if not isinstance(part, float) or math.isfinite(part)}
        return {key: _finite(part) for key, part in kept.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
