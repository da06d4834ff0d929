"""A toy that tiny models can learn, and what a trained tokenizer has."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infotok.mllm.tiny import CODES, MODELS, text_tokenizer

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 230), "yellow": (230, 220, 40)}
SHAPES = ("square", "stripe")
QUESTION = "what color?"
WORDS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES] + [QUESTION]


def toy(shift=range(1)):
    """Images of 32 x 32, a question, an answer and a caption of each; shift: pixels by which shapes are moved."""
    rows = []
    for color, rgb in COLORS.items():
        for shape in SHAPES:
            for by in shift:
                pixels = np.full((32, 32, 3), 235, np.uint8)
                across = slice(8 + by, 24 + by) if shape == "square" else slice(12 + by, 20 + by)
                pixels[slice(8, 24) if shape == "square" else slice(None), across] = rgb
                rows.append((Image.fromarray(pixels), QUESTION, color, f"a {color} {shape}"))
    images, questions, answers, captions = map(list, zip(*rows, strict=True))
    return images, questions, answers, captions


SHARED = ("chameleon", "emu3")


def make(name, folder, **settings):
    torch.manual_seed(0)
    MODELS[name](folder, WORDS, **settings)
    return str(folder)


@torch.no_grad()
def settle(adapter, pixels):
    """Give a random tokenizer what a trained one has: codes that lie where its features do."""
    flat = adapter.features(pixels).flatten(0, 2)
    book = adapter.codebook()
    chosen = torch.randint(len(flat), (len(book),), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(book.shape, generator=torch.Generator().manual_seed(1))
    book.copy_(flat[chosen] + 0.05 * flat.std() * noise)


# Folders that come with code of their own.

REMOTE = Path(__file__).parent / "remote"
MARKS = ["<|mask|>", "<|padding|>", "<|line|>", "<IMAGE>", "</IMAGE>", "<answer>", "</answer>"]
TURNS = ["<system>", "</system>", "<user>", "</user>", "<uncondition>"]


def masked(folder):
    """A tiny Lumina-DiMOO; returns the entries of its vocabulary that its adapter is to know."""
    from diffusers import VQModel

    from infotok.mllm.adapters.llada import Ids

    module = remote("masked_model")
    tokenizer = text_tokenizer(WORDS, [*MARKS, *TURNS])
    torch.manual_seed(0)
    auto = {"AutoConfig": "masked_model.TinyConfig", "AutoModel": "masked_model.TinyModel"}
    config = module.TinyConfig(vocab_size=len(tokenizer) + CODES, auto_map=auto)
    module.TinyModel(config).save_pretrained(folder)
    sides = {"block_out_channels": (32,) * 4, "layers_per_block": 1, "norm_num_groups": 32}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    codes = {"latent_channels": 8, "num_vq_embeddings": CODES, "vq_embed_dim": 8, "lookup_from_codebook": True}
    VQModel(**sides, **blocks, **codes, mid_block_add_attention=False).save_pretrained(folder / "vqvae")
    tokenizer.save_pretrained(folder)
    shutil.copy(REMOTE / "masked_model.py", folder)
    return Ids(*tokenizer.convert_tokens_to_ids(MARKS))


def remote(name):
    """A module of the code that such a folder brings."""
    made = importlib.util.spec_from_file_location(name, REMOTE / f"{name}.py")
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


def continuous(folder):
    """A tiny model with continuous tokens, in a folder as `infotok/mllm/adapters/continuous.py` asks for."""
    module = remote("continuous_model")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = text_tokenizer(WORDS, [*special.values(), "<draw>"], **special)
    torch.manual_seed(0)
    auto = {"AutoConfig": "continuous_model.TinyConfig", "AutoModel": "continuous_model.TinyModel"}
    module.TinyModel(module.TinyConfig(vocab_size=len(tokenizer), auto_map=auto)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(REMOTE / "continuous_model.py", folder)
