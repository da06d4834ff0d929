"""What the report's figures share: style, empty figures, and how an arm looks.

In every figure the hue of an arm is its estimator and its depth rises with beta; what is filled or solid has
consistency (gamma above 0), what is hollow or dashed has none. The baseline is grey, consistency alone has a hue of
its own.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd

from infotok.evaluation.statistics import mean_and_deviation
from pipeline.config.cells import NONE, arm_name
from pipeline.report.analysis import Analysis
from pipeline.report.frame import BASELINE, Arm, arms_of, terms_of

# Okabe and Ito's palette, which colour-blind readers can tell apart.
INK, SOFT, GRID = "#1c2430", "#6b7480", "#e6e9ed"
HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"]
CONSISTENCY = "#d98f00"
GREY = "#4a4f57"
DPI = 140
DASHED = (0, (4, 1.6))
MARKERS = ["o", "s", "^", "D", "v", "P"]
STYLE = {
    "svg.hashsalt": "infotok",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def empty_figure(width: float, height: float, layout: str | None = None):
    """A figure of its own, outside pyplot's global state; inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def panels(rows: int, columns: int, width: float, height: float, **shared):
    """A figure with a grid of axes, which is always 2-D."""
    figure = empty_figure(width, height, "constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def legend_name(arm: Arm) -> str:
    """An arm's name in a legend, with words where the name alone is hard to read."""
    words = terms_of(arm)
    return f"{arm_name(*arm)}, {words}" if words.endswith("alone") else arm_name(*arm)


def estimator_hues(frame: pd.DataFrame) -> dict[str, str]:
    """A hue per estimator; that of none is of consistency alone."""
    estimators = [name for name in dict.fromkeys(frame.estimator) if name != NONE]
    return {NONE: CONSISTENCY} | {name: HUES[i % len(HUES)] for i, name in enumerate(estimators)}


def tint(color: str, white: float, black: float = 0.0) -> str:
    """A color mixed with a share of white, then darkened by a share of black."""
    from matplotlib.colors import to_hex, to_rgb

    return to_hex((np.array(to_rgb(color)) * (1 - white) + white) * (1 - black))


def arm_colors(frame: pd.DataFrame) -> dict[Arm, str]:
    """Grey for the baseline; a hue per estimator that darkens as beta, then gamma, rises."""
    colors = {BASELINE: GREY}
    for estimator, hue in estimator_hues(frame).items():
        arms = sorted(arm for arm in arms_of(frame) if arm[0] == estimator and arm != BASELINE)
        for index, arm in enumerate(arms):
            depth = 0.5 if len(arms) == 1 else index / (len(arms) - 1)
            colors[arm] = tint(hue, 0.5 * (1 - depth), 0.35 * max(0.0, depth - 0.5))
    return colors


def face(gamma: float, color: str) -> str:
    """The face of a marker or bar of an arm."""
    return color if gamma else "white"


def token_colors(frame: pd.DataFrame) -> dict[int, str]:
    return {tokens: HUES[i % len(HUES)] for i, tokens in enumerate(sorted(frame.tokens.unique()))}


def mean_of(values: pd.Series) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed: no bar)."""
    values = list(values.dropna())
    if not values:
        return math.nan, 0.0
    mean, deviation = mean_and_deviation(values)
    return mean, deviation if len(values) > 1 else 0.0


def spread(positions: list[float], gap: float) -> list[float]:
    """Positions moved apart until none of them is nearer than `gap` to the next; their order is kept."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = list(positions)
    for _ in range(200):
        for low, high in pairwise(order):
            if (short := gap - (moved[high] - moved[low])) > 1e-9:
                moved[low] -= short / 2
                moved[high] += short / 2
    return moved


def shown_arms(analysis: Analysis, family: str, tokens: int) -> list[Arm]:
    """The arms that a figure with room for few shows, in the frame's order; all where validation chose none.

    The baseline, the validated arm of every estimator, and what the best of them has alone: its consistency and its
    compression.
    """
    group = analysis.frame[(analysis.frame.family == family) & (analysis.frame.tokens == tokens)]
    chosen = analysis.chosen(family, tokens)
    if not chosen:
        return arms_of(group)
    wanted = {BASELINE, *(choice.terms for choice in chosen)}
    for estimator, beta, gamma in [choice.terms for choice in chosen if choice.best]:
        wanted |= {(NONE, 0.0, gamma), (estimator, beta, 0.0)}
    return [arm for arm in arms_of(group) if arm in wanted]
