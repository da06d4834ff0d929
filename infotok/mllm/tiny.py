"""Tiny random checkpoints of real model classes with their processors, and images that they can learn.

They show that everything runs before weights of billions are loaded: the files are those that `save_pretrained` writes,
and differ from a real model's in size alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from infotok.mllm.loading import without_bars

CODES = 64
SIDE = 32  # pixels of an image, which has 16 tokens
TOKENIZER = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1}
LANGUAGE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 180, 30),
    "blue": (40, 60, 230),
    "yellow": (230, 220, 40),
    "purple": (150, 40, 190),
    "black": (20, 20, 20),
}
SHAPES = ("square", "frame", "cross")
SIZES = {"small": 8, "large": 14}  # pixels
PLACES = {"left": 0, "middle": 1, "right": 2}
HEIGHTS = {"top": 0, "center": 1, "bottom": 2}
WORDS = [*COLORS, *SHAPES, *SIZES, *PLACES, *HEIGHTS, "a", "at the", "what", "color?", "shape?", "size?"]


def text_tokenizer(texts: Iterable[str], specials: list[str], **named: Any) -> Any:
    """Bytes, and pairs of them that are frequent in texts, as Chameleon's and Emu3's tokenizers are built."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) + len(specials) + 80
    settings: dict[str, Any] = {"special_tokens": specials, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, **settings))
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def chameleon(folder: Path, texts: Iterable[str], tokenizer: dict[str, Any] | None = None) -> None:
    """Write a random Chameleon without a decoder, as transformers has it. tokenizer: sizes of its VQGAN instead of tiny
    ones."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    codes = ["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(CODES)]
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    base = ["<pad>", "<s>", "</s>", "<reserved08706>"]
    special = dict(zip(("pad_token", "bos_token", "eos_token", "sep_token"), base, strict=True))
    written = text_tokenizer(texts, [*base, *named.values(), *codes], **special, extra_special_tokens=named)
    vocabulary = written.get_vocab()
    vq = {"embed_dim": 16, "num_embeddings": CODES, "latent_channels": 16, "resolution": SIDE}
    config = ChameleonConfig(
        vocabulary_map={name: vocabulary[name] for name in (*codes, *named.values())},
        vocab_size=len(written),
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        vq_config=vq | (tokenizer or TOKENIZER),
        **LANGUAGE,
    )
    images = ChameleonImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    ChameleonProcessor(images, written, image_seq_length=16).save_pretrained(folder)
    ChameleonForConditionalGeneration(config).save_pretrained(folder)


def emu3(folder: Path, texts: Iterable[str], chat: bool = True) -> None:
    """Write a random Emu3. chat: its processor has a chat template, as Emu3-Chat's."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3ImageProcessor, Emu3Processor

    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
        "eol_token": "<|extra_200|>",
    }
    base = ["<|endoftext|>", "<|extra_203|>", "<|extra_204|>"]
    special = dict(zip(("pad_token", "bos_token", "eos_token"), base, strict=True))
    tokenizer = text_tokenizer(texts, [*base, *named.values(), *codes], **special, extra_special_tokens=named)
    vocabulary = tokenizer.get_vocab()
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LANGUAGE | ends | {"vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512}
    vq = {"codebook_size": CODES, "embed_dim": 4, "latent_channels": 4, "hidden_size": 32, "attn_resolutions": [3]}
    config = Emu3Config(
        vocabulary_map={name: vocabulary[name] for name in (*codes, *named.values())},
        text_config=text | {"attention_dropout": 0.1},  # as Emu3's own
        vq_config=TOKENIZER | vq | {"temporal_downsample_factor": 4},
    )
    images = Emu3ImageProcessor(min_pixels=SIDE**2, max_pixels=(2 * SIDE) ** 2, spatial_factor=8)
    Emu3Processor(images, tokenizer, chat_template=TEMPLATE if chat else None).save_pretrained(folder)
    Emu3ForConditionalGeneration(config).save_pretrained(folder)


def janus(folder: Path, texts: Iterable[str]) -> None:
    """Write a random Janus, whose tokens are not shared."""
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor, LlamaConfig
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    base = ["<pad>", "<s>", "</s>"]
    special = dict(zip(("pad_token", "bos_token", "eos_token"), base, strict=True))
    tokenizer = text_tokenizer(texts, [*base, *named.values()], **special, extra_special_tokens=named)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 8}
    vq = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 16, "num_patches": 4}
    config = JanusConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        text_config=LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=4, **LANGUAGE, **ends),
        vision_config=vision | {"projection_dim": 64, "num_image_tokens": 16},
        vq_config=TOKENIZER | vq | {"projection_dim": 64, "image_token_embed_dim": 64},
    )
    model = JanusForConditionalGeneration(config)
    begin = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    model.generation_config.generation_kwargs = {"boi_token_id": begin}
    model.generation_config._from_model_config = False
    half = [0.5] * 3
    images = JanusImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half)
    JanusProcessor(images, tokenizer, num_image_tokens=16).save_pretrained(folder)
    model.save_pretrained(folder)


def llada(folder: Path, texts: Iterable[str]) -> None:
    """Write a random model in the form of Lumina-DiMOO, with a VQGAN of diffusers."""
    from diffusers import VQModel

    from infotok.mllm.adapters.llada import Ids
    from infotok.mllm.brought import masked_model

    marks = ["<|mask|>", "<|padding|>", "<|line|>", "<IMAGE>", "</IMAGE>", "<answer>", "</answer>"]  # as in `Ids`
    tokenizer = text_tokenizer(texts, [*marks, "<system>", "</system>", "<user>", "</user>", "<uncondition>"])
    ids = dict(zip(Ids.__dataclass_fields__, tokenizer.convert_tokens_to_ids(marks), strict=True))
    sizes = {"vocab_size": len(tokenizer) + CODES, "max_position_embeddings": 512}
    config = masked_model.TinyConfig(**sizes, infotok_ids=ids, auto_map=_auto("masked_model"))
    masked_model.TinyModel(config).save_pretrained(folder)
    sides = {"block_out_channels": (32,) * 4, "layers_per_block": 1, "norm_num_groups": 32}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    codes = {"latent_channels": 8, "num_vq_embeddings": CODES, "vq_embed_dim": 8, "lookup_from_codebook": True}
    VQModel(**sides, **blocks, **codes, mid_block_add_attention=False).save_pretrained(folder / "vqvae")
    tokenizer.save_pretrained(folder)
    shutil.copy(masked_model.__file__, folder)


def continuous(folder: Path, texts: Iterable[str]) -> None:
    """Write a random model with continuous tokens, whose class is as `infotok.mllm.adapters.continuous` asks for."""
    from infotok.mllm.brought import continuous_model

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = text_tokenizer(texts, [*special.values(), "<draw>"], **special)
    config = continuous_model.TinyConfig(vocab_size=len(tokenizer), auto_map=_auto("continuous_model"))
    continuous_model.TinyModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(continuous_model.__file__, folder)


def _auto(module: str) -> dict[str, str]:
    """By which transformers finds the classes of a folder's own code."""
    return {"AutoConfig": f"{module}.TinyConfig", "AutoModel": f"{module}.TinyModel"}


Write = Callable[[Path, Iterable[str]], None]
MODELS: dict[str, Write] = {"chameleon": chameleon, "emu3": emu3, "janus": janus}
WITH_CODE: dict[str, Write] = {"llada": llada, "continuous": continuous}  # of their own, which `trust` runs


def write_models(folder: Path, names: Iterable[str]) -> None:
    """Write random models of these types, each into a folder of its own; the same weights every time."""
    without_bars()
    with torch.random.fork_rng():
        for name in names:
            torch.manual_seed(0)
            (MODELS | WITH_CODE)[name](folder / name, WORDS)


def write_data(folder: Path) -> int:
    """Write one image for every shape, color, size and place, and `data.jsonl` with a caption that tells all of them
    and a question about each of the first three; returns how many."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for color, rgb in COLORS.items():
        for shape in SHAPES:
            for size, pixels in SIZES.items():
                for height, row in HEIGHTS.items():
                    for place, column in PLACES.items():
                        name = f"images/{color}-{shape}-{size}-{height}-{place}.png"
                        _picture(rgb, shape, pixels, row, column).save(folder / name)
                        said = {"color": color, "shape": shape, "size": size}
                        questions = [{"question": f"what {k}?", "answer": v, "family": k} for k, v in said.items()]
                        caption = f"a {size} {color} {shape} at the {height} {place}"
                        lines.append(json.dumps({"image": name, "caption": caption, "questions": questions}) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    return len(lines)


def _picture(rgb: tuple[int, int, int], shape: str, size: int, row: int, column: int) -> Image.Image:
    """One shape in one of nine places on a light ground."""
    made = np.full((SIDE, SIDE, 3), 235, np.uint8)
    top, left = (2 + (SIDE - 4 - size) * index // 2 for index in (row, column))
    place, edge = np.zeros((size, size), bool), max(2, size // 4)
    if shape == "cross":
        middle = slice((size - edge) // 2, (size + edge) // 2)
        place[middle], place[:, middle] = True, True
    else:
        place[:] = True
    if shape == "frame":
        place[edge:-edge, edge:-edge] = False
    made[top : top + size, left : left + size][place] = rgb
    return Image.fromarray(made)
