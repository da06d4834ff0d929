"""How drawn images are scored: by the GenEval protocol (Ghosh et al. 2023) with the judge as detector, or, where no
objects are known, by finding each image's caption among others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from infotok.data.arrow import Split
from infotok.data.text import TextCodec
from infotok.evaluation.geneval_prompts import TAGS, prompts, satisfies
from infotok.examiners.judge import Judge
from infotok.examiners.matcher import Matcher
from infotok.examiners.matching import retrieval
from infotok.examiners.reading import examine

CANDIDATES = 32  # captions among which a drawn image's own is to be found


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
