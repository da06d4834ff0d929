"""The figures that need the frame alone: scores over beta, planes of two measures, usable bits by factor."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from pipeline.config.cells import NONE, decimal
from pipeline.config.params import AnyParams, Params
from pipeline.report.analysis import Analysis
from pipeline.report.frame import BASELINE, TERMS, of_arm, present
from pipeline.report.metrics import BETA_UNITS, METRICS, NUISANCE, STRUCTURE, Task
from pipeline.report.style import (
    INK,
    MARKERS,
    SOFT,
    arm_colors,
    face,
    legend_name,
    mean_of,
    panels,
    shown_arms,
    spread,
    token_colors,
)

FEW_ARMS = 8  # up to which a plane shows every seed beside the means
NEAR = 0.4  # of a panel's height: how far outside it a floor still widens it


def score_over_beta(analysis: Analysis):
    """Every task's score against beta, one line per token budget and gamma, beta = 0 at a broken-axis point."""
    from matplotlib.patheffects import withStroke

    frame = analysis.frame
    families = dict(list(frame.groupby("family", sort=False)))
    rows = [(family, t) for family, mine in families.items() for t in analysis.tasks if present(mine, t.score)]
    estimators = [name for name in frame.estimator.unique() if name != NONE]
    if not rows or not estimators:
        return None
    # A wide grid of panels takes smaller ones, so that it fits a page.
    width = max(6.8, 1.2 + (3.3 if len(estimators) < 4 else 2.55) * len(estimators))
    height = 0.7 + (2.5 if len(rows) < 4 else 1.9) * len(rows)
    figure, axes = panels(len(rows), len(estimators), width, height, sharex="col", sharey="row")
    colors, ends, floors = token_colors(frame), {}, {}
    for (family, task), line in zip(rows, axes, strict=True):
        for estimator, ax in zip(estimators, line, strict=True):
            ends[ax] = _beta_panel(ax, families[family], estimator, task.score, colors)
        line[0].set_ylabel(task.axis.replace(" ", "\n") if len(rows) > 3 else task.axis)
        floors[line[-1]] = _floors(line, families[family], task)
    several = len(families) > 1
    for row, (family, _) in enumerate(rows):
        if row and rows[row - 1][0] == family:
            continue
        for estimator, ax in zip(estimators, axes[row], strict=True):
            ax.set_title(f"{family}, {estimator}" if several else estimator, loc="left", fontweight="bold")
    for estimator, ax in zip(estimators, axes[-1], strict=True):
        ax.set_xlabel(f"β {BETA_UNITS.get(estimator, 'per nat per image')}")
    halo = [withStroke(linewidth=3.5, foreground="white")]
    # Labels need the limits that all panels of a row agreed on.
    for ax, labels in ends.items():
        low, high = ax.get_ylim()
        heights = spread([y for _, y, _, _ in labels], 0.085 * (high - low))
        for (x, _, text, color), y in zip(labels, heights, strict=True):
            label = ax.annotate(text, (x, y), xytext=(8, 0), textcoords="offset points", va="center")
            label.set(color=color, fontweight="bold", annotation_clip=False, path_effects=halo)
    for ax, values in floors.items():
        low, high = ax.get_ylim()
        for text, y in zip(values, spread(list(values.values()), 0.075 * (high - low)), strict=True):
            where = {"xycoords": ax.get_yaxis_transform(), "xytext": (5, 0), "textcoords": "offset points"}
            ax.annotate(text, (1, y), va="center", color=SOFT, fontsize=7.5, **where)
    return figure


def _floors(line: list, frame: pd.DataFrame, task: Task) -> dict[str, float]:
    """Dotted lines where the score is without the image, if that is in a row's panels or near; the values by label."""
    low, high = line[0].get_ylim()
    reach = NEAR * (high - low)
    values = {METRICS[name].label: frame[name].mean() for name in task.floors if present(frame, name)}
    values = {label: value for label, value in values.items() if low - reach < value < high + reach}
    for ax in line:
        for value in values.values():
            ax.axhline(value, color=SOFT, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
    return values


def _beta_panel(ax, frame: pd.DataFrame, estimator: str, name: str, colors: dict[int, str]) -> list[tuple]:
    """One estimator's curves; the arms without it stand at a stand-in point left of the smallest beta.

    Returns the lines' ends as (x, y, label, color).
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    mine = frame[frame.estimator == estimator]
    betas, gammas = sorted(mine.beta.unique()), sorted(mine.gamma.unique())
    ends = []
    if not betas:
        return ends
    zero = betas[0] / 3.2
    # The baseline's gamma is 0; consistency alone belongs to the curve of its own gamma.
    curves = [(tokens, gamma) for tokens in colors for gamma in sorted({0.0, *gammas})]
    for index, (tokens, gamma) in enumerate(curves):
        shift = 1.03 ** (index - (len(curves) - 1) / 2)  # keeps bars of two curves apart
        group, color = frame[frame.tokens == tokens], colors[tokens]
        look = {"color": color, "marker": "o", "markersize": 5.5, "markerfacecolor": face(gamma, color)}

        def dots(x: list[float], columns: list[pd.Series], color: str = color) -> None:
            for where, values in zip(x, columns, strict=True):
                ax.scatter([where] * len(values), values, s=12, color=color, alpha=0.35, linewidths=0, zorder=2)

        without = of_arm(group, (NONE, 0.0, gamma))[name]
        mean, deviation = mean_of(without)
        if not math.isnan(mean):
            if not gamma:
                ax.axhline(mean, color=color, linewidth=1, linestyle=(0, (4, 3)), alpha=0.65, zorder=1)
            ax.errorbar(zero * shift, mean, deviation or None, **look, zorder=3)
            dots([zero * shift], [without])
        points = [(beta * shift, of_arm(group, (estimator, beta, gamma))[name]) for beta in betas]
        points = [(x, values) for x, values in points if values.notna().any()]
        if not points:
            continue
        x, columns = (list(part) for part in zip(*points, strict=True))
        means, deviations = zip(*map(mean_of, columns), strict=True)
        width = {"linewidth": 2 if gamma else 1.2, "elinewidth": 1.2}
        ax.errorbar(x, means, deviations if any(deviations) else None, **look, **width, zorder=3)
        dots(x, columns)
        label = f"K={tokens}" + f", γ={decimal(gamma)}" * any(gammas)
        ends.append((x[-1], means[-1], label, color))
    ax.set_xscale("log")
    room = 0.36 if any(gammas) else 0.22  # for the labels of the lines' ends
    ax.set_xlim(zero / 1.5, betas[-1] * 1.5 * (betas[-1] / zero) ** room)
    ax.xaxis.set_major_locator(FixedLocator([zero, *betas]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks([zero, *betas], ["0", *map(decimal, betas)])
    ax.grid(axis="x", visible=False)
    # Two strokes and a white gap say that the axis is broken between 0 and the smallest beta.
    low, high = np.log(ax.get_xlim())
    middle = (math.log(zero * betas[0]) / 2 - low) / (high - low)
    above = {"transform": ax.transAxes, "clip_on": False}
    ax.plot([middle - 0.012, middle + 0.012], [0, 0], color="white", linewidth=3, zorder=5, **above)
    stroke = {"marker": [(-0.4, -1), (0.4, 1)], "markersize": 8, "linestyle": "none", "color": SOFT}
    ax.plot([middle - 0.012, middle + 0.012], [0, 0], zorder=6, **stroke, **above)
    return ends


def _samples_tokens(params: AnyParams) -> bool:
    """Whether tokens are drawn from q(z|x), whose rate bounds what they tell."""
    return isinstance(params, Params) and params.tokenizer.channel == "sampled"


def _bits(frame: pd.DataFrame, sampled: bool) -> tuple[str, str]:
    """The measure of bits per image that all cells have: the rate where it is a bound, else code entropy."""
    measures = [("information/rate_bits", "rate R"), ("information/code_entropy_bits", "code entropy")]
    measures = measures if sampled else measures[::-1]
    counts = [int(frame[name].notna().sum()) if name in frame else 0 for name, _ in measures]
    return measures[0] if counts[0] >= counts[1] else measures[1]


def information_plane(analysis: Analysis):
    """Bits per image against every task's score."""
    frame, rows = analysis.frame, []
    for family in frame.family.unique():
        mine = frame[frame.family == family]
        name, label = _bits(mine, _samples_tokens(analysis.params))
        if present(mine, name):
            bits = name, f"{label}, bits per image"
            rows.append((family, mine, [(*bits, task.score, task.axis) for task in analysis.tasks]))
    return _planes(frame, rows) if analysis.tasks else None


def structure_nuisance(analysis: Analysis):
    """Usable bits about structure against those about nuisance."""
    frame = analysis.frame
    x, y = "information/nuisance_bits", "information/structure_bits"
    pair = (x, "usable bits about nuisance", y, "usable bits about structure")
    rows = [
        (f, mine, [pair]) for f, mine in frame.groupby("family", sort=False) if present(mine, x) and present(mine, y)
    ]
    return _planes(frame, rows)


def _planes(frame: pd.DataFrame, rows: list):
    """Scatter panels of arms: hue, depth and face by arm, marker by budget, a line along rising beta."""
    from matplotlib.lines import Line2D

    if not rows:
        return None
    columns = len(rows[0][2])
    if columns == 1:  # families side by side
        figure, axes = panels(1, len(rows), 2.6 + (4.3 if len(rows) < 3 else 3.2) * len(rows), 4.4)
        axes = axes.T
    else:
        figure, axes = panels(len(rows), columns, 10.4, 0.3 + (3.9 if len(rows) < 3 else 3.2) * len(rows))
    colors, budgets = arm_colors(frame), sorted(frame.tokens.unique())
    seeds = len(colors) <= FEW_ARMS
    marker = {tokens: MARKERS[i % len(MARKERS)] for i, tokens in enumerate(budgets)}
    for (family, mine, pairs), line in zip(rows, axes, strict=True):
        for (x, x_label, y, y_label), ax in zip(pairs, line, strict=True):
            ax.set_xlabel(x_label)
            ax.set_ylabel(y_label)
            if len(rows) > 1:
                ax.set_title(family, loc="left", fontweight="bold")
            for tokens in budgets:
                _arm_paths(ax, mine[mine.tokens == tokens], x, y, colors, marker[tokens], seeds)
            ax.margins(0.09)
    dot = {"linestyle": "none", "marker": "o", "markersize": 7}
    handles = [
        Line2D([], [], color=color, markerfacecolor=face(arm[2], color), label=legend_name(arm), **dot)
        for arm, color in colors.items()
        if len(of_arm(frame, arm))
    ]
    handles += [
        Line2D([], [], color=SOFT, label=f"K={tokens}", **{**dot, "marker": marker[tokens]}) for tokens in budgets
    ]
    figure.legend(handles=handles, loc="outside right upper", handletextpad=0.3)
    return figure


def _arm_paths(ax, frame: pd.DataFrame, x: str, y: str, colors: dict, marker: str, seeds: bool) -> None:
    """One token budget: seeds faint, means on top, arms of one estimator and gamma joined along rising beta."""
    if not (present(frame, x) and present(frame, y)):
        return
    points = frame.dropna(subset=[x, y])
    means = points.groupby(TERMS, sort=False)[[x, y]].mean()
    arms = list(means.index)
    for estimator, gamma in dict.fromkeys((arm[0], arm[2]) for arm in arms if arm != BASELINE):
        # A line begins at the arm without compression, at the baseline where that was not run.
        path = sorted(arm for arm in arms if (arm[0], arm[2]) == (estimator, gamma))
        start = (NONE, 0.0, gamma)
        path = [start if start in arms and estimator != NONE else BASELINE, *path]
        path = means.loc[[arm for arm in path if arm in arms]]
        hue = colors[max(arm for arm in colors if arm[0] == estimator)]
        ax.plot(path[x], path[y], color=hue, linewidth=1.2, alpha=0.45, zorder=1)
    for arm, group in points.groupby(TERMS, sort=False):
        look, color = {"marker": marker}, colors[arm]
        if seeds and len(group) > 1:
            ax.scatter(group[x], group[y], s=13, alpha=0.4, linewidths=0, zorder=2, color=color, **look)
        # The baseline stands on top: weak arms lie close to it.
        look |= {"facecolors": face(arm[2], color), "edgecolors": "white" if arm[2] else color}
        look |= {"linewidths": 1 if arm[2] else 1.8, "zorder": 4 if arm == BASELINE else 3}
        ax.scatter(*means.loc[arm], s=(72 if seeds else 52) * (1 if arm[2] else 0.8), **look)


def factors(analysis: Analysis):
    """Usable bits per factor, structure apart from nuisance."""
    frame, prefix = analysis.frame, "information/factor/"
    found = [name.removeprefix(prefix) for name in frame if name.startswith(prefix) and present(frame, name)]
    if not found:
        return None
    groups = {
        "structure": [n for n in STRUCTURE if n in found],
        "nuisance": [n for n in NUISANCE if n in found],
    }
    groups["other"] = [n for n in found if n not in STRUCTURE and n not in NUISANCE]
    rows = list(frame.groupby(["family", "tokens"], sort=False).groups)
    if len(rows) > 4:  # one budget a family, else the figure outgrows a page
        rows = [(family, analysis.budget(family)) for family in frame.family.unique()]
    figure, axes = panels(len(rows), 1, 10.4, 0.4 + 2.5 * len(rows), sharex=True, sharey=True)
    colors, seen = arm_colors(frame), {}
    for (family, tokens), ax in zip(rows, axes[:, 0], strict=True):
        arms = shown_arms(analysis, family, tokens)
        group = frame[(frame.family == family) & (frame.tokens == tokens)]
        width, start, ticks = 0.8 / len(arms), 0.0, {}
        for title, names in ((title, names) for title, names in groups.items() if names):
            for index, arm in enumerate(arms):
                mine = of_arm(group, arm)
                if mine.empty:
                    continue
                x = [start + i + width * (index - (len(arms) - 1) / 2) for i in range(len(names))]
                means, deviations = zip(*(mean_of(mine[prefix + name]) for name in names), strict=True)
                whiskers = {"yerr": deviations, "error_kw": {"elinewidth": 1, "ecolor": INK}}
                whiskers = whiskers if any(deviations) else {}
                look = {"facecolor": face(arm[2], colors[arm]), "edgecolor": colors[arm], "linewidth": 1.1}
                seen.setdefault(arm, ax.bar(x, means, width * 0.84, **look, **whiskers))
            ax.text(start - 0.45, 1.0, title, transform=ax.get_xaxis_transform(), va="bottom", color=SOFT)
            ticks |= {start + i: name for i, name in enumerate(names)}
            start += len(names) + 0.6
        ax.set_xticks(list(ticks), list(ticks.values()), fontsize=10)
        ax.tick_params(axis="x", length=0, labelbottom=True)
        ax.grid(axis="x", visible=False)
        ax.set_ylabel("usable bits")
        several = f"{family}, " if frame.family.nunique() > 1 else ""
        ax.set_title(f"{several}K={tokens}", fontweight="bold", loc="right")
    arms = [arm for arm in colors if arm in seen]
    figure.legend([seen[arm] for arm in arms], [legend_name(arm) for arm in arms], loc="outside right upper")
    return figure
