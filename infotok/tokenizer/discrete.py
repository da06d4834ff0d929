"""The discrete visual tokenizer: a patch encoder, a cosine codebook as a noisy channel, a patch decoder.

The posterior is q(c|x) = softmax(scale * cos(feature, code)), with a learned scale. In training tokens are sampled
from it (Gumbel straight-through; Jang et al. 2017), so that the rate bounds what really flows. The scale is sharp, so
that little of the capacity carries noise, and the backward pass softens it by `relaxation`, the temperature of the
Gumbel softmax: a sharp softmax passes no gradient.
Shapes: B images, K tokens, C codes, D dimensions of a code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.information.channel import Categorical
from infotok.information.priors import CategoricalPrior
from infotok.tokenizer import patch_grid
from infotok.tokenizer.patches import PatchDecoder, PatchEncoder


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes of a tokenizer. logit_scale: initial sharpness of the posterior. channel: `sampled` or `deterministic`
    (argmax straight-through). relaxation: temperature of the softmax that the backward pass sees; the codes that
    flow do not depend on it."""

    image_size: int
    tokens: int
    codebook: int
    dimension: int
    width: int
    hidden: int
    blocks: int
    logit_scale: float
    channel: str
    relaxation: float


@dataclass
class Tokens:
    """What flows through the channel. vectors: (B, K, D), differentiable. codes: (B, K)."""

    vectors: Tensor
    codes: Tensor


class DiscreteTokenizer(nn.Module):
    """Images to K codes of a codebook, and back."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        sizes = {
            "image_size": config.image_size,
            "grid": patch_grid(config.image_size, config.tokens),
            "width": config.width,
            "hidden": config.hidden,
            "blocks": config.blocks,
            "dimension": config.dimension,
        }
        self.encoder, self.decoder = PatchEncoder(**sizes), PatchDecoder(**sizes)
        self.codebook = nn.Parameter(torch.randn(config.codebook, config.dimension))
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))

    def make_prior(self) -> CategoricalPrior:
        """A learnable marginal prior over this tokenizer's tokens."""
        return CategoricalPrior(self.config.tokens, self.config.codebook)

    @property
    def capacity_bits(self) -> float:
        """K log2 C."""
        return self.config.tokens * math.log2(self.config.codebook)

    def features(self, images: Tensor) -> Tensor:
        """Unit features (B, K, D) of images (B, 3, S, S) in [-1, 1]; float32, outside autocast from here on."""
        return F.normalize(self.encoder(images).float(), dim=-1)

    def codes_unit(self) -> Tensor:
        """The codebook on the unit sphere, (C, D)."""
        return F.normalize(self.codebook.float(), dim=-1)

    def posterior_of(self, features: Tensor) -> Categorical:
        """q(z|x) of unit features (B, K, D)."""
        with torch.autocast(features.device.type, enabled=False):
            return Categorical(self.log_scale.exp() * (features @ self.codes_unit().T))

    def encode(self, images: Tensor) -> Categorical:
        """q(z|x) of images (B, 3, S, S) in [-1, 1]."""
        return self.posterior_of(self.features(images))

    def sample(self, posterior: Categorical, generator: torch.Generator) -> Tokens:
        """Send images through the channel: hard codes forward, the gradient of the soft posterior backward."""
        logits = posterior.logits
        with torch.autocast(logits.device.type, enabled=False):
            if self.config.channel == "sampled":
                uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
                logits = logits - torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
            codes, soft = logits.argmax(-1), (logits / self.config.relaxation).softmax(-1)
            hard = F.one_hot(codes, soft.shape[-1]).to(soft.dtype)
            return Tokens((hard - soft.detach() + soft) @ self._scaled_codes(), codes)

    def channel_of(self, posterior: Categorical) -> Categorical:
        """The distribution that tokens really follow: q itself, or all mass on its mode when deterministic."""
        if self.config.channel == "sampled":
            return posterior
        codes = posterior.logits.argmax(-1)
        return Categorical(F.one_hot(codes, posterior.logits.shape[-1]).float().clamp_min(1e-12).log())

    def embed(self, codes: Tensor) -> Tensor:
        """Vectors (..., D) of codes (...)."""
        return self._scaled_codes()[codes]

    def decode(self, vectors: Tensor) -> Tensor:
        """Images (B, 3, S, S) around [-1, 1] from vectors (B, K, D)."""
        return self.decoder(vectors)

    def _scaled_codes(self) -> Tensor:
        # Unit variance per dimension, as the layers that read the vectors expect.
        return self.codes_unit() * self.config.dimension**0.5

    def usage_entropy(self, posterior: Categorical) -> Tensor:
        """Entropy of the codebook's mean soft usage over the batch, nats (scalar); at most log C."""
        mean = posterior.logits.softmax(-1).mean((0, 1))
        return -(mean * mean.clamp_min(1e-12).log()).sum()

    @torch.no_grad()
    def revive(self, dead: Tensor, features: Tensor, generator: torch.Generator) -> int:
        """Move dead codes (bool, (C,)) onto random live features (B, K, D); returns how many moved."""
        count = int(dead.sum())
        if count:
            pool = features.reshape(-1, features.shape[-1])
            chosen = torch.randint(len(pool), (count,), generator=generator, device=pool.device)
            jitter = torch.randn(count, pool.shape[-1], generator=generator, device=pool.device) * 0.01
            self.codebook[dead] = (pool[chosen] + jitter).to(self.codebook.dtype)
        return count
