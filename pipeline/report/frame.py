"""One table of numbers over all cells, which everything else of the report is computed from.

A row is a cell: the axes, then every metric of its stages. `ablation.csv` is this table as text, so a report can be
made again from that file alone where the results themselves are gone (`read_frame`).
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from infotok.errors import InfotokError
from pipeline.config.cells import NONE, Cell
from pipeline.graph import CELL, STAGES
from pipeline.report.metrics import ordered

Results = dict[Cell, dict[str, dict]]  # metrics.json of every stage of every cell
Arm = tuple[str, float, float]

AXES = ["family", "estimator", "beta", "gamma", "tokens", "seed"]
TERMS = ["estimator", "beta", "gamma"]  # what an arm name says
ARM = ["family", *TERMS, "tokens"]  # what seeds are means over
BASELINE: Arm = (NONE, 0.0, 0.0)


def terms_of(arm: Arm) -> str:
    """What an arm adds to training, in words."""
    estimator, _, gamma = arm
    if estimator == NONE:
        return "consistency alone" if gamma else "neither"
    return "both" if gamma else "compression alone"


def frame_of(results: Results) -> pd.DataFrame:
    """The frame of results: axes, then metrics in a fixed order; rows as `arranged` says."""
    rows = []
    for cell, stages in results.items():
        metrics = {}
        for stage, result in stages.items():
            if STAGES[stage].axes == CELL:
                metrics |= result.get("metrics", {})
        axes = {axis: getattr(cell, axis) for axis in AXES}
        rows.append(axes | {name: math.nan if value is None else float(value) for name, value in metrics.items()})
    return arranged(pd.DataFrame(rows, columns=list(dict.fromkeys([*AXES, *(name for row in rows for name in row)]))))


def read_frame(path: Path) -> pd.DataFrame:
    """The frame that an `ablation.csv` holds.

    Raises:
        InfotokError: the file is missing, is no CSV, or lacks an axis.
    """
    try:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing; run the study's `report` to make it") from None
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InfotokError(f"{path}: cannot be read ({error}); run the study's `report` to make it again") from None
    if missing := [axis for axis in AXES if axis not in frame]:
        raise InfotokError(f"{path}:1: has no column '{missing[0]}'; the axes are {', '.join(AXES)}")
    return arranged(frame.astype({"beta": float, "gamma": float}))


def arranged(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by family, estimator (none first), beta, gamma, tokens and seed; columns by the order of metrics.

    Families and estimators keep the order in which they first stand in the frame, which is that of the grid.
    """
    families, estimators = list(frame.family.unique()), [NONE, *frame.estimator.unique()]
    places = {"family": families.index, "estimator": estimators.index}
    frame = frame.sort_values(
        AXES, key=lambda column: column.map(places[column.name]) if column.name in places else column, kind="stable"
    )
    return frame[[*AXES, *ordered(set(frame.columns) - set(AXES))]].reset_index(drop=True)


def of_arm(frame: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """The rows of one arm."""
    estimator, beta, gamma = arm
    return frame[(frame.estimator == estimator) & (frame.beta == beta) & (frame.gamma == gamma)]


def arms_of(frame: pd.DataFrame) -> list[Arm]:
    """The arms of a frame, in its order."""
    return list(dict.fromkeys(frame[TERMS].itertuples(index=False, name=None)))


def present(frame: pd.DataFrame, name: str) -> bool:
    """Whether any cell has this metric."""
    return name in frame and bool(frame[name].notna().any())


def excludes_zero(row: dict) -> str:
    """Whether an interval leaves zero out, in words."""
    if math.isnan(row["ci_low"]):
        return "no interval"
    return "yes" if row["ci_low"] > 0 or row["ci_high"] < 0 else "no"
