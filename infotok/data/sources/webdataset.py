"""Shards of the `webdataset` library: tar archives, in which files of one name but different endings are one sample.

    000017.jpg  000017.txt  000017.json     an image, its caption, and what `infotok.data.entries` reads

Shards are read one after another, and nothing is unpacked. train-0001.tar is of the split `train`, as is 0001.tar in a
folder `train`; shards that are all of one unknown name, or of none, are split by the images' content.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from infotok.data.arrow import Split
from infotok.data.entries import texts
from infotok.data.files import SUFFIXES
from infotok.data.intake import SKIP, Example, SplitNames, intake
from infotok.data.options import OpenOptions
from infotok.data.rejects import Rejects
from infotok.errors import InfotokError

METADATA = {"has_objects": False}
CAPTIONS = (".txt", ".text", ".caption")
LARGEST = 200_000_000  # bytes of a file in a shard


class Options(OpenOptions):
    """files: which shards of the folder `path`, by a pattern."""

    source: Literal["webdataset"] = "webdataset"
    files: str = "**/*.tar*"


def prepare(options: Options, rejects: Rejects, found: dict) -> Iterator[tuple[str, Split]]:
    """Parts of splits of all samples with an image.

    Raises:
        InfotokError: there are no shards, one is damaged, or is of a split of unknown name.
    """
    root = Path(options.path)
    shards = sorted(path for path in root.glob(options.files) if path.is_file())
    if not shards:
        raise InfotokError(f"{root}: holds no shards {options.files}; data.path names their folder")
    names = SplitNames(options)
    splits = _splits(root, shards, names)
    found |= {"given_splits": names.became, "skipped": {}}
    examples = _examples(root, splits, rejects, found["skipped"])
    yield from intake(
        examples, options, {split for split in splits.values() if split not in (None, SKIP)}, rejects, found
    )


def _splits(root: Path, shards: list[Path], names: SplitNames) -> dict[Path, str | None]:
    """The split of every shard; None, by content, where all shards are alike."""
    given = {path: _name(root, path) for path in shards}
    known = {name: names(name) or names(name.rpartition("-")[2]) for name in set(given.values())}
    if set(known.values()) == {None} and len(known) == 1:
        return dict.fromkeys(shards)
    for path, name in given.items():
        if known[name] is None:
            raise InfotokError(f"{path}: {names.unknown(name)}")
    return {path: known[name] for path, name in given.items()}


def _name(root: Path, shard: Path) -> str:
    """What a shard is called, without its number; that of its folder where it has a number alone."""
    name = re.sub(r"[-_.]*\d+([-_.]*of[-_.]*\d+)?$", "", shard.name.partition(".")[0])
    return name or (shard.parent.name if shard.parent != root else "")


def _examples(root: Path, splits: dict[Path, str | None], rejects: Rejects, skipped: dict) -> Iterator[Example]:
    for shard, split in splits.items():
        name = shard.relative_to(root).as_posix()
        for key, files in _samples(shard):
            where, kinds = f"{name}/{key}", [kind for kind in files if kind in SUFFIXES]
            if split == SKIP or not kinds:
                reason = f"a split that is skipped: {name}" if split == SKIP else "no image"
                skipped[reason] = skipped.get(reason, 0) + 1
            elif (image := files[kinds[0]]) is None:
                rejects.add(where, "image", f"is larger than {LARGEST // 10**6} MB")
            else:
                yield Example(image, where, *_texts(files), split=split)


def _texts(files: dict[str, bytes | None]) -> tuple[list[Any], list[dict[str, Any]], list[tuple[str, str]]]:
    """Captions, questions and what is wrong, of a sample's JSON and of its texts, which often hold the same caption."""
    captions: list[Any] = []
    questions: list[dict[str, Any]] = []
    wrong: list[tuple[str, str]] = []
    for kind in (kind for kind in (".json", *CAPTIONS) if kind in files):
        what = "json" if kind == ".json" else "caption"
        try:
            text = (files[kind] or b"").decode("utf-8-sig")
            if kind == ".json":
                entry = json.loads(text)
                entry = {"conversations": entry} if isinstance(entry, list) else entry
                captions, questions, turns = texts(entry if isinstance(entry, dict) else {})
                wrong += turns if isinstance(entry, dict) else [(what, "is no object")]
            elif text.strip() not in captions:
                captions.append(text)
        except UnicodeDecodeError:
            wrong.append((what, "is not UTF-8"))
        except (ValueError, RecursionError) as error:
            wrong.append((what, f"is not JSON ({getattr(error, 'msg', 'nested too deep')})"))
    return captions, questions, wrong


class _Shard:
    """A tar archive, plain or compressed by gzip, read from its beginning to its end; tarfile itself takes one that was
    cut between two files for a whole one."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        self._stream = gzip.open(path, "rb") if packed else open(path, "rb")  # noqa: SIM115
        self._last = b""

    def __enter__(self) -> _Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._last = (self._last + content)[-tarfile.BLOCKSIZE :]
        return content

    def is_whole(self) -> bool:
        """Whether it ends with the block of zeros that ends an archive; reads the rest."""
        while self.read(1 << 20):
            pass
        return self._last == bytes(tarfile.BLOCKSIZE)


def _opened(stream: Any) -> tarfile.TarFile:
    """An archive that is only read, and never sought in."""
    return tarfile.open(fileobj=stream, mode="r|")


def _samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """(name, ending -> content) of the files that follow each other under one name; None of one that is too large."""
    key, files = "", dict[str, bytes | None]()
    try:
        with _Shard(shard) as stream, _opened(stream) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if (name := f"{folder}/{stem}".removeprefix("./").strip("/")) != key:
                    if files:
                        yield key, files
                    key, files = name, {}
                large = member.size > LARGEST
                content = None if large else archive.extractfile(member)
                files["." + ending.lower()] = content.read() if content else None
            if not stream.is_whole():
                raise EOFError("it ends too early")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InfotokError(f"{shard}: cannot be read as a tar archive ({error}); copy it again") from None
    if files:
        yield key, files
