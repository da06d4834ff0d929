"""Images per second prepared, loaded and brought to the device, and the memory that it takes. Preparing and loading are
done in processes of their own, whose peak is read before and after."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import Result, in_turns, peak_mib, spread, timed, where_alone
from benchmarks.device import Row, device, now
from infotok.data.arrow import read_split
from infotok.data.options import DataOptions, MadeOptions
from infotok.data.prepare import prepare
from infotok.data.sources.jsonl import Options
from infotok.data.text import TextCodec
from infotok.errors import InfotokError
from infotok.random import Purpose, Stream, stream
from infotok.training.batches import Batches
from infotok.training.inputs import Inputs
from infotok.training.joint import Given
from pipeline.config.params import Params

OPEN = "open the split"
FILES, SIDE = 200_000, 64  # images of one's own data, and their pixels a side


def measure(params: Params, quick: bool) -> Result:
    batch, steps = params.train.batch, 5 if quick else 600
    options = few_scenes(params, 4 * batch) if quick else params.data
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "data"
        prepared, of_preparing = where_alone(_with_memory, _prepare, options, folder)
        loaded, of_loading = where_alone(_with_memory, _load, params, folder, steps)
        files = Path(name) / "files"
        _write_files(files, 300 if quick else FILES)
        brought = bringing(params, folder, 2 if quick else 50)
        own = Options(path=str(files), image_size=options.image_size, vocabulary=options.vocabulary)
        read, of_reading = where_alone(_with_memory, _prepare, own, Path(name) / "own")
    tables = {
        "Preparing": [
            {"source": options.source} | prepared,
            {"source": f"jsonl, PNG of {SIDE} pixels"} | read,
        ],
        f"Loading a step of {batch} images": loaded,
        "Bringing a step to the device": brought,
        "Memory of a process": [
            {"work": "preparing"} | of_preparing,
            {"work": f"preparing {read['images']} files"} | of_reading,
            {"work": f"loading, {steps} steps"} | of_loading,
        ],
    }
    return Result({"data": options.model_dump(), "batch": batch, "questions": params.train.questions}, tables)


def few_scenes(params: Params, images: int) -> DataOptions:
    """The data section with `images` for training and few beside.

    Raises:
        InfotokError: the data are not scenes, of which there are as many as one asks for.
    """
    if not isinstance(params.data, MadeOptions):
        raise InfotokError(f"benchmarks make scenes, not {params.data.source}; name a study of scenes with --study")
    few = dict.fromkeys(("validation", "test", "novel"), 10)
    return params.data.model_copy(update={"train": images, **few})


def _write_files(folder: Path, count: int) -> None:
    """PNG files of a square on a plain ground, a thousand a folder; JSON lines with a caption and a question each."""
    rng, words = np.random.default_rng(0), [f"word{index}" for index in range(3000)]
    folder.mkdir()
    with open(folder / "data.jsonl", "w") as lines:
        for index in range(count):
            name = f"{index // 1000}/{index}.png"
            (folder / name).parent.mkdir(exist_ok=True)
            pixels = np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3), np.uint8)
            row, column = rng.integers(0, SIDE - 16, 2)
            pixels[row : row + 16, column : column + 16] = rng.integers(0, 256, 3)
            Image.fromarray(pixels).save(folder / name, compress_level=1)
            line = {"image": name, "caption": " ".join(rng.choice(words, 8))}
            line |= {"question": f"what is {words[index % 3000]}?", "answer": words[rng.integers(3000)]}
            lines.write(json.dumps(line) + "\n")


def _prepare(options: DataOptions, folder: Path) -> Row:
    begin = now()
    manifest = prepare(options, folder)
    seconds = now() - begin
    images = sum(split["images"] for split in manifest["splits"].values())
    mib = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    return {"images": images, "seconds": seconds, "on_disk_MiB": mib, "images_per_s": images / seconds}


def _load(params: Params, folder: Path, steps: int) -> list[Row]:
    train, seconds = params.train, {"open": [], "images": [], "texts": []}

    def clocked(name: str, work: Callable[[], object]) -> object:
        begin = now()
        made = work()
        seconds[name].append(now() - begin)
        return made

    split = clocked("open", lambda: read_split(folder, "train"))
    codec = TextCodec.from_file(folder / "text.json")
    batches = Batches(split, codec, train, seed=0)
    for step in range(steps):
        clocked("images", lambda step=step: batches.images(step))
        clocked("texts", lambda step=step: batches.texts(step))
    epoch = len(split) // train.batch
    parts = {
        OPEN: seconds["open"],
        "images": seconds["images"],
        "texts, first epoch": seconds["texts"][:epoch],
        "texts, later": seconds["texts"][epoch:],
    }
    rows = [{"part": part} | spread(taken) for part, taken in parts.items() if taken]
    for row in rows:
        images = len(split) if row["part"] == OPEN else train.batch
        row["images_per_s"] = 1000 * images / row["median_ms"]
    return rows


def bringing(params: Params, folder: Path, steps: int) -> list[Row]:
    """What a step is given, from the prepared split in a folder to the device: with nothing to do meanwhile, where
    training brings it while the step before is under way."""
    batches = Batches(read_split(folder, "train"), TextCodec.from_file(folder / "text.json"), params.train, seed=0)

    def streams(step: int) -> list[Stream]:
        return [stream(device(), 0, step, purpose) for purpose in (Purpose.TRAINING, Purpose.KERNELS)]

    inputs = Inputs(lambda step, sources: Given(batches.images(step), batches.texts(step), *sources), streams, device())
    numbers = itertools.count()
    actions = {"a step": lambda: inputs(next(numbers))}
    row = timed(actions, in_turns(actions, steps, warmup=1))["a step"]
    return [{"batch": params.train.batch} | row | {"images_per_s": 1000 * params.train.batch / row["median_ms"]}]


def _with_memory(work: Callable, *arguments: object) -> tuple:
    """What `work` returns, and the memory of this process."""
    before = peak_mib()
    made = work(*arguments)
    return made, {"imports_MiB": before, "peak_MiB": peak_mib()}
