"""Lumina-DiMOO (Xin et al. 2025): LLaDA, a language model of masked diffusion, whose vocabulary goes on with the codes
of a VQGAN. An end-of-line token ends each row of codes.

Its folder comes with code of its own, which runs where `trust` says so, and with a VQGAN of diffusers in `vqvae`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from infotok.errors import InfotokError
from infotok.mllm.adapter import Inputs, end_padded, require_one_size, start_padded
from infotok.mllm.masked import MaskedAdapter
from infotok.mllm.remote import Texts, trusted_folder

ANSWERING = (
    "You are a multimodal model that can process both text and images. Answer the following question based on the "
    "provided images. Analyze each image and combine relevant details to answer."
)
DRAWING = "Generate an image according to the text prompt."
NO_CAPTION = "<uncondition>"
VQ = "vqvae"  # folder of the VQGAN, and its name in the model
STRETCH = 4  # longer side over shorter, at most
TOKENS = 4096  # of an image, at most, unless `limit` says so


@dataclass(frozen=True)
class Ids:
    """Entries of Lumina-DiMOO's vocabulary, of which its configuration says nothing. A model with others names them in
    its config.json, as `infotok_ids`."""

    mask: int = 126336
    padding: int = 126339
    line_end: int = 126084
    image_begin: int = 126349
    image_end: int = 126350
    answer_begin: int = 126354
    answer_end: int = 126355


class Adapted(MaskedAdapter):
    brings_code = True
    lm_layers = r"model\.transformer\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"

    def __init__(self, model: Any, processor: Any, folder: Path):
        super().__init__(model, processor)
        self.folder, self.most = folder, TOKENS
        self.ids = _ids_of(model, folder)
        self.mask_id, self.end_id, self.padding_id = self.ids.mask, self.ids.answer_end, self.ids.padding

    @classmethod
    def open(cls, name: str, folder: Path, dtype: torch.dtype, decoder: str | None, trust: bool) -> Adapted:
        folder = trusted_folder(name, decoder, trust)
        try:
            from diffusers import VQModel
        except ImportError:
            raise InfotokError(f"{name} needs the package diffusers; run `pip install 'infotok[mllm]'`") from None
        model = _with_code(folder).to(dtype)
        # A part of the model, so that one module holds all that is trained; `save` takes them apart again.
        model.add_module(VQ, VQModel.from_pretrained(folder, subfolder=VQ, torch_dtype=dtype))
        return cls(model, Texts(folder), folder)

    def save(self, folder: Path) -> None:
        """Write a folder of the same form, with the code that the model came with."""
        language = {name: value for name, value in self.model.state_dict().items() if not name.startswith(f"{VQ}.")}
        self.model.save_pretrained(folder, state_dict=language)
        self.tokenizer.save_pretrained(folder / VQ)
        self.processor.save_pretrained(folder)
        for code in self.folder.glob("*.py"):
            shutil.copy(code, folder)

    # The visual tokenizer.

    @property
    def tokenizer(self) -> Any:
        return self.model.get_submodule(VQ)

    def encoders(self) -> list[nn.Module]:
        return [self.tokenizer.encoder, self.tokenizer.quant_conv]

    def features(self, pixels: Tensor) -> Tensor:
        return self.tokenizer.encode(pixels.to(self.tokenizer.dtype)).latents.permute(0, 2, 3, 1)

    def codebook(self) -> Tensor:
        return self.tokenizer.quantize.embedding.weight

    def own_codes(self, pixels: Tensor) -> Tensor:
        latents = self.tokenizer.encode(pixels.to(self.tokenizer.dtype)).latents
        return self.tokenizer.quantize(latents)[2][2].view(len(latents), *latents.shape[2:])

    def decode(self, vectors: Tensor) -> Tensor:
        # Its own `decode` takes codes, where the configuration says `lookup_from_codebook`, and gives them no gradient.
        vq = self.tokenizer
        given = vectors.to(vq.dtype).permute(0, 3, 1, 2)
        return vq.decoder(vq.post_quant_conv(given), given if vq.config.norm_type == "spatial" else None)

    def unit_pixels(self, pixels: Tensor) -> Tensor:
        return pixels.clamp(0, 1)

    @property
    def pixels_of_token(self) -> int:
        """Along a side."""
        return 2 ** (len(self.tokenizer.config.block_out_channels) - 1)

    def limit(self, tokens: int) -> None:
        if tokens < 4:
            raise InfotokError(f"Lumina-DiMOO's images have 4 tokens at least, and {tokens} are fewer; use more")
        self.most = tokens

    # The language model.

    def code_ids(self) -> Tensor:
        """The last of the vocabulary."""
        vocabulary, codes = len(self.model.get_output_embeddings().weight), len(self.codebook())
        return torch.arange(vocabulary - codes, vocabulary, device=self.device)

    def hidden(self, embedded: Tensor) -> Tensor:
        # The model inside: around it the code of the hub takes ids alone.
        return self.model.model(None, input_embeddings=embedded, output_hidden_states=True).hidden_states[-1]

    # Questions and captions.

    def ask(self, images: list[Any], questions: list[str]) -> Inputs:
        pictures = [self._resized(image.convert("RGB")) for image in images]
        require_one_size(picture.size for picture in pictures)
        pixels = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])
        h, w = (side // self.pixels_of_token for side in pixels.shape[-2:])
        line = [int(self.code_ids()[0])] * w + [self.ids.line_end]  # whichever code: its place is taken by the image's
        image_ids = [self.ids.image_begin, *line * h, self.ids.image_end]
        rows = []
        for question in questions:
            text = self._text(ANSWERING, question)
            rows.append([*text[:-1], *image_ids, text[-1], self.ids.answer_begin])
        return start_padded(rows, self.device) | {"pixel_values": pixels.to(self.device)}

    def _text(self, system: str, user: str) -> list[int]:
        return self.processor.tokenizer(f"<system>{system}</system><user>{user}</user>")["input_ids"]

    def _resized(self, image: Image.Image) -> Image.Image:
        """The middle of an image at the size of most tokens that is nearest to its own ratio of sides."""
        step = 2 * self.pixels_of_token
        count = self.most // 4
        sizes = [(wide, count // wide) for wide in range(1, count + 1)]
        sizes = [size for size in sizes if max(size) <= STRETCH * min(size)]

        def kept(size: tuple[int, int]) -> tuple[float, int]:
            """Share of the image that is not cut off; of equal ones the larger."""
            ratios = size[0] / image.width, size[1] / image.height
            return min(ratios) / max(ratios), size[0] * size[1]

        wide, high = max(sizes, key=kept)
        return ImageOps.fit(image, (wide * step, high * step), Image.Resampling.BICUBIC)

    def answer_targets(self, answers: list[str]) -> Tensor:
        tokenizer = self.processor.tokenizer
        rows = [[*tokenizer(text, add_special_tokens=False)["input_ids"], self.ids.answer_end] for text in answers]
        return end_padded(rows, self.device)

    def draw_prompt(self, captions: list[str], h: int, w: int) -> Inputs:
        begin = [self.ids.answer_begin, self.ids.image_begin]
        return start_padded([[*self._text(DRAWING, text or NO_CAPTION), *begin] for text in captions], self.device)

    def draw_targets(self, codes: Tensor) -> Tensor:
        ids = self.code_ids()[codes]
        lines = torch.cat([ids, torch.full_like(ids[..., :1], self.ids.line_end)], 2).flatten(1)
        closing = lines.new_tensor([self.ids.image_end, self.ids.answer_end])
        return torch.cat([lines, closing.expand(len(lines), -1)], 1)

    def code_columns(self, h: int, w: int) -> Tensor:
        return torch.arange(h * (w + 1), device=self.device).view(h, w + 1)[:, :w].flatten()


def _ids_of(model: Any, folder: Path) -> Ids:
    try:
        return Ids(**getattr(model.config, "infotok_ids", {}))
    except TypeError:
        known = ", ".join(Ids.__dataclass_fields__)
        raise InfotokError(f"{folder / 'config.json'}: infotok_ids has other keys than {known}") from None


def _with_code(folder: Path) -> Any:
    """The language model of a folder, by the folder's own code.

    Its class is made for transformers 4, so that `from_pretrained` of transformers 5 cannot finish it: it is made from
    its configuration, and the weights are read into it.
    """
    from huggingface_hub import load_torch_model
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    names = getattr(config, "auto_map", None) or {}
    reference = names.get("AutoModel") or names.get("AutoModelForCausalLM")
    if reference is None:
        raise InfotokError(
            f"{folder}: config.json names no code in auto_map; give the folder of Lumina-DiMOO's hub page"
        )
    model = get_class_from_dynamic_module(reference, folder)(config)
    load_torch_model(model, folder, strict=True)
    return model
