"""What a joint step is given: images with a question, an answer and a caption each, as tensors.

Shapes: B images, H x W pixels, L columns of a sequence, n of what is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotok.mllm.adapter import Adapter, Inputs


@dataclass(frozen=True)
class Example:
    """image: of PIL."""

    image: Any
    question: str
    answer: str
    caption: str


@dataclass(frozen=True)
class Batch:
    """pixels: (B, 3, H, W). ask, prompt: ids and mask (B, L), padded on the left, which end where the answer or the
    first code begins. answers: ids (B, n), `PADDING` behind them. has_caption: (B,) bool, False where the caption was
    dropped. size: h and w, tokens a column and a row."""

    pixels: Tensor
    ask: Inputs
    answers: Tensor
    prompt: Inputs
    has_caption: Tensor
    size: tuple[int, int]


def make_batch(adapter: Adapter, examples: Sequence[Example], dropped: Sequence[bool] | None = None) -> Batch:
    """dropped: whose captions the model does not see, so that it learns to draw without one.

    Raises:
        InfotokError: as of `Adapter.ask`.
    """
    images = [example.image for example in examples]
    gone = [False] * len(examples) if dropped is None else list(dropped)
    captions = ["" if drop else example.caption for example, drop in zip(examples, gone, strict=True)]
    ask = adapter.ask(images, [example.question for example in examples])
    pixels = ask["pixel_values"]
    h, w = adapter.grid(pixels)
    return Batch(
        pixels=pixels,
        ask={name: ask[name] for name in ("input_ids", "attention_mask")},
        answers=adapter.answer_targets([example.answer for example in examples]),
        prompt=adapter.draw_prompt(captions, h, w),
        has_caption=~torch.tensor(gone, device=pixels.device),
        size=(h, w),
    )
