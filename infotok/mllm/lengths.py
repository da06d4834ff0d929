"""Whether texts fit a language model's context beside an image, told before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from PIL import Image

from infotok.data.arrow import Split
from infotok.errors import InfotokError
from infotok.mllm.adapter import Adapter
from infotok.mllm.codes import CodeAdapter

AT_ONCE = 1000  # texts that are tokenized together
SHOWN = 60  # characters of a text that an error shows


def check_lengths(adapter: Adapter, split: Split, size: tuple[int, int]) -> None:
    """
    Args:
        size: width and height of the image that texts stand beside.

    Raises:
        InfotokError: a text is too long.
    """
    if adapter.context is None:
        return
    asked = adapter.ask([Image.new("RGB", size)], [""])
    h, w = adapter.grid(asked["pixel_values"])
    drawn = h * w + 1  # vectors, and what begins them
    if isinstance(adapter, CodeAdapter):
        drawn = adapter.draw_targets(torch.zeros(1, h, w, dtype=torch.long)).shape[1]
    beside = max(asked["input_ids"].shape[1] + 1, adapter.draw_prompt([""], h, w)["input_ids"].shape[1] + drawn)
    room, tokenizer = adapter.context - beside, adapter.processor.tokenizer
    texts = list(_texts(split))
    for start in range(0, len(texts), AT_ONCE):
        some = texts[start : start + AT_ONCE]
        ids = tokenizer([text for _, text in some], add_special_tokens=False)["input_ids"]
        for (row, text), found in zip(some, ids, strict=True):
            if len(found) > room:
                where = f"{place}: " if (place := split.place(row)) else ""
                raise InfotokError(
                    f"{where}a text of {len(found)} tokens does not fit the model's context of {adapter.context} "
                    f"beside an image and its marks of {beside}: '{text[:SHOWN]}'; shorten it, leave it out, or lower "
                    "grid.tokens"
                )


def _texts(split: Split) -> Iterator[tuple[int, str]]:
    """Captions, and questions with their answers, by row."""
    for row, (captions, questions) in enumerate(zip(split.captions, split.questions, strict=True)):
        for caption in captions:
            yield row, caption
        for pair in questions:
            yield row, f"{pair['question']} {pair['answer']}"
