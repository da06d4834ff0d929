"""Attention of the backbone, written out for short sequences.

Transformers' own scales, masks and normalizes the scores in float32 whatever autocast says; here they stay in the type
of the product, and the softmax sums in float32 inside its kernel. The scale goes onto the queries, of which there are
fewer than of scores. Fused attention is several times slower in backward on CPU at these lengths.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

NAME = "infotok"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Mixed values (B, S, heads, D), as transformers asks its attention functions for them.

    query: (B, heads, S, D); key and value: (B, heads / n, T, D), each for n heads; mask: (B, 1, S, T), added to scores.
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    scores = (query * scaling) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask.to(scores.dtype)
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2), None


def use(model: Any) -> None:
    """Let a model of transformers attend by it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)  # where a caller gives none
    model.set_attn_implementation(NAME)
