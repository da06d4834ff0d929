"""The regularizer in somebody else's tokenizer and loop: what it adds to the loss."""

import math
import re
from pathlib import Path

import pytest
import torch
from torch import distributions

from infotok import Categorical, Gaussian, InformationBottleneck, Kernels, posterior_logits
from infotok.information import cka, hsic

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
    assert len(steps) == 15
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
