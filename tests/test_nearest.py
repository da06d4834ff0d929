"""Large nearest-neighbour codebooks: equal to the plain forms in values and gradients, in memory that stays flat."""

import math

import pytest
import torch
from torch.nn import functional as F

from infotok import InformationBottleneck, posterior_logits
from infotok.information.channel import Categorical
from infotok.information.factored import Factored, LowRankPrior, SharedPrior
from infotok.information.nearest import NearestCodes, calibrate_variance, look_up, nearest_codes
from infotok.information.objective import code_cost
from tiny import normal, seeded

B, K, C, D, R = 3, 5, 11, 4, 2
SCORES = 3 * C  # three tokens at a time: 15 tokens do not divide evenly


def channel(dtype=torch.float64, variance=0.4, scores=SCORES, **settings):
    features = normal(B, K, D, seed=1, dtype=dtype).requires_grad_()
    codebook = (3 + normal(C, D, seed=2, dtype=dtype)).requires_grad_()
    return NearestCodes(features + 3, codebook, variance, scores=scores, **settings), features, codebook


def priors(dtype=torch.float64):
    """Every form, and its tensors."""
    forms = {"shared": (1, C), "position": (K, C), "token": (B, K, C)}
    made = {name: Categorical(normal(*shape, seed=3, dtype=dtype).requires_grad_()) for name, shape in forms.items()}
    for name, left in (("rank", (K, R)), ("conditional", (B, K, R))):
        parts = [
            normal(*shape, seed=4 + i, dtype=dtype).requires_grad_() for i, shape in enumerate((left, (C, R), (C,)))
        ]
        made[name] = Factored(*parts)
        made[f"{name} without bias"] = Factored(*parts[:2])
    return made


def dense(prior):
    return prior if isinstance(prior, Categorical) else prior.dense()


def leaves(prior):
    return [t for t in vars(prior).values() if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("prior", priors())
@pytest.mark.parametrize("entropy_weight", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_cost_and_gradients_are_those_of_the_plain_form(prior, entropy_weight, weighted):
    q, features, codebook = channel()
    r = priors()[prior]
    weight = normal(B, K, seed=9).square() if weighted else None
    tensors = [features, codebook, *leaves(r)]
    plain = code_cost(q.dense(), dense(r), entropy_weight, weight)
    wanted = torch.autograd.grad(2.5 * plain, tensors)
    cost = q.code_cost(r, entropy_weight, weight)
    torch.testing.assert_close(cost, plain, rtol=0, atol=1e-12)
    for one, other in zip(torch.autograd.grad(2.5 * cost, tensors), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_it_is_posterior_logits_where_the_variance_is_the_batch_s():
    """The public plug-in's own logits, in float32, to 1e-6 of their size."""
    q, features, codebook = channel(torch.float32, variance=1.0)
    variance = calibrate_variance([q.features], q.codebook)
    q = NearestCodes(q.features, codebook, variance, scores=SCORES)
    r = Categorical(normal(K, C, seed=3, dtype=torch.float32).requires_grad_())
    plain = code_cost(Categorical(posterior_logits(q.features, codebook)), r, 1.0)
    cost = q.code_cost(r, 1.0)
    torch.testing.assert_close(cost, plain, rtol=1e-6, atol=1e-6)
    tensors = [features, codebook, r.logits]
    for one, other in zip(torch.autograd.grad(cost, tensors), torch.autograd.grad(plain, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("prior", ["shared", "position", "conditional"])
def test_gradients_of_the_cost_by_finite_differences(prior):
    _, features, codebook = channel()
    made = priors()[prior]
    tensors = leaves(made)

    def cost(features, codebook, *parts):
        return NearestCodes(features, codebook, 0.4, scores=SCORES).code_cost(type(made)(*parts), 0.7)

    moved = (features + 3).detach().requires_grad_()
    assert torch.autograd.gradcheck(cost, (moved, codebook, *tensors))


def test_a_relaxation_softens_the_gradient_and_not_the_value():
    q, features, codebook = channel(relaxation=3.0)
    r = priors()["position"].detach()
    plain, cost = code_cost(q.dense(), r, 0.5), q.code_cost(r, 0.5)
    torch.testing.assert_close(cost, plain, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(cost, [features, codebook]), torch.autograd.grad(plain, [features, codebook]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    exact, tensors, *_ = channel()
    assert not torch.allclose(
        *(torch.autograd.grad(x.code_cost(r, 0.5), y)[0] for x, y in ((q, features), (exact, tensors)))
    )


def test_lengths_and_entropies_of_tokens():
    q, *_ = channel()
    for r in priors().values():
        torch.testing.assert_close(q.code_length(r), q.dense().code_length(dense(r)).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(q.entropy(), q.dense().entropy().detach(), rtol=0, atol=1e-12)
    assert q.code_length(r).shape == q.entropy().shape == (B, K)


def test_detached_halves_train_channel_and_prior_apart_in_one_pass(monkeypatch):
    """As the plug-in asks: length of the stopped channel, cost against the stopped prior, rate without gradient."""
    from infotok.information import nearest

    passes = []
    monkeypatch.setattr(nearest, "go_through", lambda *a, f=nearest.go_through, **k: passes.append(1) or f(*a, **k))
    q, features, codebook = channel()
    r = priors()["position"]
    length, cost = q.detach().code_cost(r, 0.0), q.code_cost(r.detach(), 0.0)
    with torch.no_grad():
        rate = q.code_cost(r, 1.0)
    assert len(passes) == 1
    assert torch.autograd.grad(cost, [features, r.logits], allow_unused=True)[1] is None
    assert torch.autograd.grad(length, [features, r.logits], allow_unused=True)[0] is None
    assert not rate.requires_grad
    again = NearestCodes(q.features, codebook, 0.4, scores=SCORES)  # in the other order: two passes, the same
    cost, length = again.code_cost(r.detach(), 0.0), again.detach().code_cost(r, 0.0)
    assert len(passes) == 3
    assert torch.autograd.grad(length, r.logits)[0].abs().sum() > 0
    torch.testing.assert_close(rate, code_cost(q.dense(), r, 1.0).detach(), rtol=0, atol=1e-12)


def test_what_was_computed_of_a_prior_is_forgotten_once_it_has_learned():
    q, *_ = channel()
    r = priors()["shared"]
    before = q.code_cost(r, 0.0).item()
    with torch.no_grad():
        r.logits.mul_(-1)
    assert q.code_cost(r, 0.0).item() == pytest.approx(code_cost(q.dense(), r, 0.0).item(), abs=1e-12)
    assert q.code_cost(r, 0.0).item() != pytest.approx(before)


def test_a_code_that_the_prior_excludes_costs_nothing_where_q_is_zero():
    features, codebook = torch.zeros(1, 1, 2), torch.tensor([[0.0, 0.0], [1e3, 0.0]])
    prior = Categorical(torch.tensor([[0.0, -math.inf]]))
    q = NearestCodes(features.requires_grad_(), codebook, 1e-3)
    cost = q.code_cost(prior, 0.0)
    cost.backward()
    assert cost.item() == 0.0
    assert features.grad.isfinite().all()
    assert NearestCodes(features, codebook, 1e9).code_cost(prior, 0.0) > 1e30


def test_sharp_codes_keep_their_digits():
    """A thousand variances away and far from the origin, against float64."""
    features, codebook = normal(2, 8, D, seed=1) + 100, normal(64, D, seed=2) + 100
    prior = Categorical(normal(1, 64, seed=3))
    exact = NearestCodes(features, codebook, 1e-3).code_cost(prior, 1.0)
    single = NearestCodes(features.float(), codebook.float(), 1e-3).code_cost(Categorical(prior.logits.float()), 1.0)
    assert single.item() == pytest.approx(exact.item(), rel=1e-4)


class Saved:
    """Bytes that autograd keeps, each storage once."""

    def __enter__(self):
        self.sizes = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def keep(self, tensor):
        self.sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    @property
    def total(self):
        return sum(self.sizes.values())


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that any operation makes, in elements."""

    size = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.numel())
        return made


@pytest.mark.parametrize(("images", "codes"), [(2, 512), (8, 512), (2, 2048), (8, 2048)])
def test_memory_does_not_grow_with_tokens_times_codes(images, codes):
    tokens, scores = 64, 4096
    features = normal(images, tokens, D, dtype=torch.float32).requires_grad_()
    codebook = normal(codes, D, seed=1, dtype=torch.float32).requires_grad_()
    table = normal(codes, 6, seed=2, dtype=torch.float32).requires_grad_()
    prior, low = SharedPrior(codes), LowRankPrior(tokens, codes, R)
    with Saved() as saved, Largest() as largest:
        q = NearestCodes(features, codebook, 0.1, scores=scores)
        rows = look_up(table, nearest_codes(features, codebook, scores), features, codebook, 0.1, scores=scores)
        loss = q.code_cost(prior(), 0.5) + q.code_cost(low(), 0.5) + rows.square().sum()
        loss.backward()
    linear = 4 * (features.numel() + codebook.numel() + table.numel() + 2 * rows.numel() + sum(
        p.numel() for m in (prior, low) for p in m.parameters()
    ))  # fmt: skip
    assert saved.total < 4 * linear
    assert largest.size <= max(scores, 2 * linear / 4)
    assert largest.size < images * tokens * codes
    with Saved() as plain:
        code_cost(q.dense(), prior(), 0.5)
    assert plain.total > 4 * images * tokens * codes


def test_the_cost_s_gradients_come_in_the_types_of_what_was_given():
    _, features, codebook = channel(torch.float32)
    half = NearestCodes(features.to(torch.bfloat16), codebook.to(torch.bfloat16), 0.4)
    half.code_cost(SharedPrior(C)(), 0.0).backward()
    assert features.grad.dtype == codebook.grad.dtype == torch.float32


def test_nearest_codes_are_the_nearest():
    features, codebook = normal(B, 2, 3, D), normal(C, D, seed=1)
    wanted = torch.cdist(features.flatten(0, 2), codebook).argmin(-1).view(B, 2, 3)
    assert torch.equal(nearest_codes(features, codebook, scores=SCORES), wanted)


def test_the_variance_is_the_mean_squared_error_over_all_batches():
    codebook = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    batches = [torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[10.0, 3.0]], [[0.0, 2.0]]])]
    assert calibrate_variance(batches, codebook) == pytest.approx((1 + 9 + 4) / 6)


def test_the_variance_gives_the_entropy_that_is_asked_for():
    features, codebook = normal(4, 16, D), normal(32, D, seed=1)
    variance = calibrate_variance([features], codebook, entropy_bits=1.5)
    entropy = NearestCodes(features, codebook, variance).dense().entropy().mean() / math.log(2)
    assert entropy.item() == pytest.approx(1.5, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: calibrate_variance([], normal(C, D)), "no features"),
        (lambda: calibrate_variance([normal(2, D)], normal(4, D), entropy_bits=2.0), "between 0 and 2 bits"),
        (lambda: NearestCodes(normal(B, K, D), normal(C, D + 1), 1.0), r"\(B, K, D\)"),
        (lambda: NearestCodes(normal(B, K, D), normal(C, D), 0.0), "above 0"),
        (lambda: channel()[0].code_cost(Categorical(normal(K + 1, C)), 0.0), "5 tokens of 3 images"),
    ],
)
def test_what_does_not_fit_is_said(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()


def plain_look_up(table, codes, features, codebook, variance, gradient=1.0):
    """Written out: hard rows, the gradient of the soft ones."""
    q = (-torch.cdist(features, codebook).square() / (2 * variance)).softmax(-1)
    soft = gradient * (q @ table.detach())
    return table[codes] + soft - soft.detach()


@pytest.mark.parametrize("gradient", [1.0, 0.05, 0.0])
def test_look_up_gives_hard_rows_and_soft_gradients(gradient):
    features = normal(B * K, D, seed=1).requires_grad_()
    codebook, table = normal(C, D, seed=2).requires_grad_(), normal(C, 6, seed=3).requires_grad_()
    codes, upstream = nearest_codes(features, codebook), normal(B * K, 6, seed=4)
    rows = look_up(table, codes, features, codebook, 0.4, relaxation=2.0, gradient=gradient, scores=SCORES)
    assert torch.equal(rows, table[codes])
    tensors = [table, features, codebook]
    found = torch.autograd.grad(rows, tensors, upstream, allow_unused=True)
    wanted = torch.autograd.grad(plain_look_up(table, codes, features, codebook, 0.8, gradient), tensors, upstream)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(other) if one is None else one, other, rtol=0, atol=1e-10)


def test_priors_learn_what_the_codes_are():
    """To the entropy of the codes' frequencies: pooled where all positions share one, of each where they do not."""
    codes = torch.stack([torch.tensor([k % C, (k + i % 2) % C]) for i, k in enumerate(range(40))])
    q = NearestCodes(normal(C, D, seed=2, dtype=torch.float32)[codes], normal(C, D, seed=2, dtype=torch.float32), 1e-3)
    pooled = torch.bincount(codes.flatten(), minlength=C) / codes.numel()
    each = sum(torch.special.entr(torch.bincount(column, minlength=C) / len(codes)).sum() for column in codes.T)
    for prior, least in ((SharedPrior(C), 2 * torch.special.entr(pooled).sum()), (LowRankPrior(2, C, C), each)):
        optimizer = torch.optim.Adam(prior.parameters(), lr=0.1)
        for _ in range(300):
            length = q.detach().code_cost(prior(), 0.0)
            optimizer.zero_grad()
            length.backward()
            optimizer.step()
        assert length.item() == pytest.approx(least.item(), abs=1e-2)


def test_factored_logits_are_those_of_a_language_model_s_head():
    hidden, head = normal(B, K, R, seed=1), torch.nn.Linear(R, C, bias=False).double()
    given = Factored(hidden, head.weight)
    torch.testing.assert_close(given.dense().logits, head(hidden))
    log_r = F.log_softmax(head(hidden), -1)
    codes = torch.randint(C, (B, K), generator=seeded(2))
    book = torch.eye(C).double()
    length = NearestCodes(book[codes], book, 1e-3).code_length(given)
    torch.testing.assert_close(length, -log_r.gather(-1, codes[..., None])[..., 0].detach())


@pytest.mark.parametrize("estimator", ["vib", "dib", "ceb", "none"])
def test_the_plug_in_s_term_is_that_of_the_logits(estimator):
    """The same module, the same prior, the same generator's p(z | text): loss, parts and gradients."""
    found = []
    for plain in (False, True):
        q, features, codebook = channel(torch.float32, relaxation=1.0 if estimator == "vib" else 2.0)
        given = priors(torch.float32)["conditional"]
        beta = 0.0 if estimator == "none" else 0.7
        bottleneck = InformationBottleneck(estimator, beta=beta, tokens=K, codebook=C)
        with torch.no_grad():
            bottleneck.prior.logits.copy_(normal(K, C, seed=3))
        weight = normal(B, K, seed=9, dtype=torch.float32).square()
        term = bottleneck(q.dense(), given.dense(), weight=weight) if plain else bottleneck(q, given, weight=weight)
        term.loss.backward()
        gradients = [features.grad, codebook.grad, bottleneck.prior.logits.grad, given.left.grad]
        found.append((term.loss.detach(), term.parts, gradients))
    (loss, parts, gradients), (wanted, wanted_parts, wanted_gradients) = found
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-6)
    assert parts.keys() == wanted_parts.keys()
    for name in parts:
        torch.testing.assert_close(parts[name], wanted_parts[name], rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients, wanted_gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", ["shared", "low_rank"])
def test_the_plug_in_s_priors_of_large_codebooks(prior):
    """By name; of fewer tokens than K too, as elastic tokens are."""
    bottleneck = InformationBottleneck("dib", beta=0.7, tokens=K, codebook=C, prior=prior, rank=R)
    q, features, codebook = channel(torch.float32)
    parts = bottleneck(q).parts
    assert parts["code_length_bits"].item() == pytest.approx(K * math.log2(C), rel=1e-5)  # uniform
    fewer = NearestCodes(features[:, :2], codebook, 0.4)
    assert bottleneck(fewer).parts["code_length_bits"].item() == pytest.approx(2 * math.log2(C), rel=1e-5)
    bottleneck(q).loss.backward()
    assert sum(p.grad.abs().sum() for p in bottleneck.prior.parameters()) > 0


@pytest.mark.parametrize("estimator", ["dib", "vib", "none"])
def test_the_plug_in_takes_a_given_prior(estimator):
    """The code length under given logits, written out; no gradient reaches them."""
    q, features, _ = channel(torch.float32)
    left, right = normal(B, K, R, seed=5).float().requires_grad_(), normal(C, R, seed=6).float()
    beta = 0.0 if estimator == "none" else 0.7
    bottleneck = InformationBottleneck(estimator, beta=beta, tokens=K, codebook=C, prior="given")
    term = bottleneck(q, prior=Factored(left, right))
    probabilities = q.dense().logits.softmax(-1)
    length = -(probabilities * (left @ right.T).log_softmax(-1)).sum() / B
    rate = length - torch.special.entr(probabilities).sum() / B
    assert term.parts["rate_bits"].item() == pytest.approx(rate.item() / math.log(2), rel=1e-5)
    assert list(bottleneck.parameters()) == []
    if beta:
        wanted = length if estimator == "dib" else rate
        assert term.loss.item() == pytest.approx(0.7 * wanted.item(), rel=1e-5)
        (own,) = torch.autograd.grad(term.loss, features, retain_graph=True)
        torch.testing.assert_close(own, torch.autograd.grad(0.7 * wanted, features, retain_graph=True)[0])
        assert torch.autograd.grad(term.loss, left, allow_unused=True) == (None,)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (
            lambda plug: InformationBottleneck("dib", beta=1.0, tokens=K, codebook=C, prior="given")(
                NearestCodes(normal(B, K, D), normal(C, D), 1.0)
            ),
            "the given prior needs `posterior`.*`prior`",
        ),
        (lambda plug: plug(NearestCodes(normal(B, K + 1, D), normal(C, D), 1.0)), "5, 11"),
        (lambda plug: plug(NearestCodes(normal(B, K, D), normal(C + 1, D), 1.0)), "5, 11"),
        (lambda plug: InformationBottleneck("dib", beta=1.0, tokens=K, dimension=D, prior="shared"), "discrete tokens"),
        (lambda plug: InformationBottleneck("dib", beta=1.0, tokens=K, codebook=C, prior="wide"), "low_rank"),
    ],
)
def test_the_plug_in_says_what_does_not_fit(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong(InformationBottleneck("dib", beta=1.0, tokens=K, codebook=C))
