"""The numbers of the report: one frame over all cells, paired differences, arms chosen on validation.

Validation chooses, test reports: nothing here picks an arm by a test score. Every difference is paired over
seeds with the beta = 0 twin, which shares tokenizer, initial weights, data order and sampling noise.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from infotok.data.arrow import read_manifest
from infotok.evaluation.statistics import holm, paired_interval, paired_p_value
from pipeline.config.cells import Cell
from pipeline.config.params import Params
from pipeline.report.metrics import CLAIMS, PAIRED, TASKS, VALIDATION, Task, elastic, ordered, short
from pipeline.running.results import Layout

Results = dict[Cell, dict[str, dict]]

AXES = ["family", "estimator", "beta", "tokens", "seed"]
ARM = ["family", "estimator", "beta", "tokens"]
COLUMNS = ["metric", "baseline", "infotok", "difference", "ci_low", "ci_high", "seeds"]
JUDGED = ["excludes_zero", "p_value", "chosen", "p_holm", "command"]


@dataclass(frozen=True)
class Choice:
    """The beta that validation chose for one family, token budget and estimator."""

    family: str
    tokens: int
    estimator: str
    beta: float
    validation: float  # mean over seeds of the mean of the tasks' validation scores
    baseline: float  # the same of none-0-0, NaN without a twin
    edge: bool  # beta is the smallest or largest tried, of two or more
    best: bool  # no other estimator of this family and budget validates higher

    @property
    def arm(self) -> str:
        return Cell(self.family, self.estimator, self.beta, self.tokens, 0).arm


@dataclass(frozen=True)
class Analysis:
    """Everything that tables, figures and the page show. `manifest`: of the data, empty where it is not there."""

    params: Params
    layout: Layout
    results: Results
    judge: dict
    manifest: dict
    frame: pd.DataFrame
    paired: pd.DataFrame
    choices: list[Choice]

    @property
    def tasks(self) -> list[Task]:
        """The tasks that the results have scores of."""
        return [task for task in TASKS if present(self.frame, task.score)]

    @property
    def generation(self) -> Task | None:
        """The task of these that draws images."""
        return next((task for task in self.tasks if task.name == "generation"), None)

    def best(self, family: str) -> Choice | None:
        """The best validated arm of a family over its token budgets."""
        mine = [choice for choice in self.choices if choice.family == family]
        return max(mine, key=lambda choice: choice.validation, default=None)

    def budget(self, family: str) -> int:
        """The token budget to show where only one fits: the best validated arm's, else the largest."""
        best = self.best(family)
        return best.tokens if best else int(max(self.frame.tokens[self.frame.family == family]))

    def comparison(self, choice: Choice, metric: str) -> dict | None:
        """The row of paired.csv of a chosen arm."""
        p = self.paired
        rows = p[
            (p.family == choice.family)
            & (p.estimator == choice.estimator)
            & (p.beta == choice.beta)
            & (p.tokens == choice.tokens)
            & (p.metric == metric)
        ]
        return rows.iloc[0].to_dict() if len(rows) else None


def analyse(results: Results, judge: dict, layout: Layout, params: Params) -> Analysis:
    """Frame, paired differences and validated choices of all cells."""
    frame = frame_of(results)
    choices = choose(frame)
    paired = judged(paired_differences(frame), choices, params)
    manifest = read_manifest(layout.data) if (layout.data / "manifest.json").is_file() else {}
    return Analysis(params, layout, results, judge, manifest, frame, paired, choices)


def present(frame: pd.DataFrame, name: str) -> bool:
    """Whether any cell has this metric."""
    return name in frame and bool(frame[name].notna().any())


def frame_of(results: Results) -> pd.DataFrame:
    """One row per cell: the axes, then metrics in a fixed order.

    Rows go by family, estimator (baseline first), beta, tokens, seed.
    """
    families = list(dict.fromkeys(cell.family for cell in results))
    estimators = ["none", *dict.fromkeys(cell.estimator for cell in results)]

    def order(cell: Cell):
        return (
            families.index(cell.family),
            estimators.index(cell.estimator),
            cell.beta,
            cell.tokens,
            cell.seed,
        )

    rows = []
    for cell in sorted(results, key=order):
        metrics = {}
        for stage in ("train", "understand", "generate"):
            metrics |= results[cell].get(stage, {}).get("metrics", {})
        axes = {axis: getattr(cell, axis) for axis in AXES}
        rows.append(axes | {name: math.nan if value is None else float(value) for name, value in metrics.items()})
    found = ordered({name for row in rows for name in row} - set(AXES))
    return pd.DataFrame(rows, columns=[*AXES, *found])


def paired_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Arm minus its beta = 0 twin over the seeds that both have, with Student's t: 95 % intervals and p-values."""
    compared = PAIRED | {short(name): name for task in TASKS for name in elastic(frame, task.score).values()}
    rows = []
    for (family, estimator, beta, tokens), arm in frame[frame.estimator != "none"].groupby(ARM, sort=False):
        twins = frame[(frame.family == family) & (frame.estimator == "none") & (frame.tokens == tokens)]
        twins, arm = twins.set_index("seed"), arm.set_index("seed")
        for metric, name in compared.items():
            if name not in frame:
                continue
            pairs = pd.DataFrame({"baseline": twins[name], "infotok": arm[name]}).dropna()
            if pairs.empty:
                continue
            sides = list(pairs.baseline), list(pairs.infotok)
            means = [pairs.baseline.mean(), pairs.infotok.mean()]
            row = [family, estimator, beta, tokens, metric, *means, *paired_interval(*sides), len(pairs)]
            rows.append([*row, paired_p_value(*sides)])
    return pd.DataFrame(rows, columns=[*ARM, *COLUMNS, "p_value"])


def judged(paired: pd.DataFrame, choices: list[Choice], params: Params) -> pd.DataFrame:
    """Paired differences with what may be claimed of them, and the command that remakes a row's cells.

    Beta is not a claim each: validation chooses one per family, token budget and estimator. Holm's adjustment counts
    the `CLAIMS` of those chosen arms over the whole report, and only they have a `p_holm`.
    """
    chosen = {(choice.family, choice.estimator, choice.beta, choice.tokens) for choice in choices}
    rows = paired.to_dict("records")
    for row in rows:
        arm = tuple(row[axis] for axis in ARM)
        row["excludes_zero"], row["chosen"] = excludes_zero(row), arm in chosen
        row["p_holm"], row["command"] = math.nan, cells_command(params, *arm)
    claims = [row for row in rows if row["chosen"] and row["metric"] in CLAIMS]
    for row, p in zip(claims, holm([row["p_value"] for row in claims]), strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows, columns=[*ARM, *COLUMNS, *JUDGED])


def cells_command(params: Params, family: str, estimator: str, beta: float, tokens: int) -> str:
    """The command that remakes an arm and its beta = 0 twin at one token budget, all seeds."""
    path, arm = params.paths.params, Cell(family, estimator, beta, tokens, 0)
    words = ["infotok", "sweep", *(["--params", path] if Path(path) != Path("params.yaml") else [])]
    for cell in (arm.baseline(), arm):
        words += ["--only", f"{family}-{cell.arm}-{tokens}-*"]
    return shlex.join(words)


def choose(frame: pd.DataFrame) -> list[Choice]:
    """Per family, token budget and estimator, the beta that validates highest (of equals the smallest)."""
    choices = []
    for (family, tokens), group in frame.groupby(["family", "tokens"], sort=False):
        columns = [name for name in VALIDATION if present(group, name)]
        if not columns:
            continue
        score = group[columns].mean(axis=1, skipna=False)
        score = score.groupby([group.estimator, group.beta], sort=False).agg(lambda s: s.mean(skipna=False))
        baseline = float(score.get(("none", 0.0), math.nan))
        arms = {}
        for estimator in [name for name in group.estimator.unique() if name != "none"]:
            betas = score[estimator].dropna()
            if len(betas):
                arms[estimator] = (float(betas.idxmax()), float(betas.max()), score[estimator].index)
        top = max((value for _, value, _ in arms.values()), default=math.nan)
        for estimator, (beta, value, tried) in arms.items():
            edge = len(tried) > 1 and beta in (min(tried), max(tried))
            choices.append(Choice(family, tokens, estimator, beta, value, baseline, edge, value == top))
    return choices


def excludes_zero(row: dict) -> str:
    """Whether an interval leaves zero out, in words."""
    if math.isnan(row["ci_low"]):
        return "no interval"
    return "yes" if row["ci_low"] > 0 or row["ci_high"] < 0 else "no"
