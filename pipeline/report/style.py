"""What the report's charts share: style, empty figures, and a color for every arm."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd

from infotok.evaluation.statistics import mean_and_deviation
from pipeline.config.cells import Cell
from pipeline.report.analysis import Analysis

# Okabe and Ito's palette, which colour-blind readers can tell apart.
INK, SOFT, GRID = "#1c2430", "#6b7480", "#e6e9ed"
HUES = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
BASELINE = "#4a4f57"
DPI = 170
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


def arm_name(estimator: str, beta: float) -> str:
    return Cell("", estimator, beta, 0, 0).arm


def estimator_hues(frame: pd.DataFrame) -> dict[str, str]:
    """A hue per estimator, grey for the baseline."""
    estimators = [name for name in dict.fromkeys(frame.estimator) if name != "none"]
    return {"none": BASELINE} | {name: HUES[i % len(HUES)] for i, name in enumerate(estimators)}


def tint(color: str, white: float, black: float = 0.0) -> str:
    """A color mixed with a share of white, then darkened by a share of black."""
    from matplotlib.colors import to_hex, to_rgb

    return to_hex((np.array(to_rgb(color)) * (1 - white) + white) * (1 - black))


def arm_colors(frame: pd.DataFrame) -> dict[tuple[str, float], str]:
    """Grey for the baseline; a hue per estimator that darkens as beta rises."""
    colors = {("none", 0.0): BASELINE}
    for estimator, hue in estimator_hues(frame).items():
        betas = sorted(frame.beta[frame.estimator == estimator].unique()) if estimator != "none" else []
        for place, beta in enumerate(betas):
            depth = 0.5 if len(betas) == 1 else place / (len(betas) - 1)
            colors[(estimator, float(beta))] = tint(hue, 0.5 * (1 - depth), 0.35 * max(0.0, depth - 0.5))
    return colors


def token_colors(frame: pd.DataFrame) -> dict[int, str]:
    return {tokens: HUES[i % len(HUES)] for i, tokens in enumerate(sorted(frame.tokens.unique()))}


def mean_of(values: pd.Series) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed: no bar)."""
    values = list(values.dropna())
    if not values:
        return math.nan, 0.0
    mean, deviation = mean_and_deviation(values)
    return mean, deviation if len(values) > 1 else 0.0


def spread(places: list[float], gap: float) -> list[float]:
    """Places moved apart until none of them is nearer than `gap` to the next; their order is kept."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = list(places)
    for _ in range(200):
        for low, high in pairwise(order):
            if (short := gap - (moved[high] - moved[low])) > 1e-9:
                moved[low] -= short / 2
                moved[high] += short / 2
    return moved


def shown_arms(analysis: Analysis, family: str, tokens: int) -> list[tuple[str, float]]:
    """The baseline and the validated arm of every estimator (all arms where validation chose none)."""
    mine = [c for c in analysis.choices if (c.family, c.tokens) == (family, tokens)]
    if mine:
        return [("none", 0.0), *((c.estimator, c.beta) for c in mine)]
    group = analysis.frame[(analysis.frame.family == family) & (analysis.frame.tokens == tokens)]
    return list(group.groupby(["estimator", "beta"], sort=False).groups)
