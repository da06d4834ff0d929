"""Janus-Pro (Chen et al. 2025), the control: SigLIP reads images, codes of a VQGAN are drawn by a head of their own.

Its tokens are not shared, so that pressing them can help drawing alone. Questions are read as the model reads them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import JanusForConditionalGeneration, LogitsProcessor, LogitsProcessorList

from infotok.errors import InfotokError
from infotok.information.factored import Factored
from infotok.mllm.adapter import Encoded, Inputs
from infotok.mllm.causal import CausalAdapter


class Adapted(CausalAdapter):
    shared = False
    unused: ClassVar[dict[str, str]] = {
        "settle": "its codes are made of others, by normalizing them, and cannot be put anywhere",
        "lm_gradient": "the language model reads pixels, and no tokens that its gradient could reach",
        "cache": "the language model reads pixels, so that its tokens alone are not kept in any case",
    }
    # transformers leaves out the normalization of features and codes, with which the tokenizer was trained and which
    # its decoder has. Where all codes have one length the codes are the same.
    least_agreement = 0.0
    lm_layers = r"model\.language_model\.layers\.\d+\..*_proj"
    model_class = JanusForConditionalGeneration

    def features(self, pixels: Tensor) -> Tensor:
        vq = self.tokenizer
        return F.normalize(vq.quant_conv(vq.encoder(pixels.to(vq.dtype))).permute(0, 2, 3, 1).float(), dim=-1)

    def codebook(self) -> Tensor:
        return F.normalize(self.tokenizer.quantize.embedding.weight.float(), dim=-1)

    def own_codes(self, pixels: Tensor) -> Tensor:
        side = self.tokenizer.config.num_patches
        return self.tokenizer.encode(pixels.to(self.tokenizer.dtype)).image_tokens.view(-1, side, side)

    def decode(self, vectors: Tensor) -> Tensor:
        vq = self.tokenizer
        return vq.decoder(vq.post_quant_conv(vectors.to(vq.dtype).permute(0, 3, 1, 2)))

    def limit(self, tokens: int) -> None:
        own = self.tokenizer.config.num_patches**2
        if tokens != own:
            raise InfotokError(f"Janus draws images of {own} tokens, not of {tokens}; use {own}")

    def code_ids(self) -> Tensor:
        """Of a vocabulary of their own, beside that of texts."""
        return torch.arange(self.tokenizer.config.num_embeddings, device=self.device)

    def code_head(self) -> Tensor:
        return self.model.model.generation_head.vision_head.weight

    def image_outputs(self, embedded: Tensor) -> Any:
        raise InfotokError("Janus reads no codes; choose a model whose tokens are shared")

    def read(self, pixels: Tensor, encoded: Encoded, lm_gradient: float) -> Tensor:
        """The pixels themselves."""
        return pixels

    def hidden(self, inputs: Inputs, image: Any = None) -> Tensor:
        return self.model.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=None if image is None else image.to(self.model.dtype),
            use_cache=False,
        ).last_hidden_state

    def ask(self, images: list[Any], questions: list[str]) -> Inputs:
        return self._processed(images, text=[f"{self.processor.image_token}\n{question}" for question in questions])

    def draw_prompt(self, captions: list[str], h: int, w: int) -> Inputs:
        side = self.tokenizer.config.num_patches
        if (h, w) != (side, side):
            raise InfotokError(f"Janus draws images of {side} x {side} tokens alone, not of {h} x {w}")
        return self._processed(text=captions, generation_mode="image")

    def draw_targets(self, codes: Tensor) -> Tensor:
        return codes.flatten(1)

    def code_columns(self, h: int, w: int) -> Tensor:
        return torch.arange(h * w, device=self.device)

    def draw_states(self, prompt: Inputs, codes: Tensor) -> Tensor:
        texts = self.model.get_input_embeddings()(prompt["input_ids"])
        read = self.model.prepare_embeddings_for_image_generation(codes.flatten(1)[:, :-1])
        mask = F.pad(prompt["attention_mask"], (0, read.shape[1]), value=1)
        given = {"inputs_embeds": torch.cat([texts, read], 1), "attention_mask": mask}
        hidden = self.model.model.language_model(**given, use_cache=False).last_hidden_state
        return hidden[:, texts.shape[1] - 1 :]

    def draw_head(self, states: Tensor) -> Tensor:
        return self.model.model.generation_head(states)

    def predicted(self, states: Tensor, h: int, w: int) -> Factored:
        head = self.model.model.generation_head
        return Factored(head.activation_fn(head.proj_out(states)), head.vision_head.weight, head.vision_head.bias)

    @torch.no_grad()
    def draw(self, captions: list[str], h: int, w: int, guidance: float = 1.0, **sampling: Any) -> Tensor:
        settings: dict[str, Any] = {"do_sample": False} | sampling | {"guidance_scale": guidance}
        if guidance == 1:
            settings["logits_processor"] = LogitsProcessorList([_Conditional()])
        made = self.model.generate(**self.draw_prompt(captions, h, w), generation_mode="image", **settings)
        return made.view(-1, h, w)


class _Conditional(LogitsProcessor):
    """Drawing without guidance: Janus computes logits without captions, the second half, all the same."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores[: len(scores) // 2]
