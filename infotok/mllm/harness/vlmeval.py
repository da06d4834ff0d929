"""Models here as VLMEvalKit, github.com/open-compass/VLMEvalKit, asks them: by messages of images and texts.

A message is a list of {"type": "image" or "text", "value": a path or a text}.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from infotok.errors import InfotokError
from infotok.mllm.harness.questions import only_image, question_of
from infotok.mllm.loading import load


class Answering:
    """Mixed into a class of VLMEvalKit's `BaseModel`, it answers.

    Args:
        model_path: a name on the Hugging Face hub or a folder, as `load` takes it.
        dtype: of the weights.
        device: otherwise the first GPU, or the CPU where there is none.
        trust: run code that comes with the model.
        sampling: what `Adapter.answer` takes; greedy by default, and of at most 512 tokens.

    Raises:
        InfotokError: as of `load`.
    """

    def __init__(
        self,
        model_path: str,
        dtype: torch.dtype = torch.bfloat16,
        device: str | None = None,
        trust: bool = False,
        **sampling: Any,
    ):
        super().__init__()
        self.adapter = load(model_path, dtype=dtype, control=True, trust=trust)
        self.adapter.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        self.sampling = {"max_new_tokens": 512} | sampling

    def generate_inner(self, message: list[dict[str, str]], dataset: str | None = None) -> str:
        """The answer to a message of one image and any number of texts, which become one question, a line each.

        dataset: the benchmark's name, for errors.

        Raises:
            InfotokError: there are no or several images, one cannot be read, or a part is neither image nor text.
        """
        where = dataset or "message"
        if odd := [part.get("type") for part in message if part.get("type") not in ("image", "text")]:
            raise InfotokError(f"{where}: '{odd[0]}' is no part that the model reads; choose a benchmark of images")
        images = [_read(part["value"], where) for part in message if part["type"] == "image"]
        question = "\n".join(part["value"] for part in message if part["type"] == "text")
        asked = [question_of(self.adapter, question)]
        return self.adapter.answer([only_image(images, where)], asked, **self.sampling)[0]


def _read(path: str, where: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        reason = getattr(error, "strerror", None) or "it is no image"
        raise InfotokError(f"{where}: {path} cannot be read ({reason}); give a path of an image") from None
