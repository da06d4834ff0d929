"""What the tables say of chance: intervals of proportions, and intervals and tests of differences paired over seeds."""

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
    difference, error = _difference(baseline, treated)
    if math.isnan(error):
        return difference, math.nan, math.nan
    half = student_quantile((1 + level) / 2, len(baseline) - 1) * error
    return difference, difference - half, difference + half


def paired_p_value(baseline: Sequence[float], treated: Sequence[float]) -> float:
    """Two-sided p-value of Student's paired t-test that the mean difference treated − baseline is 0.

    It is below 1 − level exactly where `paired_interval` of that level leaves 0 out. One pair gives nan. Equal
    differences have no spread and give the test's limit: 0, or 1 where all of them are 0. Raises ValueError if the
    lengths differ or are 0.
    """
    difference, error = _difference(baseline, treated)
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 0.0 if difference else 1.0
    from scipy.special import stdtr

    return float(2 * stdtr(len(baseline) - 1, -abs(difference) / error))


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's t distribution, of so many degrees of freedom. From `scipy.special`: `scipy.stats` takes a second
    and more to import."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given.

    An adjusted value of at most α rejects its hypothesis at a familywise error rate of α, whatever the tests'
    dependence. nan (no test was possible) stays nan and is not counted. Raises ValueError outside [0, 1].
    """
    if wrong := [p for p in p_values if p < 0 or p > 1]:
        raise ValueError(f"p-values must lie in [0, 1], got {wrong[0]}")
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for step, index in enumerate(order):
        # A hypothesis is rejected only if all with smaller p-values are, so the values never fall.
        largest = max(largest, min(1.0, (len(order) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _difference(baseline: Sequence[float], treated: Sequence[float]) -> tuple[float, float]:
    """Mean difference over pairs and its standard error (nan for one pair)."""
    if len(baseline) != len(treated):
        raise ValueError(f"pairs need both sides, got {len(baseline)} baseline and {len(treated)} treated values")
    differences = [after - before for before, after in zip(baseline, treated, strict=True)]
    difference, deviation = mean_and_deviation(differences)
    return difference, deviation / math.sqrt(len(differences))


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
