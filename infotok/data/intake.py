"""From what a source reads to splits of square images: decoding, splits by content, duplicates, texts checked.

A source that reads files yields `Example`s; `intake` makes parts of splits of them, one part in memory at a time.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infotok.data.arrow import ROWS, Split
from infotok.data.files import is_unicode, shown
from infotok.data.images import Unreadable, content_digest, fit, open_image, parse_color
from infotok.data.options import FileOptions
from infotok.data.rejects import Rejects

if TYPE_CHECKING:
    from PIL.Image import Image

SPLITS = ("train", "validation", "test")
SKIP = "skip"
ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}
ALIASES |= {name: name for name in SPLITS}
YEAR = re.compile(r"(.*\D)[-_]?(?:19|20)\d\d")  # train2014, as COCO names its splits
LONGEST = 2000  # characters of a text; longer ones would fill memory in training


@dataclass
class Example:
    """One image as a source gives it, and what is said of it.

    image: a file, its bytes, or an image of Pillow. where: `file` or `file:line`, for what may be wrong with it.
    captions: texts. questions: dicts with question, answer or answers, and perhaps family. wrong: what the source could
    not use of them, as (what, reason). split: `train`, `validation`, `test`, or None, by content. file: the image's,
    where `where` does not name it.
    """

    image: Path | bytes | Image
    where: str
    captions: list[Any] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    split: str | None = None
    file: str = ""


class SplitNames:
    """Where the splits go that data name: by the option `splits`, else by what names mean to most (`val`, `Test`,
    `train2014`)."""

    def __init__(self, options: FileOptions):
        self.mapped = options.splits
        self.became: dict[str, str] = {}  # of every name that was found

    def __call__(self, given: Any) -> str | None:
        """train, validation, test, skip, or None where the name is unknown."""
        if not isinstance(given, str):
            return None
        name = given.strip().lower()
        year = YEAR.fullmatch(name)
        meant = ALIASES.get(name) or (ALIASES.get(year[1].rstrip("-_")) if year else None)
        if found := self.mapped.get(given, self.mapped.get(name, meant)):
            self.became[given] = found
        return found

    @staticmethod
    def unknown(given: Any) -> str:
        """What to say of an unknown name, and the remedy."""
        return (
            f"unknown split '{given}'; say where it goes with data.splits: {{{given}: test}} "
            f"(train, validation, test or {SKIP})"
        )


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
        draw = int.from_bytes(hashlib.sha256(self.salt + digest).digest()[:8]) / 2**64
        for name, share in self.shares.items():
            if draw < share:
                return name
            draw -= share
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
        where = shown(example.where)
        captions, questions = checked_texts(example, where, rejects)
        try:
            opened = open_image(example.image, color)
        except Unreadable as error:
            rejects.add(where, "image", f"{error}: {example.file}" if example.file else str(error))
            continue
        if not captions and not questions:
            rejects.add(where, "image", "has no caption and no question")
            continue
        digest = content_digest(opened)
        split = choose(digest, example.split)
        first, earlier = seen.setdefault(digest, (split, where))
        if earlier != where:
            found["duplicates"]["within" if first == split else "across"] += 1
            if first != split:
                rejects.note(where, "image", f"in {split} is a copy of one in {first}")
        pixels = fit(opened, options.image_size, options.fit, color)
        file = example.image.as_posix() if isinstance(example.image, Path) else ""
        if not is_unicode(file):  # which Arrow does not hold
            rejects.note(where, "image", "has a file name that is no Unicode: pretrained models see its small copy")
            file = ""
        parts[split].append((pixels, captions, questions, where, file, opened.size))
        if len(parts[split]) == ROWS:
            yield split, _part(parts.pop(split))
    for split in SPLITS:
        if split in parts:
            yield split, _part(parts[split])


def checked_texts(example: Example, where: str, rejects: Rejects) -> tuple[list[str], list[dict[str, Any]]]:
    """Captions and questions that can be used, spaces at their ends taken off and accents written in one way; the
    others are rejected."""
    captions, questions = [], []
    for what, reason in example.wrong:
        rejects.add(where, what, reason)
    for caption in example.captions:
        if wrong := _wrong(caption):
            rejects.add(where, "caption", wrong)
        else:
            captions.append(_clean(caption))
    for pair in example.questions:
        if wrong := _wrong(pair.get("question")):
            rejects.add(where, "question", wrong)
            continue
        answers = []
        for answer in _answers(pair):
            if wrong := _wrong(answer):
                rejects.add(where, "answer", wrong)
            else:
                answers.append(_clean(answer))
        if answers:
            family = "question" if _wrong(pair.get("family")) else _clean(pair["family"])
            # Of several the most frequent is learned, of as frequent ones the first.
            kept = {"question": _clean(pair["question"]), "answer": Counter(answers).most_common(1)[0][0]}
            questions.append(kept | {"family": family} | ({"answers": answers} if len(answers) > 1 else {}))
    return captions, questions


def _answers(pair: dict[str, Any]) -> list[Any]:
    """The answers to a question as texts, where they can be; one that is missing, where there are none."""
    one, several = (
        [_as_text(value.get("answer") if isinstance(value, dict) else value) for value in _listed(pair.get(key))]
        for key in ("answer", "answers")
    )
    return [answer for answer in one if answer not in several] + several or [None]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _as_text(value: Any) -> Any:
    """Numbers and truth in words; what is neither, as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.15g}" if math.isfinite(value) else None
    return str(value) if isinstance(value, int) else value


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _wrong(text: Any) -> str:
    if text is None:
        return "is missing"
    if not isinstance(text, str):
        return f"is no text but {type(text).__name__}"
    if not text.strip():
        return "is empty"
    if not is_unicode(text):
        return "holds half of a surrogate pair; write the whole character"
    return "" if len(text) <= LONGEST else f"is longer than {LONGEST} characters"


def _part(rows: list[tuple]) -> Split:
    pixels, captions, questions, origins, files, sizes = zip(*rows, strict=True)
    return Split(np.stack(pixels), captions, questions, [[] for _ in rows], {}, origins, files, np.array(sizes))
