"""What the discrete and the continuous visual tokenizer share: patches in, a noisy channel, patches out.

Shapes: B images, S pixels a side, K tokens, D dimensions of a token.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotok.distributed import shared_random
from infotok.information.channel import Channel
from infotok.tokenizer import patch_grid
from infotok.tokenizer.convolutions import ConvolutionDecoder, ConvolutionEncoder
from infotok.tokenizer.patches import PatchDecoder, PatchEncoder

NETWORKS = {"patch": (PatchEncoder, PatchDecoder), "convolution": (ConvolutionEncoder, ConvolutionDecoder)}


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes of a tokenizer, of either kind.

    encoder: `patch`, each token from its own pixels, or `convolution`, which sees across their borders; the decoder is
    its mirror image. channel: `sampled`, or `deterministic` (discrete tokens alone: argmax straight-through).
    nested_dropout: share of the training images of which only a prefix of the tokens is kept, so that one training
    serves smaller budgets.
    Discrete: codebook, logit_scale (initial sharpness of the posterior) and relaxation (temperature of the softmax
    that the backward pass sees; the codes that flow do not depend on it).
    Continuous: noise, the least standard deviation of a token whose mean has mean square 1.
    """

    image_size: int
    tokens: int
    encoder: str
    codebook: int
    dimension: int
    width: int
    hidden: int
    blocks: int
    logit_scale: float
    channel: str
    relaxation: float
    noise: float
    nested_dropout: float


@dataclass
class Tokens:
    """What flows through the channel. vectors: (B, K, D), differentiable. codes: (B, K), None for continuous tokens."""

    vectors: Tensor
    codes: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """What a channel's distributions give probability to."""
        return self.vectors if self.codes is None else self.codes

    def __getitem__(self, images: slice | Tensor) -> Tokens:
        return Tokens(self.vectors[images], None if self.codes is None else self.codes[images])

    @staticmethod
    def cat(parts: list[Tokens]) -> Tokens:
        """Tokens of several batches as one."""
        codes = None if parts[0].codes is None else torch.cat([part.codes for part in parts])
        return Tokens(torch.cat([part.vectors for part in parts]), codes)


class Tokenizer(nn.Module, abc.ABC):
    """Images to K tokens, and back."""

    outputs = 1  # numbers that the encoder gives per dimension of a token

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        sizes = {
            "image_size": config.image_size,
            "grid": patch_grid(config.image_size, config.tokens),
            "width": config.width,
            "hidden": config.hidden,
            "blocks": config.blocks,
        }
        encoder, decoder = NETWORKS[config.encoder]
        self.encoder = encoder(**sizes, dimension=self.outputs * config.dimension)
        self.decoder = decoder(**sizes, dimension=config.dimension)

    @abc.abstractmethod
    def make_prior(self) -> nn.Module:
        """A learnable marginal prior over this tokenizer's tokens."""

    @property
    @abc.abstractmethod
    def capacity_bits(self) -> float:
        """Bits per image that the channel can carry at most."""

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Channel:
        """q(z|x) of images (B, 3, S, S) in [-1, 1], float32 outside autocast."""

    @abc.abstractmethod
    def sample(self, posterior: Channel, generator: torch.Generator) -> Tokens:
        """Send images through the channel."""

    @abc.abstractmethod
    def channel_of(self, posterior: Channel) -> Channel:
        """The distribution that tokens really follow."""

    @abc.abstractmethod
    def health(self, tokens: Tokens, channel: Channel) -> dict[str, float]:
        """How much of the channel is in use, from the tokens of many images and the distributions they follow."""

    @abc.abstractmethod
    def collapse_warning(self, health: dict[str, float]) -> str | None:
        """A sentence where little of the channel is in use."""

    def decode(self, vectors: Tensor) -> Tensor:
        """Images (B, 3, S, S) around [-1, 1] from vectors (B, K, D)."""
        return self.decoder(vectors)

    def keep(self, vectors: Tensor, budget: int) -> Tensor:
        """The vectors (B, K, D) with all but the first `budget` set to 0, which no token is."""
        kept = torch.arange(vectors.shape[1], device=vectors.device) < budget
        return vectors * kept[:, None]

    def nested_dropout(self, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Training's random budgets: a prefix of random length of the tokens of some images (Rippel et al. 2014)."""
        if not self.config.nested_dropout:
            return vectors
        batch, tokens, device = len(vectors), vectors.shape[1], vectors.device
        chosen = shared_random(torch.rand, (batch,), generator) < self.config.nested_dropout
        budgets = shared_random(functools.partial(torch.randint, 1, tokens + 1), (batch,), generator)
        budgets = torch.where(chosen, budgets, tokens)
        return vectors * (torch.arange(tokens, device=device) < budgets[:, None])[..., None]
