"""What training, drawing and answering need of a unified multimodal LLM whose tokens are codes of a codebook.

Shapes: B images, H x W pixels, h x w tokens, K = h * w, C codes, D dimensions of a code, V vocabulary entries, width of
the language model, L columns of a sequence.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infotok.errors import InfotokError
from infotok.information.factored import Factored
from infotok.information.nearest import nearest_codes

Inputs = dict[str, Tensor]  # of a processor: `input_ids` and `attention_mask` (B, L), padded on the left
PADDING = -100  # of targets: a column that is not predicted


class Adapter(abc.ABC):
    """A model of transformers, and its processor.

    model: of `model_class`, with `generate`. extra: what the model lacks and training adds, saved beside it; None for
    nothing. extra_is_new: whether it has never been trained. shared: whether the tokens that are drawn are the tokens
    that are read. least_agreement: share of codes that must be those of the model's own encoding: rounding decides a
    few. lm_layers: regular expression for the names of the language model's linear layers, and of no layer
    of the tokenizer.
    """

    shared = True
    least_agreement = 0.99
    lm_layers: str
    model_class: Any

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.extra: nn.Module | None = None
        self.extra_is_new = False

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: torch.device) -> None:
        """Move all that is the model's, and what is saved beside it."""
        self.model.to(device)
        if self.extra is not None:
            self.extra.to(device)

    # The visual tokenizer.

    @property
    @abc.abstractmethod
    def tokenizer(self) -> Any:
        """Everything of it, but for `extra`."""

    @abc.abstractmethod
    def encoders(self) -> list[nn.Module]:
        """What makes features of pixels."""

    @abc.abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(B, h, w, D) before quantization, of pixels (B, 3, H, W) as the processor gives them."""

    @abc.abstractmethod
    def codebook(self) -> Tensor:
        """(C, D): a feature's code is the nearest of these."""

    @abc.abstractmethod
    def own_codes(self, pixels: Tensor) -> Tensor:
        """Codes (B, h, w) by the model's own encoding, to check ours against."""

    @abc.abstractmethod
    def decode(self, vectors: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of vectors (B, h, w, D), with gradient."""

    def codes(self, pixels: Tensor) -> Tensor:
        """(B, h, w), the nearest."""
        return nearest_codes(self.features(pixels), self.codebook())

    @abc.abstractmethod
    def limit(self, tokens: int) -> None:
        """Let the processor make images of at most so many tokens.

        Raises:
            InfotokError: the model has no such images.
        """

    # The language model.

    @abc.abstractmethod
    def code_ids(self) -> Tensor:
        """(C,): the vocabulary entry of every code."""

    def code_embeddings(self) -> Tensor:
        """(C, width)."""
        return self.model.get_input_embeddings().weight[self.code_ids()]

    def code_head(self) -> Tensor:
        """(C, width): a hidden state times these are the logits of codes."""
        return self.model.get_output_embeddings().weight[self.code_ids()]

    @abc.abstractmethod
    def image_outputs(self, embedded: Tensor) -> Any:
        """What the model takes for an encoded image, of embeddings (B, h, w, width)."""

    def hidden(self, inputs: Inputs, image: Any = None) -> Tensor:
        """Last hidden states (B, L, width); image: of `image_outputs`, in the place of the inputs' image tokens; pixels
        where the tokens are not shared."""
        return self.model.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_encoder_outputs=None if image is None else {"image": image},
            use_cache=False,
        ).last_hidden_state

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V)."""
        return self.model.get_output_embeddings()(hidden)

    def states(self, prompt: Inputs, targets: Tensor, image: Any = None) -> Tensor:
        """States (B, n, width) that predict targets (B, n) behind a prompt."""
        present = targets != PADDING
        ids = torch.cat([prompt["input_ids"], targets.where(present, 0)], 1)
        mask = torch.cat([prompt["attention_mask"], present.to(prompt["attention_mask"].dtype)], 1)
        hidden = self.hidden({"input_ids": ids, "attention_mask": mask}, image)
        return hidden[:, -targets.shape[1] - 1 : -1]

    # Questions and captions.

    def unit_pixels(self, pixels: Tensor) -> Tensor:
        """The processor's scale undone: pixels (B, 3, H, W) between 0 and 1."""
        made = self.processor.image_processor
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (made.image_mean, made.image_std))
        return ((pixels * std + mean) / (255 * made.rescale_factor)).clamp(0, 1)

    @abc.abstractmethod
    def ask(self, images: list[Any], questions: list[str]) -> Inputs:
        """What the model's `generate` takes: the processor's inputs of PIL images and questions, which end where the
        answer begins, with `pixel_values` (B, 3, H, W).

        Raises:
            InfotokError: the processor refuses an image, or images do not become one size.
        """

    def answer_targets(self, answers: list[str]) -> Tensor:
        """Ids (B, n) of answers and the end, `PADDING` after it."""
        tokenizer = self.processor.tokenizer
        rows = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in answers]
        longest = max(map(len, rows))
        padded = [row + [PADDING] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, device=self.device)

    @torch.no_grad()
    def answer(self, images: list[Any], questions: list[str], **sampling: Any) -> list[str]:
        """By the model's own `generate` on the images themselves; sampling: what it takes, greedy by default."""
        inputs = self.ask(images, questions)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        made = self.model.generate(**inputs, **{"do_sample": False, "max_new_tokens": 16} | sampling)
        texts = self.processor.tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    @abc.abstractmethod
    def draw_prompt(self, captions: list[str], h: int, w: int) -> Inputs:
        """Inputs that end where the first code begins."""

    @abc.abstractmethod
    def draw_targets(self, codes: Tensor) -> Tensor:
        """Ids (B, n) of codes (B, h, w), with what stands between and behind them."""

    @abc.abstractmethod
    def code_columns(self, h: int, w: int) -> Tensor:
        """Columns (K,) of `draw_targets` that are codes."""

    def draw_states(self, prompt: Inputs, codes: Tensor) -> Tensor:
        """States (B, n, width) that predict the `draw_targets` of codes (B, h, w)."""
        return self.states(prompt, self.draw_targets(codes))

    def draw_head(self, states: Tensor) -> Tensor:
        """Logits of what `draw_targets` holds."""
        return self.head(states)

    def predicted(self, states: Tensor, h: int, w: int) -> Factored:
        """p(code | caption, codes before it) of K tokens, from `draw_states`."""
        return Factored(states[:, self.code_columns(h, w)], self.code_head())

    @abc.abstractmethod
    def draw(self, captions: list[str], h: int, w: int, guidance: float = 1.0, **sampling: Any) -> Tensor:
        """Codes (B, h, w) by the model's own `generate`.

        Args:
            guidance: classifier-free, away from what an empty caption gives: logits g * with + (1 - g) * without the
                caption. 1 is none.
            sampling: what `generate` takes, greedy by default.
        """

    def _guided(self, guidance: float, count: int, h: int, w: int) -> dict[str, Any]:
        """What the `generate` of transformers takes to guide the drawing of so many captions. Empty captions are of one
        length, so that none is padded: it would give padding a position of its own."""
        if guidance == 1:
            return {}
        empty = self.draw_prompt([""] * count, h, w)
        names = {"input_ids": "negative_prompt_ids", "attention_mask": "negative_prompt_attention_mask"}
        return {"guidance_scale": guidance} | {given: empty[name] for name, given in names.items()}

    # Files.

    def save(self, folder: Path) -> None:
        """Write an ordinary folder, that `from_pretrained` loads."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _processed(self, images: list[Any] | None = None, **settings: Any) -> Inputs:
        """What the processor makes, padded on the left.

        Raises:
            InfotokError: as of `ask`.
        """
        if images is not None:
            settings["images"] = [image.convert("RGB") for image in images]
        try:
            made = self.processor(return_tensors="pt", padding=True, padding_side="left", **settings)
        except (ValueError, TypeError) as error:
            raise InfotokError(
                f"the model's processor refuses this input ({one_line(error)}); remove or crop it"
            ) from None
        sizes = {tuple(map(int, size)) for size in made.get("image_sizes", [])}
        if images is not None and len(sizes) > 1:
            raise InfotokError(
                "images of a batch must have one size once the model's processor has resized them; batch those of one "
                "aspect ratio together, or crop them"
            )
        return {name: value.to(self.device) for name, value in made.items() if isinstance(value, Tensor)}


def codes_of(ids: Tensor, code_ids: Tensor, vocabulary: int) -> Tensor:
    """Codes of vocabulary entries."""
    back = torch.zeros(vocabulary, dtype=torch.long, device=ids.device)
    back[code_ids] = torch.arange(len(code_ids), device=ids.device)
    return back[ids]


def one_line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
