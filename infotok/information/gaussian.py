"""Closed forms for jointly Gaussian variables: the truth that estimators are tested against."""

import math

import numpy as np
from numpy.typing import ArrayLike


def gaussian_information_bottleneck(
    cov_x: ArrayLike, cov_y: ArrayLike, cov_xy: ArrayLike, beta: float
) -> tuple[float, float]:
    """The optimum of I(X;T) − beta · I(T;Y) over all T for jointly Gaussian X, Y (Chechik et al. 2005).

    cov_x: (dx, dx), cov_y: (dy, dy), cov_xy: (dx, dy); scalars stand for 1 × 1. beta weighs relevance, so a
    rate-weighted loss with weight b corresponds to beta = 1 / b. Direction i with eigenvalue λ_i of
    Σ_{x|y} Σ_x⁻¹ enters beyond the critical beta 1 / (1 − λ_i).

    Returns (I_x, I_y) = (I(X;T), I(T;Y)) in nats. Raises ValueError if shapes disagree, a covariance is not
    positive definite, beta is negative, or X determines a direction of Y (its information is then infinite).
    """
    cov_x, cov_y, cov_xy = (np.atleast_2d(np.asarray(cov, dtype=np.float64)) for cov in (cov_x, cov_y, cov_xy))
    if cov_x.shape != (len(cov_x),) * 2 or cov_y.shape != (len(cov_y),) * 2:
        raise ValueError(f"cov_x and cov_y must be square, got {cov_x.shape} and {cov_y.shape}")
    if cov_xy.shape != (len(cov_x), len(cov_y)):
        raise ValueError(f"cov_xy must be {(len(cov_x), len(cov_y))} to fit cov_x and cov_y, got {cov_xy.shape}")
    if not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    try:
        root_x, root_y = np.linalg.cholesky(cov_x), np.linalg.cholesky(cov_y)
    except np.linalg.LinAlgError:
        raise ValueError("cov_x and cov_y must be positive definite") from None
    # Canonical correlations: their squares are 1 − λ, without forming Σ_{x|y} and losing digits to a
    # difference.
    whitened = np.linalg.solve(root_y, np.linalg.solve(root_x, cov_xy).T)
    explained = np.linalg.svd(whitened, compute_uv=False) ** 2
    if explained.max() >= 1:
        raise ValueError("X determines a direction of Y: the joint covariance must be positive definite")
    active = explained[beta * explained > 1]
    rate = 0.5 * float(np.sum(np.log((beta - 1) * active / (1 - active))))
    relevance = rate - 0.5 * float(np.sum(np.log(beta * active)))
    return rate, relevance


def population_hsic_gaussian(rho: float, bandwidth_x: float = 1.0, bandwidth_z: float = 1.0) -> float:
    """Exact HSIC of two unit-variance scalar Gaussians with correlation rho, under Gaussian kernels.

    Kernels exp(−|difference|² / (2 bandwidth²)). The three terms of HSIC (Gretton et al. 2005, eq. 4) are
    Gaussian integrals that differ only in the covariance of the two differences: 2 rho, rho and 0.
    Dimensionless. Raises ValueError unless |rho| ≤ 1 and both bandwidths are positive.
    """
    if not -1 <= rho <= 1:
        raise ValueError(f"rho must lie in [-1, 1], got {rho}")
    if not (bandwidth_x > 0 and bandwidth_z > 0):
        raise ValueError(f"bandwidths must be positive, got {bandwidth_x} and {bandwidth_z}")
    a, b = bandwidth_x**-2, bandwidth_z**-2

    def expected_product(covariance: float) -> float:
        return 1 / math.sqrt((1 + 2 * a) * (1 + 2 * b) - covariance**2 * a * b)

    return expected_product(2 * rho) - 2 * expected_product(rho) + expected_product(0)
