"""Folders of images, one a class: `<class>/*`, or `<split>/<class>/*`. The class becomes caption and question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from infotok.data.arrow import Split
from infotok.data.files import SUFFIXES, inside
from infotok.data.images import Unreadable
from infotok.data.intake import SKIP, Example, SplitNames, intake
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
    """Parts of splits of all images in class folders.

    Raises:
        InfotokError: there are none, or folders beside splits of which nobody says what they are.
    """
    root = Path(options.path)
    if not root.is_dir():
        raise InfotokError(f"{root}: is no folder; data.path names the folder of the class folders")
    names = SplitNames(options)
    roots = _split_folders(root, names)
    found |= {"given_splits": {name: names.became[name] for name in roots}, "skipped": {}}
    files = []
    for name, folder in roots.items() or [(None, root)]:
        split = names(name)
        if split == SKIP:
            found["skipped"][f"a split that is skipped: {name}"] = sum(map(Path.is_file, folder.rglob("*")))
        else:
            files += [(split, path) for path in _files(root, folder, rejects)]
    if not files:
        raise InfotokError(f"{root}: holds no class folders with files; put images at <class>/<name>.png")
    classes = Counter(path.parent.name for _, path in files)
    for name in sorted(name for name, count in classes.items() if count == 1):
        rejects.note(name, "class", "has one image")
    given = set(found["given_splits"].values()) - {SKIP}
    yield from intake(_examples(options, root, files, rejects), options, given, rejects, found)


def _split_folders(root: Path, names: SplitNames) -> dict[str, Path]:
    """Folders that are splits: those of which a known one holds class folders; a class may be called `train` too."""
    folders = {path.name: path for path in _folders(root)}
    if not any(names(name) and _folders(folder) for name, folder in folders.items()):
        return {}
    for name in folders:
        if names(name) is None:
            raise InfotokError(f"{root / name}: lies beside folders of splits, {names.unknown(name)}")
    return folders


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(root: Path, folder: Path, rejects: Rejects) -> Iterator[Path]:
    """The files of class folders; what lies above or below them is told."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            _tell(path.relative_to(root), "lies in no class folder; put it at <class>/<name>", rejects)
    for inner in _folders(folder):
        for path in sorted(path for path in inner.iterdir() if not path.name.startswith(".")):
            if path.is_dir():
                where = path.relative_to(root).as_posix()
                rejects.add(where, "folder", "lies in a class folder; images belong at <class>/<name>, one folder deep")
            else:
                yield path


def _tell(path: Path, reason: str, rejects: Rejects) -> None:
    """An image that is left out counts as a reject, a list or a readme does not."""
    (rejects.add if path.suffix.lower() in SUFFIXES else rejects.note)(path.as_posix(), "file", reason)


def _examples(options: Options, root: Path, files: list, rejects: Rejects) -> Iterator[Example]:
    for split, path in files:
        where = path.relative_to(root).as_posix()
        name = path.parent.name.replace("_", " ")
        questions = [{"question": options.question, "answer": name, "family": "class"}]
        try:
            path = inside(root, where, options.folders())
        except Unreadable as error:
            rejects.add(where, "image", str(error))
            continue
        yield Example(path, where, [options.caption.replace("{class}", name)], questions, split=split)
