"""The regularizer in somebody else's tokenizer and loop."""

import math
import re
from pathlib import Path

import pytest
import torch

from infotok import InformationBottleneck
from infotok.bottleneck import posterior_logits

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
        assert term.parts["penalty_nats"].item() == pytest.approx(value.item(), rel=1e-5)
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


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: InformationBottleneck("vibe", beta=1.0, tokens=1, codebook=2), "unknown estimator 'vibe'"),
        (lambda: InformationBottleneck("vib", beta=-1.0, tokens=1, codebook=2), "beta must be at least 0"),
        (
            lambda: InformationBottleneck("vib", beta=1.0, tokens=1, codebook=2)(torch.zeros(3, 2, 2)),
            r"logits must be \(B, 1, 2\)",
        ),
        (
            lambda: InformationBottleneck("ceb", beta=1.0, tokens=1, codebook=2)(torch.zeros(3, 1, 2)),
            "ceb needs `conditional`",
        ),
    ],
)
def test_wrong_use_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()
