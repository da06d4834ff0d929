"""Small data sets as people bring them, and what `prepare` makes of them."""

import json

from PIL import Image

from infotok.data import source_options
from infotok.data.arrow import read_split
from infotok.data.prepare import prepare

OPTIONS = {one.__module__.rpartition(".")[-1]: one for one in source_options()}


def options(source, **changes):
    return OPTIONS[source](**({"image_size": 16, "vocabulary": 300} | changes))


def prepared(place, folder, source="jsonl", **changes):
    """The manifest of what `prepare` makes of data at `place`."""
    return prepare(options(source, path=str(place), **changes), folder)


def color(index):
    """A color of its own for every index."""
    return (index * 37 % 256, index * 91 % 256, index % 256)


def picture(path, index=0, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color(index)).save(path)
    return path


def listed(folder, count=60, **more):
    """A folder of `count` plain images and a line for each."""
    lines = []
    for index in range(count):
        picture(folder / "images" / f"{index}.png", index)
        line = {"image": f"images/{index}.png", "caption": f"picture {index}"}
        lines.append(line | {key: value(index) for key, value in more.items()})
    return lines


def write(folder, lines, name="data.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / name).write_bytes(b"\n".join(text) + b"\n")


def rejects(folder):
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def all_questions(folder):
    """The questions of all splits, by the line that they came from."""
    found = {}
    for name in ("train", "validation", "test"):
        split = read_split(folder, name)
        found |= {
            int(where.rpartition(":")[2]): pairs for where, pairs in zip(split.origins, split.questions, strict=True)
        }
    return found
