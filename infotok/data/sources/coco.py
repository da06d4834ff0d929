"""COCO's captions, and questions about its images as VQAv2's: the JSON files as published, plain or compressed (.gz).

Image numbers join them: captions_train2017.json and v2_OpenEnded_mscoco_train2014_questions.json with
v2_mscoco_train2014_annotations.json say different things of the same images. A file is named for its split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from infotok.data.arrow import Split
from infotok.data.files import SUFFIXES, inside, read_json
from infotok.data.images import Unreadable
from infotok.data.intake import SKIP, Example, SplitNames, intake
from infotok.data.options import OpenOptions
from infotok.data.rejects import Rejects
from infotok.errors import InfotokError

METADATA = {"has_objects": False}


class Options(OpenOptions):
    """files: of captions, and of questions with the answers to them (`annotations`), inside the folder `path`. images:
    the folder of the images in it; a file is found by the name that captions give, or by the number that its own name
    ends with."""

    source: Literal["coco"] = "coco"
    files: Annotated[list[str], Field(min_length=1)]
    images: str = "."


@dataclass
class _About:
    """What the files say of one image."""

    where: str
    name: str | None = None
    captions: list[Any] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all images that the files say something of.

    Raises:
        InfotokError: a file is none of these, is of a split of unknown name, or holds questions without answers.
    """
    names = SplitNames(options)
    about = _read(options, names)
    found |= {"given_splits": names.became, "skipped": {}}
    for (given, split), images in about.items():
        if split == SKIP:
            found["skipped"][f"a split that is skipped: {given}"] = len(images)
    named = {split for _, split in about if split is not None and split != SKIP}
    yield from intake(_examples(options, about, rejects), options, named, rejects, found)


def _read(options: Options, names: SplitNames) -> dict[tuple[str, str | None], dict[Any, _About]]:
    """(split as named, our split) -> image number -> what is said of it."""
    about: dict = defaultdict(dict)
    answers: dict[Any, dict[str, Any]] = {}
    questions = []
    for file in options.files:
        path = Path(options.path) / file
        if not path.is_file():
            raise InfotokError(f"{path}: is missing; data.files names files in the folder data.path")
        content = read_json(path)
        given, split = _split_of(path, content, names)
        images = about[given, split]

        def of(number: Any, images: dict = images, file: str = file) -> _About:
            return images.setdefault(number, _About(f"{file}#{number}"))

        rows = _rows(path, content)
        if "questions" in content:
            questions += [(path, of(row.get("image_id")), row) for row in rows]
        elif any("question_id" in row for row in rows[:1]):
            answers |= {row["question_id"]: row for row in rows if "question_id" in row}
        elif any("caption" in row for row in rows[:1]):
            for row in rows:
                of(row.get("image_id")).captions.append(row.get("caption"))
            for image in content.get("images", []):
                if image.get("id") in images:
                    images[image["id"]].name = image.get("file_name")
        else:
            raise InfotokError(
                f"{path}: holds neither captions nor questions nor answers to them; name others in data.files"
            )
    for path, image, row in questions:
        answer = answers.get(row.get("question_id"))
        if answer is None and not answers:
            raise InfotokError(f"{path}: no answers to its questions; name the file of annotations in data.files too")
        image.questions.append(_question(row, answer or {}))
    return {
        key: images for key, images in about.items() if any(one.captions or one.questions for one in images.values())
    }


def _rows(path: Path, content: Any) -> list[dict[str, Any]]:
    rows = content.get("questions", content.get("annotations")) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InfotokError(
            f"{path}: is no object with 'annotations' or 'questions', as COCO's are; name others in data.files"
        )
    return rows


def _split_of(path: Path, content: Any, names: SplitNames) -> tuple[str, str | None]:
    """The split that a file says it is of, or is named for; ('', None) where it says nothing."""
    given = content.get("data_subtype") if isinstance(content, dict) else None
    named = re.search(r"_([A-Za-z]+-?[A-Za-z]*\d{0,4})\.json(\.gz)?$", path.name)
    given = given or (named[1] if named else None)
    if given in (None, "questions", "annotations", "captions"):
        return "", None
    split = names(given)
    if split is None:
        raise InfotokError(f"{path}: {names.unknown(given)}")
    return given, split


def _question(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    kind = answer.get("answer_type")
    family = kind.replace("/", "_") if isinstance(kind, str) else row.get("family")
    several = answer.get("answers")
    return {
        "question": row.get("question"),
        "answer": None if several else answer.get("multiple_choice_answer", answer.get("answer")),
        "answers": several,
        "family": family,
    }


def _examples(options: Options, about: dict, rejects: Rejects) -> Iterator[Example]:
    root = Path(options.path) / options.images
    if not root.is_dir():
        raise InfotokError(f"{root}: is no folder; data.images names the folder of the images in data.path")
    outside = (Path(options.path), *options.folders())
    by_name, by_number = _index(root)
    for (_, split), images in about.items():
        for number, one in images.items() if split != SKIP else ():
            name = one.name if isinstance(one.name, str) and (root / one.name).exists() else by_name.get(one.name)
            name = name or by_number.get(number)
            if name is None:
                rejects.add(one.where, "image", f"is missing: {one.name or number}")
                continue
            try:
                image = inside(root, name, outside)
            except Unreadable as error:
                rejects.add(one.where, "image", str(error))
                continue
            yield Example(image, one.where, one.captions, one.questions, split=split, file=name)


def _index(root: Path) -> tuple[dict[str, str], dict[int, str]]:
    """Images in a folder and the folders in it, by their names and by the numbers that these end with."""
    by_name: dict[str, str] = {}
    by_number: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            name = path.relative_to(root).as_posix()
            by_name.setdefault(path.name, name)
            if number := re.search(r"(\d+)$", path.stem):
                by_number.setdefault(int(number[1]), name)
    return by_name, by_number
