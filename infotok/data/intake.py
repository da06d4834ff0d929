"""From what a source reads to splits of square images: decoding, splits by content, duplicates, texts checked.

A source that reads files yields `Example`s; `intake` makes parts of splits of them, one part in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infotok.data.arrow import ROWS, Split
from infotok.data.images import Unreadable, content_digest, fit, open_image, parse_color
from infotok.data.options import FileOptions
from infotok.data.rejects import Rejects

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "validation", "test")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
LONGEST = 2000  # characters of a text; longer ones would fill memory in training


@dataclass
class Example:
    """One image as a source gives it, and what is said of it.

    image: a file, its bytes, or an image of Pillow. where: `file` or `file:line`, for what may be wrong with it.
    captions: texts. questions: dicts with question, answer and perhaps family. split: `train`, `validation` (`val`,
    `dev`), `test`, or None, by content. file: the image's, where `where` does not name it.
    """

    image: Path | bytes | Image
    where: str
    captions: list[Any] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    split: str | None = None
    file: str = ""


def split_name(given: Any) -> str | None:
    """The split of a given name, None where there is none of it."""
    name = ALIASES.get(given, given) if isinstance(given, str) else None
    return name if name in SPLITS else None


def inside(root: Path, name: Any) -> Path:
    """The file of this name under a folder.

    Raises:
        Unreadable: it is no name of a file, or one that leads out of the folder, by `..` or by a link.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise Unreadable("has no file name")
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise Unreadable(f"leaves the folder: {name}")
    return path


class Chooser:
    """Which split an image belongs to.

    As given; where the data name no validation or no test images, by the image's content: of what is train or not
    given, the shares that the options say. All copies of an image that are not given fall into one split, and adding
    images moves no other.
    """

    def __init__(self, options: FileOptions, given: set[str]):
        self.salt = str(options.seed).encode()
        self.shares = options.shares(given)

    def __call__(self, digest: bytes, given: str | None) -> str:
        if given in ("validation", "test"):
            return given
        place = int.from_bytes(hashlib.sha256(self.salt + digest).digest()[:8]) / 2**64
        for name, share in self.shares.items():
            if place < share:
                return name
            place -= share
        return "train"


def intake(
    examples: Iterable[Example], options: FileOptions, given: set[str], rejects: Rejects, found: dict
) -> Iterator[tuple[str, Split]]:
    """Parts of splits, of at most `ROWS` images each.

    Args:
        given: the splits that the data themselves name.
        found: is filled with `duplicates`: how many images are copies of an earlier one of the same split (`within`)
            and of another split (`across`).
    """
    choose, color = Chooser(options, given), parse_color(options.background)
    parts: dict[str, list[tuple]] = defaultdict(list)
    seen: dict[bytes, tuple[str, str]] = {}
    found["duplicates"] = {"within": 0, "across": 0}
    for example in examples:
        captions, questions = checked_texts(example, rejects)
        try:
            picture = open_image(example.image, color)
        except Unreadable as error:
            file = f": {example.file}" if example.file else ""
            rejects.add(example.where, "image", f"{error}{file}")
            continue
        if not captions and not questions:
            rejects.add(example.where, "image", "has no caption and no question")
            continue
        digest = content_digest(picture)
        split = choose(digest, split_name(example.split))
        first, where = seen.setdefault(digest, (split, example.where))
        if where != example.where:
            found["duplicates"]["within" if first == split else "across"] += 1
            if first != split:
                rejects.note(example.where, "image", f"in {split} is a copy of one in {first}")
        pixels = fit(picture, options.image_size, options.fit, color)
        parts[split].append((pixels, captions, questions, example.where))
        if len(parts[split]) == ROWS:
            yield split, _part(parts.pop(split))
    for split in SPLITS:
        if split in parts:
            yield split, _part(parts[split])


def checked_texts(example: Example, rejects: Rejects) -> tuple[list[str], list[dict[str, str]]]:
    """Captions and questions that can be used, spaces at their ends taken off; the others are rejected."""
    captions, questions = [], []
    for caption in example.captions:
        if wrong := _wrong(caption):
            rejects.add(example.where, "caption", wrong)
        else:
            captions.append(caption.strip())
    for pair in example.questions:
        question, answer = pair.get("question"), pair.get("answer")
        if wrong := _wrong(question):
            rejects.add(example.where, "question", wrong)
        elif wrong := _wrong(answer):
            rejects.add(example.where, "answer", wrong)
        else:
            family = pair.get("family")
            family = family.strip() if isinstance(family, str) and family.strip() else "question"
            questions.append({"question": question.strip(), "answer": answer.strip(), "family": family})
    return captions, questions


def _wrong(text: Any) -> str:
    if text is None:
        return "is missing"
    if not isinstance(text, str):
        return f"is no text but {type(text).__name__}"
    if not text.strip():
        return "is empty"
    return "" if len(text) <= LONGEST else f"is longer than {LONGEST} characters"


def _part(rows: list[tuple]) -> Split:
    pixels, captions, questions, origins = zip(*rows, strict=True)
    return Split(np.stack(pixels), captions, questions, [[] for _ in rows], {}, origins)
