"""The numbers of the report: one frame over all cells, paired differences, arms chosen on validation.

Validation chooses, test reports: nothing here picks an arm by a test score. Every difference is paired over
seeds with the beta = 0 twin, which shares tokenizer, initial weights, data order and sampling noise.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from infotok.evaluation.statistics import holm, paired_interval, paired_p_value
from pipeline.cells import Cell
from pipeline.params import Params
from pipeline.results import Layout

Results = dict[Cell, dict[str, dict]]

AXES = ["family", "estimator", "beta", "tokens", "seed"]
ARM = ["family", "estimator", "beta", "tokens"]
VALIDATION = ["understanding/validation", "generation/validation"]
QUESTIONS = ["exist", "count", "color", "shape", "size", "relation"]
TAGS = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
STRUCTURE = ["presence", "shape", "color", "size"]
NUISANCE = ["hue", "gradient", "texture", "noise", "jitter"]


@dataclass(frozen=True)
class Metric:
    """How a metric is shown. `better`: 1 higher is better, -1 lower is better, 0 neither."""

    label: str
    better: int = 1
    digits: int = 3


METRICS = {
    "understanding/accuracy": Metric("accuracy"),
    "understanding/accuracy_low": Metric("accuracy, low", 0),
    "understanding/accuracy_high": Metric("accuracy, high", 0),
    "understanding/accuracy_novel": Metric("accuracy, novel pairs"),
    "understanding/question_only": Metric("question only", 0),
    "understanding/validation": Metric("accuracy, validation"),
    **{f"understanding/family/{name}": Metric(name) for name in QUESTIONS},
    "generation/geneval": Metric("GenEval"),
    "generation/geneval_t1": Metric("GenEval, T=1"),
    "generation/geneval_novel": Metric("GenEval, novel pairs"),
    "generation/validation": Metric("GenEval, validation"),
    "generation/temperature": Metric("temperature", 0, 2),
    "generation/guidance": Metric("guidance", 0, 2),
    "generation/gfid": Metric("gFID", -1, 2),
    "generation/kid": Metric("KID", -1, 4),
    **{f"generation/tag/{name}": Metric(name.replace("_", " ")) for name in TAGS},
    "reconstruction/psnr": Metric("PSNR", 1, 2),
    "reconstruction/ssim": Metric("SSIM"),
    "reconstruction/rfid": Metric("rFID", -1, 2),
    "reconstruction/objects": Metric("objects kept"),
    "information/rate_bits": Metric("rate", 0, 2),
    "information/autoregressive_rate_bits": Metric("rate, AR prior", 0, 2),
    "information/conditional_rate_bits": Metric("rate given caption", 0, 2),
    "information/code_entropy_bits": Metric("code entropy", 0, 2),
    "information/perplexity": Metric("perplexity", 0, 1),
    "information/dead_codes": Metric("dead codes", -1, 1),
    "information/active_dimensions": Metric("active dimensions", 0, 1),
    "information/dependence": Metric("CKA(X,Z)", 0, 3),
    "information/dependence_text": Metric("CKA(Z,T)", 0, 3),
    "information/generator_nll_bits": Metric("generator NLL", 0, 2),
    "information/lower_bits": Metric("I(X;Z) ≥", 0, 2),
    "information/upper_bits": Metric("I(X;Z) ≤", 0, 2),
    "information/capacity_bits": Metric("capacity", 0, 1),
    "information/structure_bits": Metric("structure", 1, 2),
    "information/nuisance_bits": Metric("nuisance", 0, 2),
    **{f"information/factor/{name}": Metric(name, 1, 2) for name in STRUCTURE},
    **{f"information/factor/{name}": Metric(name, 0, 2) for name in NUISANCE},
}

# Scores of an elastic training (nested dropout over tokens) from its first k tokens alone, by task.
ELASTIC = {"understanding/accuracy": "accuracy", "generation/geneval": "GenEval"}
AT = re.compile(rf"({'|'.join(ELASTIC)})_at_(\d+)")

# What beta is a weight on, where that is not the nats per image of the variational estimators.
BETA_UNITS = {"hsic": "per unit of dependence"}

# Metrics compared in pairs, by the name they carry in paired.csv; scores of an elastic training follow.
PAIRED = {
    name.split("/")[1]: name
    for name in (
        "understanding/accuracy",
        "understanding/accuracy_novel",
        "generation/geneval",
        "generation/geneval_t1",
        "generation/geneval_novel",
        "generation/gfid",
        "reconstruction/psnr",
        "reconstruction/objects",
        "information/rate_bits",
        "information/autoregressive_rate_bits",
        "information/conditional_rate_bits",
        "information/code_entropy_bits",
        "information/dependence",
        "information/dependence_text",
        "information/structure_bits",
        "information/nuisance_bits",
    )
}
HEADLINE = ["accuracy", "geneval", "geneval_t1"]
CLAIMS = ["accuracy", "geneval"]  # of a chosen arm: what Holm's adjustment counts
COLUMNS = ["metric", "baseline", "infotok", "difference", "ci_low", "ci_high", "seeds"]
JUDGED = ["excludes_zero", "p_value", "chosen", "p_holm", "command"]


def shown(name: str) -> Metric:
    """How a metric of any name is shown, those of elastic trainings and unknown ones included."""
    if at := AT.fullmatch(name):
        return Metric(f"{ELASTIC[at[1]]}, k={at[2]}")
    return METRICS.get(name, Metric(name.rsplit("/", 1)[-1].replace("_", " "), 0))


def elastic(names: Iterable[str], task: str) -> dict[int, str]:
    """Of these metrics, the task's scores from the first k tokens alone, by rising k."""
    found = [at for at in map(AT.fullmatch, names) if at and at[1] == task]
    return {int(at[2]): at[0] for at in sorted(found, key=lambda at: int(at[2]))}


@dataclass(frozen=True)
class Choice:
    """The beta that validation chose for one family, token budget and estimator."""

    family: str
    tokens: int
    estimator: str
    beta: float
    validation: float  # mean over seeds of the mean of both tasks' validation scores
    baseline: float  # the same of none-0, NaN without a twin
    edge: bool  # beta is the smallest or largest tried, of two or more
    best: bool  # no other estimator of this family and budget validates higher

    @property
    def arm(self) -> str:
        return Cell(self.family, self.estimator, self.beta, self.tokens, 0).arm


@dataclass(frozen=True)
class Analysis:
    """Everything that tables, figures and the page show."""

    params: Params
    layout: Layout
    results: Results
    judge: dict
    frame: pd.DataFrame
    paired: pd.DataFrame
    choices: list[Choice]

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
    return Analysis(params, layout, results, judge, frame, paired, choices)


def frame_of(results: Results) -> pd.DataFrame:
    """One row per cell: the axes, then metrics in a fixed order (scores of elastic trainings, then unknown ones last).

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
        rows.append(
            axes | {name: math.nan if value is None else float(value) for name, value in metrics.items()}
        )
    found = {name for row in rows for name in row} - set(AXES)
    known = [name for name in METRICS if name in found]
    known += [name for task in ELASTIC for name in elastic(found, task).values()]
    return pd.DataFrame(rows, columns=[*AXES, *known, *sorted(found - set(known))])


def paired_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Arm minus its beta = 0 twin over the seeds that both have, with Student's t: 95 % intervals and p-values."""
    compared = PAIRED | {name.split("/")[1]: name for task in ELASTIC for name in elastic(frame, task).values()}
    rows = []
    for (family, estimator, beta, tokens), arm in frame[frame.estimator != "none"].groupby(ARM, sort=False):
        twins = frame[(frame.family == family) & (frame.estimator == "none") & (frame.tokens == tokens)]
        twins, arm = twins.set_index("seed"), arm.set_index("seed")
        for short, name in compared.items():
            if name not in frame:
                continue
            pairs = pd.DataFrame({"baseline": twins[name], "infotok": arm[name]}).dropna()
            if pairs.empty:
                continue
            sides = list(pairs.baseline), list(pairs.infotok)
            means = [pairs.baseline.mean(), pairs.infotok.mean()]
            row = [family, estimator, beta, tokens, short, *means, *paired_interval(*sides), len(pairs)]
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
        columns = [name for name in VALIDATION if name in group and group[name].notna().any()]
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
