"""Emu3 (Wang et al. 2024): its VQGAN encodes an image as a clip that stands still; an end-of-line token ends each row
of codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Emu3ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from infotok.mllm.adapter import Inputs
from infotok.mllm.causal import CausalAdapter
from infotok.mllm.codes import codes_of

SYSTEM = "You are a helpful assistant."  # of the original, where a processor has no chat template


class Adapted(CausalAdapter):
    lm_layers = r"model\.text_model\.layers\.\d+\..*_proj"
    model_class = Emu3ForConditionalGeneration

    def features(self, pixels: Tensor) -> Tensor:
        vq = self.tokenizer
        clip = pixels.to(vq.dtype)[:, None].repeat(1, vq.config.temporal_downsample_factor, 1, 1, 1)
        hidden = vq.encoder(clip).permute(0, 2, 1, 3, 4)
        return vq.quant_conv(hidden)[:, :, 0].permute(0, 2, 3, 1)

    def own_codes(self, pixels: Tensor) -> Tensor:
        size = torch.tensor(pixels.shape[-2:]).expand(len(pixels), 2)
        return torch.stack(self.tokenizer.encode(pixels, size).image_tokens)

    def decode(self, vectors: Tensor) -> Tensor:
        vq = self.tokenizer
        quantized = vectors.to(vq.dtype).permute(0, 3, 1, 2)[:, :, None]
        latents = vq.post_quant_conv(quantized).permute(0, 2, 1, 3, 4)
        frames = vq.decoder(latents, quantized.permute(0, 2, 1, 3, 4))
        return frames.view(len(vectors), -1, *frames.shape[1:])[:, 0]

    def limit(self, tokens: int) -> None:
        images = self.processor.image_processor
        images.max_pixels = tokens * self.processor.downsample_ratio**2
        images.min_pixels = min(images.min_pixels, images.max_pixels)

    def code_ids(self) -> Tensor:
        return self.model.vocabulary_mapping.img2bpe_mapping_tensor.long().to(self.device)

    def image_outputs(self, embedded: Tensor) -> Any:
        b, h, _, width = embedded.shape
        end = self.model.get_input_embeddings().weight[self.model.vocabulary_mapping.eol_token_id]
        lines = torch.cat([embedded, end.to(embedded.dtype).expand(b, h, 1, width)], 2).flatten(1, 2)
        return BaseModelOutputWithPooling(pooler_output=tuple(lines))

    def ask(self, images: list[Any], questions: list[str]) -> Inputs:
        return self._processed(images, text=[self._turn(question) for question in questions])

    def _turn(self, question: str) -> str:
        if self.processor.chat_template is None:
            return f"{SYSTEM} USER: {self.processor.image_token}{question} ASSISTANT:"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def draw_prompt(self, captions: list[str], h: int, w: int) -> Inputs:
        # The processor names a size by ratio and area, which it rounds: h x w themselves come back unchanged.
        side = self.processor.downsample_ratio
        size = {"ratio": f"{w}:{h}", "image_area": h * w * side**2}
        return self._processed(text=captions, return_for_image_generation=True, **size)

    def draw_targets(self, codes: Tensor) -> Tensor:
        ids = self.code_ids()[codes]
        ends = torch.full_like(ids[..., :1], self.model.vocabulary_mapping.eol_token_id)
        lines = torch.cat([ids, ends], 2).flatten(1)
        return torch.cat([lines, lines.new_tensor(self._closing()).expand(len(lines), -1)], 1)

    def code_columns(self, h: int, w: int) -> Tensor:
        return torch.arange(h * (w + 1), device=self.device).view(h, w + 1)[:, :w].flatten()

    def _closing(self) -> list[int]:
        """End of the frame, of the image and of the turn."""
        tokenizer = self.processor.tokenizer
        return [*tokenizer.convert_tokens_to_ids([tokenizer.eof_token, tokenizer.eoi_token]), tokenizer.eos_token_id]

    @torch.no_grad()
    def draw(self, captions: list[str], h: int, w: int, guidance: float = 1.0, **sampling: Any) -> Tensor:
        inputs = self.draw_prompt(captions, h, w)
        start, codes, closing = inputs["input_ids"].shape[1], self.code_ids().tolist(), self._closing()
        end, count = self.model.vocabulary_mapping.eol_token_id, h * (w + 1)

        def allowed(_row: int, ids: Tensor) -> list[int]:
            made = len(ids) - start
            if made >= count:
                return [closing[made - count]]
            return [end] if made % (w + 1) == w else codes

        length = {"max_new_tokens": count + len(closing)}
        settings: dict[str, Any] = {"do_sample": False, "prefix_allowed_tokens_fn": allowed} | length | sampling
        settings |= self._guided(guidance, len(captions), h, w)
        made = self.model.generate(**inputs, **settings)[:, start:]
        ids = made[:, self.code_columns(h, w)]
        return codes_of(ids, self.code_ids(), self.model.config.text_config.vocab_size).view(-1, h, w)
