"""The continuous visual tokenizer: a patch encoder, a Gaussian channel with a power constraint, a patch decoder.

The posterior is N(mean, variance) per token. The mean lies on a sphere, mean square 1 per dimension, and the standard
deviation between `noise` and 1, both learned per image: without the two bounds a tokenizer would outgrow any noise, and
its capacity would be infinite.
Shapes: B images, K tokens, D dimensions of a token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from infotok.errors import SettingError
from infotok.information.channel import Gaussian
from infotok.information.priors import GaussianPrior
from infotok.random import Source
from infotok.tokenizer import base
from infotok.tokenizer.base import TokenizerConfig, Tokens

ACTIVE = 0.01  # variance of the mean over images above which a dimension counts as active (Burda et al. 2016)
START = -4.0  # initial logit of where the log variance stands between its bounds: near the least noise


class ContinuousTokenizer(base.Tokenizer[Gaussian]):
    """Images to K vectors, and back."""

    outputs = 2

    def __init__(self, config: TokenizerConfig, *, image_size: int, tokens: int):
        """Raises SettingError for the deterministic channel."""
        if config.channel != "sampled":
            raise SettingError(
                "tokenizer.channel",
                f"'{config.channel}' does not suit the continuous tokens of this family, whose capacity is infinite "
                "without noise; use sampled",
            )
        super().__init__(config, image_size=image_size, tokens=tokens)

    def make_prior(self) -> GaussianPrior:
        return GaussianPrior(self.tokens, self.config.dimension)

    @property
    def capacity_bits(self) -> float:
        """K D/2 log2(1 + 1 / noise^2), of a Gaussian channel of signal power 1."""
        return self.tokens * self.config.dimension / 2 * math.log2(1 + self.config.noise**-2)

    def encode(self, images: Tensor) -> Gaussian:
        mean, gate = self.encoder(images).float().chunk(2, -1)
        with torch.autocast(images.device.type, enabled=False):
            mean = F.normalize(mean, dim=-1) * self.config.dimension**0.5
            least = 2 * math.log(self.config.noise)
            return Gaussian(mean, least * (1 - (gate + START).sigmoid()))

    def sample(self, posterior: Gaussian, generator: Source) -> Tokens:
        return Tokens(posterior.sample(generator))

    def channel_of(self, posterior: Gaussian) -> Gaussian:
        return posterior

    def health(self, tokens: Tokens, channel: Gaussian) -> dict[str, float]:
        """`active_dimensions`: of the K D dimensions those whose mean varies over the images."""
        return {"active_dimensions": float((channel.mean.var(0) > ACTIVE).sum())}

    def collapse_warning(self, health: dict[str, float]) -> str | None:
        """A sentence when under a tenth of the dimensions carry anything."""
        dimensions = self.tokens * self.config.dimension
        if health["active_dimensions"] >= 0.1 * dimensions:
            return None
        return (
            f"collapse of the continuous tokens: {health['active_dimensions']:.0f} of {dimensions} dimensions vary "
            "over the images; lower beta or tokenizer.noise"
        )
