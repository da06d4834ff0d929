"""Any model with continuous tokens whose folder's own code has the methods of `ContinuousModel`.

Harmon (Wu et al. 2025) and Show-o2 (Xie et al. 2025) are code of repositories, not classes of transformers: a class
around theirs with these methods, in a folder with a config.json of `"model_type": "continuous"` whose `auto_map` names
it, can be tuned, saved and loaded again.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from infotok.errors import InfotokError, SettingError
from infotok.mllm.adapter import Inputs, start_padded
from infotok.mllm.continuous import ContinuousAdapter
from infotok.mllm.remote import Texts, trusted_folder

MARK = "<image>"  # in a question's text: where the image is read
PLACE = -1  # in ids: a column of an image


class ContinuousModel(Protocol):
    """What a model must offer, beside what every `transformers.PreTrainedModel` has: `from_pretrained` by its folder's
    code, `save_pretrained`, and `get_input_embeddings` and `get_output_embeddings` of the language model's texts.

    vision: the whole visual tokenizer, a submodule. encoders: what of it makes features of pixels. lm_layers: regular
    expression for the names of the language model's linear layers. image_side: pixels of an image along each side.
    Shapes: B images, S = image_side, h x w tokens, K = h * w, D dimensions of a token, V entries of the vocabulary, L
    columns, padded on the left; `mask` (B, L) is 0 there and 1 elsewhere. What a method draws at random it draws from
    its generator alone, and `draw_loss` by `infotok.random.shared_random`: so a step repeats itself, and processes
    and micro-batches have their rows of the whole batch's numbers.
    """

    vision: nn.Module
    encoders: list[nn.Module]
    lm_layers: str
    image_side: int

    def encode(self, pixels: Tensor) -> Tensor:
        """Vectors (B, h, w, D) without noise, of pixels (B, 3, S, S) between 0 and 1; with gradient."""

    def decode(self, vectors: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) of vectors (B, h, w, D); with gradient."""

    def embed(self, vectors: Tensor) -> Tensor:
        """Embeddings (B, K, width), by which the language model reads vectors (B, h, w, D); with gradient."""

    def hidden(self, embedded: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """Last hidden states (B, L, width) of embeddings (B, L, width), each predicting the next token of a text.

        image: (B, L) bool, the columns of an image, in which attention may go both ways.
        """

    def write(self, embedded: Tensor, mask: Tensor, image: Tensor, max_new_tokens: int) -> Tensor:
        """Ids (B, n) of the likeliest texts after embeddings (B, L, width)."""

    def draw_loss(self, embedded: Tensor, mask: Tensor, vectors: Tensor, generator: torch.Generator) -> Tensor:
        """Loss (scalar) of drawing vectors (B, h, w, D) after embedded prompts (B, L, width): a mean over images."""

    def draw(
        self, embedded: Tensor, mask: Tensor, h: int, w: int, generator: torch.Generator, **sampling: Any
    ) -> Tensor:
        """Vectors (B, h, w, D), drawn after embedded prompts (B, L, width); sampling: what the model has, with
        defaults. The stage `render` gives `temperature`, and `guidance` where it is not 1."""

    def question(self, text: str) -> str:
        """A question as the model is asked it, with `<image>` once, where the image is read."""

    def caption(self, text: str) -> str:
        """A caption as the model is given it; an empty one is a caption that was dropped."""


OFFERED = [*ContinuousModel.__annotations__, *(name for name in vars(ContinuousModel) if not name.startswith("_"))]


class Adapted(ContinuousAdapter):
    model: Any
    brings_code = True

    @classmethod
    def open(cls, name: str, folder: Path, dtype: torch.dtype, decoder: str | None, trust: bool) -> Adapted:
        from transformers import AutoModel

        folder = trusted_folder(name, decoder, trust)
        model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
        if missing := [name for name in OFFERED if not hasattr(model, name)]:
            raise InfotokError(
                f"{name}: its class {type(model).__name__} lacks {', '.join(missing)}; "
                "infotok/mllm/adapters/continuous.py says what each of them does"
            )
        return cls(model, Texts(folder))

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        self.lm_layers = model.lm_layers

    # The visual tokenizer.

    @property
    def tokenizer(self) -> Any:
        return self.model.vision

    def encoders(self) -> list[nn.Module]:
        return self.model.encoders

    @property
    def dimension(self) -> int:
        with torch.no_grad():
            return self.features(self._black()).shape[-1]

    def features(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels)

    def decode(self, vectors: Tensor) -> Tensor:
        return self.model.decode(vectors)

    def unit_pixels(self, pixels: Tensor) -> Tensor:
        return pixels.clamp(0, 1)

    def limit(self, tokens: int) -> None:
        h, w = self.grid(self._black())
        own = h * w
        if tokens != own:
            raise InfotokError(f"this model's images have {own} tokens, not {tokens}; use {own}")

    def _black(self) -> Tensor:
        """Pixels of an image."""
        side = self.model.image_side
        return torch.zeros(1, 3, side, side, device=self.device)

    # The language model.

    def embed(self, vectors: Tensor) -> Tensor:
        return self.model.embed(vectors)

    def head(self, hidden: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(hidden)

    def hidden(self, inputs: Inputs, image: Any = None) -> Tensor:
        return self.model.hidden(*self._embedded(inputs, image))

    def _embedded(self, inputs: Inputs, image: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of ids and, in the columns that hold it, of an image; the mask; these columns."""
        place = inputs["input_ids"] == PLACE
        embedded = self.model.get_input_embeddings()(inputs["input_ids"].clamp_min(0))
        if image is not None:
            embedded = embedded.masked_scatter(place[..., None], image.to(embedded.dtype))
        return embedded, inputs["attention_mask"], place

    def draw_loss(self, prompt: Inputs, vectors: Tensor, generator: torch.Generator) -> Tensor:
        embedded, mask, _ = self._embedded(prompt, None)
        return self.model.draw_loss(embedded, mask, vectors, generator)

    def sampling(self, temperature: float, guidance: float, top_k: int) -> dict[str, Any]:
        given = super().sampling(temperature, guidance, top_k)
        for name, key in (("temperature", "temperatures"), ("guidance", "guidance")):
            if name in given:
                self._check_takes(name, key)
        return given

    def _check_takes(self, name: str, key: str) -> None:
        """Raises SettingError, of the key, where the model draws without a setting of this name."""
        takes = inspect.signature(self.model.draw).parameters
        if name not in takes and not any(one.kind is one.VAR_KEYWORD for one in takes.values()):
            remedy = ", or set guidance to [1.0]" if name == "guidance" else ""
            raise SettingError(
                key, f"the `draw` of {type(self.model).__name__} takes no {name}; let it take that{remedy}"
            )

    @torch.no_grad()
    def draw_vectors(self, prompt: Inputs, h: int, w: int, generator: torch.Generator, **sampling: Any) -> Tensor:
        for name in sampling:
            self._check_takes(name, name)
        embedded, mask, _ = self._embedded(prompt, None)
        return self.model.draw(embedded, mask, h, w, generator, **sampling)

    # Questions and captions.

    def ask(self, images: list[Any], questions: list[str]) -> Inputs:
        side, ids = (self.model.image_side,) * 2, self.processor.tokenizer
        fitted = [ImageOps.fit(image.convert("RGB"), side, Image.Resampling.BICUBIC) for image in images]
        pixels = torch.stack([torch.from_numpy(np.array(one)).permute(2, 0, 1) / 255 for one in fitted])
        h, w = self.grid(pixels.to(self.device))
        rows = []
        for question in questions:
            before, _, after = self.model.question(question).partition(MARK)
            behind = ids(after, add_special_tokens=False)["input_ids"]
            rows.append([*ids(before)["input_ids"], *[PLACE] * (h * w), *behind])
        return start_padded(rows, self.device) | {"pixel_values": pixels.to(self.device)}

    @torch.no_grad()
    def answer(self, images: list[Any], questions: list[str], **sampling: Any) -> list[str]:
        """By the model's own way; sampling: `max_new_tokens`."""
        inputs = self.ask(images, questions)
        image = self.embed(self.features(inputs["pixel_values"]))
        made = self.model.write(*self._embedded(inputs, image), **{"max_new_tokens": 16} | sampling)
        texts = self.processor.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def draw_prompt(self, captions: list[str], h: int, w: int) -> Inputs:
        tokenizer = self.processor.tokenizer
        return start_padded([tokenizer(self.model.caption(text))["input_ids"] for text in captions], self.device)
