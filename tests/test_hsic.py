"""HSIC and CKA against textbook formulas, population values and hyppo."""

import itertools
import math

import numpy as np
import pytest
import torch

from infotok.information import (
    cka,
    hsic,
    permuted_hsic,
    population_hsic_gaussian,
)
from infotok.information.dependence import BANDWIDTHS, ESTIMATORS, pair
from tiny import normal, seeded


def dependent_pair(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    x = normal(rows, 3, seed=seed, dtype=dtype)
    return x, x[:, :2].square() + 0.5 * normal(rows, 2, seed=seed + 1000, dtype=dtype)


def test_unbiased_cka_is_hyppos_unbiased_statistic(monkeypatch):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # compiling it takes a minute, running it a moment
    from hyppo.independence import Hsic

    x, z = dependent_pair(rows=40, seed=0)
    z = z + 5.0  # an offset must not cost digits
    reference = Hsic(bias=False, gamma=1 / (2 * 1.3**2)).statistic(x.numpy(), z.numpy())
    assert reference > 0.05
    assert cka(x, z, bandwidth_x=1.3, bandwidth_z=1.3).item() == pytest.approx(reference, abs=1e-10)


def gram(x: torch.Tensor, bandwidth: float) -> torch.Tensor:
    return torch.exp(-torch.cdist(x, x).square() / (2 * bandwidth**2))


def test_estimators_are_the_textbook_formulas():
    n = 30
    x, z = dependent_pair(rows=n, seed=2)
    k, l = gram(x, 0.8), gram(z, 1.7)  # noqa: E741
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    biased = torch.trace(k @ centring @ l @ centring) / (n - 1) ** 2
    k, l = k.fill_diagonal_(0), l.fill_diagonal_(0)  # noqa: E741
    unbiased = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ l).sum()
    options = {"bandwidth_x": 0.8, "bandwidth_z": 1.7}
    torch.testing.assert_close(hsic(x, z, estimator="biased", **options), biased)
    torch.testing.assert_close(hsic(x, z, **options), unbiased / (n * (n - 3)))


def test_bandwidth_names_mean_what_numpy_computes():
    x, z = dependent_pair(rows=30, seed=4)  # 435 pairs: an odd number has one median

    def median(values):
        return float(np.median(np.linalg.norm(values[:, None] - values[None], axis=-1)[np.triu_indices(30, 1)]))

    def dimension(values):
        return math.sqrt(values.var(0, ddof=1).mean()) * math.sqrt(values.shape[1])

    for name, rule in (("median", median), ("dimension", dimension)):
        by_name = hsic(x, z, bandwidth_x=name, bandwidth_z=name)
        by_value = hsic(x, z, bandwidth_x=rule(x.numpy()), bandwidth_z=rule(z.numpy()))
        assert by_name.item() == pytest.approx(by_value.item(), rel=1e-10)


@pytest.mark.parametrize(("rho", "population"), [(0.5, 0.0107633), (0.9, 0.0511434)])
def test_population_hsic_of_gaussians_is_the_known_value_and_what_unbiased_samples_average_to(rho, population):
    assert population_hsic_gaussian(rho) == pytest.approx(population, abs=1e-7)
    pairs = normal(200, 100, 2, seed=7)
    x, z = pairs[..., :1], rho * pairs[..., :1] + math.sqrt(1 - rho**2) * pairs[..., 1:]
    values = torch.stack([hsic(a, b, bandwidth_x=1.0, bandwidth_z=1.0) for a, b in zip(x, z, strict=True)])
    error = values.std().item() / math.sqrt(len(values))
    assert error < 0.05 * population
    assert abs(values.mean().item() - population) < 3.3 * error


def test_population_hsic_of_gaussians_agrees_with_quadrature_and_vanishes_without_correlation():
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    rho, a, b = 0.7, 0.8, 1.5
    # u, v: differences of two independent pairs; c: correlation of u and v in each of HSIC's three terms.
    u, w = np.meshgrid(nodes, nodes, indexing="ij")

    def term(c):
        v = c * u + math.sqrt(1 - c**2) * w
        return weights @ (np.exp(-(u**2) / a**2) * np.exp(-(v**2) / b**2)) @ weights

    assert population_hsic_gaussian(rho, a, b) == pytest.approx(term(rho) - 2 * term(rho / 2) + term(0), abs=1e-8)
    assert population_hsic_gaussian(0.0, a, b) == pytest.approx(0, abs=1e-15)


def test_unbiased_averages_to_zero_on_independent_data_and_biased_does_not():
    x, z = normal(400, 16, 4, seed=8), normal(400, 16, 2, seed=9)
    for estimator in ("unbiased", "biased"):
        values = torch.stack([hsic(a, b, estimator=estimator) for a, b in zip(x, z, strict=True)])
        score = abs(values.mean() / (values.std() / math.sqrt(len(values)))).item()
        assert score < 3.3 if estimator == "unbiased" else score > 20


def test_permuted_baseline_averages_to_zero_over_all_permutations_of_a_dependent_sample():
    x, z = dependent_pair(rows=5, seed=10)
    values = [hsic(x, z[list(order)]).item() for order in itertools.permutations(range(5))]
    assert max(values) > 1e-3
    assert sum(values) / len(values) == pytest.approx(0, abs=1e-15)


def test_permuted_baseline_falls_below_the_dependence_and_repeats_with_its_generator():
    x, z = dependent_pair(rows=200, seed=11)
    baseline = [permuted_hsic(x, z.requires_grad_(), seeded(seed)).item() for seed in range(20)]
    assert max(baseline) < 0.2 * hsic(x, z).item()
    assert len(set(baseline)) == 20
    assert permuted_hsic(x, z, seeded(3)).item() == baseline[3]
    assert not permuted_hsic(x, z, seeded(3)).requires_grad


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("estimator", ["unbiased", "biased", "rff"])
def test_the_baseline_of_a_pair_is_the_dependence_of_permuted_rows(estimator, normalized):
    x, z = dependent_pair(rows=40, seed=13)
    measured = pair(x, z, normalized=normalized, estimator=estimator, generator=seeded(1))
    order = torch.randperm(40, generator=seeded(2))
    expected = (cka if normalized else hsic)(x, z[order], estimator=estimator, generator=seeded(1))
    assert measured.permuted(seeded(2)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() != pytest.approx(measured.dependence().item(), rel=0.1)


def test_random_features_average_to_the_exact_unbiased_value():
    x, z = dependent_pair(rows=50, seed=12)
    generator = seeded(0)
    draws = torch.stack([hsic(x, z, estimator="rff", features=8, generator=generator) for _ in range(2000)])
    error = draws.std().item() / math.sqrt(len(draws))
    exact = hsic(x, z).item()
    assert error < 0.03 * exact
    assert abs(draws.mean().item() - exact) < 3.3 * error
    biased_gap = hsic(x, z, estimator="biased").item() - exact
    assert biased_gap > 5 * error  # so the test tells the two apart


def test_many_random_features_come_close_in_one_draw_and_a_generator_repeats_it():
    x, z = dependent_pair(rows=300, seed=13)
    for function in (hsic, cka):
        draw = function(x, z, estimator="rff", features=2048, generator=seeded(1)).item()
        assert draw == pytest.approx(function(x, z).item(), rel=0.08)
        assert draw == function(x, z, estimator="rff", features=2048, generator=seeded(1)).item()


def test_random_features_reach_the_population_value_on_rows_whose_gram_matrix_would_take_6_gigabytes():
    x = normal(40_000, 1, seed=14, dtype=torch.float32)
    z = 0.9 * x + math.sqrt(1 - 0.81) * normal(40_000, 1, seed=15, dtype=torch.float32)
    value = hsic(x, z, estimator="rff", bandwidth_x=1.0, bandwidth_z=1.0, features=128, generator=seeded(0))
    assert value.item() == pytest.approx(0.0511434, rel=0.15)


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "rff"])
def test_float32_and_autocast_keep_the_value_of_float64(estimator):
    x, z = dependent_pair(rows=64, seed=16)
    z = z + 100.0
    calm = hsic(x.float(), z.float(), estimator=estimator, generator=seeded(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = hsic(x.float(), z.float(), estimator=estimator, generator=seeded(0))
    torch.testing.assert_close(cast, calm, rtol=1e-6, atol=0)
    if estimator != "rff":  # its draws differ between precisions
        assert calm.item() == pytest.approx(hsic(x, z, estimator=estimator).item(), rel=1e-4)


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "rff"])
@pytest.mark.parametrize("bandwidth", ["median", "dimension", 0.9])
def test_gradient_is_that_of_finite_differences(estimator, bandwidth):
    x, z = dependent_pair(rows=7, seed=17)

    def value(tokens):
        options = {"estimator": estimator, "bandwidth_z": bandwidth, "features": 16}
        return hsic(x, tokens, **options, generator=seeded(0)), cka(x, tokens, **options, generator=seeded(0))

    assert torch.autograd.gradcheck(value, z.requires_grad_())


@pytest.mark.parametrize("bandwidth", ["median", "dimension"])
def test_gradient_does_not_pull_on_the_scale_that_the_bandwidth_divides_out(bandwidth):
    x, z = dependent_pair(rows=32, seed=18)
    torch.testing.assert_close(hsic(x, 10 * z, bandwidth_z=bandwidth), hsic(x, z, bandwidth_z=bandwidth))
    (gradient,) = torch.autograd.grad(hsic(x, z.requires_grad_(), bandwidth_z=bandwidth), z)
    assert gradient.norm() > 1e-4
    assert (gradient * z).sum().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "rff"])
@pytest.mark.parametrize("bandwidth", ["median", "dimension", 0.5])
def test_collapsed_and_repeating_tokens_give_finite_values_and_gradients(estimator, bandwidth):
    x = normal(48, 6, seed=19, dtype=torch.float32)
    collapsed = torch.full((48, 3), 0.1, requires_grad=True)
    repeating = torch.full((48, 3), 0.1).index_fill_(0, torch.arange(5), 2.0).requires_grad_()
    for tokens in (collapsed, repeating):
        for function in (hsic, cka):
            value = function(x, tokens, estimator=estimator, bandwidth_z=bandwidth, features=100)
            (gradient,) = torch.autograd.grad(value, tokens)
            assert value.isfinite()
            assert gradient.isfinite().all()
            assert tokens is repeating or value.item() == 0
    # Kernels of two clusters: within them the tokens are equal and depend on themselves alone.
    assert cka(repeating, repeating, estimator=estimator, bandwidth_z=bandwidth).item() > 0.5


def test_the_median_of_tokens_that_mostly_repeat_falls_back_to_the_dimension_bandwidth():
    x = normal(48, 6, seed=19, dtype=torch.float32)
    repeating = normal(1, 61, seed=22, dtype=torch.float32).repeat(48, 1)
    repeating[:5] += 1.0
    assert hsic(x, repeating).item() == hsic(x, repeating, bandwidth_z="dimension").item()


def test_images_and_token_grids_are_flattened_to_rows():
    images, tokens = normal(12, 3, 4, 4, seed=20), normal(12, 5, 2, seed=21)
    torch.testing.assert_close(hsic(images, tokens), hsic(images.flatten(1), tokens.flatten(1)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("where", ["one number", "one row", "everywhere"])
@pytest.mark.parametrize("bandwidth", [*BANDWIDTHS, 1.5])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_what_is_not_finite_is_nan_and_not_independent(estimator, bandwidth, where, bad):
    """Of either variable; 1e30 is finite, but its square is not in float32."""
    good, broken = normal(16, 3, seed=23, dtype=torch.float32), normal(16, 2, seed=24, dtype=torch.float32)
    broken[{"one number": (3, 1), "one row": 3, "everywhere": slice(None)}[where]] = bad
    if where == "everywhere" and bad == 1e30:  # rows that are all the same have no spread, however large
        broken[::2] = -bad
    options = {"estimator": estimator, "bandwidth_x": bandwidth, "bandwidth_z": bandwidth, "generator": seeded(0)}
    constant = torch.ones(16, 2)
    for measure in (hsic, cka):
        assert measure(good, broken, **options).isnan()
        assert measure(broken, good, **options).isnan()
        assert measure(broken, broken, **options).isnan()
        assert measure(constant, broken, **options).isnan()
        assert measure(good, constant, **options) == 0
    assert permuted_hsic(good, broken, **options).isnan()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ((8, 8), {"estimator": "exact"}, "unknown HSIC estimator 'exact'"),
        ((8, 8), {"bandwidth_x": "mean"}, "unknown bandwidth 'mean'"),
        ((8, 8), {"bandwidth_z": -1.0}, "unknown bandwidth -1.0"),
        ((8, 8), {"estimator": "rff", "features": 0}, "features must be at least 1"),
        ((8, 7), {}, "8 and 7 rows"),
        ((3, 3), {}, "at least 4 rows, got 3"),
    ],
)
def test_hsic_refuses_bad_input_with_what_would_be_right(rows, options, message):
    with pytest.raises(ValueError, match=message):
        hsic(torch.zeros(rows[0], 2), torch.zeros(rows[1], 2), **options)


@pytest.mark.parametrize("bandwidth", ["median", "dimension", 1.5])
@pytest.mark.parametrize("estimator", ["unbiased", "biased", "rff"])
@pytest.mark.parametrize("normalized", [False, True])
def test_rows_that_do_not_count_leave_the_value_of_the_others(bandwidth, estimator, normalized):
    x, z = dependent_pair(20, seed=3)
    z.requires_grad_()
    present = torch.arange(20) % 3 > 0
    options = {"normalized": normalized, "estimator": estimator, "bandwidth_x": bandwidth, "bandwidth_z": bandwidth}
    spoiled = z.where(present[:, None], 1e3)
    found = pair(x, spoiled, generator=seeded(1), present=present, **options).dependence()
    expected = pair(x[present], z[present], generator=seeded(1), **options).dependence()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-8)
    (slope,) = torch.autograd.grad(found, z)
    (wanted,) = torch.autograd.grad(expected, z)
    torch.testing.assert_close(slope, wanted, rtol=1e-3, atol=1e-7)
