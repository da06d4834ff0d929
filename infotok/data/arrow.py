"""The prepared form of a data set: one Arrow file per split, memory-mapped, and a manifest.

`datasets.Dataset.from_file` of Hugging Face opens the same files. They are written and read in record batches, so that
a data set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from infotok.errors import DamagedDataError

_WORDS = [(name, pa.string()) for name in ("question", "answer", "family")]
_QUESTION = pa.struct([*_WORDS, ("answers", pa.list_(pa.string()))])
ROWS = 1024  # of a record batch
RECENT = 1 << 16  # rows of a text column that stay in memory as Python objects


class Images:
    """Images of a split on disk, indexed like an array (n, H, W, 3) uint8; what an index takes is copied to memory."""

    def __init__(self, parts: list[np.ndarray]):
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])
        self.shape, self.dtype = (int(self._starts[-1]), *parts[0].shape[1:]), np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(index, (int, np.integer)):
            return self[np.array([index])][0]
        rows = np.arange(len(self))[index]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        for position, (part, row) in enumerate(zip(parts, rows - self._starts[parts], strict=True)):
            out[position] = self._parts[part][row]
        return out

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.concatenate(self._parts).astype(dtype or np.uint8, copy=False)


class Column(Sequence):
    """A column on disk, one Python object a row: the value, or what `parse` makes of it."""

    def __init__(self, column: pa.ChunkedArray, parse: Callable = lambda value: value):
        self._column, self._parse = column, parse
        self._row = lru_cache(RECENT)(lambda index: self._parse(self._column[index].as_py()))

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        index = int(index)
        return self._row(index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator:
        for chunk in self._column.chunks:
            yield from map(self._parse, chunk.to_pylist())

    def __eq__(self, other) -> bool:
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))


@dataclass
class Split:
    """Images with everything said about them; row i of every field is image i.

    images: (n, H, W, 3) uint8. captions: lists of strings. questions: lists of dicts with question, answer, family, and
    answers where several are right, one of several people as often as they gave it.
    objects: lists of dicts as `infotok.data.scene_texts` has them (empty lists where unknown).
    factors: name -> (n, slots) int8 categories for probes, -1 where undefined. origins: where an image came from,
    `file` or `file:line`, in the folder `root`, as the params file names it. files: the image's own file, "" where it
    has none. sizes: (n, 2), width and height before it was made square.
    """

    images: np.ndarray | Images
    captions: Sequence[list[str]]
    questions: Sequence[list[dict[str, str]]]
    objects: Sequence[list[dict]]
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    origins: Sequence[str] = ()
    files: Sequence[str] = ()
    sizes: np.ndarray | None = None
    root: str = ""

    def place(self, row: int) -> str:
        """Where an image came from, as its user finds it; empty where it was made."""
        origin = self.origins[row] if self.origins else ""
        return os.path.join(self.root, origin) if origin else ""

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices`, as a new split in memory."""
        return Split(
            self.images[indices],
            [self.captions[i] for i in indices],
            [self.questions[i] for i in indices],
            [self.objects[i] for i in indices],
            {name: values[indices] for name, values in self.factors.items()},
            [self.origins[i] for i in indices] if self.origins else (),
            [self.files[i] for i in indices] if self.files else (),
            None if self.sizes is None else self.sizes[indices],
            self.root,
        )


def texts_about(captions: list[str], questions: list[dict[str, str]]) -> list[str]:
    """What is said of one image: its captions, or where it has none its questions with their answers."""
    return captions or [f"{pair['question']} {pair['answer']}" for pair in questions]


class SplitWriter:
    """Writes one split, part by part, as an Arrow IPC stream; the file bears its name once it is whole."""

    def __init__(self, path: Path):
        self.path, self.images = path, 0
        self._temporary = path.with_name(path.name + ".tmp")
        self._sink = pa.OSFile(str(self._temporary), "wb")
        self._writer: pa.RecordBatchStreamWriter | None = None

    def write(self, part: Split) -> None:
        """Append a part; all parts have images of one size and the same factors."""
        self.images += len(part)
        table = _table(part)
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._sink, table.schema)
        try:
            self._writer.write_table(table, max_chunksize=ROWS)
        except OSError as error:  # a full disk; Arrow does not say of which file
            raise OSError(error.errno, os.strerror(error.errno or 0), str(self.path)) from None

    def close(self) -> str:
        """Finish the file and return its sha256."""
        if self._writer is not None:
            self._writer.close()
        self._sink.close()
        with open(self._temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(self._temporary, self.path)
        return digest


def _table(split: Split) -> pa.Table:
    count = len(split)
    flat = np.ascontiguousarray(split.images).reshape(count, -1)
    offsets = np.arange(count + 1, dtype=np.int64) * flat.shape[1]
    image = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
    )
    columns = {
        "image": image,
        "captions": pa.array(list(split.captions), pa.list_(pa.string())),
        "questions": pa.array(list(split.questions), pa.list_(_QUESTION)),
        "objects": pa.array([json.dumps(objects) for objects in split.objects], pa.string()),
        "origin": pa.array(list(split.origins) or [""] * count, pa.string()),
        "file": pa.array(list(split.files) or [""] * count, pa.string()),
    }
    sizes = np.full((count, 2), split.images.shape[2:0:-1]) if split.sizes is None else split.sizes
    columns |= {"width": pa.array(sizes[:, 0], pa.int32()), "height": pa.array(sizes[:, 1], pa.int32())}
    for name, values in split.factors.items():
        slots = pa.array(np.ascontiguousarray(values).reshape(-1), pa.int8())
        columns[f"factor/{name}"] = pa.FixedSizeListArray.from_arrays(slots, values.shape[1])
    return pa.table(columns).replace_schema_metadata({"image_shape": json.dumps(split.images.shape[1:])})


def write_split(split: Split, path: Path) -> str:
    """Write one split that is in memory as an Arrow file and return its sha256."""
    writer = SplitWriter(path)
    writer.write(split)
    return writer.close()


def read_split(folder: Path, name: str) -> Split:
    """Open one prepared split. It stays on disk, memory-mapped, until it is touched. Where the folder has a manifest
    the file is read through once, at more than 1 GB/s, for its checksum: Arrow does not see damage to pixels.

    Raises:
        DamagedDataError: the file is missing or damaged.
    """
    path = folder / f"{name}.arrow"
    try:
        if expected := _checksum(folder, name):
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise ValueError("its checksum does not match the manifest's")
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        shape = json.loads(table.schema.metadata[b"image_shape"])
        if not len(table):
            raise ValueError("it holds no images")
        parts = [_pixels(chunk, shape) for chunk in table["image"].chunks if len(chunk)]
    except FileNotFoundError:
        raise DamagedDataError(f"{path}: is missing") from None
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError, OSError) as error:
        raise DamagedDataError(f"{path}: is damaged ({error})") from None
    factors = {}
    for column in table.column_names:
        if column.startswith("factor/"):
            values = table[column].combine_chunks()
            factors[column.removeprefix("factor/")] = values.flatten().to_numpy().reshape(-1, values.type.list_size)
    return Split(
        images=Images(parts),
        captions=Column(table["captions"]),
        questions=Column(table["questions"], _without_nulls),
        objects=Column(table["objects"], json.loads),
        factors=factors,
        origins=Column(table["origin"]),
        files=Column(table["file"]),
        sizes=np.stack([table[name].to_numpy() for name in ("width", "height")], 1),
        root=_manifest_of(folder).get("config", {}).get("path") or "",
    )


def _without_nulls(questions: list[dict]) -> list[dict]:
    return [{key: value for key, value in pair.items() if value is not None} for pair in questions]


def _checksum(folder: Path, name: str) -> str | None:
    """What the manifest says of a split's file; None without a manifest."""
    return _manifest_of(folder).get("splits", {}).get(name, {}).get("sha256")


def _manifest_of(folder: Path) -> dict:
    """Empty without one, as while data are prepared."""
    return read_manifest(folder) if (folder / "manifest.json").exists() else {}


def _pixels(chunk: pa.LargeBinaryArray, shape: list[int]) -> np.ndarray:
    """The images of one record batch (n, H, W, 3), as a view of the file."""
    size = int(np.prod(shape))
    pixels = np.frombuffer(chunk.buffers()[2], dtype=np.uint8, count=len(chunk) * size, offset=chunk.offset * size)
    return pixels.reshape(len(chunk), *shape)


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared data set.

    Raises:
        DamagedDataError: it is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DamagedDataError(f"{path}: is missing") from None
    except ValueError:
        raise DamagedDataError(f"{path}: is damaged") from None
