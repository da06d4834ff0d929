"""Images of a pretrained or tuned model for GenEval, github.com/djghosh13/geneval, whose folders `infotok draw-model`
writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infotok.errors import InfotokError
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.scoring import draw_tokens, pictures_of

SIDE, LARGE = 512, 2048  # pixels


def square(adapter: CodeAdapter, tokens: int | None = None) -> tuple[int, int, int]:
    """h and w of a square image's tokens, and pixels of its side: of the largest of so many tokens; None: as the
    model's processor sizes an image of 512 x 512.

    Raises:
        InfotokError: the model has no images of so many tokens.
    """
    if tokens is not None:
        adapter.limit(tokens)
    side = SIDE if tokens is None else LARGE
    pixels = adapter.ask([Image.new("RGB", (side, side))], [""])["pixel_values"]
    return *adapter.grid(pixels), pixels.shape[-1]


def prompt_length(adapter: CodeAdapter, caption: str, h: int, w: int) -> int:
    """Tokens before the first code."""
    return adapter.draw_prompt([caption], h, w)["input_ids"].shape[1]


def prompt_room(adapter: CodeAdapter, h: int, w: int) -> int | None:
    """Tokens that may stand before the codes of h x w; None where there is no end.

    Raises:
        InfotokError: not even the codes have room.
    """
    if adapter.context is None:
        return None
    drawn = adapter.draw_targets(torch.zeros(1, h, w, dtype=torch.long, device=adapter.device)).shape[1]
    if adapter.context <= drawn:
        raise InfotokError(f"an image of {h} x {w} tokens has no room in the model's context of {adapter.context}")
    return adapter.context - drawn


def images_for(
    adapter: CodeAdapter, captions: list[str], size: tuple[int, int], *, seed: int, **sampling: Any
) -> Tensor:
    """One image a caption, uint8 (N, S, S, 3), drawn together. size: h, w of tokens. sampling: as of `draw_tokens`."""
    codes = draw_tokens(adapter, captions, size, seed=seed, batch=len(captions), **sampling)
    return torch.from_numpy(np.stack([np.asarray(image) for image in pictures_of(adapter, codes, len(captions))]))
