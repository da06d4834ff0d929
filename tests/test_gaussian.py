"""The exact Gaussian information bottleneck, and a trained one that lands on it."""

import math

import numpy as np
import pytest
import torch

from infotok.information import (
    gaussian_information_bottleneck,
    gaussian_rate,
)
from tiny import normal

CORRELATIONS = np.array([0.95, 0.8, 0.6, 0.3])
CURVE = [(2, 1.4003, 0.9816), (5, 3.1921, 1.5632), (20, 5.8447, 1.8425)]  # beta, I_x, I_y in nats


@pytest.mark.parametrize(("beta", "rate", "relevance"), CURVE)
def test_gaussian_bottleneck_gives_the_known_points_in_any_coordinates(beta, rate, relevance):
    identity = np.eye(4)
    found = gaussian_information_bottleneck(identity, identity, np.diag(CORRELATIONS), beta)
    assert found == pytest.approx((rate, relevance), abs=1e-4)
    generator = np.random.default_rng(0)
    mix_x, mix_y = generator.normal(size=(4, 4)), generator.normal(size=(4, 4))
    mixed = mix_x @ mix_x.T, mix_y @ mix_y.T, mix_x @ np.diag(CORRELATIONS) @ mix_y.T
    assert gaussian_information_bottleneck(*mixed, beta) == pytest.approx(found, abs=1e-8)


def test_gaussian_bottleneck_opens_at_the_critical_beta_and_tends_to_all_the_information():
    critical = 1 / 0.6**2
    assert gaussian_information_bottleneck(1, 1, 0.6, critical - 1e-3) == (0, 0)
    assert gaussian_information_bottleneck(1, 1, 0.6, critical + 1e-3)[0] > 0
    everything = gaussian_information_bottleneck(np.eye(4), np.eye(4), np.diag(CORRELATIONS), 1e7)[1]
    assert everything == pytest.approx(1.94508, abs=1e-5)


def test_gaussian_bottleneck_refuses_what_is_no_covariance():
    with pytest.raises(ValueError, match="positive definite"):
        gaussian_information_bottleneck(-np.eye(2), np.eye(2), np.zeros((2, 2)), 2)
    with pytest.raises(ValueError, match="determines"):
        gaussian_information_bottleneck(1, 1, 1, 2)
    with pytest.raises(ValueError, match="cov_xy must be"):
        gaussian_information_bottleneck(np.eye(2), np.eye(3), np.zeros((3, 2)), 2)
    with pytest.raises(ValueError, match="beta"):
        gaussian_information_bottleneck(1, 1, 0.5, -1)


def gaussian_sample(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y (rows, 4) whose sample moments are exactly those of the correlated pairs, x then mixed."""
    noise = normal(rows, 8, seed=30)
    noise = noise - noise.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(noise.T @ noise / rows), noise.T, upper=False).T
    rho = torch.from_numpy(CORRELATIONS)
    x, y = white[:, :4], rho * white[:, :4] + (1 - rho.square()).sqrt() * white[:, 4:]
    return x @ (2 * torch.eye(4, dtype=torch.float64) + normal(4, 4, seed=31)), y


def train_linear_vib(beta: float) -> tuple[float, float]:
    """Variational bottleneck with linear encoder and decoder and a Gaussian prior: (rate, relevance), nats.

    The expectation over the encoder's noise is taken in closed form, so nothing here is random but the start.
    """
    x, y = gaussian_sample(rows=64)
    start = 0.3 * normal(2, 4, 4, seed=32)
    encoder, decoder = start[0].clone().requires_grad_(), start[1].clone().requires_grad_()
    log_variance, prior, log_error = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    parameters = [encoder, decoder, log_variance, prior, log_error]
    optimizer = torch.optim.LBFGS(parameters, max_iter=800, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def terms() -> tuple[torch.Tensor, torch.Tensor]:
        mean = x @ encoder
        rate = gaussian_rate(mean[:, None], log_variance.expand(len(x), 1, 4), prior_log_variance=prior).mean()
        squared = (y - mean @ decoder).square().mean(0) + log_variance.exp() @ decoder.square()
        distortion = 0.5 * (log_error + squared * torch.exp(-log_error) + math.log(2 * math.pi)).sum()
        return rate, 0.5 * 4 * math.log(2 * math.pi * math.e) - distortion  # H(Y) − E[−log p(y|z)]

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        rate, relevance = terms()
        value = rate - beta * relevance
        value.backward()
        return value

    optimizer.step(loss)
    rate, relevance = terms()
    return rate.item(), relevance.item()


@pytest.mark.parametrize("beta", [2, 5, 20])
def test_a_trained_linear_vib_lands_on_the_exact_gaussian_curve(beta):
    rate, relevance = gaussian_information_bottleneck(np.eye(4), np.eye(4), np.diag(CORRELATIONS), beta)
    found = train_linear_vib(beta)
    assert found == pytest.approx((rate, relevance), rel=0.01)
    # Optimal is optimal: the trained value of rate − beta · relevance cannot go below the curve's.
    assert found[0] - beta * found[1] >= rate - beta * relevance - 1e-6
