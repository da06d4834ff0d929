"""The terms of the objective: penalties of every estimator in every family, consistency, the multiplier of beta."""

import math

import pytest
import torch
from torch import distributions

from infotok import InformationBottleneck, Kernels
from infotok.information import cka, estimators, hsic
from infotok.information.consistency import InfoNCE
from infotok.information.multiplier import Multiplier
from infotok.information.objective import Observed, code_cost, contrast, estimator_names, load_estimator
from infotok.models import family_names
from pipeline.config.cells import parse_arm
from tiny import gradients, images, model, seeded, texts

ESTIMATORS = ["ceb", "dib", "hsic", "vib"]


def observed(tested, pictures):
    """What one training step shows to the terms."""
    out = tested(pictures, texts(), seeded())
    return Observed(
        posterior=out.posterior,
        prior=tested.priors(out.tokens.vectors)["autoregressive"].detach(),
        conditional=out.drawing.distribution.detach(),
        weight=out.drawing.weight,
    )


def test_the_estimators_are_those_that_have_a_module():
    assert estimator_names() == ESTIMATORS
    found = {name: load_estimator(name) for name in ["none", *ESTIMATORS]}
    assert [name for name, one in found.items() if one.penalty is None] == ["none"]
    assert [name for name, one in found.items() if one.consistency is not contrast] == ["hsic"]
    assert [name for name, one in found.items() if one.independent is not None] == ["hsic"]


def test_an_estimator_is_one_file_that_says_what_it_needs(monkeypatch, tmp_path):
    (tmp_path / "vib2.py").write_text(
        "NEEDS = ('posterior',)\n\ndef penalty(observed):\n    return observed.posterior.entropy().sum(1).mean()\n"
    )
    monkeypatch.setattr(estimators, "__path__", [*estimators.__path__, str(tmp_path)])
    assert estimator_names() == [*ESTIMATORS, "vib2"]
    assert parse_arm("vib2-0.5-1", "here") == ("vib2", 0.5, 1.0)
    term = InformationBottleneck("vib2", beta=0.5, tokens=3, codebook=4)(torch.zeros(2, 3, 4))
    assert term.loss.item() == pytest.approx(0.5 * 3 * math.log(4))
    assert load_estimator("vib2").consistency is contrast


@pytest.mark.parametrize("family", family_names())
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_penalty_moves_the_tokenizer_alone(family, estimator):
    tested = model(family=family)
    seen = observed(tested, images())
    if estimator == "hsic":  # its unbiased form needs four images
        posterior = tested.tokenizer.encode(images(6))
        seen = Observed(
            kernels=Kernels(), inputs=images(6), vectors=tested.tokenizer.sample(posterior, seeded()).vectors
        )
    load_estimator(estimator).penalty(seen).backward()
    assert gradients(tested.tokenizer.encoder) > 0
    assert gradients(tested.tokenizer.decoder) == 0
    assert gradients(tested.backbone) == gradients(tested.priors) == gradients(tested.family) == 0


def reference(channel):
    """The same distribution by torch: one value per token."""
    if hasattr(channel, "logits"):
        return distributions.Categorical(logits=channel.logits)
    return distributions.Independent(distributions.Normal(channel.mean, (0.5 * channel.log_variance).exp()), 1)


@torch.no_grad()
@pytest.mark.parametrize("family", family_names())
def test_variational_penalties_are_divergences_and_entropies_of_torch(family):
    tested = model(family=family)
    for parameter in tested.priors.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=seeded(3))
    seen = observed(tested, images())
    q, r, p = (reference(channel) for channel in (seen.posterior, seen.prior, seen.conditional))
    rate = distributions.kl_divergence(q, r)
    surprise = distributions.kl_divergence(q, p) + q.entropy()
    weight = 1.0 if seen.weight is None else seen.weight
    expected = {"vib": rate.sum(1), "dib": (rate + q.entropy()).sum(1), "ceb": (surprise * weight).sum(1)}
    for estimator, value in expected.items():
        assert load_estimator(estimator).penalty(seen).item() == pytest.approx(value.mean().item(), rel=1e-4)
    assert (seen.weight is not None) == (family == "mask")
    both = code_cost(seen.posterior, seen.prior, 1.0) + seen.posterior.entropy().sum(-1).mean()
    assert both.item() == pytest.approx(load_estimator("dib").penalty(seen).item(), rel=1e-5)


def dependent(rows, seed=0):
    pictures = torch.randn(rows, 3, 2, 2, generator=seeded(seed))
    vectors = pictures.flatten(1)[:, :6].tanh() + 0.3 * torch.randn(rows, 6, generator=seeded(seed + 1))
    return pictures, vectors.view(rows, 3, 2)


def test_the_kernel_penalty_is_hyppos_statistic(monkeypatch):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # compiling it takes a minute, running it a moment
    from hyppo.independence import Hsic

    pictures, vectors = dependent(40)
    flat = (part.flatten(1).double().numpy() for part in (pictures, vectors))
    reference = Hsic(bias=False, gamma=1 / (2 * 3.0**2)).statistic(*flat)
    seen = Observed(inputs=pictures, vectors=vectors, kernels=Kernels(bandwidth=3.0))
    assert reference > 0.05
    assert load_estimator("hsic").penalty(seen).item() == pytest.approx(reference, abs=1e-5)


def test_kernel_terms_are_hsic_or_cka_of_the_arrays_they_name():
    pictures, vectors = dependent(30)
    text = torch.randn(30, 5, generator=seeded(4))
    for kernels, measure in (
        (Kernels(consistency="kernels", normalized=False), hsic),
        (Kernels(consistency="kernels", bandwidth="median"), cka),
    ):
        widths = {"bandwidth_x": kernels.bandwidth, "bandwidth_z": kernels.bandwidth}
        seen = Observed(inputs=pictures, vectors=vectors, text=text, kernels=kernels)
        assert torch.equal(load_estimator("hsic").penalty(seen), measure(pictures, vectors, **widths))
        assert torch.equal(load_estimator("hsic").consistency(seen), measure(text, vectors, **widths))
    seen = Observed(inputs=pictures, vectors=vectors, kernels=Kernels(estimator="rff"), generator=seeded(5))
    expected = cka(
        pictures, vectors, estimator="rff", bandwidth_x="dimension", bandwidth_z="dimension", generator=seeded(5)
    )
    assert torch.equal(load_estimator("hsic").penalty(seen), expected)


@pytest.mark.parametrize("normalized", [True, False])
def test_the_kernel_penalty_of_independent_tokens_averages_to_zero(normalized):
    pictures, vectors = dependent(16)
    vectors.requires_grad_()
    seen = Observed(
        inputs=pictures, vectors=vectors, kernels=Kernels(normalized=normalized, bandwidth=3.0), generator=seeded(6)
    )
    draws = torch.stack([load_estimator("hsic").independent(seen) for _ in range(1000)])
    assert not draws.requires_grad
    error = draws.std() / math.sqrt(1000)
    assert abs(draws.mean()) < 3.5 * error
    assert load_estimator("hsic").penalty(seen) > 30 * error


def correlated(count, rho, generator):
    """Token vectors (count, 2, 2) and text states (count, 4) whose coordinates correlate by rho, one by one."""
    vectors, fresh = torch.randn(2, count, 4, generator=generator)
    text = rho * vectors + math.sqrt(1 - rho**2) * fresh
    return vectors.view(count, 2, 2), text


def test_the_consistency_bound_approaches_a_known_information_from_below():
    rho, batch, generator = 0.8, 64, seeded(7)
    exact = -0.5 * 4 * math.log(1 - rho**2)
    torch.manual_seed(0)
    critic = InfoNCE(2, 2, 4)
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    for _ in range(400):
        vectors, text = correlated(batch, rho, generator)
        optimizer.zero_grad()
        (-critic(vectors, text)).backward()
        optimizer.step()
    with torch.no_grad():
        fresh = torch.stack([critic(*correlated(batch, rho, generator)) for _ in range(200)])
        apart = torch.stack([critic(*correlated(batch, 0.0, generator)) for _ in range(50)])
    error = fresh.std() / math.sqrt(200)
    print(exact, fresh.mean(), error, apart.mean())
    assert exact / 2 < fresh.mean() < exact + error
    assert apart.mean() < 0


def test_the_consistency_bound_is_at_most_the_log_of_the_batch():
    torch.manual_seed(0)
    critic = InfoNCE(1, 8, 8)
    with torch.no_grad():
        for layer in (critic.of_tokens, critic.of_text):
            layer.weight.copy_(torch.eye(64, 8))
            layer.bias.zero_()
        critic.log_scale.fill_(10.0)
        same = torch.eye(8)
        assert critic(same[:, None], same).item() == pytest.approx(math.log(8), abs=1e-5)
        assert critic(same[:, None], same.roll(1, 0)).item() < -90  # the scale is held at 100


@pytest.mark.parametrize(
    ("estimator", "kind"),
    [("vib", "infonce"), ("dib", "infonce"), ("ceb", "infonce"), ("hsic", "infonce"), ("hsic", "kernels")],
)
def test_consistency_moves_tokenizer_and_critic_alone(estimator, kind):
    tested = model()
    torch.manual_seed(0)
    critic = InfoNCE(4, 4, 16)
    pictures = images(6)
    vectors = tested.tokenizer.sample(tested.tokenizer.encode(pictures), seeded()).vectors
    text = torch.randn(6, 16, generator=seeded(1))
    kernels = Kernels(consistency=kind)
    seen = Observed(vectors=vectors, text=text, critic=critic, kernels=kernels)
    load_estimator(estimator).consistency(seen).backward()
    assert gradients(tested.tokenizer.encoder) > 0
    assert gradients(tested.backbone) == gradients(tested.family) == gradients(tested.priors) == 0
    assert (gradients(critic) > 0) == (kind == "infonce")


def rate_of(beta):
    """Bits that some tokenizer sends under a price beta: falls from 60 to 0."""
    return torch.tensor(60.0 / (1 + 40 * float(beta) ** 0.7))


@pytest.mark.parametrize(("target", "start"), [(30.0, 0.001), (30.0, 1.0), (8.0, 0.01)])
def test_the_multiplier_drives_a_rate_to_its_target_from_either_side(target, start):
    multiplier, beta = Multiplier(target, start), torch.tensor(start)
    rates = []
    for _ in range(400):
        rates.append(rate_of(beta).item())
        beta = multiplier.update(rate_of(beta))
    assert rates[-1] == pytest.approx(target, rel=0.05)
    assert max(abs(rate - target) for rate in rates[-50:]) < 0.05 * target
    # 60 / (1 + 40 b^0.7) = target, solved by hand.
    assert beta.item() == pytest.approx(((60 / target - 1) / 40) ** (1 / 0.7), rel=0.2)


def test_a_targets_warmup_brings_the_target_down_from_the_first_rate():
    multiplier, speed = Multiplier(20.0, 0.1, warmup=4), 0.05
    # The rate stays at 40, from where the target comes down to 20 in four steps.
    targets = [35.0, 30.0, 25.0, 20.0, 20.0]
    betas = [multiplier.update(torch.tensor(40.0)).item() for _ in targets]
    wanted = [0.1 * math.exp(speed * sum(min(1, 40 / t - 1) for t in targets[: k + 1])) for k in range(5)]
    assert betas == pytest.approx(wanted, rel=1e-5)
    # A rate that is at the target already leaves beta alone.
    assert Multiplier(20.0, 0.1, warmup=4).update(torch.tensor(20.0)).item() == pytest.approx(0.1, rel=1e-6)


def test_the_first_updates_of_the_multiplier_are_the_hand_worked_ones():
    multiplier = Multiplier(20.0, 0.1)
    # Averages 30, then 0.9 * 30 + 0.1 * 10 = 28: errors 0.5 and 0.4, at 0.05 each; 100 counts as twice the target.
    assert multiplier.update(torch.tensor(30.0)).item() == pytest.approx(0.1 * math.exp(0.025), rel=1e-5)
    assert multiplier.update(torch.tensor(10.0)).item() == pytest.approx(0.1 * math.exp(0.045), rel=1e-5)
    assert Multiplier(20.0, 0.1).update(torch.tensor(100.0)).item() == pytest.approx(0.1 * math.exp(0.05), rel=1e-5)


def test_a_multiplier_goes_on_from_its_state():
    generator = seeded(9)
    rates = 40 * torch.rand(60, generator=generator)
    whole, first, second = (Multiplier(20.0, 0.01) for _ in range(3))
    expected = [whole.update(rate) for rate in rates]
    for rate in rates[:25]:
        first.update(rate)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(second.update(rate), beta) for rate, beta in zip(rates[25:], expected[25:], strict=True))


def test_the_multiplier_stays_within_its_range():
    for rate, bound in ((1e6, 1e3), (0.0, 1e-6)):
        multiplier = Multiplier(20.0, 0.01)
        betas = [multiplier.update(torch.tensor(rate)).item() for _ in range(400)]
        assert betas[-1] == pytest.approx(bound, rel=1e-4)
