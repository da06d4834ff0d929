"""easy-VQA (Victor Zhou), the folder as published: `{train,test}/questions.json` and `{train,test}/images/N.png`.

Its question alone, answered with the most frequent training answer to it, scores 67.0 % on the test questions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from infotok.data.arrow import Split
from infotok.data.intake import Example, intake
from infotok.data.options import FileOptions
from infotok.data.rejects import Rejects
from infotok.errors import InfotokError

METADATA = {"has_objects": False}
PUBLISHED = ("train", "test")


class Options(FileOptions):
    """Validation is a share of the published training images; the published test images stay the test split."""

    source: Literal["easy_vqa"] = "easy_vqa"


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all images that questions ask about."""
    examples = (example for split in PUBLISHED for example in _examples(Path(options.path), split))
    yield from intake(examples, options, set(PUBLISHED), rejects, found)


def _examples(root: Path, split: str) -> Iterator[Example]:
    path = root / split / "questions.json"
    try:
        triples = json.loads(path.read_text(encoding="utf-8"))
        about = defaultdict(list)
        for question, answer, image in triples:
            about[int(image)].append({"question": question, "answer": answer, "family": family(question, answer)})
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing; data.path names the folder of easy-VQA's train/ and test/") from None
    except (ValueError, TypeError, OSError) as error:
        raise InfotokError(
            f"{path}: is not easy-VQA's list of [question, answer, image] ({error}); copy it again"
        ) from None
    for image, questions in sorted(about.items()):
        name = f"images/{image}.png"
        yield Example(path.parent / name, f"{split}/{name}", [], questions, split=split)


def family(question: str, answer: str) -> str:
    """yes_no, color or shape."""
    if answer in ("yes", "no"):
        return "yes_no"
    return "color" if "color" in question else "shape"
