"""Models whose tokens are codes of a codebook.

The language model reads embeddings of the nearest codes, hard; backward they are soft, so that it teaches the encoder
what it needs to read. How strongly is a setting: at full strength its gradient is known to hurt the tokenizer.
Shapes: B images, h x w tokens, K = h * w, C codes, D dimensions of a code, V vocabulary entries, width of the language
model.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infotok.information.nearest import NearestCodes, calibrate_variance, look_up, nearest_codes
from infotok.mllm.adapter import Adapter, Encoded


class CodeAdapter(Adapter):
    """A feature's code is the nearest of a codebook, and codes are entries of a vocabulary.

    least_agreement: share of codes that must be those of the model's own encoding: rounding decides a few.
    """

    least_agreement = 0.99

    @abc.abstractmethod
    def codebook(self) -> Tensor:
        """(C, D)."""

    @abc.abstractmethod
    def own_codes(self, pixels: Tensor) -> Tensor:
        """Codes (B, h, w) by the model's own encoding, to check ours against."""

    @abc.abstractmethod
    def code_ids(self) -> Tensor:
        """(C,): the vocabulary entry of every code."""

    @abc.abstractmethod
    def draw_targets(self, codes: Tensor) -> Tensor:
        """Ids (B, n) of codes (B, h, w), with what stands between and behind them."""

    @abc.abstractmethod
    def code_columns(self, h: int, w: int) -> Tensor:
        """Columns (K,) of `draw_targets` that are codes."""

    def code_embeddings(self) -> Tensor:
        """(C, width)."""
        return self.model.get_input_embeddings().weight[self.code_ids()]

    def code_head(self) -> Tensor:
        """(C, width): a hidden state times these are the logits of codes."""
        return self.model.get_output_embeddings().weight[self.code_ids()]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states."""
        return self.model.get_output_embeddings()(hidden)

    def codes(self, pixels: Tensor) -> Tensor:
        """(B, h, w), the nearest."""
        return nearest_codes(self.features(pixels), self.codebook())

    def tokens_of(self, pixels: Tensor) -> Tensor:
        return self.codes(pixels)

    def vectors_of(self, drawn: Tensor) -> Tensor:
        return self.codebook()[drawn]

    def sampling(self, temperature: float, guidance: float, top_k: int) -> dict[str, Any]:
        if not temperature:
            return {"guidance": guidance}
        return {"guidance": guidance, "do_sample": True, "temperature": temperature, "top_k": top_k}

    def sizes(self) -> dict[str, int]:
        codes, dimension = self.codebook().shape
        return {"codebook": codes, "dimension": dimension}

    def calibrated(self, features: Iterable[Tensor], entropy_bits: float | None) -> float:
        """That of the codes' Gaussians; None: of the quantization error."""
        return calibrate_variance(features, self.codebook(), entropy_bits)

    def encode(self, pixels: Tensor, variance: float, relaxation: float, generator: torch.Generator) -> Encoded:
        features = self.features(pixels).float()
        return self.quantized(features, self.nearest(features), variance, relaxation)

    def nearest(self, features: Tensor) -> Tensor:
        """Codes (B, h, w) of features (B, h, w, D)."""
        return nearest_codes(features.float(), self.codebook().float())

    def quantized(self, features: Tensor, codes: Tensor, variance: float, relaxation: float) -> Encoded:
        """As of `encode`, of features (B, h, w, D) and their nearest codes (B, h, w)."""
        codebook = self.codebook().float()
        vectors = F.embedding(codes, codebook)
        return Encoded(
            channel=NearestCodes(features.flatten(1, 2), codebook, variance, relaxation),
            vectors=features + (vectors - features).detach(),
            codes=codes,
            codebook_error=(vectors - features.detach()).square().mean(),
            commitment=(features - vectors.detach()).square().mean(),
        )

    def embedded(self, encoded: Encoded, lm_gradient: float) -> Tensor:
        """What the language model reads of images: embeddings (B, h, w, width) of their codes, straight-through."""
        channel, codes = encoded.channel, encoded.codes
        assert isinstance(channel, NearestCodes)
        assert codes is not None
        rows = look_up(
            self.code_embeddings(),
            codes.flatten(1),
            channel.features,
            channel.codebook,
            channel.variance,
            relaxation=channel.relaxation,
            gradient=lm_gradient,
        )
        return rows.view(*codes.shape, -1).to(self.model.dtype)


def codes_of(ids: Tensor, code_ids: Tensor, vocabulary: int) -> Tensor:
    """Codes of vocabulary entries."""
    back = torch.zeros(vocabulary, dtype=torch.long, device=ids.device)
    back[code_ids] = torch.arange(len(code_ids), device=ids.device)
    return back[ids]
