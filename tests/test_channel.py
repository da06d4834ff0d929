"""Distributions of tokens against torch.distributions, vector-quantize-pytorch, known channels and sample means."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, norm
from torch import distributions

from infotok.information import categorical_entropy, information_bounds
from infotok.information.channel import Categorical, Gaussian
from tiny import seeded, tokenizer


def normal(*shape, seed):
    return torch.randn(*shape, generator=seeded(seed))


def gaussian(*shape, seed):
    return Gaussian(normal(*shape, seed=seed), 0.7 * normal(*shape, seed=seed + 100))


def reference(channel):
    """The same distribution by torch: independent over dimensions, one value per token."""
    return distributions.Independent(distributions.Normal(channel.mean, (0.5 * channel.log_variance).exp()), 1)


@pytest.mark.parametrize("conditional", [False, True])
def test_gaussian_tokens_are_those_of_torch_distributions(conditional):
    posterior = gaussian(5, 3, 4, seed=0)
    prior = gaussian(*((5,) if conditional else ()), 3, 4, seed=1)
    q, r = reference(posterior), reference(prior)
    vectors = normal(5, 3, 4, seed=2)
    torch.testing.assert_close(posterior.log_prob(vectors), q.log_prob(vectors))
    torch.testing.assert_close(prior.log_prob(vectors), r.log_prob(vectors))
    torch.testing.assert_close(posterior.entropy(), q.entropy())
    expected = distributions.kl_divergence(q, r.expand(q.batch_shape)) + q.entropy()
    torch.testing.assert_close(posterior.code_length(prior), expected)


def test_a_code_length_is_the_mean_of_minus_log_r_over_samples():
    posterior, prior = gaussian(2, 3, 4, seed=3), gaussian(3, 4, seed=4)
    count = 20000
    many = Gaussian(*(t.repeat(count, 1, 1, 1) for t in (posterior.mean, posterior.log_variance)))
    lengths = -reference(prior).log_prob(many.sample(seeded(5)))
    error = lengths.std(0) / math.sqrt(count)
    assert ((lengths.mean(0) - posterior.code_length(prior)).abs() < 4 * error).all()
    assert (error < 0.05 * posterior.code_length(prior).abs()).all()


def test_gaussian_samples_have_their_moments_and_pass_their_gradients():
    mean, log_variance = normal(1, 2, 3, seed=6), normal(1, 2, 3, seed=7)
    count = 20000
    drawn = Gaussian(mean.expand(count, -1, -1), log_variance.expand(count, -1, -1)).sample(seeded(8))
    deviation = (0.5 * log_variance[0]).exp()
    assert ((drawn.mean(0) - mean[0]).abs() < 4 * deviation / math.sqrt(count)).all()
    assert ((drawn.std(0) / deviation - 1).abs() < 4 / math.sqrt(2 * count)).all()
    scaled = (drawn - mean) / deviation
    assert torch.corrcoef(scaled.flatten(1).T).sub(torch.eye(6)).abs().max() < 4 / math.sqrt(count)

    channel = Gaussian(mean.clone().requires_grad_(), log_variance.clone().requires_grad_())
    sample = channel.sample(seeded(9))
    sample.sum().backward()
    torch.testing.assert_close(channel.mean.grad, torch.ones_like(mean))
    torch.testing.assert_close(channel.log_variance.grad, 0.5 * (sample.detach() - mean))


def test_the_matrix_of_log_densities_compares_every_sample_with_every_image():
    posterior = gaussian(6, 3, 4, seed=10)
    vectors = 3 + normal(5, 3, 4, seed=11)  # an offset must not cost digits
    wide = distributions.Independent(reference(posterior), 1)  # over all tokens of an image
    expected = torch.stack([wide.log_prob(one.expand(6, -1, -1)) for one in vectors])
    torch.testing.assert_close(posterior.cross_log_prob(vectors), expected)

    logits, codes = 2 * normal(6, 3, 7, seed=12), torch.randint(7, (5, 3), generator=seeded(13))
    table = distributions.Independent(distributions.Categorical(logits=logits), 1)
    expected = torch.stack([table.log_prob(one.expand(6, -1)) for one in codes])
    torch.testing.assert_close(Categorical(logits).cross_log_prob(codes), expected)


def test_the_aggregate_of_gaussians_has_the_moments_of_the_mixture_and_the_smallest_rate():
    posterior = gaussian(7, 2, 3, seed=14)
    components = distributions.Normal(
        posterior.mean.movedim(0, -1), (0.5 * posterior.log_variance).exp().movedim(0, -1)
    )
    mixture = distributions.MixtureSameFamily(distributions.Categorical(torch.ones(2, 3, 7)), components)
    aggregate = posterior.aggregate()
    torch.testing.assert_close(aggregate.mean, mixture.mean)
    torch.testing.assert_close(aggregate.log_variance.exp(), mixture.variance)
    best = posterior.code_length(aggregate).sum(-1).mean()
    for shift in (normal(2, 3, seed=15), -normal(2, 3, seed=15)):
        for other in (
            Gaussian(aggregate.mean + 0.1 * shift, aggregate.log_variance),
            Gaussian(aggregate.mean, aggregate.log_variance + 0.1 * shift),
        ):
            assert posterior.code_length(other).sum(-1).mean() > best + 1e-4


def linear_gaussian(count, seed):
    """z_d = gain_d x_d + noise of known variance, for x whose sample mean is 0 and variance 1: the channel, and the
    exact I(X;Z) in nats of Gaussian x."""
    x = normal(count, 2, 3, seed=seed).double()
    x = (x - x.mean(0)) / x.std(0, correction=0)
    gain, noise = torch.tensor([[2.0, 0.5, 1.0], [0.0, 1.5, 0.3]]), torch.tensor([0.5, 0.3, 1.0])
    exact = 0.5 * sum(math.log1p(g**2 / v) for row in gain.tolist() for g, v in zip(row, noise.tolist(), strict=True))
    return Gaussian((gain * x).float(), noise.log().expand(count, 2, 3)), exact


def test_the_rate_under_the_aggregate_is_the_mutual_information_of_a_linear_gaussian_channel():
    channel, exact = linear_gaussian(500, seed=16)
    rate = channel.code_length(channel.aggregate()) - channel.entropy()
    assert rate.sum(-1).mean().item() == pytest.approx(exact, rel=1e-5)


def test_the_rate_under_the_aggregate_is_the_mutual_information_of_categorical_tokens():
    table = np.random.default_rng(0).dirichlet(np.full(5, 0.4), size=(8, 3))
    exact = sum(entropy(table[:, k].mean(0)) - entropy(table[:, k], axis=1).mean() for k in range(3))
    channel = Categorical(torch.from_numpy(np.log(table)))
    rate = channel.code_length(channel.aggregate()) - channel.entropy()
    assert rate.sum(-1).mean().item() == pytest.approx(exact, rel=1e-5)


def test_bounds_sandwich_the_known_information_of_a_gaussian_channel():
    channel, exact = linear_gaussian(1500, seed=17)
    lower, upper = information_bounds(channel.cross_log_prob(channel.sample(seeded(18))))
    # log q(z|x) / q(z) of a scalar channel with correlation rho^2 = snr / (1 + snr) has variance rho^2.
    snr = torch.tensor([[4, 0.25, 1], [0, 2.25, 0.09]]) / torch.tensor([0.5, 0.3, 1.0])
    error = math.sqrt((snr / (1 + snr)).sum() / 1500)
    assert lower < upper
    # Each is exact but for its bias, small since log 1500 = 7.3 nats stand against 2.9.
    assert exact - 4 * error - 0.1 < lower.item() < exact + 4 * error
    assert exact - 4 * error < upper.item() < exact + 4 * error + 0.1


@pytest.mark.parametrize("kind", [Categorical, Gaussian])
def test_batches_are_joined_cut_and_cut_off_from_gradients(kind):
    fields = {Categorical: ["logits"], Gaussian: ["mean", "log_variance"]}[kind]
    one, two = ([normal(3, 2, 4, seed=seed + i).requires_grad_() for i in range(len(fields))] for seed in (20, 30))
    joined = kind.cat([kind(*one), kind(*two)])
    for name, a, b in zip(fields, one, two, strict=True):
        assert torch.equal(getattr(joined, name), torch.cat([a, b]))
        assert torch.equal(getattr(joined[torch.tensor([4, 0])], name), torch.stack([b[1], a[0]]))
        assert not getattr(joined.detach(), name).requires_grad


def test_a_relaxed_code_length_is_exact_and_has_the_gradient_of_the_softened_softmax():
    start, r = 6 * normal(4, 3, 5, seed=40), normal(3, 5, seed=41).log_softmax(-1)
    logits = start.clone().requires_grad_()
    length = Categorical(logits, relaxation=4.0).code_length(Categorical(r))
    exact = -(start.softmax(-1) * r).sum(-1)
    torch.testing.assert_close(length.detach(), exact)
    pull = normal(4, 3, seed=42)
    (length * pull).sum().backward()
    # d/dl_j of -sum_c softmax(l / t)_c log r_c = p_j (cost_j - mean cost) / t.
    p = (start / 4).softmax(-1)
    expected = pull[..., None] * p * (-r - (p * -r).sum(-1, keepdim=True)) / 4
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-4)
    sharp = Categorical(30 * start, 20.0)
    assert torch.equal(sharp.code_length(Categorical(r)), Categorical(30 * start).code_length(Categorical(r)))


def test_the_gradient_of_a_prior_is_exact_whatever_the_relaxation():
    logits, prior = 6 * normal(4, 3, 5, seed=43), normal(3, 5, seed=44).requires_grad_()
    Categorical(logits, relaxation=4.0).code_length(Categorical(prior)).sum().backward()
    expected = 4 * prior.detach().softmax(-1) - logits.softmax(-1).sum(0)  # of a cross-entropy: r - q, per image
    torch.testing.assert_close(prior.grad, expected)


@pytest.mark.parametrize("inverse_temperature", [0.5, 3.0])
def test_entropies_are_the_terms_of_lookup_free_quantization(inverse_temperature):
    from vector_quantize_pytorch import LFQ

    features = normal(16, 4, 3, seed=45)
    lfq = LFQ(codebook_size=8, dim=3, spherical=True).train()
    _, terms = lfq(features, inv_temperature=inverse_temperature, return_loss_breakdown=True)
    codebook = lfq.codebook / lfq.codebook.norm(dim=-1, keepdim=True)
    unit = features / features.norm(dim=-1, keepdim=True)
    tested = tokenizer(codebook=8, dimension=3, logit_scale=2 * inverse_temperature)
    with torch.no_grad():
        tested.codebook.copy_(codebook)
        posterior = tested.posterior_of(unit)
        assert categorical_entropy(posterior.logits).mean().item() == pytest.approx(
            terms.per_sample_entropy.item(), abs=1e-5
        )
        assert tested.usage_entropy(posterior).item() == pytest.approx(terms.batch_entropy.item(), abs=1e-5)
        assert terms.batch_entropy > terms.per_sample_entropy + 0.01


def test_sampled_codes_follow_their_distribution():
    logits = 2 * normal(1, 3, 5, seed=46)
    codes = Categorical(logits.expand(20000, -1, -1)).sample(seeded(47))
    share = torch.nn.functional.one_hot(codes, 5).float().mean(0)
    wanted = logits[0].softmax(-1)
    score = (share - wanted) / (wanted * (1 - wanted) / 20000).sqrt()
    assert score.abs().max() < norm.ppf(1 - 0.0005 / 15)
