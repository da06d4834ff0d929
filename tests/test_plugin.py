"""The regularizer in somebody else's tokenizer and loop."""

import math
import re
from pathlib import Path

import pytest
import torch
from scipy.optimize import brentq
from torch import distributions
from torch.nn import functional as F

from infotok import Categorical, Gaussian, InformationBottleneck, Kernels, posterior_logits
from infotok.information import cka, hsic
from infotok.information.dependence import BANDWIDTHS
from infotok.information.priors import CategoricalPrior, Priors

ROOT = Path(__file__).parent.parent


def readme_example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return code


def test_the_readmes_example_runs_in_fifteen_lines_and_compresses():
    code = readme_example()
    assert len(code.strip().splitlines()) <= 15
    entropies = {}
    for beta in ("0.0", "0.05"):
        torch.manual_seed(0)
        space: dict = {}
        exec(code.replace("beta=0.01", f"beta={beta}"), space)
        assert space["term"].loss.isfinite()
        entropies[beta] = space["term"].parts["code_length_bits"].item()
    assert entropies["0.05"] < 0.9 * entropies["0.0"]


def test_every_way_that_the_manual_shows_gives_a_finite_term():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plug_in.md").read_text(), re.DOTALL)
    steps = code.split("\n\n")
    space: dict = {}
    exec(steps[0], space)
    exec(steps[1], space)
    assert len(steps) == 14
    for step in steps[2:]:
        space["features"].grad = None
        exec(step, space)
        term = space["term"]
        assert term.loss.isfinite()
        assert set(term.parts) & {"rate_bits", "penalty"}
        if space["ib"].name != "none":
            term.loss.backward(retain_graph=True)
            assert space["features"].grad.abs().sum() > 0


def test_the_penalties_are_their_closed_forms_and_reach_the_tokenizer_alone():
    torch.manual_seed(0)
    logits = torch.randn(6, 3, 5, requires_grad=True)
    generator = torch.randn(6, 3, 5, requires_grad=True)
    q = torch.distributions.Categorical(logits=logits)
    uniform = torch.distributions.Categorical(logits=torch.zeros(6, 3, 5))
    wanted = {
        "vib": torch.distributions.kl_divergence(q, uniform).sum(1).mean(),
        "dib": torch.tensor(3 * math.log(5)),
        "ceb": -(q.probs * generator.log_softmax(-1)).sum((1, 2)).mean(),
    }
    for estimator, value in wanted.items():
        term = InformationBottleneck(estimator, beta=0.5, tokens=3, codebook=5)(logits, generator)
        assert term.parts["penalty"].item() == pytest.approx(value.item(), rel=1e-5)
        assert term.loss.item() == pytest.approx(0.5 * value.item(), rel=1e-5)
        term.loss.backward()
        assert generator.grad is None
    assert logits.grad.abs().sum() > 0


def test_the_prior_learns_the_codes_frequencies_whatever_beta_is():
    frequencies = torch.tensor([[0.7, 0.2, 0.1]])
    ib = InformationBottleneck("dib", beta=0.0, tokens=1, codebook=3)
    optimizer = torch.optim.Adam(ib.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        ib(frequencies.log().expand(4, 1, 3)).loss.backward()
        optimizer.step()
    assert torch.allclose(ib.prior.logits.softmax(-1), frequencies, atol=0.01)


def test_beta_warms_up_over_training_steps_alone_and_is_kept_in_the_state():
    ib = InformationBottleneck("vib", beta=0.4, tokens=1, codebook=3, warmup=4)
    logits = torch.zeros(2, 1, 3)
    assert [round(ib(logits).parts["beta"].item(), 3) for _ in range(3)] == [0.1, 0.2, 0.3]
    assert ib.eval()(logits).parts["beta"].item() == pytest.approx(0.3)
    again = InformationBottleneck("vib", beta=0.4, tokens=1, codebook=3, warmup=4)
    again.load_state_dict(ib.state_dict())
    assert [round(again(logits).parts["beta"].item(), 3) for _ in range(3)] == [0.4, 0.4, 0.4]


def test_the_implied_posterior_is_bayes_rule_of_gaussians():
    torch.manual_seed(0)
    codebook, features = torch.randn(4, 2), torch.randn(3, 2, 2)
    nearest = torch.cdist(features.flatten(0, 1), codebook).amin(-1).square().mean() / 2
    normal = torch.distributions.Normal(codebook, nearest.sqrt())
    likelihood = normal.log_prob(features[:, :, None]).sum(-1).exp()
    wanted = likelihood / likelihood.sum(-1, keepdim=True)
    assert torch.allclose(posterior_logits(features, codebook).softmax(-1), wanted, atol=1e-5)


def gaussian(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, log_variance = (torch.randn(*shape, generator=generator).requires_grad_() for _ in range(2))
    return Gaussian(mean, log_variance)


def test_the_penalties_of_gaussian_tokens_are_their_closed_forms():
    q, p = gaussian(6, 3, 4, seed=0), gaussian(6, 3, 4, seed=1)
    posterior, generator = (distributions.Normal(c.mean, (0.5 * c.log_variance).exp()) for c in (q, p))
    standard = distributions.Normal(torch.zeros(3, 4), torch.ones(3, 4))  # the prior before it has learned
    entropy = posterior.entropy().sum((1, 2)).mean()
    rate = distributions.kl_divergence(posterior, standard).sum((1, 2)).mean()
    wanted = {
        "vib": rate,
        "dib": rate + entropy,
        "ceb": distributions.kl_divergence(posterior, generator).sum((1, 2)).mean() + entropy,
    }
    for estimator, value in wanted.items():
        term = InformationBottleneck(estimator, beta=0.5, tokens=3, dimension=4)(q, p)
        assert term.loss.item() == pytest.approx(0.5 * value.item(), rel=1e-5)
        assert term.parts["penalty"].item() == pytest.approx(value.item(), rel=1e-5)
        assert term.parts["rate_bits"].item() == pytest.approx(rate.item() / math.log(2), rel=1e-5)
        term.loss.backward()
    assert q.mean.grad.abs().sum() > 0
    assert q.log_variance.grad.abs().sum() > 0
    assert p.mean.grad is None


def test_the_prior_of_gaussian_tokens_learns_their_mean_and_variance():
    q = Gaussian(torch.tensor([[[1.0, -2.0]], [[3.0, -2.0]]]), torch.tensor([0.25, 0.5]).log().expand(2, 1, 2))
    ib = InformationBottleneck("vib", beta=0.0, tokens=1, dimension=2)
    optimizer = torch.optim.Adam(ib.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        term = ib(q)
        term.loss.backward()
        optimizer.step()
    # By the law of total variance: within 0.25 and 0.5, between 1 and 0.
    torch.testing.assert_close(ib.prior.mean, torch.tensor([[2.0, -2.0]]), atol=0.01, rtol=0)
    torch.testing.assert_close(ib.prior.log_variance.exp(), torch.tensor([[1.25, 0.5]]), atol=0.02, rtol=0)
    assert term.parts["rate_bits"].item() == pytest.approx(0.5 * math.log2(1.25 / 0.25), abs=0.01)


@pytest.mark.parametrize("normalized", [True, False])
def test_kernel_dependence_takes_images_and_vectors_and_moves_the_vectors_alone(normalized):
    torch.manual_seed(0)
    images = torch.randn(20, 3, 4, 4, requires_grad=True)
    vectors = (images.detach().flatten(1)[:, :6].view(20, 2, 3) + 0.1).requires_grad_()
    kernels = Kernels(normalized=normalized, bandwidth="median")
    ib = InformationBottleneck("hsic", beta=2.0, warmup=2, kernels=kernels)
    term = ib(vectors=vectors, inputs=images.detach())
    wanted = (cka if normalized else hsic)(images, vectors).item()
    assert wanted > 1e-3
    assert term.parts["penalty"].item() == pytest.approx(wanted, rel=1e-5)
    assert term.loss.item() == pytest.approx(wanted, rel=1e-5)  # half of the warm-up
    assert set(term.parts) == {"penalty", "beta", "penalty_independent"}
    assert list(ib.parameters()) == []
    term.loss.backward()
    assert vectors.grad.abs().sum() > 0


def test_an_autoregressive_prior_pays_once_for_what_two_tokens_share():
    codes = torch.arange(4).repeat(4)[:, None].expand(-1, 2)  # token 2 repeats token 1
    logits, vectors = 50 * torch.nn.functional.one_hot(codes, 4).float(), torch.eye(4)[codes]
    bits = {}
    for prior in ("marginal", "autoregressive"):
        torch.manual_seed(0)
        ib = InformationBottleneck("vib", beta=0.0, tokens=2, codebook=4, dimension=4, prior=prior)
        optimizer = torch.optim.Adam(ib.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            term = ib(logits, vectors=vectors)
            term.loss.backward()
            optimizer.step()
        bits[prior] = term.parts["rate_bits"].item()
    assert bits["marginal"] == pytest.approx(4.0, abs=0.02)
    assert bits["autoregressive"] == pytest.approx(2.0, abs=0.05)


def test_consistency_is_the_log_of_the_batch_less_the_cross_entropy_of_finding_the_text():
    torch.manual_seed(0)
    ib = InformationBottleneck("dib", beta=0.5, tokens=2, codebook=3, dimension=4, gamma=0.7, text_width=5)
    plain = InformationBottleneck("dib", beta=0.5, tokens=2, codebook=3)
    logits = torch.randn(6, 2, 3)
    vectors, text = torch.randn(6, 2, 4, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    term = ib(logits, vectors=vectors, text=text)
    a, b = (F.normalize(x, dim=1) for x in (ib.critic.of_tokens(vectors.flatten(1)), ib.critic.of_text(text)))
    right = (ib.critic.log_scale.exp() * a @ b.T).softmax(1).diagonal()
    wanted = math.log(6) + right.log().mean().item()
    assert term.parts["consistency"].item() == pytest.approx(wanted, rel=1e-5)
    assert term.loss.item() == pytest.approx(plain(logits).loss.item() - 0.7 * wanted, rel=1e-5)
    term.loss.backward()
    assert text.grad is None
    assert vectors.grad.abs().sum() > 0
    assert ib.critic.of_text.weight.grad.abs().sum() > 0


def consistent(**settings):
    torch.manual_seed(0)
    return InformationBottleneck("none", beta=0.0, gamma=1.0, tokens=2, codebook=3, dimension=4, text_width=5)


def test_texts_that_were_dropped_do_not_count_for_consistency():
    ib, generator = consistent(), torch.Generator().manual_seed(1)
    logits, vectors = torch.zeros(12, 2, 3), torch.randn(12, 2, 4, generator=generator, requires_grad=True)
    text, has_text = torch.randn(12, 5, generator=generator), torch.arange(12) % 3 > 0
    wanted = ib(logits[has_text], vectors=vectors[has_text], text=text[has_text]).parts["consistency"]
    spoiled = text.where(has_text[:, None], 1e3)
    term = ib(logits, vectors=vectors, text=spoiled, has_text=has_text)
    torch.testing.assert_close(term.parts["consistency"], wanted)
    term.loss.backward()
    assert (vectors.grad.abs().sum((1, 2)) > 0).tolist() == has_text.tolist()


@pytest.mark.parametrize(("texts", "some"), [(3, False), (4, True)])
def test_consistency_needs_four_texts(texts, some):
    generator = torch.Generator().manual_seed(1)
    vectors, text = torch.randn(8, 2, 4, generator=generator), torch.randn(8, 5, generator=generator)
    term = consistent()(torch.zeros(8, 2, 3), vectors=vectors, text=text, has_text=torch.arange(8) < texts)
    assert (term.parts["consistency"] != 0) == some
    assert term.loss.isfinite()


def test_gamma_rises_with_beta():
    torch.manual_seed(0)
    settings = {"tokens": 2, "codebook": 3, "dimension": 4, "text_width": 5}
    ib = InformationBottleneck("dib", beta=0.5, gamma=0.8, warmup=2.5, **settings)
    generator = torch.Generator().manual_seed(1)
    shown = {"vectors": torch.randn(8, 2, 4, generator=generator), "text": torch.randn(8, 5, generator=generator)}
    for rise in (0.4, 0.8, 1.0, 1.0):
        term = ib(torch.zeros(8, 2, 3), **shown)
        wanted = rise * (0.5 * term.parts["penalty"] - 0.8 * term.parts["consistency"])
        assert term.loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_baseline_presses_nothing_and_its_prior_learns_and_tells_the_rate():
    logits = torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])[:, None].requires_grad_()
    ib, pressed = (
        InformationBottleneck(name, beta=b, tokens=1, codebook=3) for name, b in (("none", 0.0), ("vib", 1.0))
    )
    term = ib(logits)
    assert set(term.parts) == {"rate_bits", "code_length_bits"}
    assert term.parts["rate_bits"] == pressed(logits).parts["rate_bits"]
    assert term.loss.item() == 0
    term.loss.backward()
    assert logits.grad is None
    assert ib.prior.logits.grad.abs().sum() > 0


def test_a_deterministic_channel_has_the_rate_and_the_posterior_the_penalty():
    logits = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2)[:, None].requires_grad_()
    sent = torch.tensor([[100.0, 0.0, 0.0, 0.0]] * 2)[:, None]
    ib = InformationBottleneck("vib", beta=1.0, tokens=1, codebook=4)
    term = ib(logits, channel=sent)
    q = distributions.Categorical(logits=logits)
    assert term.parts["rate_bits"].item() == pytest.approx(2.0, abs=1e-5)  # of one code under a uniform prior
    assert term.parts["penalty"].item() == pytest.approx(math.log(4) - q.entropy().mean().item(), rel=1e-5)
    term.loss.backward()
    expected = torch.autograd.grad(-sent.softmax(-1).mean(0) @ ib.prior.logits.log_softmax(-1).T, ib.prior.logits)[0]
    torch.testing.assert_close(ib.prior.logits.grad, expected)


def test_a_relaxed_posterior_has_the_exact_penalty_and_a_softer_gradient():
    logits = (40 * torch.eye(4))[:, None].requires_grad_()
    ib = InformationBottleneck("dib", beta=1.0, tokens=1, codebook=4)
    torch.nn.init.normal_(ib.prior.logits, generator=torch.Generator().manual_seed(0))
    gradients, losses = [], []
    for relaxation in (1.0, 20.0):
        term = ib(Categorical(logits, relaxation))
        losses.append(term.loss.item())
        gradients.append(torch.autograd.grad(term.loss, logits)[0].abs().sum().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[1] > 1000 * gradients[0]


@pytest.mark.parametrize("kind", ["discrete", "gaussian"])
@pytest.mark.parametrize("prior", ["marginal", "autoregressive"])
def test_fewer_tokens_cost_what_the_first_of_all_would(kind, prior):
    torch.manual_seed(0)
    sizes = {"dimension": 4} | ({"codebook": 5} if kind == "discrete" else {})
    ib = InformationBottleneck("vib", beta=1.0, gamma=0.5, tokens=3, prior=prior, text_width=6, **sizes)
    for parameter in ib.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    logits, vectors, text = torch.randn(8, 3, 5), torch.randn(8, 3, 4), torch.randn(8, 6)
    q = logits if kind == "discrete" else Gaussian(torch.randn(8, 3, 4), torch.randn(8, 3, 4))

    def cut(count):
        return q[:, :count] if kind == "discrete" else Gaussian(q.mean[:, :count], q.log_variance[:, :count])

    found = [ib(cut(k), vectors=vectors[:, :k], text=text) for k in (1, 2, 3)]
    kept = ib(cut(2), vectors=vectors * torch.tensor([1.0, 1.0, 0.0])[:, None], text=text)  # as a tokenizer keeps them
    assert kept.loss == found[1].loss
    read = ib.prior(vectors) if prior == "autoregressive" else ib.prior()
    posterior = Categorical(q) if kind == "discrete" else q
    rates = (posterior.code_length(read) - posterior.entropy()).mean(0).cumsum(0)
    for term, rate in zip(found, rates, strict=True):
        assert term.parts["penalty"].item() == pytest.approx(rate.item(), rel=1e-5)
    padded = torch.nn.functional.pad(vectors[:, :1], (0, 0, 0, 2))
    assert found[0].parts["consistency"].item() == pytest.approx(ib.critic(padded, text).item(), rel=1e-5)


def test_ready_priors_all_learn_and_the_named_one_is_penalized():
    torch.manual_seed(0)
    logits, vectors = 3 * torch.randn(8, 2, 5), torch.randn(8, 2, 4)
    made = {}
    for kind in ("marginal", "autoregressive"):
        priors = Priors(CategoricalPrior(2, 5), 2, 4)
        for parameter in priors.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
        term = InformationBottleneck("vib", beta=1.0, prior=kind, priors=priors)(logits, vectors=vectors)
        term.loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in priors.parameters())
        made[kind] = term.parts
    for name in ("rate_bits", "autoregressive_rate_bits"):
        assert made["marginal"][name] == made["autoregressive"][name]
    for kind, name in (("marginal", "rate_bits"), ("autoregressive", "autoregressive_rate_bits")):
        assert made[kind]["penalty"].item() / math.log(2) == pytest.approx(made[kind][name].item(), rel=1e-5)


@pytest.mark.parametrize("estimator", ["vib", "hsic"])
def test_what_gathers_and_averages_makes_parts_of_a_batch_the_whole(estimator):
    """Two micro-batches by turns: each sees the rows of both, and the mean of their losses is that of the batch."""
    torch.manual_seed(0)
    settings = {"tokens": 2, "codebook": 3, "dimension": 4, "text_width": 5, "beta": 0.5, "gamma": 0.8}
    whole = InformationBottleneck(estimator, **settings)
    logits, vectors, text = torch.randn(12, 2, 3), torch.randn(12, 2, 4), torch.randn(12, 5)
    inputs, has_text = torch.randn(12, 6), torch.arange(12) % 4 > 0
    shown = {"inputs": inputs, "vectors": vectors, "text": text, "has_text": has_text}
    wanted = whole(logits, **shown)
    halves = []
    for part in (slice(6), slice(6, 12)):

        def gather(rows, part=part):
            (found,) = [v for v in shown.values() if v.shape[1:] == rows.shape[1:] and torch.equal(v[part], rows)]
            return found

        ib = InformationBottleneck(estimator, gather=gather, **settings)
        ib.load_state_dict(whole.state_dict() | {"steps": ib.steps})
        halves.append(ib(logits[part], **{name: rows[part] for name, rows in shown.items()}))
    torch.testing.assert_close(torch.stack([half.loss for half in halves]).mean(), wanted.loss)
    assert all(torch.equal(half.parts["consistency"], wanted.parts["consistency"]) for half in halves)


def test_the_average_drives_the_multiplier():
    settings = {"beta": 0.1, "tokens": 1, "codebook": 4, "target_bits": 1.0}
    ib = InformationBottleneck("vib", average=lambda value: 0 * value + 1, **settings)
    assert ib(20 * torch.eye(4)[:, None]).parts["beta"].item() == pytest.approx(0.1 * math.exp(-0.05), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("where", ["inputs", "vectors", "text"])
@pytest.mark.parametrize("bandwidth", [*BANDWIDTHS, 2.0])
def test_vectors_that_diverge_never_look_independent(bad, where, bandwidth):
    """As NaN, which stops a training; not as 0."""
    torch.manual_seed(0)
    kernels = Kernels(bandwidth=bandwidth, consistency="kernels")
    ib = InformationBottleneck("hsic", beta=1.0, gamma=1.0, kernels=kernels)
    shown = {"inputs": torch.randn(8, 3), "vectors": torch.randn(8, 2, 4), "text": torch.randn(8, 5)}
    shown[where].view(-1)[7] = bad
    term = ib(**shown)
    assert term.loss.isnan()
    touched = {"inputs": ["penalty"], "vectors": ["penalty", "consistency"], "text": ["consistency"]}[where]
    assert [name for name in ("penalty", "consistency") if term.parts[name].isnan()] == touched


@pytest.mark.parametrize("estimator", ["vib", "dib", "ceb"])
def test_a_posterior_that_diverges_has_no_finite_penalty(estimator):
    for bad in (math.nan, math.inf):
        logits = torch.zeros(4, 2, 3)
        logits[1, 0, 1] = bad
        term = InformationBottleneck(estimator, beta=1.0, tokens=2, codebook=3)(logits, torch.zeros(4, 2, 3))
        assert term.loss.isnan()
        assert term.parts["rate_bits"].isnan()


def test_a_target_lands_on_the_rate_distortion_curve():
    """Eight equally likely symbols sent as one of eight codes: by Shannon, the share of errors e at a rate R solves
    R = 3 - h(e) - e log2 7."""
    target = 1.5

    def rate(error):
        return 3 + error * math.log2(error) + (1 - error) * math.log2(1 - error) - error * math.log2(7)

    wanted = brentq(lambda error: rate(error) - target, 1e-6, 0.8)
    torch.manual_seed(0)
    logits = torch.nn.Parameter(3 * torch.eye(8)[:, None] + 0.1 * torch.randn(8, 1, 8))
    ib = InformationBottleneck("vib", beta=0.1, tokens=1, codebook=8, target_bits=target)
    optimizer = torch.optim.Adam([logits, *ib.parameters()], lr=0.2)
    for _ in range(600):
        error = 1 - logits[:, 0].softmax(-1).diagonal().mean()
        term = ib(logits)
        optimizer.zero_grad()
        (error + term.loss).backward()
        optimizer.step()
    assert term.parts["rate_bits"].item() == pytest.approx(target, rel=0.01)
    assert error.item() == pytest.approx(wanted, rel=0.01)
    # beta is minus the slope of the curve, error per nat: dR/de = log((1 - e) / 7 e), in nats with its sign turned.
    assert term.parts["beta"].item() == pytest.approx(1 / math.log(7 * (1 - wanted) / wanted), rel=0.02)


def test_a_targets_multiplier_moves_in_training_alone_and_is_kept_in_the_state():
    settings = {"beta": 0.1, "tokens": 1, "codebook": 4, "target_bits": 1.0}
    sharp = 20 * torch.eye(4)[:, None]  # 2 bits: twice the target
    ib, again = (InformationBottleneck("dib", **settings) for _ in range(2))
    moved = [ib(sharp).parts["beta"].item() for _ in range(3)]
    assert moved == pytest.approx([0.1 * math.exp(0.05 * k) for k in (1, 2, 3)], rel=1e-4)
    again.load_state_dict(ib.state_dict())
    assert again.eval()(sharp).parts["beta"].item() == pytest.approx(moved[-1])
    assert again.train()(sharp).parts["beta"].item() == ib(sharp).parts["beta"].item()


def bottleneck(estimator="vib", beta=1.0, **settings):
    return InformationBottleneck(estimator, beta=beta, **settings)


DISCRETE, CONTINUOUS = {"tokens": 1, "codebook": 2}, {"tokens": 1, "dimension": 2}
LOGITS = torch.zeros(3, 1, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: bottleneck("vibe", **DISCRETE), "unknown estimator 'vibe': choose one of none, ceb, dib, hsic, vib"),
        (lambda: bottleneck(beta=-1.0, **DISCRETE), "beta must be at least 0, got -1.0"),
        (lambda: bottleneck(tokens=1), "give `tokens` and, of discrete tokens, `codebook`"),
        (lambda: bottleneck(codebook=2), "give `tokens` and"),
        (lambda: bottleneck(prior="learned", **DISCRETE), "unknown prior 'learned': choose one of marginal, autoreg"),
        (lambda: bottleneck(prior="autoregressive", **DISCRETE), "prior needs `dimension`"),
        (lambda: bottleneck(target_bits=0.0, **DISCRETE), "target_bits and beta must be above 0, got 0.0 and 1.0"),
        (lambda: bottleneck(beta=0.0, target_bits=4.0, **DISCRETE), "above 0, got 4.0 and 0.0"),
        (lambda: bottleneck("hsic", target_bits=4.0), "target_bits needs a rate to press, and hsic has none"),
        (lambda: bottleneck(**DISCRETE)(torch.zeros(3, 2, 2)), r"logits \(B, 1, 2\), got \(3, 2, 2\)"),
        (lambda: bottleneck(**DISCRETE)(torch.zeros(3, 2)), r"logits \(B, 1, 2\), got \(3, 2\)"),
        (lambda: bottleneck(**DISCRETE)(), r"vib needs `posterior` \(q\(z\|x\)\)"),
        (lambda: bottleneck(**DISCRETE)(Gaussian(LOGITS, LOGITS)), r"logits \(B, 1, 2\), got Gaussian"),
        (lambda: bottleneck(**CONTINUOUS)(LOGITS), r"Gaussian\(mean, log_variance\), each \(B, 1, 2\), got Tensor"),
        (lambda: bottleneck(**CONTINUOUS)(Gaussian(LOGITS, torch.zeros(2))), r"each \(B, 1, 2\), got \(2,\)"),
        (lambda: bottleneck("ceb", **DISCRETE)(LOGITS), r"ceb needs `posterior` .* and `conditional` \(what the gen"),
        (lambda: bottleneck("ceb", **DISCRETE)(LOGITS, LOGITS[:, :, :1]), r"`conditional` must be logits"),
        (
            lambda: bottleneck(prior="autoregressive", **CONTINUOUS)(Gaussian(LOGITS, LOGITS)),
            r"the autoregressive prior needs `vectors` \(the tokens that flowed\)",
        ),
        (
            lambda: bottleneck(prior="autoregressive", **CONTINUOUS)(
                Gaussian(LOGITS, LOGITS), vectors=LOGITS[:, :, :1]
            ),
            r"`vectors` must be \(B, 1, 2\) or of fewer tokens, got \(3, 1, 1\)",
        ),
        (
            lambda: bottleneck(prior="autoregressive", tokens=2, dimension=2)(
                Gaussian(*[torch.zeros(3, 2, 2)] * 2), vectors=LOGITS
            ),
            "`vectors` are of 1 tokens, the posterior is of 2",
        ),
        (
            lambda: bottleneck("ceb", tokens=2, codebook=2)(torch.zeros(3, 2, 2), LOGITS),
            r"`conditional` must be logits \(B, 2, 2\), got \(3, 1, 2\)",
        ),
        (lambda: bottleneck("none", **DISCRETE), "'none' has no penalty for beta 1.0 to weigh: set beta to 0"),
        (lambda: bottleneck("none", beta=0.0, target_bits=3.0, **DISCRETE), "needs a rate to press, and none has none"),
        (lambda: bottleneck(warmup=-1, **DISCRETE), "warmup must be at least 0, got -1"),
        (
            lambda: bottleneck(tokens=3, priors=Priors(CategoricalPrior(2, 5), 2, 4)),
            "tokens is 3, but 2 in `priors`: leave it out",
        ),
        (lambda: bottleneck(gamma=-1.0, **DISCRETE), "gamma must be at least 0, got -1.0"),
        (lambda: bottleneck(gamma=1.0, text_width=3, **DISCRETE), "gamma needs `tokens`, `dimension` and"),
        (
            lambda: bottleneck(gamma=1.0, text_width=3, dimension=2, **DISCRETE)(LOGITS),
            r"consistency needs `vectors` \(the tokens that flowed\) and `text`",
        ),
        (lambda: bottleneck("hsic")(LOGITS), r"hsic needs `inputs` \(the images .* and `vectors`"),
        (lambda: bottleneck("hsic")(inputs=LOGITS, vectors=LOGITS), "needs at least 4 rows, got 3"),
    ],
)
def test_wrong_use_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
