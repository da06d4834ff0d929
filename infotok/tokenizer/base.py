"""What the discrete and the continuous visual tokenizer share: patches in, a noisy channel, patches out.

Shapes: B images, S pixels a side, K tokens, D dimensions of a token.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from infotok.information.channel import Categorical, Gaussian
from infotok.information.priors import CategoricalPrior, GaussianPrior
from infotok.options import BelowOne, Count, Fraction, Natural, Positive, Section
from infotok.random import Source, shared_random
from infotok.tokenizer import patch_grid
from infotok.tokenizer.convolutions import ConvolutionDecoder, ConvolutionEncoder
from infotok.tokenizer.patches import HEADS, PatchDecoder, PatchEncoder

Posterior = TypeVar("Posterior", Categorical, Gaussian)
NETWORKS = {"patch": (PatchEncoder, PatchDecoder), "convolution": (ConvolutionEncoder, ConvolutionDecoder)}


class TokenizerConfig(Section):
    """Settings of a tokenizer, of either kind; image size and token budget come beside them.

    encoder: `patch`, each token from its own pixels, or `convolution`, which sees across their borders; the decoder is
    its mirror image. width, hidden, blocks: of these networks, the features of a token, the units of the MLP around
    patches, the transformer blocks. dimension: of a token's vector. channel: `sampled`, or `deterministic` (discrete
    tokens alone: argmax straight-through). nested_dropout: share of the training images of which only a prefix of the
    tokens is kept, so that one training serves smaller budgets.
    Discrete tokens: codebook, its entries C; logit_scale, the initial sharpness of q(z|x) = softmax(scale * cosine);
    relaxation, the temperature of the softmax that the backward pass sees, whatever codes flow.
    Continuous tokens: noise, the least standard deviation of a token whose mean has mean square 1.
    """

    encoder: Literal["patch", "convolution"] = "patch"
    codebook: Annotated[int, Field(ge=2)] = 128
    dimension: Count = 16
    width: Annotated[int, Field(ge=4, multiple_of=HEADS)] = 96
    hidden: Count = 256
    blocks: Natural = 2
    logit_scale: Positive = 2000.0
    channel: Literal["sampled", "deterministic"] = "sampled"
    relaxation: Positive = 20.0
    noise: Annotated[BelowOne, Field(gt=0)] = 0.3
    nested_dropout: Fraction = 0.0


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
        given = [part.codes for part in parts if part.codes is not None]
        codes = torch.cat(given) if given else None
        return Tokens(torch.cat([part.vectors for part in parts]), codes)


class Tokenizer(nn.Module, abc.ABC, Generic[Posterior]):
    """Images to K tokens, and back; `Posterior` is the kind of distribution that its tokens have."""

    outputs = 1  # numbers that the encoder gives per dimension of a token

    def __init__(self, config: TokenizerConfig, *, image_size: int, tokens: int):
        """image_size: pixels a side of the square images. tokens: K, the budget of one image."""
        super().__init__()
        self.config, self.image_size, self.tokens = config, image_size, tokens
        sizes: dict[str, Any] = {
            "image_size": image_size,
            "grid": patch_grid(image_size, tokens),
            "width": config.width,
            "hidden": config.hidden,
            "blocks": config.blocks,
        }
        encoder, decoder = NETWORKS[config.encoder]
        self.encoder = encoder(**sizes, dimension=self.outputs * config.dimension)
        self.decoder = decoder(**sizes, dimension=config.dimension)

    @abc.abstractmethod
    def make_prior(self) -> CategoricalPrior | GaussianPrior:
        """A learnable marginal prior over this tokenizer's tokens."""

    @property
    @abc.abstractmethod
    def capacity_bits(self) -> float:
        """Bits per image that the channel can carry at most."""

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Posterior:
        """q(z|x) of images (B, 3, S, S) in [-1, 1], float32 outside autocast."""

    @abc.abstractmethod
    def sample(self, posterior: Posterior, generator: Source) -> Tokens:
        """Send images through the channel."""

    @abc.abstractmethod
    def channel_of(self, posterior: Posterior) -> Posterior:
        """The distribution that tokens really follow."""

    @abc.abstractmethod
    def health(self, tokens: Tokens, channel: Posterior) -> dict[str, float]:
        """How much of the channel is in use, from the tokens of many images and the distributions they follow."""

    @abc.abstractmethod
    def collapse_warning(self, health: dict[str, float]) -> str | None:
        """A sentence where little of the channel is in use."""

    def describe(self) -> dict[str, Any]:
        """Settings and sizes as JSON: the arguments that make the same tokenizer."""
        return {"config": self.config.model_dump(), "image_size": self.image_size, "tokens": self.tokens}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Tokenizer:
        """An untrained tokenizer of `describe`, to be filled with saved weights."""
        return cls(TokenizerConfig(**description["config"]), **{k: description[k] for k in ("image_size", "tokens")})

    def decode(self, vectors: Tensor) -> Tensor:
        """Images (B, 3, S, S) around [-1, 1] from vectors (B, K, D)."""
        return self.decoder(vectors)

    def keep(self, vectors: Tensor, budget: int) -> Tensor:
        """The vectors (B, K, D) with all but the first `budget` set to 0, which no token is."""
        kept = torch.arange(vectors.shape[1], device=vectors.device) < budget
        return vectors * kept[:, None]

    def nested_dropout(self, vectors: Tensor, generator: Source) -> Tensor:
        """Training's random budgets: a prefix of random length of the tokens of some images (Rippel et al. 2014)."""
        if not self.config.nested_dropout:
            return vectors
        batch, tokens, device = len(vectors), vectors.shape[1], vectors.device
        chosen = shared_random(torch.rand, (batch,), generator) < self.config.nested_dropout
        budgets = shared_random(functools.partial(torch.randint, 1, tokens + 1), (batch,), generator)
        budgets = torch.where(chosen, budgets, tokens)
        return vectors * (torch.arange(tokens, device=device) < budgets[:, None])[..., None]
