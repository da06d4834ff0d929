"""Images drawn from captions, and how they are scored: by the GenEval protocol (Ghosh et al. 2023) with the judge as
detector, or, where no objects are known, by finding each image's caption among others; and by gFID and KID in the
judge's features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from infotok.data.arrow import Split
from infotok.data.questions import TAGS, prompts, satisfies
from infotok.data.text import TextCodec
from infotok.evaluation.matching import Matcher, retrieval
from infotok.evaluation.networks import Judge, to_bytes, to_unit
from infotok.models.family import Sampling
from infotok.models.unified import UnifiedModel
from infotok.training.batches import encode_captions
from infotok.training.examiners import examine
from infotok.training.runtime import autocast, stream

CANDIDATES = 32  # captions among which a drawn image's own is to be found


@torch.no_grad()
def draw(
    model: UnifiedModel,
    captions: list[str],
    codec: TextCodec,
    sampling: Sampling,
    *,
    seed: int,
    precision: str,
    budget: int = 0,
    batch: int = 512,
) -> Tensor:
    """One image per caption: (n, S, S, 3) uint8; from the first `budget` tokens alone if it is not 0."""
    device, out = next(model.parameters()).device, []
    for start in range(0, len(captions), batch):
        ids, valid = encode_captions(captions[start : start + batch], codec)
        generator = stream(device, seed, start, 7)
        with autocast(device, precision):
            tokens = model.family.draw(
                model.backbone, model.tokenizer, ids.to(device), valid.to(device), sampling, generator
            )
            vectors = model.tokenizer.keep(tokens.vectors, budget) if budget else tokens.vectors
            out.append(to_bytes(model.tokenizer.decode(vectors)).cpu())
    return torch.cat(out)


def read_scenes(judge: Judge, images: Tensor, metadata: dict) -> list[list[dict]]:
    """The objects that the judge finds in uint8 images (n, S, S, 3)."""
    found = {name: values.tolist() for name, values in examine(judge, images).items()}
    names = {"shape": metadata["shapes"], "color": metadata["colors"], "size": metadata["sizes"]}
    return [
        [
            {a: names[a][found[a][i][q]] for a in names} | {"row": q // 2, "column": q % 2}
            for q in range(4)
            if found["presence"][i][q]
        ]
        for i in range(len(images))
    ]


@dataclass
class Verdict:
    """Scores of one set of images. right: (prompts, images) bool; tags: (prompts,) names, none where there are none."""

    right: np.ndarray
    tags: list[str]

    def by_tag(self) -> dict[str, float]:
        tags = np.array(self.tags)
        return {tag: float(self.right[tags == tag].mean()) for tag in TAGS if (tags == tag).any()}

    @property
    def score(self) -> float:
        """The mean over tags, as GenEval reports it; without tags over all."""
        return float(np.mean(list(self.by_tag().values()) or self.right))


class GenEval:
    """Prompts about objects, each image right when the judge finds in it what its prompt asks for."""

    name = "geneval"

    def __init__(self, judge: Judge, metadata: dict, *, per_tag: int, most: int, seed: int):
        """metadata: manifest of the data. per_tag: prompts of each tag. most: objects in a scene."""
        self.judge, self.metadata = judge, metadata
        splits = ("validation", "test", "novel")
        self._prompts = {split: prompts(split, per_tag, metadata, most, seed) for split in splits}

    def asks(self, split: str) -> list[str]:
        """The prompts of `validation`, `test` or `novel` (with color-shape pairs never seen in training)."""
        return [prompt["prompt"] for prompt in self._prompts[split]]

    def verdict(self, split: str, images: Tensor) -> Verdict:
        """Judge uint8 images (prompts * n, S, S, 3), n of each prompt in a row."""
        asked = self._prompts[split]
        each = len(images) // len(asked)
        scenes = read_scenes(self.judge, images, self.metadata)
        right = [satisfies(scene, asked[i // each]) for i, scene in enumerate(scenes)]
        return Verdict(np.array(right).reshape(len(asked), -1), [prompt["tag"] for prompt in asked])

    def protocol(self) -> dict[str, str]:
        asked = self._prompts["test"]
        return {
            "geneval": f"{len(asked)} test prompts of {len({p['tag'] for p in asked})} tags; mean over tags",
            "geneval_novel": f"{len(self._prompts['novel'])} prompts with unseen color-shape pairs",
            "judge": "objects: reads them per quadrant; its ceiling stands in the judge's metrics",
        }


class Retrieval:
    """Captions of held-out images, each drawn image right when of its own and 31 other captions the judge matches it
    with its own."""

    name = "retrieval"

    def __init__(self, judge: Matcher, splits: dict[str, Split], codec: TextCodec, *, most: int, seed: int):
        """splits: `validation` and `test`. codec: the judge's. most: captions of each; those of one image, the longest
        alone."""
        self.judge, self.codec, self.seed = judge, codec, seed
        self._pools, self._asked = {}, {}
        for name, split in splits.items():
            pool = list(dict.fromkeys(max(captions, key=len) for captions in split.captions if captions))
            self._pools[name] = pool
            chosen = np.random.default_rng([seed, len(name)]).permutation(len(pool))[:most]
            self._asked[name] = [pool[i] for i in sorted(chosen)]

    def asks(self, split: str) -> list[str]:
        return self._asked[split]

    def verdict(self, split: str, images: Tensor) -> Verdict:
        """As `GenEval.verdict`."""
        asked = self._asked[split]
        captions = [caption for caption in asked for _ in range(len(images) // len(asked))]
        right = retrieval(
            self.judge, images, captions, self._pools[split], self.codec, candidates=CANDIDATES, seed=self.seed
        )
        return Verdict(right.reshape(len(asked), -1), [])

    def protocol(self) -> dict[str, str]:
        pool = min(CANDIDATES, len(self._pools["test"]))
        return {
            "retrieval": f"{len(self._asked['test'])} captions of test images; the own caption is found among {pool}",
            "judge": "matching: two towers for image and text, trained on the training split; its ceiling on real test "
            "images stands in the judge's metrics",
        }


@torch.no_grad()
def standardized_features(judge: Judge | Matcher, reference: Tensor, *others: Tensor, batch: int = 500) -> list[Tensor]:
    """The judge's features (n, 128) of sets of uint8 images (n, S, S, 3), `reference` first. Every dimension has mean 0
    and variance 1 over the reference, so that distances do not depend on the scale of the judge's weights."""
    device = next(judge.parameters()).device
    sets = [
        torch.cat([judge.features(to_unit(chunk.to(device))) for chunk in images.split(batch)])
        for images in (reference, *others)
    ]
    mean, deviation = sets[0].mean(0), sets[0].std(0)
    # A dimension that is constant over the reference, a dead unit, stays unscaled.
    scale = torch.where(deviation > 1e-6, deviation, 1.0)
    return [(features - mean) / scale for features in sets]


class _Given(nn.Module):
    """Stands where torchmetrics wants a network: what it is given are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor, drawn: Tensor) -> float:
    """FID of features (n, d) by torchmetrics; comparable only for the same features and numbers of images."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).to(real.device)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    return float(metric.compute())


def kernel_distance(real: Tensor, drawn: Tensor, seed: int) -> float:
    """KID of features (n, d) by torchmetrics: mean over 50 subsets of at most 500 images."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(500, len(real), len(drawn))
    metric = KernelInceptionDistance(feature=_Given(real.shape[1]), subsets=50, subset_size=size).to(real.device)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torchmetrics draws the subsets from the global stream
        return float(metric.compute()[0])
