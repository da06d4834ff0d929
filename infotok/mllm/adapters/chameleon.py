"""Chameleon (Chameleon Team 2024), and Anole, which is Chameleon with the tuned weights that let it draw.

transformers has no decoder for it and forbids it to draw. The decoder is read from the folder where training has saved
it, from Anole's checkpoint or from the original VQGAN's, or begins anew and is trained with the rest.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ChameleonForConditionalGeneration, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from infotok.errors import InfotokError, SettingError
from infotok.mllm.adapter import Inputs, one_line
from infotok.mllm.causal import CausalAdapter
from infotok.mllm.codes import codes_of
from infotok.mllm.vqgan import Decoder, decoder_weights

DECODER = "infotok/decoder.safetensors"  # in a folder of ours


class Adapted(CausalAdapter):
    lm_layers = r"model\.layers\.\d+\..*_proj"
    model_class = ChameleonForConditionalGeneration
    has_decoder = False

    def __init__(self, model: Any, processor: Any):
        super().__init__(model, processor)
        self.decoder = self.extra = Decoder(model.config.vq_config).to(model.device, model.dtype)
        self.extra_is_new = True

    @classmethod
    def open(cls, name: str, folder: Path, dtype: torch.dtype, decoder: str | None, trust: bool) -> Adapted:
        weights = _weights_from(decoder) if decoder is not None else _weights_beside(folder)
        adapted = super().open(name, folder, dtype, decoder, trust)
        assert isinstance(adapted, cls)
        adapted.extra_is_new = not weights
        if weights:
            try:
                adapted.decoder.load_state_dict(weights)
            except RuntimeError as error:
                reason = one_line(error)
                raise SettingError(
                    "name" if decoder is None else "decoder",
                    f"{decoder or name} has a decoder of another shape ({reason}); give the one that belongs to this "
                    "model's VQGAN",
                ) from None
        return adapted

    def features(self, pixels: Tensor) -> Tensor:
        vq = self.tokenizer
        return vq.quant_conv(vq.encoder(pixels.to(vq.dtype))).permute(0, 2, 3, 1)

    def own_codes(self, pixels: Tensor) -> Tensor:
        made = self.tokenizer.encode(pixels.to(self.tokenizer.dtype)).image_tokens.view(len(pixels), -1)
        side = int(made.shape[1] ** 0.5)
        return made.view(-1, side, side)

    def decode(self, vectors: Tensor) -> Tensor:
        given = vectors.to(self.tokenizer.dtype).permute(0, 3, 1, 2)
        return self.decoder(self.tokenizer.post_quant_conv(given))

    def limit(self, tokens: int) -> None:
        side = math.isqrt(tokens)
        if side**2 != tokens:
            raise InfotokError(f"Chameleon's images are square, and {tokens} is no square; use one, such as 1024")
        pixels = side * 2 ** (len(self.model.config.vq_config.channel_multiplier) - 1)
        images = self.processor.image_processor
        images.size, images.crop_size = {"shortest_edge": pixels}, {"height": pixels, "width": pixels}
        self.processor.image_seq_length = tokens

    def code_ids(self) -> Tensor:
        return self.model.model.vocabulary_mapping.img2bpe_mapping_tensor.long().to(self.device)

    def image_outputs(self, embedded: Tensor) -> Any:
        return BaseModelOutputWithPooling(pooler_output=embedded.flatten(1, 2))

    def ask(self, images: list[Any], questions: list[str]) -> Inputs:
        return self._processed(images, text=[f"{self.processor.image_token}{question}" for question in questions])

    def draw_prompt(self, captions: list[str], h: int, w: int) -> Inputs:
        turn = self.processor.tokenizer.sep_token
        texts = [f"{caption}{turn}{self.processor.image_start_token}" for caption in captions]
        return self._processed(text=texts, return_for_text_completion=True)

    def draw_targets(self, codes: Tensor) -> Tensor:
        ids = self.code_ids()[codes].flatten(1)
        closing = [self.processor.image_end_token_id, self.processor.tokenizer.eos_token_id]
        return torch.cat([ids, ids.new_tensor(closing).expand(len(ids), -1)], 1)

    def code_columns(self, h: int, w: int) -> Tensor:
        return torch.arange(h * w, device=self.device)

    @torch.no_grad()
    def draw(self, captions: list[str], h: int, w: int, guidance: float = 1.0, **sampling: Any) -> Tensor:
        able, allowed = copy.copy(self.model), LogitsProcessorList([_Only(self.code_ids())])
        able.__class__ = _Drawing
        length = {"min_new_tokens": h * w, "max_new_tokens": h * w}
        settings: dict[str, Any] = {"do_sample": False, "logits_processor": allowed} | length | sampling
        settings |= self._guided(guidance, len(captions), h, w)
        made = able.generate(**self.draw_prompt(captions, h, w), **settings)
        return codes_of(made[:, -h * w :], self.code_ids(), self.model.config.vocab_size).view(-1, h, w)

    def save(self, folder: Path) -> None:
        super().save(folder)
        (folder / DECODER).parent.mkdir(exist_ok=True)
        save_file({name: value.contiguous() for name, value in self.decoder.state_dict().items()}, folder / DECODER)


class _Drawing(ChameleonForConditionalGeneration):
    """The same weights, without the smallest of numbers for the logits of codes."""

    def forward(self, input_ids: Tensor | None = None, logits_to_keep: int = 0, **given: Any) -> CausalLMOutputWithPast:
        made = self.model(input_ids=input_ids, **given)
        logits = self.lm_head(made.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=made.past_key_values)


class _Only(LogitsProcessor):
    """No entries of the vocabulary but some."""

    def __init__(self, ids: Tensor):
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_copy_(1, self.ids, scores[:, self.ids])


def _weights_from(file: str) -> dict[str, Tensor]:
    """Of a decoder, a VQGAN or a model in one file."""
    give = "give a VQGAN's weights, such as Anole's vqgan.ckpt"
    try:
        given = _read(file)
    except OSError as error:
        raise SettingError("decoder", f"{file} cannot be read ({error.strerror or one_line(error)}); {give}") from None
    except Exception as error:  # of many kinds: torch takes any bytes for a pickle
        if isinstance(error, UnpicklingError) and "Unsupported global" in str(error):
            raise SettingError(
                "decoder",
                f"{file} holds other objects than weights, and making them could run anything; where you trust the "
                "file, write its weights alone: "
                f"`torch.save(torch.load('{file}', weights_only=False)['state_dict'], 'decoder.pt')`",
            ) from None
        raise SettingError("decoder", f"{file} is no checkpoint, or is damaged; {give}") from None
    state = given.get("state_dict", given) if isinstance(given, dict) else {}
    weights = decoder_weights(state) or (state if "conv_in.weight" in state else {})
    if not weights:
        raise SettingError("decoder", f"{file} has no decoder; {give}")
    return weights


def _read(file: str) -> Any:
    """A file's tensors by name, in the form of safetensors or of torch."""
    if file.endswith(".safetensors"):
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _weights_beside(folder: Path) -> dict[str, Tensor]:
    """Of a folder of ours, or of a checkpoint that has what transformers leaves out."""
    if (folder / DECODER).exists():
        return load_file(folder / DECODER)
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as weights:
            names = [name for name in weights.keys() if "vqmodel.decoder." in name]  # noqa: SIM118
            found |= {name: weights.get_tensor(name) for name in names}
    return decoder_weights(found)
