"""Whether image and text match, learned by contrast as CLIP learns it (Radford et al. 2021), and retrieval of an
image's caption by it.

Shapes: B rows, S pixels a side, M columns of text, E dimensions that images and texts share.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infotok.data.arrow import texts_about
from infotok.data.pixels import to_unit
from infotok.data.text import TextCodec
from infotok.data.texts import encode_captions

SHARED = 64  # E
SHARPEST = 100.0  # the largest factor on cosines, as in CLIP
STATEMENTS = 8  # about an image without captions, at most, that make up its text
CANDIDATES = 32  # texts among which an image's own is to be found


class TextTower(nn.Module):
    """Token embeddings, each mixed with its neighbours, pooled by mean and by maximum."""

    def __init__(self, vocabulary: int, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        nn.init.normal_(self.embed.weight, std=0.5)
        self.num_features = 2 * width

    def features(self, ids: Tensor, valid: Tensor) -> Tensor:
        """(B, num_features) of ids (B, M), of which the `valid` ones count and every row needs one."""
        valid = valid[..., None]
        tokens = self.embed(ids) * valid
        tokens = tokens + F.silu(self.mix(tokens.mT)).mT
        mean = (tokens * valid).sum(1) / valid.sum(1)
        return torch.cat([mean, tokens.masked_fill(~valid, -torch.inf).amax(1)], 1)


class Towers(nn.Module):
    """An image network and a text network in one space, where an image and its text are to be close."""

    def __init__(self, image: Any, vocabulary: int):
        """image: a module with `features(images) -> (B, num_features)`. vocabulary: of the codec of the texts."""
        super().__init__()
        self.image, self.text = image, TextTower(vocabulary)
        self.of_image = nn.Linear(image.num_features, SHARED)
        self.of_text = nn.Linear(self.text.num_features, SHARED)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def embed_images(self, images: Tensor) -> Tensor:
        """(B, E) unit rows of images (B, 3, S, S) in [-1, 1]."""
        return F.normalize(self.of_image(self.image.features(images)), dim=-1)

    def embed_texts(self, ids: Tensor, valid: Tensor) -> Tensor:
        """(B, E) unit rows of ids (B, M) and their validity."""
        return F.normalize(self.of_text(self.text.features(ids, valid)), dim=-1)

    def scores(self, images: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
        """Every image with every text, (images, texts): cosines times the learned scale."""
        scale = self.log_scale.clamp(0.0, math.log(SHARPEST)).exp()
        return scale * self.embed_images(images) @ self.embed_texts(ids, valid).T


def draw_text(captions: list[str], questions: list[dict[str, str]], rng: np.random.Generator) -> str:
    """The text of an image: one of its captions, or where it has none several of its questions with their answers,
    since a single one says too little to tell images apart."""
    told = texts_about(captions, questions)
    chosen = rng.permutation(len(told))[: 1 if captions else STATEMENTS]
    return " ".join(told[index] for index in chosen)


def contrastive_loss(scores: Tensor, texts: list[str]) -> Tensor:
    """Mean cross-entropy of finding each image's text among the batch's and each text's image (scalar).

    Args:
        scores: (B, B), images by texts. texts: the B texts; images of equal texts are not told apart.
    """
    number: dict[str, int] = {}
    label = torch.tensor([number.setdefault(text, len(number)) for text in texts], device=scores.device)
    own = torch.arange(len(label), device=scores.device)
    twins = (label[:, None] == label[None]) & (own[:, None] != own[None])
    scores = scores.masked_fill(twins, -torch.inf)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


@torch.no_grad()
def retrieval(
    matcher: Towers,
    images: Tensor,
    captions: list[str],
    pool: list[str],
    codec: TextCodec,
    *,
    candidates: int = CANDIDATES,
    seed: int,
    batch: int = 500,
) -> np.ndarray:
    """Whether each image's own caption is the best of it and `candidates` - 1 other texts; a tie is wrong.

    Args:
        images: (n, S, S, 3) uint8. captions: the n own ones. pool: what the others are drawn from, without
            replacement and without the own text, by the seed and the image's row; all of it where it is smaller.

    Returns:
        (n,) bool.
    """
    device = next(matcher.parameters()).device
    pool = sorted(set(pool))
    texts = sorted({*pool, *captions})
    place = {text: index for index, text in enumerate(texts)}
    encoded = [
        matcher.embed_texts(*(x.to(device) for x in encode_captions(texts[start : start + batch], codec))).cpu()
        for start in range(0, len(texts), batch)
    ]
    shown = [matcher.embed_images(to_unit(chunk.to(device))).cpu() for chunk in images.split(batch)]
    vectors, rivals = torch.cat(encoded), np.array([place[text] for text in pool])
    right = np.zeros(len(captions), dtype=bool)
    for row, (image, caption) in enumerate(zip(torch.cat(shown), captions, strict=True)):
        others = rivals[rivals != place[caption]]
        number = min(candidates - 1, len(others))
        drawn = np.random.default_rng([seed, row]).choice(others, number, replace=False)
        # Row by row alike, so that equal vectors have equal scores to the last bit.
        cosines = (vectors[[place[caption], *drawn]] * image).sum(-1)
        right[row] = bool((cosines[0] > cosines[1:]).all())
    return right


def chance(pool: list[str], candidates: int = CANDIDATES) -> float:
    """What `retrieval` finds by guessing captions of the pool."""
    return 1 / max(1, min(candidates, len(set(pool))))
