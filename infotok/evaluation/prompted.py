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
from infotok.examiners.detector import Detector
from infotok.examiners.judges import ObjectJudge
from infotok.examiners.matcher import Matcher
from infotok.examiners.matching import retrieval
from infotok.examiners.scenes import read_scenes

CANDIDATES = 32  # captions among which a drawn image's own is to be found


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

    def __init__(self, judge: ObjectJudge, metadata: dict, *, per_tag: int, most: int, seed: int):
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
        how = "detects them and their places" if isinstance(self.judge, Detector) else "reads them per quadrant"
        return {
            "geneval": f"{len(asked)} test prompts of {len({p['tag'] for p in asked})} tags; mean over tags",
            "geneval_novel": f"{len(self._prompts['novel'])} prompts with unseen color-shape pairs",
            "judge": f"objects: {how}; its ceiling stands in the judge's metrics",
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
