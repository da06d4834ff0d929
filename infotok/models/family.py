"""What a family of unified multimodal LLM adds to the shared backbone: how it draws an image's tokens.

Shapes: B examples, K image tokens, D dimensions of a token, L caption columns.
"""

from __future__ import annotations

import abc
import importlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infotok.information.channel import Categorical
from infotok.models.backbone import Backbone
from infotok.tokenizer.discrete import DiscreteTokenizer, Tokens


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How images are drawn. top_k 0 keeps all codes; guidance 1 is none."""

    temperature: float = 1.0
    guidance: float = 1.0
    top_k: int = 0


class Family(nn.Module, abc.ABC):
    """Base of `infotok.models.families.<name>.Family`.

    `tokenizer_class` makes its tokens; `bidirectional` says how the tokens of the image being drawn attend to each
    other. Position k of the drawn image holds what `generation_inputs` puts there, and the hidden state at position k
    predicts token k.
    """

    tokenizer_class: type[DiscreteTokenizer] = DiscreteTokenizer
    bidirectional = False

    def __init__(self, tokenizer: DiscreteTokenizer, width: int):
        super().__init__()
        config = tokenizer.config
        self.tokens = config.tokens
        self.project = nn.Linear(config.dimension, width)
        self.place = nn.Parameter(torch.randn(2, config.tokens, width) * 0.5)  # of the size of the projected vectors

    def read_inputs(self, vectors: Tensor) -> Tensor:
        """Embeddings (B, K, width) of an image to understand, from its vectors (B, K, D)."""
        return self.project(vectors) + self.place[0]

    @abc.abstractmethod
    def generation_inputs(self, tokens: Tokens, generator: torch.Generator) -> Tensor:
        """What stands at the K places of the image to draw in training, (B, K, width). Carries no gradient to the
        tokens: the generator models the codes it is given."""

    @abc.abstractmethod
    def generation_loss(self, hidden: Tensor, tokens: Tokens) -> tuple[Tensor, Categorical]:
        """(loss, mean over tokens, scalar; the predicted distribution p(z | caption), gradients attached)."""

    @abc.abstractmethod
    def draw(
        self,
        backbone: Backbone,
        tokenizer: DiscreteTokenizer,
        captions: Tensor,
        valid: Tensor,
        sampling: Sampling,
        generator: torch.Generator,
    ) -> Tokens:
        """Tokens of new images for captions: ids (B, L), valid (B, L), the first column the begin mark."""


def family_class(name: str) -> type[Family]:
    """The class of `infotok.models.families.<name>`."""
    return importlib.import_module(f"infotok.models.families.{name}").Family
