"""The comparisons of the report: paired differences, the arms that validation chooses, what may be claimed of them.

Every difference is paired over seeds with the baseline `none-0-0`, which shares tokenizer, initial weights, data order
and sampling noise with every other arm.

Validation chooses, test reports: nothing here picks an arm by a test score. Per family and token budget, validation
chooses one arm of every estimator, over beta and gamma together, because both are weights that a user would tune.
Consistency alone (no estimator, gamma above 0) is a candidate like any estimator, for two reasons: it is the cheaper
rival that an estimator must beat, and where it validates best of all, a report that could not choose it would credit
compression with a gain that consistency brings. The baseline is no candidate: it is what all are compared with, and
where validation prefers it to a chosen arm the findings say so. What each term contributes to a chosen arm is not to
be read from its difference to the baseline; `pipeline.report.factorial` takes that apart.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from functools import cache

import pandas as pd

from infotok.data.arrow import read_manifest
from infotok.evaluation.statistics import holm, paired_interval, paired_p_value
from pipeline.config.cells import Cell, arm_name
from pipeline.config.params import AnyParams
from pipeline.config.study import Study
from pipeline.report.factorial import factorial
from pipeline.report.frame import (
    ARM,
    BASELINE,
    Arm,
    Results,
    arms_of,
    excludes_zero,
    frame_of,
    of_arm,
    present,
    read_frame,
)
from pipeline.report.metrics import CLAIMS, PAIRED, TASKS, VALIDATION, Task, elastic, short

COLUMNS = ["metric", "baseline", "infotok", "difference", "ci_low", "ci_high", "seeds"]
JUDGED = ["excludes_zero", "p_value", "chosen", "p_holm", "command"]


@dataclass(frozen=True)
class Choice:
    """The arm that validation chose for one family, token budget and estimator (`none`: consistency alone)."""

    family: str
    tokens: int
    estimator: str
    beta: float
    gamma: float
    validation: float  # mean over seeds of the mean of the tasks' validation scores
    baseline: float  # the same of none-0-0, NaN where that was not run
    tried: int  # arms of this estimator that have a validation score
    edges: str  # the weights, of "β" and "γ", that are the smallest or largest of two or more tried
    best: bool  # no other estimator of this family and budget validates higher
    tied: bool  # all arms of this family and budget validate alike, the baseline among them

    @property
    def terms(self) -> Arm:
        return self.estimator, self.beta, self.gamma

    @property
    def arm(self) -> str:
        return arm_name(*self.terms)


@dataclass(frozen=True)
class Analysis:
    """Everything that tables, figures and the page show.

    results, judge and manifest (of the data) are empty where the files are gone and only the frame is left.
    """

    study: Study
    results: Results
    judge: dict
    manifest: dict
    frame: pd.DataFrame
    paired: pd.DataFrame
    factorial: pd.DataFrame
    choices: list[Choice]

    @property
    def params(self) -> AnyParams:
        return self.study.params

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

    def chosen(self, family: str, tokens: int) -> list[Choice]:
        """The arms that validation chose for a family and token budget."""
        return [choice for choice in self.choices if (choice.family, choice.tokens) == (family, tokens)]

    def comparison(self, choice: Choice, metric: str) -> dict | None:
        """The row of paired.csv of a chosen arm."""
        rows = of_arm(self.paired, choice.terms)
        rows = rows[(rows.family == choice.family) & (rows.tokens == choice.tokens) & (rows.metric == metric)]
        return rows.iloc[0].to_dict() if len(rows) else None


def analyse(results: Results, judge: dict, study: Study) -> Analysis:
    """The analysis of all cells' results."""
    manifest = read_manifest(study.data) if (study.data / "manifest.json").is_file() else {}
    return from_frame(frame_of(results), study, results, judge, manifest)


def read_analysis(study: Study, judge: dict | None = None) -> Analysis:
    """The analysis of a report that was written before, from its ablation.csv alone; the results may be gone.

    judge: what `metrics.json` of the judge held, for its ceilings.

    Raises:
        InfotokError: ablation.csv is missing or damaged.
    """
    return from_frame(read_frame(study.reports / "ablation.csv"), study, judge=judge)


def from_frame(
    frame: pd.DataFrame,
    study: Study,
    results: Results | None = None,
    judge: dict | None = None,
    manifest: dict | None = None,
) -> Analysis:
    """The analysis of a frame, which all numbers come from; the other arguments are what is said beside them."""
    choices = choose(frame)
    paired = judged(paired_differences(frame), choices, study)
    effects = factorial(frame, {_key(choice) for choice in choices})
    return Analysis(study, results or {}, judge or {}, manifest or {}, frame, paired, effects, choices)


def paired_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Every arm minus the baseline over the seeds that both have, with Student's t: 95 % intervals and p-values."""
    compared = PAIRED | {short(name): name for task in TASKS for name in elastic(frame, task.score).values()}
    rows = []
    for key, arm in frame.groupby(ARM, sort=False):
        family, *terms, tokens = key
        if tuple(terms) == BASELINE:
            continue
        baseline = of_arm(frame, BASELINE)
        baseline = baseline[(baseline.family == family) & (baseline.tokens == tokens)].set_index("seed")
        arm = arm.set_index("seed")
        for metric, name in compared.items():
            if name not in frame:
                continue
            pairs = pd.DataFrame({"baseline": baseline[name], "infotok": arm[name]}).dropna()
            if pairs.empty:
                continue
            sides = list(pairs.baseline), list(pairs.infotok)
            means = [pairs.baseline.mean(), pairs.infotok.mean()]
            rows.append([*key, metric, *means, *paired_interval(*sides), len(pairs), paired_p_value(*sides)])
    return pd.DataFrame(rows, columns=[*ARM, *COLUMNS, "p_value"])


def judged(paired: pd.DataFrame, choices: list[Choice], study: Study) -> pd.DataFrame:
    """Paired differences with what may be claimed of them, and the command that remakes a row's cells.

    Not every arm is a claim: validation chooses one per family, token budget and estimator. Holm's adjustment counts
    the `CLAIMS` of those chosen arms over the whole report, and only they have a `p_holm`.
    """
    chosen = {_key(choice) for choice in choices}
    rows = paired.to_dict("records")
    for row in rows:
        arm = tuple(row[axis] for axis in ARM)
        row["excludes_zero"], row["chosen"] = excludes_zero(row), arm in chosen
        row["p_holm"], row["command"] = math.nan, cells_command(study, *arm)
    claims = [row for row in rows if row["chosen"] and row["metric"] in CLAIMS]
    for row, p in zip(claims, holm([row["p_value"] for row in claims]), strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows, columns=[*ARM, *COLUMNS, *JUDGED])


def cells_command(study: Study, family: str, estimator: str, beta: float, gamma: float, tokens: int) -> str:
    """The command that remakes an arm and its baseline at one token budget, all seeds."""
    arm, words = Cell(family, estimator, beta, gamma, tokens, 0), ["infotok", "sweep", *study.options]
    for cell in (arm.baseline(), arm):
        words += ["--only", f"{family}-{cell.arm}-{tokens}-*"]
    return shlex.join(words)


def choose(frame: pd.DataFrame) -> list[Choice]:
    """Per family, token budget and estimator, the arm that validates highest (of equals the least beta, then gamma)."""
    choices = []
    for (family, tokens), group in frame.groupby(["family", "tokens"], sort=False):
        columns = [name for name in VALIDATION if present(group, name)]
        if not columns:
            continue
        scores = {arm: _validation(of_arm(group, arm)[columns]) for arm in arms_of(group)}
        baseline, found = scores.pop(BASELINE, math.nan), {}
        for estimator in dict.fromkeys(arm[0] for arm in scores):
            mine = {arm: score for arm, score in scores.items() if arm[0] == estimator}
            known = {arm: score for arm, score in mine.items() if not math.isnan(score)}
            if known:
                found[max(known, key=known.get)] = (len(known), _edges(list(mine), max(known, key=known.get)))
        told = {score for score in [baseline, *scores.values()] if not math.isnan(score)}
        tied = len(told) == 1 and not math.isnan(baseline)
        top = max((scores[arm] for arm in found), default=math.nan)
        for arm, (tried, edges) in found.items():
            choices.append(Choice(family, tokens, *arm, scores[arm], baseline, tried, edges, scores[arm] == top, tied))
    return choices


@cache
def luck_of_choice(arms: int, seeds: int) -> float:
    """How often the best of so many arms without effect excludes zero upward at 95 %, at worst; 2.5 % for one arm.

    Validation cannot tell the luck of a training from an effect: both splits see it. Simulated, with paired differences
    that are independent normal numbers which validation and test see alike. Real arms share their baseline, and each
    split has noise of its own, both of which make it less.
    """
    import numpy as np
    from scipy.special import stdtr

    trials = 20000
    differences = np.random.default_rng(0).normal(0, 1, (trials, arms, seeds))
    best = differences[np.arange(trials), differences.mean(-1).argmax(1)]
    t = best.mean(1) / (best.std(1, ddof=1) / seeds**0.5)
    return float((stdtr(seeds - 1, -t) < 0.025).mean())


def _validation(scores: pd.DataFrame) -> float:
    """The mean over seeds of the mean over tasks, NaN if any is missing."""
    return float(scores.mean(axis=1, skipna=False).mean(skipna=False))


def _edges(tried: list[Arm], chosen: Arm) -> str:
    """The weights of an arm that lie at the edge of those tried beside it; 0 is no edge, since none lies beyond it."""
    _, beta, gamma = chosen
    weights = {
        "β": (beta, {b for _, b, g in tried if g == gamma and b > 0}),
        "γ": (gamma, {g for _, b, g in tried if b == beta and g > 0}),
    }
    found = [name for name, (w, all_of) in weights.items() if len(all_of) > 1 and w in (min(all_of), max(all_of))]
    return " and ".join(found)


def _key(choice: Choice) -> tuple:
    """A choice as `ARM` orders it."""
    return choice.family, *choice.terms, choice.tokens
