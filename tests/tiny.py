"""Models, tokenizers and batches small enough to enumerate."""

import torch

from infotok.data.sources import scenes
from infotok.data.text import TextCodec, train_text_tokenizer
from infotok.data.texts import QuestionBatch, TextBatch
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.family import family_class
from infotok.models.unified import UnifiedModel
from infotok.tokenizer.base import TokenizerConfig

TINY = BackboneConfig(name="llama", width=16, layers=2, heads=2)
VOCABULARY, END = 20, 1


class Stopped(Exception):
    """Raised where a test interrupts training."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def tokenizer(tokens=4, codebook=8, channel="sampled", family="ar", image_size=16, **changes):
    torch.manual_seed(0)
    settings = {"dimension": 4, "width": 16, "hidden": 24, "blocks": 1, "logit_scale": 5.0, "relaxation": 3.0}
    config = TokenizerConfig(**settings | {"codebook": codebook, "channel": channel} | changes)
    return family_class(family).tokenizer_class(config, image_size=image_size, tokens=tokens)


def model(backbone=TINY, family="ar", **changes):
    made = tokenizer(family=family, **changes)
    torch.manual_seed(1)
    return UnifiedModel(family, made, Backbone.create(backbone, VOCABULARY)).eval()


def images(count=3, seed=5):
    return torch.rand(count, 3, 16, 16, generator=seeded(seed)) * 2 - 1


def question(rows, start):
    """Rows of ids as one `QuestionBatch`, answers from column `start` on."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    valid = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    columns = torch.arange(start, width).expand(len(rows), -1)
    return QuestionBatch(ids, valid, columns * valid[:, start:])


def texts(second=(7, 8, 4, END)):
    first = question([[5, 6, 3, END], [5, 9, 4, END], [6, 6, 3, END]], 2)
    other = question([list(second)] * 3, 2)
    captions = torch.tensor([[END, 11, 12, 0], [END, 11, 13, 14], [END, 15, 0, 0]])
    return TextBatch([first, other], captions, captions.ne(0))


def small_scenes(count):
    config = {"seed": 0, "image_size": 16, "objects": 1, "nuisance": 0.5, "questions": 4}
    return scenes.make_split("train", count, config)


def trained_codec(split):
    """A text tokenizer of all that a split says, at most 300 tokens."""
    texts = [text for said in split.captions for text in said]
    texts += [pair[key] for asked in split.questions for pair in asked for key in ("question", "answer")]
    trained = train_text_tokenizer(texts, 300)
    return TextCodec(trained, trained.token_to_id("<pad>"), trained.token_to_id("<end>"))


def gradients(module):
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)
