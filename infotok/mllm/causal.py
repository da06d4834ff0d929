"""Models that write texts token by token, and those that draw codes so too: what models of transformers share.

Shapes: B images, h x w tokens, K = h * w, C codes, V vocabulary entries, width of the language model, L columns of a
sequence, n of what is predicted.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from infotok.errors import InfotokError, SettingError
from infotok.information.factored import Factored
from infotok.mllm.adapter import PADDING, Adapter, Drawing, Encoded, Inputs, end_padded, one_line, require_one_size
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.losses import cross_entropy

if TYPE_CHECKING:
    from infotok.mllm.batches import Batch


class CausalText(Adapter):
    """Answers are written token by token."""

    @abc.abstractmethod
    def hidden(self, inputs: Inputs, image: Any = None) -> Tensor:
        """Last hidden states (B, L, width); image: of `read`, in the place of the inputs' image tokens."""

    @abc.abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V)."""

    @abc.abstractmethod
    def read(self, pixels: Tensor, encoded: Encoded, lm_gradient: float) -> Any:
        """What `hidden` takes for images, with `lm_gradient` times the gradient to the encoder."""

    def states(self, prompt: Inputs, targets: Tensor, image: Any = None) -> Tensor:
        """States (B, n, width) that predict targets (B, n) behind a prompt."""
        present = targets != PADDING
        ids = torch.cat([prompt["input_ids"], targets.where(present, 0)], 1)
        mask = torch.cat([prompt["attention_mask"], present.to(prompt["attention_mask"].dtype)], 1)
        hidden = self.hidden({"input_ids": ids, "attention_mask": mask}, image)
        return hidden[:, -targets.shape[1] - 1 : -1]

    def understanding(self, batch: Batch, encoded: Encoded, lm_gradient: float, generator: torch.Generator) -> Tensor:
        image = self.read(batch.pixels, encoded, lm_gradient)
        states, present = self.states(batch.ask, batch.answers, image), batch.answers != PADDING
        return cross_entropy(self.head, states[present], batch.answers[present])

    def answer_targets(self, answers: list[str]) -> Tensor:
        tokenizer = self.processor.tokenizer
        rows = [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in answers]
        return end_padded(rows, self.device)


class CausalAdapter(CodeAdapter, CausalText):
    """A model of transformers with its processor and a VQGAN, `model.model.vqmodel`, that draws left to right.

    model_class: of transformers, with `generate`. has_decoder: whether a decoder's file would be in vain.
    """

    model_class: Any
    has_decoder = True
    is_prior = True

    @classmethod
    def open(cls, name: str, folder: Path, dtype: torch.dtype, decoder: str | None, trust: bool) -> CausalAdapter:
        from transformers import AutoProcessor

        if cls.has_decoder and decoder is not None:
            raise SettingError("decoder", f"{decoder}: {name} has a decoder of its own; leave it out")
        model, loaded = cls.model_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
        # transformers draws them at random and goes on.
        if missing := sorted(set(loaded["missing_keys"]) & {key for key, _ in model.named_parameters()}):
            raise InfotokError(
                f"{name}: its weights lack {len(missing)} of the model's tensors, such as {missing[0]}; copy or "
                "download all of its files again"
            )
        return cls(model, AutoProcessor.from_pretrained(name))

    # The visual tokenizer.

    @property
    def tokenizer(self) -> Any:
        return self.model.model.vqmodel

    def encoders(self) -> list[nn.Module]:
        return [self.tokenizer.encoder, self.tokenizer.quant_conv]

    def codebook(self) -> Tensor:
        return self.tokenizer.quantize.embedding.weight

    def unit_pixels(self, pixels: Tensor) -> Tensor:
        made = self.processor.image_processor
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (made.image_mean, made.image_std))
        return ((pixels * std + mean) / (255 * made.rescale_factor)).clamp(0, 1)

    # The language model.

    @abc.abstractmethod
    def image_outputs(self, embedded: Tensor) -> Any:
        """What the model takes for an encoded image, of embeddings (B, h, w, width)."""

    def read(self, pixels: Tensor, encoded: Encoded, lm_gradient: float) -> Any:
        return self.image_outputs(self.embedded(encoded, lm_gradient))

    def hidden(self, inputs: Inputs, image: Any = None) -> Tensor:
        return self.model.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_encoder_outputs=None if image is None else {"image": image},
            use_cache=False,
        ).last_hidden_state

    def drawing(self, prompt: Inputs, encoded: Encoded, generator: torch.Generator) -> Drawing:
        codes = encoded.codes
        assert codes is not None
        states, targets = self.draw_states(prompt, codes), self.draw_targets(codes)
        loss = cross_entropy(self.draw_head, states.flatten(0, 1), targets.flatten())
        return Drawing(loss, states[:, 0].float(), self.predicted(states, *codes.shape[1:]))

    def draw_states(self, prompt: Inputs, codes: Tensor) -> Tensor:
        """States (B, n, width) that predict the `draw_targets` of codes (B, h, w)."""
        return self.states(prompt, self.draw_targets(codes))

    def draw_head(self, states: Tensor) -> Tensor:
        """Logits of what `draw_targets` holds."""
        return self.head(states)

    def predicted(self, states: Tensor, h: int, w: int) -> Factored:
        """p(code | caption, codes before it) of K tokens, from `draw_states`."""
        return Factored(states[:, self.code_columns(h, w)], self.code_head())

    # Questions and captions.

    @torch.no_grad()
    def answer(self, images: list[Any], questions: list[str], **sampling: Any) -> list[str]:
        """By the model's own `generate`; sampling: what it takes."""
        inputs = self.ask(images, questions)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        made = self.model.generate(**inputs, **{"do_sample": False, "max_new_tokens": 16} | sampling)
        texts = self.processor.tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _guided(self, guidance: float, count: int, h: int, w: int) -> dict[str, Any]:
        """What the `generate` of transformers takes to guide the drawing of so many captions. Empty captions are of one
        length, so that none is padded: it would give padding a position of its own."""
        if guidance == 1:
            return {}
        empty = self.draw_prompt([""] * count, h, w)
        names = {"input_ids": "negative_prompt_ids", "attention_mask": "negative_prompt_attention_mask"}
        return {"guidance_scale": guidance} | {given: empty[name] for name, given in names.items()}

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
        if images is not None:
            require_one_size(tuple(map(int, size)) for size in made.get("image_sizes", []))
        return {name: value.to(self.device) for name, value in made.items() if isinstance(value, Tensor)}
