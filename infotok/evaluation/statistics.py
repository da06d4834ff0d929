"""Intervals for what the tables report: proportions, and differences that are paired over seeds."""

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(correct: float, total: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion, both in [0, 1] (Wilson 1927).

    Raises ValueError unless 0 ≤ correct ≤ total, total > 0 and 0 < level < 1.
    """
    _check_level(level)
    if not total > 0:
        raise ValueError(f"total must be positive, got {total}")
    if not 0 <= correct <= total:
        raise ValueError(f"correct must lie in [0, {total}], got {correct}")
    quantile = NormalDist().inv_cdf((1 + level) / 2)
    share = correct / total
    shrink = 1 + quantile**2 / total
    centre = (share + quantile**2 / (2 * total)) / shrink
    half = quantile / shrink * math.sqrt(share * (1 - share) / total + (quantile / (2 * total)) ** 2)
    # At the ends of the range the bound is exact and rounding must not push it past.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return low, high


def paired_interval(
    baseline: Sequence[float], treated: Sequence[float], level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference treated − baseline over pairs, with its Student t interval: (difference, low, high).

    One pair gives (difference, nan, nan); equal differences give an interval of width 0. The interval covers
    the spread over pairs (seeds), not over test items. Raises ValueError if the lengths differ, are 0, or
    level is not in (0, 1).
    """
    _check_level(level)
    if len(baseline) != len(treated):
        raise ValueError(f"pairs need both sides, got {len(baseline)} baseline and {len(treated)} treated values")
    differences = [after - before for before, after in zip(baseline, treated, strict=True)]
    difference, deviation = mean_and_deviation(differences)
    if math.isnan(deviation):
        return difference, math.nan, math.nan
    from scipy.stats import t

    pairs = len(differences)
    half = float(t.ppf((1 + level) / 2, pairs - 1)) * deviation / math.sqrt(pairs)
    return difference, difference - half, difference + half


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (divisor n − 1; nan for a single value); ValueError if empty."""
    if len(values) == 0:
        raise ValueError("no values: a mean needs at least one")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95, got {level}")
