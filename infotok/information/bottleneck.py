"""The regularizer: beta * estimate of I(X;Z) - gamma * estimate of I(Z;T), for the tokens of any tokenizer.

Joint training here (`infotok.training.joint`) and a training loop of your own call the same module.
Shapes: B images, K tokens, C codes, D dimensions of a token. Information in nats, summed over the tokens of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from infotok.information.bits import Bits, make_bit_prior
from infotok.information.channel import Categorical, Channel, Gaussian
from infotok.information.consistency import InfoNCE
from infotok.information.factored import Factored, LowRankPrior, SharedPrior
from infotok.information.kernels import Kernels
from infotok.information.multiplier import Multiplier
from infotok.information.nearest import NearestCodes
from infotok.information.objective import NONE, NOT_GIVEN, Observed, code_cost, contrast, load_estimator
from infotok.information.priors import KINDS, AutoregressivePrior, CategoricalPrior, GaussianPrior, Priors, padded
from infotok.information.units import NATS_PER_BIT
from infotok.random import Purpose, Source, stream

FEWEST_TEXTS = 4  # that consistency needs, over all processes: fewer, after caption dropout, say nothing of it
Given = Channel | NearestCodes | Factored | Bits
LARGE = ("shared", "low_rank")  # priors of large codebooks
GIVEN = "given"  # a prior that every call hands in
Consistency = Literal["contrast", "likelihood"]
INPUTS = {
    "posterior": "q(z|x)",
    "conditional": "what the generator says of these tokens given their text",
    "prior": "what your generator says of these tokens without a text",
    "inputs": "the images that the tokens are compared with",
    "vectors": "the tokens that flowed",
    "text": "states of the images' texts",
    "text_nats": "what your model needs for the images' texts, given their tokens",
}


@dataclass
class Regularization:
    """loss: add it to yours (scalar). parts: scalars for the log, detached: `penalty` and `beta`, and for hsic
    `penalty_independent`, what so few images would give if images and tokens were independent; of the prior
    `rate_bits` and `code_length_bits` per image; of several priors the others' rates too, named after them; with gamma
    `consistency`, an estimate of I(Z;T) in nats, by likelihood less the texts' entropy, which no token changes."""

    loss: Tensor
    parts: dict[str, Tensor]


def posterior_logits(features: Tensor, codebook: Tensor) -> Tensor:
    """What a nearest-neighbour quantizer implies about its codes: log p(feature | code), up to a constant.

    Every code is taken as a Gaussian around its vector, with the variance that maximizes the likelihood of the nearest
    codes: the mean squared quantization error per dimension, detached.

    Args:
        features: (B, K, D), before quantization. codebook: (C, D).

    Returns:
        (B, K, C), for `InformationBottleneck`.
    """
    squared = torch.cdist(features.float().flatten(0, 1), codebook.float()).square()
    variance = (squared.detach().amin(-1).mean() / features.shape[-1]).clamp_min(1e-8)
    return (-squared / (2 * variance)).view(*features.shape[:2], -1)


def itself(value: Tensor) -> Tensor:
    """What gathers rows or averages values where there is one process."""
    return value


class InformationBottleneck(nn.Module):
    """beta * estimate of I(X;Z) - gamma * estimate of I(Z;T), with a prior and a critic of its own.

    Put its parameters into an optimizer: the prior learns what tokens are frequent by a loss whose gradient reaches
    nothing else, the critic to tell from tokens which text is theirs. Where the tokenizer is frozen the term has no
    gradient to give: it takes what comes before quantization, never ids.

    Args:
        estimator: `vib` (rate; for a channel that samples its tokens), `dib` (code length; also for a deterministic
            quantizer), `ceb` (code length under your generator's own p(z | text)), `hsic` (kernel dependence of
            inputs and token vectors, without a prior), or `none`: the baseline, whose prior learns and tells the rate.
            The code length of Gaussian tokens falls with their scale: unless your tokenizer bounds their noise from
            below, take `vib`.
        beta: loss per nat per image, or per unit of dependence.
        gamma: reward per nat of a lower bound on I(tokens; text), or with `kernels.consistency` per unit of dependence.
        consistency: that bound. `contrast`, by a critic of its own that finds each image's text among the batch's, of
            at least four (van den Oord et al. 2018), at most the log of their number; text_width: of the text states.
            `likelihood`, by your model's own -log p(text | tokens) (Barber and Agakov 2003), with no such limit. So
            that the model does not learn gamma times as much of texts and less of all else, let its gradient reach the
            tokens alone, or see `emphasis`.
        tokens: K. codebook: C of discrete tokens. bits: D of lookup-free tokens, instead of their 2 ** D codes.
            dimension: D of Gaussian tokens; of discrete ones, D of their vectors, which the autoregressive prior and
            the learned bound need.
        prior: `marginal`, or `autoregressive`, which is tighter where tokens depend on each other; of large codebooks
            `shared`, one distribution for all positions, or `low_rank`, one per position whose logits have `rank`; of
            bits `marginal` or `shared`, with independent bits; `given`: no prior of its own, but one that every call
            hands in.
        rates: learn a prior and tell the rate also where the estimator needs none, as hsic does.
        priors: ready ones instead of one of its own. All of them learn, whatever the estimator, and the penalty uses
            the one that `prior` names.
        warmup: training steps over which beta and gamma rise linearly from 0, or the target comes down from the first
            rate. A call in training mode is a step.
        target_bits: drive the rate to these bits per image by a multiplier that starts at beta.
        kernels: of hsic.
        gather: where several processes, or micro-batches, share a batch: gives the rows of all from those of this one,
            differentiable. average: gives the mean of a value over processes; the loss is to be averaged likewise.

    Raises:
        ValueError: the estimator is unknown, sizes are missing, or two settings exclude each other.
    """

    steps: Tensor

    def __init__(
        self,
        estimator: str = "dib",
        *,
        beta: float,
        gamma: float = 0.0,
        consistency: Consistency = "contrast",
        tokens: int | None = None,
        codebook: int | None = None,
        bits: int | None = None,
        dimension: int | None = None,
        prior: str = "marginal",
        rank: int = 16,
        rates: bool = False,
        priors: Priors | None = None,
        warmup: float = 0,
        target_bits: float | None = None,
        kernels: Kernels = Kernels(),
        text_width: int | None = None,
        gather: Callable[[Tensor], Tensor] = itself,
        average: Callable[[Tensor], Tensor] = itself,
    ):
        super().__init__()
        self.estimator = load_estimator(estimator)
        for name, value in (("beta", beta), ("gamma", gamma), ("warmup", warmup)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if estimator == NONE and beta:
            raise ValueError(f"estimator 'none' has no penalty for beta {beta} to weigh: set beta to 0")
        if prior not in (*KINDS, *LARGE, GIVEN):
            raise ValueError(f"unknown prior {prior!r}: choose one of {', '.join((*KINDS, *LARGE, GIVEN))}")
        self.name, self.beta, self.gamma, self.warmup, self.kernels = estimator, beta, gamma, warmup, kernels
        self.gather, self.average, self.kind = gather, average, prior
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        if priors is not None:
            sizes = (
                ("tokens", tokens, priors.tokens),
                ("dimension", dimension, priors.dimension),
                ("codebook", codebook, priors.codebook),
            )
            for name, wanted, own in sizes:
                if wanted not in (None, own):
                    raise ValueError(f"{name} is {wanted}, but {own} in `priors`: leave it out")
            tokens, dimension, codebook = priors.tokens, priors.dimension, priors.codebook
        if bits is not None and (codebook is not None or priors is not None):
            raise ValueError("bits stand in the place of `codebook` and have no `priors`: give one of the three")
        self.tokens, self.codebook, self.bits, self.dimension = tokens, codebook, bits, dimension
        self.priors = priors
        self.prior: Any = None
        if priors is None and prior != GIVEN and (rates or "posterior" in self.estimator.needs):
            if bits is None:
                self.prior = _make_prior(prior, tokens, codebook, dimension, rank)
            else:
                self.prior = make_bit_prior(prior, tokens, bits)
        if consistency not in get_args(Consistency):
            raise ValueError(f"unknown consistency {consistency!r}: choose one of {', '.join(get_args(Consistency))}")
        learned = self.estimator.consistency is contrast or kernels.consistency == "infonce"
        self.by_likelihood = learned and consistency == "likelihood"
        self.critic: Any = None
        if gamma and learned and not self.by_likelihood:
            self.critic = self._make_critic(text_width)
        given = prior == GIVEN and (rates or "posterior" in self.estimator.needs)
        self.learns = given or self.prior is not None or self.priors is not None
        self.multiplier = None if target_bits is None else self._make_multiplier(target_bits)
        self.needs = {estimator: [n for n in self.estimator.needs if n in INPUTS and n != "prior"]}  # which it has
        if gamma:
            self.needs["consistency"] = ["text_nats"] if self.by_likelihood else ["vectors", "text"]
        if rates:
            self.needs["the rate"] = ["posterior"]
        if given:
            self.needs["the given prior"] = ["posterior", "prior"]
        if priors is not None:
            self.needs["learning `priors`"] = ["posterior", "vectors"]
        elif isinstance(self.prior, AutoregressivePrior):
            self.needs["the autoregressive prior"] = ["vectors"]

    def _make_multiplier(self, target_bits: float) -> Multiplier:
        if self.estimator.penalty is None or not self.learns:
            raise ValueError(f"target_bits needs a rate to press, and {self.name} has none: choose another estimator")
        if not (target_bits > 0 and self.beta > 0):
            raise ValueError(f"target_bits and beta must be above 0, got {target_bits} and {self.beta}")
        return Multiplier(target_bits, self.beta, round(self.warmup))

    def _make_critic(self, text_width: int | None) -> InfoNCE:
        if self.tokens is None or self.dimension is None or text_width is None:
            raise ValueError("gamma needs `tokens`, `dimension` and `text_width`, the sizes of what it compares")
        return InfoNCE(self.tokens, self.dimension, text_width)

    def forward(
        self,
        posterior: Tensor | Given | None = None,
        conditional: Tensor | Given | None = None,
        *,
        prior: Tensor | Given | None = None,
        channel: Tensor | Given | None = None,
        weight: Tensor | None = None,
        inputs: Tensor | None = None,
        vectors: Tensor | None = None,
        text: Tensor | None = None,
        has_text: Tensor | None = None,
        text_nats: Tensor | None = None,
        generator: Source | None = None,
    ) -> Regularization:
        """The term of one step; in training mode it counts the step for warm-up or multiplier.

        Images may have fewer than K tokens, the first k of them: everything is then (B, k, ...).

        Args:
            posterior: q(z|x), logits (B, K, C) of discrete tokens, `Categorical` of them with the relaxation of the
                channel's backward pass, `NearestCodes` of a codebook too large for logits, `Bits` or their log odds
                (B, K, D), or `Gaussian(mean, log_variance)`, each (B, K, D).
            conditional: what your generator says of the same tokens given their text, for `ceb`, in the same form, or
                `Factored` beside `NearestCodes`; its gradients are stopped.
            prior: what your generator says of the same tokens without a text, in the same form, where the prior is
                `given`; its gradients are stopped.
            channel: the distribution that tokens really follow where that is not the posterior, as in a deterministic
                quantizer: the priors learn from it, and it has the rate.
            weight: (B, K), how often the code length of each token counts, for `ceb`.
            vectors: (B, K, D), the tokens that flowed, for `hsic`, the autoregressive prior and gamma.
            inputs: (B, ...), the images that `hsic` compares them with.
            text: (B, text_width), states of the images' texts, for consistency by contrast; its gradients are stopped.
            has_text: (B,) bool, False where an image has no text or it was dropped; None: all have one.
            text_nats: (B,), -log p(text | tokens) of your model, with its gradients, for consistency by likelihood; 0
                where an image has no text.
            generator: draws what kernel dependence draws, alike in all processes; None: one seeded by the step.

        Raises:
            ValueError: something is missing, or has a shape that does not belong to this tokenizer.
        """
        given = {"posterior": posterior, "conditional": conditional, "prior": prior}
        given |= {"inputs": inputs, "vectors": vectors, "text": text, "text_nats": text_nats}
        for who, names in self.needs.items():
            if any(given[name] is None for name in names):
                raise ValueError(f"{who} needs " + " and ".join(f"`{name}` ({INPUTS[name]})" for name in names))
        if self.training:
            self.steps += 1
        rise = self._rise(self.steps)
        own = self.compared(inputs=inputs, vectors=vectors, text=text, has_text=has_text)
        whole: dict[str, Any] = {name: self.gather(rows) for name, rows in own.items()}
        everyone = whole.get("vectors", NOT_GIVEN)
        shared: dict[str, Any] = {"kernels": self.kernels, "generator": self._generator(generator, everyone)}
        loss, q, r, p = torch.zeros_like(rise), NOT_GIVEN, NOT_GIVEN, NOT_GIVEN
        parts: dict[str, Tensor] = {}
        rates: dict[str, Tensor] = {}
        if self.learns:
            q = self._channel(posterior, "the posterior")
            flowing = q if channel is None else self._channel(channel, "`channel`", q.tokens)
            if self.kind == GIVEN:
                priors = {GIVEN: self._channel(prior, "`prior`", q.tokens).detach()}
            else:
                priors = self._predicted(q.tokens, vectors)
            loss, rates, parts = self._learn(flowing.detach(), priors)
            r = priors[self.kind].detach()
        if self.estimator.penalty is not None:
            if conditional is not None and q is not None:
                p = self._channel(conditional, "`conditional`", q.tokens).detach()
            images = whole.get("inputs", NOT_GIVEN)
            observed = Observed(
                posterior=q, prior=r, conditional=p, weight=weight, inputs=images, vectors=everyone, **shared
            )
            cost = self.estimator.penalty(observed)
            beta = self.beta * rise if self.multiplier is None else self._driven(rates[self.kind])
            loss, parts = loss + beta * cost, parts | {"penalty": cost.detach(), "beta": beta}
            if self.estimator.independent is not None:
                parts["penalty_independent"] = self.estimator.independent(observed).detach()
        if "text" in whole:
            gain = everyone.new_zeros(())
            if len(everyone) >= FEWEST_TEXTS:
                present = whole.get("has_text")
                compared = Observed(vectors=everyone, text=whole["text"], present=present, critic=self.critic, **shared)
                gain = self.estimator.consistency(compared)
                if present is not None:
                    gain = torch.where(present.sum() >= FEWEST_TEXTS, gain, 0.0)
            loss, parts = loss - self.gamma * rise * gain, parts | {"consistency": gain.detach()}
        if self.gamma and self.by_likelihood:
            assert text_nats is not None
            if text_nats.ndim != 1:
                raise ValueError(f"`text_nats` must be (B,), one number an image, got {tuple(text_nats.shape)}")
            gain = -text_nats.float().mean()
            loss, parts = loss - self.gamma * rise * gain, parts | {"consistency": gain.detach()}
        return Regularization(loss, parts)

    def emphasis(self, weight: float) -> Tensor | None:
        """For consistency by likelihood where your loss has -log p(text | tokens) with a weight already: by how much to
        multiply the gradient with which it reaches the tokens (`infotok.information.consistency.emphasized`) in the
        call that comes next, which then is given `text_nats` without a gradient. None where gamma is no likelihood's.
        """
        if not (self.gamma and self.by_likelihood):
            return None
        return 1 + self.gamma * self._rise(self.steps + self.training) / weight

    def _rise(self, steps: Tensor) -> Tensor:
        """The share of beta and gamma that holds at a step."""
        return (steps / self.warmup).clamp(max=1.0) if self.warmup else torch.ones_like(steps).float()

    def compared(
        self,
        *,
        inputs: Tensor | None = None,
        vectors: Tensor | None = None,
        text: Tensor | None = None,
        has_text: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Of what a call is given, the rows that are compared across images, in the order in which `gather` is asked
        for them: who trains by micro-batches collects these first."""
        found: dict[str, Tensor | None] = {}
        if vectors is not None:
            found["vectors"] = self._padded(vectors)
        if "inputs" in self.estimator.needs:
            found["inputs"] = inputs
        if self.gamma and text is not None and not self.by_likelihood:
            found |= {"text": text.detach(), "has_text": has_text}
        return {name: rows for name, rows in found.items() if rows is not None}

    def _learn(self, flowing: Channel, priors: dict[str, Channel]) -> tuple[Tensor, dict[str, Tensor], dict]:
        """A loss of value 0 whose gradient teaches the priors; the rate under each, bits; what is logged of them."""
        lengths = {kind: code_cost(flowing, prior, entropy_weight=0.0) for kind, prior in priors.items()}
        cost = torch.stack(list(lengths.values()))
        with torch.no_grad():
            bits = self.average(torch.cat([cost, flowing.entropy().sum(-1).mean()[None]]) / NATS_PER_BIT)
            rates = dict(zip(lengths, bits[:-1] - bits[-1], strict=True))
            length = dict(zip(lengths, bits[:-1], strict=True))[self.kind]
        names = {kind: "rate_bits" if kind == "marginal" or len(rates) == 1 else f"{kind}_rate_bits" for kind in rates}
        parts = {names[kind]: rate for kind, rate in rates.items()} | {"code_length_bits": length}
        return (cost - cost.detach()).sum(), rates, parts

    def _driven(self, rate_bits: Tensor) -> Tensor:
        """The multiplier's beta, moved by a step's rate in training alone."""
        assert self.multiplier is not None
        return self.multiplier.update(rate_bits) if self.training else self.multiplier.log_beta.exp()

    def _generator(self, given: Source | None, vectors: Tensor | None) -> Source | None:
        """What draws the step's random features and permutations."""
        draws = "vectors" in self.estimator.needs or self.estimator.consistency is not contrast
        if given is not None or vectors is None or not draws:
            return given
        return stream(vectors.device, int(self.steps), Purpose.KERNELS)

    def _channel(self, given: Tensor | Given | None, name: str, count: int | None = None) -> Any:
        """Logits or a distribution as one over the first `count` tokens of this tokenizer, or over as many as it is."""
        assert self.tokens is not None  # as there is a prior
        if self.bits is not None:
            return self._of_bits(given, name, count)
        discrete = self.codebook is not None
        if discrete and isinstance(given, Tensor):
            given = Categorical(given)
        if discrete and isinstance(given, NearestCodes | Factored):
            found, most = tuple(given.shape), self.tokens if count is None else count
            fits = len(found) == 3 and found[2] == self.codebook and found[1] <= most
            if not fits or count not in (None, found[1]):
                raise ValueError(f"{name} must be of (B, {most}, {self.codebook}) codes, got {found}")
            return given
        kind, size = (Categorical, self.codebook) if discrete else (Gaussian, self.dimension)
        wanted = "logits" if discrete else "Gaussian(mean, log_variance), each"
        shape = f"(B, {self.tokens if count is None else count}, {size})"
        if not isinstance(given, kind):
            raise ValueError(f"{name} must be {wanted} {shape}, got {type(given).__name__}")
        for part in vars(given).values():
            if not isinstance(part, Tensor):
                continue
            fits = part.ndim == 3 and part.shape[2] == size and 1 <= part.shape[1] <= self.tokens
            if not fits or count not in (None, part.shape[1]):
                raise ValueError(f"{name} must be {wanted} {shape}, got {tuple(part.shape)}")
        return given

    def _of_bits(self, given: Tensor | Given | None, name: str, count: int | None) -> Bits:
        assert self.tokens is not None
        found, most = Bits(given) if isinstance(given, Tensor) else given, self.tokens if count is None else count
        if not isinstance(found, Bits):
            raise ValueError(
                f"{name} must be Bits or their log odds (B, {most}, {self.bits}), got {type(given).__name__}"
            )
        shape = tuple(found.logits.shape)
        fits = len(shape) == 3 and shape[2] == self.bits and 1 <= shape[1] <= most
        if not fits or count not in (None, shape[1]):
            raise ValueError(f"{name} must be of (B, {most}, {self.bits}) bits, got {shape}")
        return found

    def _padded(self, vectors: Tensor) -> Tensor | None:
        """The vectors as K tokens of each image, where something compares them."""
        if self.tokens is not None and self.dimension is not None:
            count, size = vectors.shape[1:] if vectors.ndim == 3 else (0, 0)
            if not (1 <= count <= self.tokens and size == self.dimension):
                raise ValueError(
                    f"`vectors` must be (B, {self.tokens}, {self.dimension}) or of fewer tokens, "
                    f"got {tuple(vectors.shape)}"
                )
        if (not self.gamma or self.by_likelihood) and "vectors" not in self.estimator.needs:
            return None
        return vectors if self.tokens is None else padded(vectors, self.tokens)

    def _predicted(self, count: int, vectors: Tensor | None) -> dict[str, Channel]:
        """Prior by kind of the first `count` tokens, given the vectors of a batch."""
        read = None if vectors is None else vectors[:, :count]
        if read is not None and read.shape[1] < count:
            raise ValueError(f"`vectors` are of {read.shape[1]} tokens, the posterior is of {count}")
        found = {self.kind: self.prior(read)} if self.priors is None else self.priors(read)
        return {kind: prior.first(count) for kind, prior in found.items()}


def _make_prior(kind: str, tokens: int | None, codebook: int | None, dimension: int | None, rank: int) -> nn.Module:
    marginal: CategoricalPrior | GaussianPrior
    if kind in LARGE and codebook is None:
        raise ValueError(f"the {kind} prior is of discrete tokens: give `codebook`")
    if tokens is not None and codebook is not None:
        if kind in LARGE:
            return SharedPrior(codebook) if kind == "shared" else LowRankPrior(tokens, codebook, rank)
        marginal = CategoricalPrior(tokens, codebook)
    elif tokens is not None and dimension is not None:
        marginal = GaussianPrior(tokens, dimension)
    else:
        raise ValueError("give `tokens` and, of discrete tokens, `codebook`, of Gaussian ones, `dimension`")
    if kind == "marginal":
        return marginal
    if dimension is None:
        raise ValueError("the autoregressive prior needs `dimension`, of the token vectors that it reads")
    return AutoregressivePrior(marginal, tokens, dimension)
