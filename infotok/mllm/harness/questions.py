"""What a benchmark asks, as an adapter takes it: one image and one question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from infotok.errors import InfotokError
from infotok.mllm.adapter import Adapter

MARK = "<image>"  # where a model's processor has none of its own


def only_image(given: Sequence[Any], where: str) -> Image.Image:
    """The image of a question; `where` names the question.

    Raises:
        InfotokError: there is none, there are several, or it is none of PIL, such as a video's path.
    """
    if len(given) == 1 and isinstance(given[0], Image.Image):
        return given[0]
    other = "1 that is no image" if len(given) == 1 else str(len(given))
    raise InfotokError(
        f"{where}: a question is asked about one image, and here are {other}; choose a benchmark of single images"
    )


def question_of(adapter: Adapter, text: str) -> str:
    """A text without the mark of an image, which benchmarks write where they have one: `Adapter.ask` puts it where the
    model has learned to read it."""
    return text.replace(getattr(adapter.processor, "image_token", MARK), "").strip()
