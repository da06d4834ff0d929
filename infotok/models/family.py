"""What a family of unified multimodal LLM adds to the shared backbone: how it draws an image's tokens.

Shapes: B examples, K image tokens, D dimensions of a token, L caption columns.
"""

from __future__ import annotations

import abc
import importlib
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from infotok.information.channel import Channel
from infotok.models.backbone import Backbone
from infotok.options import Count, Natural, Positive, Scale, Section, Weight
from infotok.random import Source
from infotok.tokenizer.base import Tokenizer, Tokens

Kind = TypeVar("Kind", bound=Tokenizer)


class Decoding(Section):
    """How tokens are decoded, whatever the temperature and guidance. A family leaves alone what is not its own.

    top_k: codes that may be sampled, 0 for all (discrete tokens). decoding_steps, choice_temperature: of masked
    decoding, at most one step per token and the noise on the confidence that chooses which tokens stand. ode_steps: of
    the flow.
    """

    top_k: Natural = 0
    decoding_steps: Count = 8
    choice_temperature: Weight = 1.0
    ode_steps: Count = 16


class Sampling(Decoding):
    """How images are drawn. guidance: classifier-free, 1 is none."""

    temperature: Positive = 1.0
    guidance: Scale = 1.0


@dataclass
class Predicted:
    """What the generator says of given tokens.

    loss: the family's training loss, mean over predicted tokens (scalar). distribution: p(z_k | caption, other tokens),
    gradients attached. weight: (B, K), so that the weighted sum of -log p(z_k | ...) is -log p(z | caption), or in
    expectation an upper bound on it; None where every token counts once.
    """

    loss: Tensor
    distribution: Channel
    weight: Tensor | None = None


class Family(nn.Module, abc.ABC, Generic[Kind]):
    """Base of `infotok.models.families.<name>.Family`.

    `tokenizer_class` makes its tokens; `bidirectional` says how the tokens of the image being drawn attend to each
    other. Position k of the drawn image holds what `generation_inputs` puts there, and the hidden state at position k
    predicts token k.
    """

    tokenizer_class: type[Tokenizer]
    bidirectional = False

    def __init__(self, tokenizer: Kind, width: int):
        super().__init__()
        config = tokenizer.config
        self.tokens = tokenizer.tokens
        self.project = nn.Linear(config.dimension, width)
        self.place = nn.Parameter(torch.randn(2, tokenizer.tokens, width) * 0.5)  # of the size of the projected vectors

    def read_inputs(self, vectors: Tensor) -> Tensor:
        """Embeddings (B, K, width) of an image to understand, from its vectors (B, K, D)."""
        return self.project(vectors) + self.place[0]

    @abc.abstractmethod
    def generation_inputs(self, tokens: Tokens, generator: Source) -> tuple[Tensor, Tensor]:
        """What stands at the K places of the image to draw in training, (B, K, width), and which tokens are to be
        predicted, (B, K) bool. Carries no gradient to the tokens: the generator models the codes it is given."""

    @abc.abstractmethod
    def predict(self, hidden: Tensor, tokens: Tokens, asked: Tensor, generator: Source) -> Predicted:
        """Loss and distribution from the hidden states (B, K, width) at those places; asked: (B, K) bool, the tokens to
        be predicted."""

    @abc.abstractmethod
    def draw(
        self,
        backbone: Backbone,
        tokenizer: Kind,
        captions: Tensor,
        valid: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Tokens:
        """Tokens of new images for captions: ids (B, L), valid (B, L), the first column the begin mark."""


def family_class(name: str) -> type[Family]:
    """The class of `infotok.models.families.<name>`."""
    return importlib.import_module(f"infotok.models.families.{name}").Family
