"""What compression adds, what consistency adds, and what both add beyond their sum.

Both terms belong to InfoTok, so the gain of an arm that has both says nothing of either. Four arms that share all else
answer that: with m(arm) the mean of a metric over seeds,

    gamma alone        m(none-0-g) − m(none-0-0)
    beta alone         m(e-b-0) − m(none-0-0)
    both               m(e-b-g) − m(none-0-0)
    interaction        m(e-b-g) − m(none-0-g) − m(e-b-0) + m(none-0-0): what both add beyond the sum
    beta after gamma   m(e-b-g) − m(none-0-g): what beta adds where gamma is there already
    gamma after beta   m(e-b-g) − m(e-b-0)

Where one of the four arms was not run, what the others can tell is given: three arms without compression alone, as
many grids have them, still tell what beta adds to gamma. Every contrast is taken seed by seed, over the seeds that all
arms at hand have, so that the effects of a metric add up; its interval is Student's over those seeds. The contrasts
explain the claims of the headline and are no claims of their own: nothing here is adjusted for their number.
"""

from __future__ import annotations

import pandas as pd

from infotok.evaluation.statistics import paired_interval
from pipeline.config.cells import NONE
from pipeline.report.frame import ARM, BASELINE, Arm, arms_of, excludes_zero, of_arm
from pipeline.report.metrics import FACTORIAL, PAIRED

# Effects by name: the arms that a contrast adds and those that it subtracts.
EFFECTS = {
    "gamma": (("consistency",), ("neither",)),
    "beta": (("compression",), ("neither",)),
    "both": (("both",), ("neither",)),
    "interaction": (("both", "neither"), ("consistency", "compression")),
    "beta_after_gamma": (("both",), ("consistency",)),
    "gamma_after_beta": (("both",), ("compression",)),
}
COLUMNS = [*ARM, "metric", "effect", "difference", "ci_low", "ci_high", "seeds", "excludes_zero", "chosen"]


def factorial(frame: pd.DataFrame, chosen: set[tuple]) -> pd.DataFrame:
    """Effects of every arm that has both terms, in long form: one row an effect and metric.

    The columns of `ARM` name the arm with both terms. chosen: those arms (as `ARM` orders them) that validation chose.
    """
    rows = []
    for (family, tokens), group in frame.groupby(["family", "tokens"], sort=False):
        for both in [(e, beta, gamma) for e, beta, gamma in arms_of(group) if e != NONE and gamma > 0]:
            corners = _corners(group, both)
            key = (family, *both, tokens)
            for metric in FACTORIAL:
                rows += [
                    [*key, metric, effect, *found, key in chosen]
                    for effect, found in _effects(corners, PAIRED[metric]).items()
                ]
    return pd.DataFrame(rows, columns=COLUMNS)


def complete(rows: pd.DataFrame) -> pd.Series:
    """For every row, whether all four arms of its 2 × 2 were there, which the interaction needs."""
    return (rows.effect == "interaction").groupby([rows[name] for name in ARM], sort=False).transform("any")


def _corners(group: pd.DataFrame, both: Arm) -> dict[str, pd.DataFrame]:
    """The arms of a 2 × 2 that are there, by seed."""
    estimator, beta, gamma = both
    arms = {
        "neither": BASELINE,
        "consistency": (NONE, 0.0, gamma),
        "compression": (estimator, beta, 0.0),
        "both": both,
    }
    found = {name: of_arm(group, arm).set_index("seed") for name, arm in arms.items()}
    return {name: rows for name, rows in found.items() if len(rows)}


def _effects(corners: dict[str, pd.DataFrame], name: str) -> dict[str, list]:
    """Of one metric, every effect whose arms are there as [difference, low, high, seeds, excludes zero].

    None where no arm with one term alone has the metric: the difference of both is in paired.csv anyway.
    """
    columns = {corner: rows[name].dropna() for corner, rows in corners.items() if name in rows}
    columns = {corner: values for corner, values in columns.items() if len(values)}
    if "both" not in columns or {"consistency", "compression"}.isdisjoint(columns):
        return {}
    values = pd.DataFrame(columns).dropna()
    effects = {}
    for effect, (added, subtracted) in EFFECTS.items():
        if not values.empty and {*added, *subtracted} <= columns.keys():
            sides = [list(values[list(arms)].sum(axis=1)) for arms in (subtracted, added)]
            difference, low, high = paired_interval(*sides)
            verdict = excludes_zero({"ci_low": low, "ci_high": high})
            effects[effect] = [difference, low, high, len(values), verdict]
    return effects
