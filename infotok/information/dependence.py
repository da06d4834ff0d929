"""Hilbert–Schmidt Independence Criterion with Gaussian kernels, and its normalised form CKA.

All estimators share one path: each variable becomes a *centred operand*, either its Gram matrix (n, n) or its
random features (n, m), and two operands contract to a number. Centring first leaves every estimator's value
as it is and keeps its digits in float32, where the textbook formulas subtract numbers of order n².
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from infotok.random import Source, permutation, shared_random

ESTIMATORS = ("unbiased", "biased", "rff")
BANDWIDTHS = ("median", "dimension")
MEDIAN_ROWS = 512  # rows that the median sees under "rff": all pairs of all rows would cost n² again

Bandwidth = str | float


@dataclass
class _Operand:
    matrix: Tensor  # (n, n) centred Gram matrix, or (n, m) centred features; 0 where a row does not count
    is_gram: bool

    def diagonal(self) -> Tensor:
        """(n,) diagonal of the centred Gram matrix."""
        return self.matrix.diagonal() if self.is_gram else self.matrix.square().sum(dim=1)

    def __getitem__(self, rows: Tensor) -> "_Operand":
        matrix = self.matrix[rows]
        return _Operand(matrix[:, rows] if self.is_gram else matrix, self.is_gram)


@dataclass
class Pair:
    """Two variables' operands, of which dependence and its permuted baseline are read without making them twice."""

    left: _Operand
    right: _Operand
    count: Tensor | int  # of the rows that count
    estimator: str
    normalized: bool

    def dependence(self) -> Tensor:
        """HSIC, or CKA where normalized (0-d)."""
        return self._dependence(self.right)

    def permuted(self, generator: Source | None = None) -> Tensor:
        """The same of rows that are paired at random, of which all count: one draw of what independence would give
        (0-d)."""
        with torch.no_grad():
            order = _random(permutation, (len(self.right.matrix),), generator, self.right.matrix.device)
            return self._dependence(self.right[order])

    def _dependence(self, right: _Operand) -> Tensor:
        left, how = self.left, (self.count, self.estimator)
        value = _contract(left, right, *how)
        if not self.normalized:
            return value
        scale = _contract(left, left, *how) * _contract(right, right, *how)
        undefined = scale <= torch.finfo(scale.dtype).tiny  # not so of NaN, which stays NaN
        return torch.where(undefined, 0.0, value / torch.where(undefined, 1.0, scale).sqrt())


def pair(
    x: Tensor,
    z: Tensor,
    *,
    normalized: bool = False,
    estimator: str = "unbiased",
    bandwidth_x: Bandwidth = "median",
    bandwidth_z: Bandwidth = "median",
    features: int = 256,
    generator: Source | None = None,
    present: Tensor | None = None,
) -> Pair:
    """n paired rows under kernels exp(−|difference|² / (2 bandwidth²)), to read HSIC or (normalized) CKA from.

    x: (n, …), z: (n, …), flattened to rows. Values are dimensionless, float32 or wider and differentiable.

    estimator:
    - "unbiased" (Song et al. 2012), O(n²): mean 0 under independence, so it may be negative;
    - "biased" (Gretton et al. 2005), O(n²): tr(KHLH) / (n − 1)², above 0 even under independence;
    - "rff", O(n · features²): the unbiased estimator on random Fourier features (Rahimi & Recht 2007).
      Both variables draw their own frequencies and the estimator is linear in each kernel, so over draws its
      mean *is* the "unbiased" value. `features` is the number of frequencies a variable, two columns each:
      more of them bring a draw closer. `generator` makes draws repeatable.

    bandwidth: "median" (median distance between two rows, the lower one of an even number; under "rff" of
    the first 512 rows), "dimension" (σ√d: root of the summed variances of the d coordinates) or a positive
    float. The gradient passes through "median" and "dimension": the value does not change with the scale of
    z, and so neither may the gradient pull on that scale. A variable without spread gives 0, one that is not
    finite NaN.

    present: (n,) bool, the rows that count, in tensors whose shapes do not depend on how many these are; None: all.
    The value is that of these rows alone, and means nothing where they are too few.

    Raises ValueError for an unknown estimator or bandwidth, unequal n, features < 1, or n < 4 (n < 2 for
    "biased").
    """
    least = _check(x, z, (bandwidth_x, bandwidth_z), estimator, features)
    rows = _Rows(len(x), present, least)
    left, right = _operands((x, z), (bandwidth_x, bandwidth_z), rows, estimator, features, generator)
    return Pair(left, right, rows.count, estimator, normalized)


def hsic(x: Tensor, z: Tensor, **kernels) -> Tensor:
    """HSIC(X, Z), 0-d. Arguments and errors as in `pair`."""
    return pair(x, z, **kernels).dependence()


def cka(x: Tensor, z: Tensor, **kernels) -> Tensor:
    """Centred kernel alignment HSIC(X, Z) / √(HSIC(X, X) · HSIC(Z, Z)) (Kornblith et al. 2019).

    Arguments and errors as in `pair`. Returns a 0-d tensor, at most 1, 0 where a variable has no spread, and NaN
    where one is not finite.
    Under "rff" it is the alignment of the two drawn feature kernels.
    """
    return pair(x, z, normalized=True, **kernels).dependence()


@torch.no_grad()
def permuted_hsic(x: Tensor, z: Tensor, generator: Source | None = None, **kernels) -> Tensor:
    """HSIC of x and a random permutation of z's rows, 0-d: one draw of what independence would give. No gradient.

    Arguments and errors as in `pair`; over permutations the "unbiased" form averages to 0 exactly.
    """
    return pair(x, z, generator=generator, **kernels).permuted(generator)


class _Rows:
    """Which of n rows count. count: how many, at least `least`, below which no formula would be finite."""

    def __init__(self, n: int, present: Tensor | None, least: int):
        self.present = present
        self.count = n if present is None else present.sum().clamp_min(least)

    def only(self, x: Tensor) -> Tensor:
        """Rows (n, ...) with 0 in the place of those that do not count."""
        return x if self.present is None else x.masked_fill(~self.present.view(-1, *[1] * (x.ndim - 1)), 0.0)

    def mean(self, x: Tensor) -> Tensor:
        """Over the rows (n, ...)."""
        return x.mean(dim=0) if self.present is None else self.only(x).sum(dim=0) / self.count

    def median(self, distances: Tensor) -> Tensor:
        """Of the distances (m, m) between two of the first m rows, the lower one of an even number (0-d)."""
        first, second = torch.triu_indices(len(distances), len(distances), offset=1, device=distances.device)
        if self.present is None:
            return distances[first, second].median()
        both = self.present[first] & self.present[second]
        return distances[first, second].masked_fill(~both, torch.nan).nanmedian()


def _check(x: Tensor, z: Tensor, bandwidths: tuple[Bandwidth, Bandwidth], estimator: str, features: int) -> int:
    """The fewest rows that the estimator needs; raises ValueError as `pair` says."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown HSIC estimator {estimator!r}: choose one of {', '.join(ESTIMATORS)}")
    for bandwidth in bandwidths:
        positive = isinstance(bandwidth, int | float) and 0 < bandwidth < math.inf
        if bandwidth not in BANDWIDTHS and not positive:
            raise ValueError(
                f"unknown bandwidth {bandwidth!r}: give one of {', '.join(BANDWIDTHS)} or a positive float"
            )
    if features < 1:
        raise ValueError(f"features must be at least 1, got {features}")
    if len(x) != len(z):
        raise ValueError(f"x and z must be paired row by row, got {len(x)} and {len(z)} rows")
    least = 2 if estimator == "biased" else 4
    if len(x) < least:
        raise ValueError(f"the {estimator} HSIC estimator needs at least {least} rows, got {len(x)}")
    return least


def _operands(
    variables: tuple[Tensor, Tensor],
    bandwidths: tuple[Bandwidth, Bandwidth],
    rows: _Rows,
    estimator: str,
    features: int,
    generator: Source | None,
) -> list[_Operand]:
    dtype = torch.promote_types(torch.promote_types(variables[0].dtype, variables[1].dtype), torch.float32)
    # Autocast would multiply in bfloat16, whose 8 bits are coarser than the dependence to be measured.
    with torch.autocast(variables[0].device.type, enabled=False):
        operands = []
        for variable, bandwidth in zip(variables, bandwidths, strict=True):
            flat = rows.only(variable.reshape(len(variable), -1).to(dtype))
            if estimator == "rff":
                scaled = _in_bandwidths(flat, rows, bandwidth, MEDIAN_ROWS)
                operands.append(_feature_operand(scaled, rows, features, generator))
            else:
                operands.append(_gram_operand(_in_bandwidths(flat, rows, bandwidth, len(flat)), rows))
        return operands


def _in_bandwidths(x: Tensor, rows: _Rows, bandwidth: Bandwidth, median_rows: int) -> Tensor:
    """Rows (n, d), centred and in units of the bandwidth; all zero if they have no spread. NaN if a number is not
    finite, or so large that its square is not: what diverges must not pass for independent."""
    centred = rows.only(x - rows.mean(x))
    variance = centred.square().sum() / (rows.count - 1)  # summed over coordinates
    # Spread below this is rounding of equal rows, which division by a bandwidth would blow up to a signal.
    rounding = (4 * torch.finfo(x.dtype).eps * x.detach().abs().amax()).square() * x.shape[1]
    equal = variance <= rounding
    if bandwidth == "dimension":
        squared = variance
    elif bandwidth == "median":
        median = rows.median(_squared_distances(centred[:median_rows]))
        # Discrete tokens repeat until most distances are 0 up to rounding; the variance still has a scale.
        squared = torch.where(median > 100 * torch.finfo(x.dtype).eps * variance, median, variance)
    else:
        squared = torch.full_like(variance, float(bandwidth) ** 2)
    scaled = torch.where(equal, 0.0, centred / torch.where(equal, 1.0, squared).sqrt())
    return torch.where(variance.isfinite(), scaled, torch.nan)


def _squared_distances(x: Tensor) -> Tensor:
    norms = x.square().sum(dim=1)
    return (norms[:, None] + norms[None, :] - 2 * x @ x.T).clamp(min=0)


def _gram_operand(x: Tensor, rows: _Rows) -> _Operand:
    gram = torch.exp(-0.5 * _squared_distances(x))
    means = rows.mean(gram)  # of columns, which are those of rows
    centred = gram - means[:, None] - means[None, :] + rows.mean(means)
    return _Operand(rows.only(rows.only(centred).T), is_gram=True)


def _feature_operand(x: Tensor, rows: _Rows, features: int, generator: Source | None) -> _Operand:
    normal = functools.partial(torch.randn, dtype=x.dtype)
    phases = x @ _random(normal, (x.shape[1], features), generator, x.device)
    # cos − 1 is centred like cos, and exactly 0 for rows without spread.
    waves = torch.cat([phases.cos() - 1, phases.sin()], dim=1) / math.sqrt(features)
    return _Operand(rows.only(waves - rows.mean(waves)), is_gram=False)


def _random(how: Callable[..., Tensor], shape: tuple[int, ...], source: Source | None, device: torch.device) -> Tensor:
    """Random numbers on a device, by torch's own generator where `source` is None."""
    return shared_random(how, shape, source or torch.default_generator).to(device)


def _contract(left: _Operand, right: _Operand, n: Tensor | int, estimator: str) -> Tensor:
    with torch.autocast(left.matrix.device.type, enabled=False):  # for the product of features
        product = left.matrix * right.matrix if left.is_gram else (left.matrix.T @ right.matrix).square()
        if estimator == "biased":
            return product.sum() / (n - 1) ** 2
        # Song et al. 2012 with the diagonals taken out. Rows of a centred matrix sum to 0, so without its
        # diagonal a row sums to minus that diagonal entry.
        a, b = left.diagonal(), right.diagonal()
        paired = product.sum() - a @ b
        return (paired + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * (a @ b) / (n - 2)) / (n * (n - 3))
