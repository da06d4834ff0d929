"""What a joint step is given: images with a question, an answer and a caption each, as tensors.

Shapes: B images, H x W pixels, L columns of a sequence, n of what is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infotok.mllm.adapter import Adapter, Inputs


@dataclass(frozen=True)
class Known:
    """What a tokenizer that does not change makes of images: features (B, h, w, D) before quantization, their nearest
    codes (B, h, w), and errors (B,), the mean squared error of the pixels that are decoded from these."""

    features: Tensor
    codes: Tensor
    errors: Tensor


@dataclass(frozen=True)
class Example:
    """image: of PIL; where its tokens are known, any of the same size. known: gives the tokens of the image, a batch of
    one."""

    image: Any
    question: str
    answer: str
    caption: str
    known: Callable[[], Known] | None = None


@dataclass(frozen=True)
class Batch:
    """pixels: (B, 3, H, W). ask, prompt: ids and mask (B, L), padded on the left, which end where the answer or the
    first code begins. answers: ids (B, n), `PADDING` behind them. has_caption: (B,) bool, False where the caption was
    dropped. size: h and w, tokens a column and a row. known: the images' tokens, where no pixels are needed for them;
    these are then not the images' own."""

    pixels: Tensor
    ask: Inputs
    answers: Tensor
    prompt: Inputs
    has_caption: Tensor
    size: tuple[int, int]
    known: Known | None = None


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
    known = _known(examples, adapter.device)
    h, w = adapter.grid(pixels) if known is None else known.codes.shape[1:]
    return Batch(
        pixels=pixels,
        ask={name: ask[name] for name in ("input_ids", "attention_mask")},
        answers=adapter.answer_targets([example.answer for example in examples]),
        prompt=adapter.draw_prompt(captions, h, w),
        has_caption=~torch.tensor(gone, device=pixels.device),
        size=(h, w),
        known=known,
    )


def _known(examples: Sequence[Example], device: torch.device) -> Known | None:
    given = [example.known for example in examples]
    found = [known() for known in given if known is not None]
    if len(found) < len(given):
        return None
    parts = {name: torch.cat([vars(one)[name] for one in found]) for name in vars(found[0])}
    return Known(**{name: part.to(device) for name, part in parts.items()})
