"""Figures of two comparisons: chosen arms against the baseline, and one training against one per token budget."""

from __future__ import annotations

import math

import pandas as pd

from pipeline.config.cells import arm_name
from pipeline.report.analysis import Analysis, Choice
from pipeline.report.frame import BASELINE, Arm, of_arm, present
from pipeline.report.metrics import HEADLINE, METRICS, PAIRED, TASKS, Task, elastic
from pipeline.report.style import INK, SOFT, arm_colors, estimator_hues, legend_name, mean_of, panels, tint
from pipeline.report.tables import signed

LINE = 0.215  # inches of height of a row of `gains`
SHADE = "#f4f5f7"  # where an arm is worse than the baseline


def gains(analysis: Analysis):
    """Forest plot: difference of every chosen arm to the baseline, with 95 % intervals, per family and token budget."""
    from matplotlib.lines import Line2D

    rows = {choice: _differences(analysis, choice) for choice in analysis.choices}
    rows = {choice: found for choice, found in rows.items() if found}
    tasks = {metric: task for task in TASKS for metric in task.headline if any(metric in r for r in rows.values())}
    if not tasks:
        return None
    families = {family: [c for c in rows if c.family == family] for family in dict.fromkeys(c.family for c in rows)}
    lines = {family: _lines(choices) for family, choices in families.items()}
    heights = [len(found) + 1.2 for found in lines.values()]
    figure, axes = panels(
        len(families), len(tasks), 2.2 + 2.95 * len(tasks), 1.1 + LINE * sum(heights), sharex="col", sharey="row",
        height_ratios=heights,
    )  # fmt: skip
    hues = estimator_hues(analysis.frame)
    # A task's score and its plain form have one scale, so that they can be compared.
    limits = {
        task: _limits([row for found in rows.values() for m, row in found.items() if m in task.headline])
        for task in tasks.values()
    }
    for family, line in zip(families, axes, strict=True):
        for (metric, task), ax in zip(tasks.items(), line, strict=True):
            ax.set_xlim(*limits[task])
            found = {choice: rows[choice].get(metric) for choice in families[family]}
            _forest(ax, found, lines[family], hues, pale=metric != task.claim)
        _name_lines(line[0], lines[family])
        where = {"xycoords": "axes fraction", "xytext": (-7, 6), "textcoords": "offset points", "ha": "right"}
        line[0].annotate(family, (0, 1), fontweight="bold", fontsize=11.5, **where)
    for metric, ax in zip(tasks, axes[0], strict=True):
        ax.set_title(METRICS[PAIRED[metric]].label, fontweight="bold")
    for ax in axes[-1]:
        ax.set_xlabel("difference to none-0-0, better →")
    dot = {"color": SOFT, "marker": "o", "markersize": 6, "linewidth": 1.6}
    handles = [
        Line2D([], [], label="interval excludes zero", **dot),
        Line2D([], [], label="interval includes zero, or no interval", markerfacecolor="white", **dot),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=2)
    return figure


def _differences(analysis: Analysis, choice: Choice) -> dict[str, dict]:
    """The rows of paired.csv of a chosen arm, by headline metric."""
    found = {metric: analysis.comparison(choice, metric) for metric in HEADLINE}
    return {metric: row for metric, row in found.items() if row}


def _lines(choices: list[Choice]) -> list[Choice | int]:
    """Lines of a family's panels from the top: a budget's number, then its chosen arms."""
    lines = []
    for tokens in sorted({choice.tokens for choice in choices}):
        lines += [tokens, *(choice for choice in choices if choice.tokens == tokens)]
    return lines


def _limits(rows: list[dict]) -> tuple[float, float]:
    """Limits of the differences: all intervals, except that a few very wide ones do not squeeze the others."""
    if not rows:
        return -1, 1
    ends = [[v for v in (row["ci_low"], row["ci_high"], row["difference"]) if not math.isnan(v)] for row in rows]
    reach = sorted(max(map(abs, values)) for values in ends)
    cap = max(2.5 * reach[len(reach) // 2], 1.2 * max(abs(row["difference"]) for row in rows)) or 1.0
    low = max(-cap, min(0.0, *(min(values) for values in ends)))
    high = min(cap, max(0.0, *(max(values) for values in ends)))
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _forest(ax, rows: dict[Choice, dict | None], lines: list[Choice | int], hues: dict[str, str], pale: bool) -> None:
    """One panel: a point and its interval a line, its number at the right."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = ax.get_xlim()
    ax.axvspan(low, 0, color=SHADE, linewidth=0, zorder=0)
    ax.axvline(0, color=INK, linewidth=1, zorder=1)
    for y, choice in enumerate(lines):
        if isinstance(choice, int) or (row := rows[choice]) is None:
            continue
        color = tint(hues[choice.estimator], 0.5 if pale else 0.0)
        sure = row["excludes_zero"] == "yes"
        if row["excludes_zero"] != "no interval":
            ends = max(low, row["ci_low"]), min(high, row["ci_high"])
            ax.plot(ends, (y, y), color=color, linewidth=1.9, solid_capstyle="round", zorder=2)
            for end, wide, marker in ((low, row["ci_low"] < low, "<"), (high, row["ci_high"] > high, ">")):
                if wide:  # an arrow: the interval goes on
                    ax.plot(end, y, marker=marker, color=color, markersize=5.5, clip_on=False, zorder=3)
        face = color if sure else "white"
        ax.plot(row["difference"], y, "o", color=color, markerfacecolor=face, markersize=6.2, zorder=4)
        star = "*" if row["p_holm"] < 0.05 else ""
        weight = "bold" if sure else "normal"
        text = {"fontsize": 8, "va": "center", "color": INK if sure else SOFT, "fontweight": weight}
        ax.annotate(signed(row["difference"]) + star, (1, y), (8, 0), ax.get_yaxis_transform(), "offset points", **text)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _name_lines(ax, lines: list[Choice | int]) -> None:
    """Names of budgets and arms left of a family's first panel; the arm that validates best of its budget in bold."""
    names = [f"K = {line}" if isinstance(line, int) else legend_name(line.terms) for line in lines]
    ax.set_yticks(range(len(lines)), names)
    for label, line in zip(ax.get_yticklabels(), lines, strict=True):
        if isinstance(line, int):
            label.set(color=SOFT)
        elif line.best:
            label.set(fontweight="bold")


def budget_curve(analysis: Analysis):
    """Scores from the first k tokens of one elastic training, beside trainings of their own for each budget."""
    frame = analysis.frame
    tasks = {task: names for task in TASKS if (names := elastic(frame, task.score))}
    rows = []
    for family, mine in frame.groupby("family", sort=False):
        trained = mine[mine[[name for names in tasks.values() for name in names.values()]].notna().any(axis=1)]
        if len(trained):
            rows.append((family, mine, int(trained.tokens.max())))
    if not rows:
        return None
    figure, axes = panels(len(rows), len(tasks), 1.2 + 4.4 * len(tasks), 1.1 + 2.6 * len(rows))
    colors, handles = arm_colors(frame), {}
    for (family, mine, tokens), line in zip(rows, axes, strict=True):
        for (task, names), ax in zip(tasks.items(), line, strict=True):
            names = {k: name for k, name in names.items() if k < tokens and present(mine, name)} | {tokens: task.score}
            for index, line_of_arms in enumerate(_arms_by_budget(analysis, family, tokens)):
                handles |= _budget_line(ax, mine, names, line_of_arms, task, colors, (index - 0.5) * 0.05)
            ax.set_xscale("log", base=2)
            budgets = sorted({*names, *(int(k) for k in mine.tokens.unique() if k <= tokens)})
            ax.set_xticks(budgets, [str(k) for k in budgets])
            ax.minorticks_off()
            ax.set_xlim(budgets[0] / 1.25, budgets[-1] * 1.25)
            ax.grid(axis="x", visible=False)
            ax.set_ylabel(task.axis)
        if len(rows) > 1:
            line[0].set_title(family, loc="left", fontweight="bold")
    for ax in axes[-1]:
        ax.set_xlabel("tokens k of an image")
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2, columnspacing=3)
    return figure


def _arms_by_budget(analysis: Analysis, family: str, tokens: int) -> list[dict[int, Arm]]:
    """The baseline, then the best validated arm of `tokens`: at each budget the weights that validation chose there."""
    mine = [choice for choice in analysis.choices if choice.family == family]
    budgets = sorted(analysis.frame.tokens[analysis.frame.family == family].unique())
    lines = [dict.fromkeys(budgets, BASELINE)]
    for best in [choice for choice in mine if choice.tokens == tokens and choice.best][:1]:
        lines.append({c.tokens: c.terms for c in mine if c.estimator == best.estimator})
    return lines


def _budget_line(
    ax,
    frame: pd.DataFrame,
    names: dict[int, str],
    arms: dict[int, Arm],
    task: Task,
    colors: dict[Arm, str],
    shift: float,
) -> dict[str, object]:
    """One elastic training as a line with its spread, and a marker per budget that was trained for itself.

    Returns handles for the legend by label.
    """
    tokens, handles = max(names), {}
    color = colors[arms[tokens]]

    def scores(k: int, name: str) -> pd.Series:
        rows = of_arm(frame, arms[k])
        return rows.loc[rows.tokens == k, name].dropna()

    points = [(k, *mean_of(scores(tokens, name))) for k, name in names.items()]
    points = [point for point in points if not math.isnan(point[1])]
    if points:
        x, means, deviations = zip(*points, strict=True)
        low, high = ([m + s * d for m, d in zip(means, deviations, strict=True)] for s in (-1, 1))
        ax.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0, zorder=1)
        label = f"{arm_name(*arms[tokens])}, one training of K={tokens}"
        handles[label] = ax.plot(x, means, color=color, linewidth=2, marker="o", markersize=4.5, zorder=3)[0]
    for k, arm in arms.items():
        mean, deviation = mean_of(scores(k, task.score))
        if k >= tokens or math.isnan(mean):
            continue
        look = {"color": color, "marker": "D", "markersize": 6.5, "markerfacecolor": "white", "linestyle": "none"}
        bars = ax.errorbar(k * 2**shift, mean, deviation or None, elinewidth=1.2, zorder=4, **look)
        name = arm_name(*arm) if arm == BASELINE else f"{arm[0]}, weights chosen by validation"
        handles[f"{name}, a training per budget"] = bars
    return handles
