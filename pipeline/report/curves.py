"""Training curves: means over seeds of what training logs, as `training.csv` and as a figure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config.cells import arm_name
from pipeline.report.analysis import Analysis
from pipeline.report.frame import ARM, Arm
from pipeline.report.style import DASHED, arm_colors, legend_name, panels, shown_arms

CURVES = {
    "train/loss": "total loss",
    "train/understanding": "understanding loss",
    "train/generation": "generation loss",
    "train/reconstruction": "reconstruction loss",
    "train/rate_bits": "rate, bits per image",
}
LEGEND = 2.1  # inches of an arm's name in a legend
POINTS = 50  # of an arm in training.csv, at most


def training_table(analysis: Analysis) -> pd.DataFrame:
    """The curves of every family, arm and token budget: family, arm, tokens, step, then metrics as they are logged.

    A row is the mean of a window of logged steps, named by its last step, over all seeds; a curve has at most `POINTS`.
    Empty without histories.
    """
    parts = []
    for family, *arm, tokens in analysis.frame[ARM].drop_duplicates().itertuples(index=False, name=None):
        if (curve := _mean_history(analysis, family, tuple(arm), tokens)) is None:
            continue
        curve = curve[[name for name in CURVES if name in curve]]
        windows = np.array_split(np.arange(len(curve)), min(POINTS, len(curve)))
        rows = pd.DataFrame([curve.iloc[window].mean() for window in windows])
        rows.insert(0, "step", [curve.index[window[-1]] for window in windows])
        for name, value in (("tokens", tokens), ("arm", arm_name(*arm)), ("family", family)):
            rows.insert(0, name, value)
        parts.append(rows)
    columns = ["family", "arm", "tokens", "step", *CURVES]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return table[[name for name in columns if name in table]]


def _mean_history(analysis: Analysis, family: str, arm: Arm, tokens: int) -> pd.DataFrame | None:
    """What training logged of an arm, by step, as means over its seeds; None where no seed left a history."""
    cells = [
        cell
        for cell in analysis.results
        if (cell.family, cell.estimator, cell.beta, cell.gamma, cell.tokens) == (family, *arm, tokens)
    ]
    found = [_history(analysis.study.output(analysis.study.graph.trains, cell) / "history.jsonl") for cell in cells]
    found = [history for history in found if history is not None]
    return pd.concat(found).groupby("step").mean(numeric_only=True) if found else None


def _history(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return pd.DataFrame(lines) if lines and "step" in lines[0] else None


def training(analysis: Analysis):
    """Training curves of the baseline and the validated arm of each estimator, at the best arm's budget."""
    rows = []
    for family in analysis.frame.family.unique():
        tokens = analysis.budget(family)
        curves = {}
        for arm in shown_arms(analysis, family, tokens):
            if (curve := _mean_history(analysis, family, arm, tokens)) is not None:
                curves[arm] = curve
        if curves:
            rows.append((family, tokens, curves))
    keys = [key for key in CURVES if any(key in h and h[key].notna().any() for *_, c in rows for h in c.values())]
    if not keys:
        return None
    if len(rows) > 1:  # a row per family
        columns, lines, size = len(keys), 1, (2.3, 2.0)
    else:
        columns = (len(keys) + 1) // 2 if len(keys) > 3 else len(keys)
        lines, size = -(-len(keys) // columns), (10.4 / columns, 2.5)
    height = 0.3 + size[1] * lines * len(rows)
    figure, axes = panels(lines * len(rows), columns, size[0] * columns, height, sharex=True)
    colors, handles = arm_colors(analysis.frame), {}
    for index, (family, tokens, curves) in enumerate(rows):
        block = axes[lines * index : lines * (index + 1)].ravel()
        for ax in block[len(keys) :]:
            ax.set_axis_off()
        for key, ax in zip(keys, block, strict=False):
            if len(rows) == 1:
                ax.set_title(f"{CURVES[key]} (K={tokens})", loc="left")
            elif not index:
                ax.set_title(CURVES[key].replace(", ", "\n"), loc="left")
            for arm, history in curves.items():
                if key in history and len(line := history[key].dropna()):
                    smooth = line.rolling(max(1, len(line) // 40), center=True, min_periods=1).mean()
                    look = {"color": colors[arm], "linewidth": 1.6, "linestyle": "-" if arm[2] else DASHED}
                    handles[arm] = ax.plot(smooth.index, smooth, **look)[0]
            known = [history[key].dropna() for history in curves.values() if key in history]
            if not sum(map(len, known)):  # a family need not have every part of the loss
                ax.set_axis_off()
                continue
            _clip_start(ax, np.concatenate(known))
            if len(rows) == 1 or index == len(rows) - 1:
                ax.tick_params(labelbottom=True)
                ax.set_xlabel("step")
        if len(rows) > 1:
            block[0].set_ylabel(f"{family}, K={tokens}", fontweight="bold")
    arms = [arm for arm in colors if arm in handles]
    handles, names = [handles[arm] for arm in arms], [legend_name(arm) for arm in arms]
    if len(keys) < lines * columns:  # a panel is free
        axes[lines - 1, -1].legend(handles, names, loc="upper left")
    elif len(rows) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=max(1, int(size[0] * columns / LEGEND)))
    else:
        figure.legend(handles, names, loc="outside right upper")
    return figure


def _clip_start(ax, values: np.ndarray) -> None:
    """Let the first, far higher steps leave the panel, so that the differences at the end can be seen."""
    low, high = np.nanmin(values), np.nanquantile(values, 0.97)
    if np.isfinite([low, high]).all() and high > low:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
