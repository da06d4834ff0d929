"""Folders of images, one a class: `<class>/*`, or `<split>/<class>/*`. The class becomes caption and question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from infotok.data.arrow import Split
from infotok.data.images import Unreadable
from infotok.data.intake import Example, inside, intake, split_name
from infotok.data.options import OpenOptions
from infotok.data.rejects import Rejects
from infotok.errors import InfotokError

METADATA = {"has_objects": False}


class Options(OpenOptions):
    """caption: with `{class}` where the folder's name goes, its underscores as spaces. question: its answer is that
    name."""

    source: Literal["imagefolder"] = "imagefolder"
    caption: str = "a picture of {class}"
    question: str = "what is this?"


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all images in class folders."""
    place = Path(options.path)
    if not place.is_dir():
        raise InfotokError(f"{place}: is no folder; data.path names the folder of the class folders")
    roots = {split_name(path.name): path for path in _folders(place)}
    roots.pop(None, None)
    files = [(split, path) for split, root in (roots or {None: place}).items() for path in _files(root, rejects)]
    if not files:
        raise InfotokError(f"{place}: holds no class folders with files; put images at <class>/<name>.png")
    classes = Counter(path.parent.name for _, path in files)
    for name in sorted(name for name, count in classes.items() if count == 1):
        rejects.note(name, "class", "has one image")
    yield from intake(_examples(options, place, files, rejects), options, set(roots), rejects, found)


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, rejects: Rejects) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            rejects.note(path.name, "file", "lies in no class folder")
    for folder in _folders(root):
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _examples(options: Options, place: Path, files: list, rejects: Rejects) -> Iterator[Example]:
    for split, path in files:
        where = path.relative_to(place).as_posix()
        name = path.parent.name.replace("_", " ")
        questions = [{"question": options.question, "answer": name, "family": "class"}]
        try:
            path = inside(place, where)
        except Unreadable as error:
            rejects.add(where, "image", str(error))
            continue
        yield Example(path, where, [options.caption.replace("{class}", name)], questions, split)
