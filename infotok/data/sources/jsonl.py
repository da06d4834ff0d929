"""Images and texts listed in a file of JSON lines, or in one JSON array, as LLaVA's are; it may be compressed (.gz).

Each line is an object with

    image, images              the image's path inside the folder, or its bytes in base64; of a list the only one
    split                      train, validation or test; others as data.splits says
    captions and questions     as `infotok.data.entries` reads them

Lines without an image, as mixes of LLaVA have them, are skipped and counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from infotok.data.arrow import Split
from infotok.data.entries import texts
from infotok.data.files import image_of, json_lines, picture
from infotok.data.images import Unreadable
from infotok.data.intake import SKIP, Example, SplitNames, intake
from infotok.data.options import OpenOptions
from infotok.data.rejects import Rejects
from infotok.errors import InfotokError

METADATA = {"has_objects": False}


class Options(OpenOptions):
    """file: of the JSON lines, inside the folder that `path` names."""

    source: Literal["jsonl"] = "jsonl"
    file: str = "data.jsonl"


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all lines that can be used."""
    path = Path(options.path) / options.file
    if not path.is_file():
        raise InfotokError(f"{path}: is missing; data.path names the folder, data.file the JSON lines in it")
    names = SplitNames(options)
    splits = (names(entry.get("split")) for _, entry in json_lines(path) if isinstance(entry, dict))
    given = {split for split in splits if split is not None}
    found |= {"given_splits": names.became, "skipped": {}}
    yield from intake(_examples(path, options, names, rejects, found["skipped"]), options, given, rejects, found)


def _examples(path: Path, options: Options, names: SplitNames, rejects: Rejects, skipped: dict) -> Iterator[Example]:
    root, outside = Path(options.path), options.folders()
    for number, entry in json_lines(path):
        where = f"{path.relative_to(root).as_posix()}:{number}"
        if not isinstance(entry, dict):
            rejects.add(where, "line", str(entry) if isinstance(entry, ValueError) else "is no JSON object")
            continue
        given = entry.get("split")
        split = names(given)
        if given is not None and split is None:
            rejects.add(where, "line", f"names an {names.unknown(given)}")
            continue
        try:
            value = image_of(entry)
            if value is None or split == SKIP:
                reason = "no image" if value is None else f"a split that is skipped: {given}"
                skipped[reason] = skipped.get(reason, 0) + 1
                continue
            image = picture(value, root, outside)
        except Unreadable as error:
            rejects.add(where, "image", str(error))
            continue
        yield Example(image, where, *texts(entry), split=split, file=value if isinstance(image, Path) else "")
