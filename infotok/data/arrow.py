"""The prepared form of a data set: one Arrow file per split, memory-mapped, and a manifest.

`datasets.Dataset.from_file` of Hugging Face opens the same files.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from infotok.errors import InfotokError

_QUESTION = pa.struct([("question", pa.string()), ("answer", pa.string()), ("family", pa.string())])


@dataclass
class Split:
    """Images with everything said about them; row i of every field is image i.

    images: (n, H, W, 3) uint8. captions: lists of strings. questions: lists of dicts with question, answer, family.
    objects: lists of dicts with shape, color, size, row, column (empty lists where unknown).
    factors: name -> (n, slots) int8 categories for probes, -1 where undefined.
    """

    images: np.ndarray
    captions: list[list[str]]
    questions: list[list[dict[str, str]]]
    objects: list[list[dict]]
    factors: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices`, as a new split."""
        return Split(
            self.images[indices],
            [self.captions[i] for i in indices],
            [self.questions[i] for i in indices],
            [self.objects[i] for i in indices],
            {name: values[indices] for name, values in self.factors.items()},
        )


def write_split(split: Split, path: Path) -> str:
    """Write one split as an Arrow IPC file and return its sha256."""
    count = len(split)
    flat = np.ascontiguousarray(split.images).reshape(count, -1)
    offsets = np.arange(count + 1, dtype=np.int64) * flat.shape[1]
    image = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
    )
    columns = {
        "image": image,
        "captions": pa.array(split.captions, pa.list_(pa.string())),
        "questions": pa.array(split.questions, pa.list_(_QUESTION)),
        "objects": pa.array([json.dumps(objects) for objects in split.objects], pa.string()),
    }
    for name, values in split.factors.items():
        slots = pa.array(np.ascontiguousarray(values).reshape(-1), pa.int8())
        columns[f"factor/{name}"] = pa.FixedSizeListArray.from_arrays(slots, values.shape[1])
    table = pa.table(columns).replace_schema_metadata({"image_shape": json.dumps(split.images.shape[1:])})
    temporary = path.with_name(path.name + ".tmp")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    os.replace(temporary, path)
    return digest


def read_split(folder: Path, name: str) -> Split:
    """Open one prepared split. Images stay on disk, memory-mapped, until they are touched.

    Raises:
        InfotokError: the file is missing or damaged.
    """
    path = folder / f"{name}.arrow"
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all().combine_chunks()
        shape = json.loads(table.schema.metadata[b"image_shape"])
        if not len(table):
            raise ValueError("it holds no images")
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing; run `dvc repro prepare`") from None
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError, OSError) as error:
        raise InfotokError(f"{path}: is damaged ({error}); delete it and run `dvc repro prepare`") from None
    column = table["image"].chunk(0)
    pixels = np.frombuffer(column.buffers()[2], dtype=np.uint8, count=len(table) * int(np.prod(shape)))
    factors = {}
    for field in table.column_names:
        if field.startswith("factor/"):
            values = table[field].chunk(0)
            slots = values.type.list_size
            factors[field.removeprefix("factor/")] = values.flatten().to_numpy().reshape(-1, slots)
    return Split(
        images=pixels.reshape(len(table), *shape),
        captions=table["captions"].to_pylist(),
        questions=table["questions"].to_pylist(),
        objects=[json.loads(objects) for objects in table["objects"].to_pylist()],
        factors=factors,
    )


def read_manifest(folder: Path) -> dict:
    """The manifest of a prepared data set.

    Raises:
        InfotokError: it is missing or damaged.
    """
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing; run `dvc repro prepare`") from None
    except ValueError:
        raise InfotokError(f"{path}: is damaged; delete {folder} and run `dvc repro prepare`") from None
