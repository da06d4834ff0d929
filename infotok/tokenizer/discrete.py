"""The discrete visual tokenizer: a patch encoder, a cosine codebook as a noisy channel, a patch decoder.

The posterior is q(c|x) = softmax(scale * cos(feature, code)), with a learned scale. In training tokens are sampled
from it (Gumbel straight-through; Jang et al. 2017), so that the rate bounds what really flows. The scale is sharp, so
that little of the capacity carries noise, and the backward pass softens it by `relaxation`, the temperature of the
Gumbel softmax: a sharp softmax passes no gradient.
Shapes: B images, K tokens, C codes, D dimensions of a code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.distributed import ALONE, World
from infotok.information.channel import Categorical, gumbel, modes, one_hot
from infotok.information.priors import CategoricalPrior
from infotok.information.rate import code_statistics
from infotok.random import Source
from infotok.tensors import fill, whole
from infotok.tokenizer import base
from infotok.tokenizer.base import TokenizerConfig, Tokens

CACHED = 2**18  # logits whose gradient a CPU computes at once: 1 MiB of float32, of which three tensors live at once


class DiscreteTokenizer(base.Tokenizer[Categorical]):
    """Images to K codes of a codebook, and back."""

    def __init__(self, config: TokenizerConfig, *, image_size: int, tokens: int):
        super().__init__(config, image_size=image_size, tokens=tokens)
        self.codebook = nn.Parameter(torch.randn(config.codebook, config.dimension))
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))

    def make_prior(self) -> CategoricalPrior:
        return CategoricalPrior(self.tokens, self.config.codebook)

    @property
    def capacity_bits(self) -> float:
        """K log2 C."""
        return self.tokens * math.log2(self.config.codebook)

    def features(self, images: Tensor) -> Tensor:
        """Unit features (B, K, D) of images (B, 3, S, S) in [-1, 1]; float32, outside autocast from here on."""
        return F.normalize(self.encoder(images).float(), dim=-1)

    def codes_unit(self) -> Tensor:
        """The codebook on the unit sphere, (C, D)."""
        return F.normalize(self.codebook.float(), dim=-1)

    def posterior_of(self, features: Tensor) -> Categorical:
        """q(z|x) of unit features (B, K, D)."""
        with torch.autocast(features.device.type, enabled=False):
            # The scale goes onto the features: there are fewer of them than of logits.
            return Categorical((self.log_scale.exp() * features) @ self.codes_unit().T, self.config.relaxation)

    def encode(self, images: Tensor) -> Categorical:
        return self.posterior_of(self.features(images))

    def sample(self, posterior: Categorical, generator: Source) -> Tokens:
        """Hard codes forward, the gradient of the soft posterior backward."""
        logits = posterior.logits
        with torch.autocast(logits.device.type, enabled=False):
            if self.config.channel == "sampled":
                logits = logits + gumbel(logits, generator)
            codes, table = modes(logits), self._scaled_codes()
            hard = F.embedding(codes, table)
            return Tokens(_StraightThrough.apply(hard, logits, table, self.config.relaxation), codes)

    def channel_of(self, posterior: Categorical) -> Categorical:
        """q itself, or all mass on its mode when deterministic."""
        if self.config.channel == "sampled":
            return posterior
        return one_hot(modes(posterior.logits), posterior.logits.shape[-1])

    def embed(self, codes: Tensor) -> Tensor:
        """Vectors (..., D) of codes (...)."""
        return self._scaled_codes()[codes]

    def health(self, tokens: Tokens, channel: Categorical) -> dict[str, float]:
        """`code_statistics`."""
        assert tokens.codes is not None
        return code_statistics(tokens.codes, self.config.codebook)

    def collapse_warning(self, health: dict[str, float]) -> str | None:
        """A sentence when under a tenth of the codes carry the usage."""
        codebook = self.config.codebook
        if health["perplexity"] >= 0.1 * codebook:
            return None
        return (
            f"codebook collapse: perplexity {health['perplexity']:.1f} of {codebook} codes, "
            f"{health['dead_codes']:.0f} never used; raise pretrain.usage_weight or lower tokenizer.codebook"
        )

    def _scaled_codes(self) -> Tensor:
        # Unit variance per dimension, as the layers that read the vectors expect.
        return self.codes_unit() * self.config.dimension**0.5

    def usage_entropy(self, posterior: Categorical, world: World = ALONE) -> Tensor:
        """Entropy of the codebook's mean soft usage over the batch of all processes, nats (scalar); at most log C."""
        mean = world.gather(posterior.logits.softmax(-1).mean((0, 1))[None]).mean(0)
        return -(mean * mean.clamp_min(1e-12).log()).sum()

    @torch.no_grad()
    def revive(self, dead: Tensor, features: Tensor, generator: torch.Generator) -> int:
        """Move dead codes (bool, (C,)) onto random live features (B, K, D); returns how many moved."""
        count = int(dead.sum())
        if count:
            pool = features.reshape(-1, features.shape[-1])
            chosen = torch.randint(len(pool), (count,), generator=generator, device=pool.device)
            jitter = torch.randn(count, pool.shape[-1], generator=generator, device=pool.device) * 0.01
            codes = whole(self.codebook)
            codes[dead] = (pool[chosen] + jitter).to(codes.dtype)
            fill(self.codebook, codes)
        return count


class _StraightThrough(torch.autograd.Function):
    """Hard vectors (B, K, D) forward; backward their own gradient, and to the logits (B, K, C) that of the soft ones,
    softmax(logits / relaxation) @ table. Written out, it needs neither one-hot matrices nor soft vectors, which at
    thousands of codes took longer than all else here."""

    @staticmethod
    def forward(ctx, hard: Tensor, logits: Tensor, table: Tensor, relaxation: float) -> Tensor:
        ctx.save_for_backward(logits, table)
        ctx.relaxation = relaxation
        return hard.view_as(hard)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            return upstream, None, None, None
        logits, table = ctx.saved_tensors
        found, codes = torch.empty_like(logits, memory_format=torch.contiguous_format), (table / ctx.relaxation).T
        tokens = _tokens_at_a_time(logits)
        given = (tensor.flatten(0, -2).split(tokens) for tensor in (logits, upstream, found))
        for some_logits, some_upstream, gradient in zip(*given, strict=True):
            soft = (some_logits / ctx.relaxation).softmax(-1)
            towards = some_upstream @ codes
            mean = torch.linalg.vecdot(soft, towards)[:, None]
            gradient.copy_(towards.sub_(mean).mul_(soft))
        return upstream, found, None, None


def _tokens_at_a_time(logits: Tensor) -> int:
    """All of them, but on a CPU as many as stay in its cache from one operation to the next."""
    tokens = logits.shape[:-1].numel()
    return tokens if logits.is_cuda else min(tokens, max(1, CACHED // logits.shape[-1]))
