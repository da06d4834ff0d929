"""Images for a file of prompts, in the folder layout that GenEval's official evaluator reads.

    <out>/export.json                 what made the images; only the same goes on where it stopped
    <out>/00000/metadata.jsonl        the prompt's own line
    <out>/00000/grid.png              its images together, as drawn
    <out>/00000/samples/00000.png ... one file an image

Layout: github.com/djghosh13/geneval, generation/diffusers_generate.py and evaluation/evaluate_images.py. That evaluator
enters every folder named by digits and takes every file whose name begins like 00000.png, temporary ones too: so a
prompt's folder is made under another name and takes its place when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infotok.data.text import TextCodec
from infotok.errors import InfotokError
from infotok.evaluation.generation import draw
from infotok.files import write_text
from infotok.models.family import Sampling
from infotok.models.files import MODEL, TEXT
from infotok.models.unified import UnifiedModel
from infotok.random import stream
from pipeline.config.cells import Cell
from pipeline.config.study import Study
from pipeline.locks import try_lock
from pipeline.pictures import grid
from pipeline.results import METRICS, read_result

# Prompts that models built here draw together. One prompt at a time takes 4 to 8 times as long.
BLOCK = 16
RECORD, UNFINISHED = "export.json", ".unfinished"
ANOTHER = "name a new or an empty folder with --out"
Drawing = Callable[[list[str], int], Tensor]  # of captions and a seed: uint8 (N, S, S, 3)


@dataclass(frozen=True)
class Prompt:
    """text: what is drawn. metadata: its line of JSON. line: where it stands in its file, from 1."""

    text: str
    metadata: str
    line: int

    @property
    def scorable(self) -> bool:
        """Whether it says what GenEval's evaluator looks for."""
        return {"tag", "include"} <= json.loads(self.metadata).keys()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an image depends on besides model and prompts. images: of a prompt. sampling: settings by name. pixels: of a
    written image's side. prompts_drawn_together: blocks begin at fixed places, each with its own random stream, and are
    drawn whole also where only a part is missing."""

    images: int
    sampling: dict[str, Any]
    sampling_seed: int
    precision: str
    device: str
    pixels: int
    prompts_drawn_together: int = BLOCK


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: one a line if its name ends in .txt, else JSON Lines whose objects hold "prompt".

    Blank lines count for nothing.

    Raises:
        InfotokError: with file and line, for anything that is not that.
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InfotokError(f"{path}: cannot be read ({error.strerror}); name a prompts file with --prompts") from None
    plain, found = path.suffix.lower() == ".txt", []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            raise InfotokError(f"{where}: is not UTF-8 text; save the prompts as UTF-8") from None
        if plain:
            found.append(Prompt(text, json.dumps({"prompt": text}, ensure_ascii=False), number))
        else:
            found.append(Prompt(_prompt_of(text, where), text, number))
    if not found:
        raise InfotokError(f"{path}: holds no prompts; write one a line, as {_example(plain)}")
    return found


def _example(plain: bool) -> str:
    return "a photo of a bench" if plain else '{"prompt": "a photo of a bench"}'


def _prompt_of(text: str, where: str) -> str:
    """The prompt in one line of JSON."""
    right = f"write {_example(False)}"
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        if not text.startswith(("{", "[")):
            right += ", or end the file's name in .txt if every line is a plain prompt"
        raise InfotokError(f"{where}: is not JSON ({error.msg} at column {error.colno}); {right}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested as deeply
        raise InfotokError(f"{where}: is not JSON that can be read ({error}); {right}") from None
    if not isinstance(record, dict):
        raise InfotokError(f"{where}: is JSON but no object; {right}")
    if "prompt" not in record:
        raise InfotokError(f'{where}: has no "prompt"; {right}')
    prompt = record["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InfotokError(f'{where}: "prompt" is {"empty" if isinstance(prompt, str) else "not text"}; {right}')
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise InfotokError(f'{where}: "prompt" holds half a character (a lone \\ud800 to \\udfff); remove it') from None
    return prompt


def check_lengths(path: Path, prompts: list[Prompt], length: Callable[[str], int], room: int | None) -> None:
    """Refuse a prompt that has no room in the model together with its image. length: of a prompt, in tokens; room: for
    it, None where there is no end."""
    for prompt in prompts:
        if room is not None and (tokens := length(prompt.text)) > room:
            raise InfotokError(
                f"{path}:{prompt.line}: the prompt has {tokens} tokens, and the model room for {room}; shorten it"
            )


def chosen_sampling(
    study: Study, cell: Cell, temperature: float | None, guidance: float | None
) -> tuple[Sampling, str]:
    """The study's settings with the given temperature and guidance; one that is None is what validation chose for the
    cell, or 1 where the cell's `generate` has not run. Also says which it is.

    Raises:
        InfotokError: the choice is needed and was made for another configuration or by other code.
    """
    path = study.output("generate", cell) / METRICS
    metrics, why = {}, f"the default, as {path} is missing"
    if None in (temperature, guidance) and path.exists():
        try:
            metrics = read_result(study, "generate", cell)["metrics"]
        except InfotokError as error:
            raise InfotokError(f"{error}, or give both --temperature and --guidance") from None
        chosen = "generation/temperature" in metrics
        why = "chosen by validation" if chosen else f"the default, as {path} scored no drawing"
    values, said = {}, []
    for name, given in (("temperature", temperature), ("guidance", guidance)):
        values[name] = float(metrics.get(f"generation/{name}", 1.0) if given is None else given)
        said.append(f"{name} {values[name]:g} ({why if given is None else 'given'})")
    return study.params.generation.sampling(**values), ", ".join(said)


def cell_source(study: Study, cell: Cell) -> dict[str, Any]:
    """What names the trained model of a cell in export.json."""
    folder = study.output("train", cell)
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (MODEL, TEXT)}
    return {"cell": cell.as_dict(), "model": files}


def cell_drawing(model: UnifiedModel, codec: TextCodec, sampling: Sampling, precision: str) -> Drawing:
    """How the trained model of a cell draws."""
    return lambda captions, seed: draw(model, captions, codec, sampling, seed=seed, precision=precision)


def record_of(command: str, source: dict[str, Any], prompts: list[Prompt], recipe: Recipe) -> dict:
    """What export.json holds: everything that the images depend on. source: what names the model and its weights. The
    digest of the prompts is that of their lines of metadata, for a tidy JSON Lines file its own sha256."""
    lines = "".join(prompt.metadata + "\n" for prompt in prompts)
    return {
        "command": command,
        **source,
        "prompts": {"count": len(prompts), "sha256": hashlib.sha256(lines.encode()).hexdigest()},
        **asdict(recipe),
        "enlarged": "bicubic",
    }


@contextmanager
def open_folder(out: Path, record: dict) -> Iterator[None]:
    """Hold `out` alone for an export of this record: a new or an empty folder, or an earlier export of the same.

    Raises:
        InfotokError: it holds something else, another process holds it, or it cannot be written, now or later.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        path = out / RECORD
        if path.exists():
            _check_same(path, record)
        else:
            # A kill may have left the temporary file of export.json behind.
            others = sorted(name for name in os.listdir(out) if not name.startswith(RECORD))
            if others:
                raise InfotokError(f"{out}: holds something else, such as '{others[0]}'; {ANOTHER}")
            write_text(path, json.dumps(record, indent=1) + "\n")
        with open(path, "rb") as held:
            if not try_lock(held):
                raise InfotokError(f"{out}: another process is drawing into it; wait, or {ANOTHER}")
            shutil.rmtree(out / UNFINISHED, ignore_errors=True)
            for left in out.glob(f"{RECORD}.*.tmp"):
                left.unlink()
            yield
    except OSError as error:
        raise InfotokError(
            f"{error.filename or out}: cannot be written ({error.strerror or error}); name another folder with --out"
        ) from None


def _check_same(path: Path, record: dict) -> None:
    """Compare with an earlier export.json."""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["command"] != record["command"]:
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise InfotokError(f"{path}: is not the record of an `{record['command']}`; {ANOTHER}") from None
    before, now = _flat(earlier), _flat(json.loads(json.dumps(record)))
    names = [name for name in now | before if before.get(name) != now.get(name)]
    if names:
        said = [f"{name} is {_short(before.get(name))} there and {_short(now.get(name))} now" for name in names]
        raise InfotokError(f"{path}: is of another export ({', '.join(said)}); give the same options, or {ANOTHER}")


def _flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    out = {}
    for name, value in values.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 16 else text[:12] + "…"


def is_whole(folder: Path, images: int) -> bool:
    """Whether a prompt's folder has all that the evaluator reads."""
    wanted = [folder / "metadata.jsonl", *(folder / "samples" / f"{n:05}.png" for n in range(images))]
    return all(path.is_file() for path in wanted)


def export(
    drawing: Drawing,
    prompts: list[Prompt],
    recipe: Recipe,
    out: Path,
    advance: Callable[[int], None] = lambda prompts: None,
) -> None:
    """Draw what is missing in `out`, which `open_folder` holds. advance: told of prompts done, block by block."""
    together = recipe.prompts_drawn_together
    for start in range(0, len(prompts), together):
        block = prompts[start : start + together]
        missing = [i for i in range(len(block)) if not is_whole(out / f"{start + i:05}", recipe.images)]
        if missing:
            captions = [prompt.text for prompt in block for _ in range(recipe.images)]
            seed = stream(torch.device("cpu"), recipe.sampling_seed, start).initial_seed()
            drawn = drawing(captions, seed)
            for i in missing:
                images = drawn[i * recipe.images : (i + 1) * recipe.images]
                _write(out, f"{start + i:05}", block[i], images, recipe.pixels)
        advance(len(block))
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)


def _write(out: Path, name: str, prompt: Prompt, images: Tensor, pixels: int) -> None:
    """One prompt's folder, whole or not at all."""
    making = out / UNFINISHED / name
    (making / "samples").mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        _save(enlarge(image.numpy(), pixels), making / "samples" / f"{number:05}.png")
    rows = max(n for n in range(1, math.isqrt(len(images)) + 1) if len(images) % n == 0)
    _save(Image.fromarray(grid(images, len(images) // rows)), making / "grid.png")
    (making / "metadata.jsonl").write_text(prompt.metadata + "\n", encoding="utf-8")
    if (out / name).exists():
        shutil.rmtree(out / name)
    os.replace(making, out / name)


def _save(image: Image.Image, path: Path) -> None:
    """The default level makes the file of a smooth 512 x 512 image a quarter smaller in four times the time."""
    image.save(path, compress_level=1)


def enlarge(image: np.ndarray, pixels: int) -> Image.Image:
    """uint8 (S, S, 3) as an image of `pixels` a side, bicubic: the evaluator's detector and CLIP know photographs, and
    pixels blown up to squares have edges that no photograph has."""
    whole = Image.fromarray(image)
    return whole if image.shape[0] == pixels else whole.resize((pixels, pixels), Image.Resampling.BICUBIC)
