"""A toy that tiny models can learn, and what a trained tokenizer has."""

import numpy as np
import torch
from PIL import Image

from infotok.mllm.tiny import MODELS, WITH_CODE

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
    (MODELS | WITH_CODE)[name](folder, WORDS, **settings)
    return str(folder)


@torch.no_grad()
def settle(adapter, pixels):
    """Give a random tokenizer what a trained one has: codes that lie where its features do."""
    flat = adapter.features(pixels).flatten(0, 2)
    book = adapter.codebook()
    chosen = torch.randint(len(flat), (len(book),), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(book.shape, generator=torch.Generator().manual_seed(1))
    book.copy_(flat[chosen] + 0.05 * flat.std() * noise)
