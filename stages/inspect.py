"""Stage `inspect`: what a pretrained model's tokens are, before anything is trained."""

import hashlib
import json
from pathlib import Path

import torch

from infotok.data.arrow import Split, read_manifest, read_split
from infotok.files import write_text
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.data import Grid, Pictures, Shown, background_of
from infotok.mllm.lengths import check_lengths
from infotok.mllm.loading import MODEL_FILE, check_codes, check_finite
from infotok.mllm.options import ModelConfig
from infotok.mllm.scoring import grid_of, reconstruct, token_use, tokens_of_images
from infotok.training.runtime import start
from pipeline.config.params import PretrainedParams
from pipeline.running.stage import Stage
from stages.common import main
from stages.opening import open_pretrained, section

IMAGES = 64  # of the validation split, at most
BATCH = 8
SPLITS = ("train", "validation", "test", "novel")  # whose texts have to fit


def inspect(run: Stage) -> None:
    """Compare the adapter's codes with the model's own, and measure the tokenizer on validation images."""
    torch.manual_seed(0)  # of a decoder that is new
    adapter = open_pretrained(run, run.model, start())
    with section("models"), section(run.cell.family):
        check_finite(adapter)
    data = run.input("prepare")
    split = read_split(data, "validation")
    pictures, rows, grid = Pictures(split, background_of(data)), range(min(IMAGES, len(split))), grid_of(adapter)
    pixels = adapter.ask([pictures[0]], [""])["pixel_values"]
    for name in (name for name in SPLITS if name in read_manifest(data)["splits"]):
        check_lengths(adapter, read_split(data, name), pictures[0].size)
    _check_batches(run, read_split(data, "train"), grid)
    if isinstance(adapter, CodeAdapter) and (said := check_codes(adapter, pixels)):
        run.warn(said)
    if adapter.extra_is_new:
        run.warn("the model has no decoder, and begins with a new one: calibrate.steps must train it")
    tokens = tokens_of_images(adapter, pictures, rows, grid, BATCH)
    quality, _ = reconstruct(adapter, pictures, rows, grid, BATCH)
    sizes, most = adapter.sizes(), max(part.shape[0] * part.shape[1] for part in tokens)
    if most < run.cell.tokens:
        run.warn(
            f"grid.tokens: {run.cell.tokens}: the model makes at most {most} tokens of {len(rows)} images looked at"
        )
    tokenizer = sum(parameter.numel() for parameter in adapter.tokenizer.parameters())
    kind = f"{sizes['codebook']} codes" if "codebook" in sizes else "vectors"
    whole = sum(parameter.numel() for parameter in adapter.model.parameters())
    protocol = {
        "model": run.model.name,
        "type": run.model.kind,
        "tokens": f"{kind} of {sizes['dimension']} dimensions",
        "parameters": f"{whole - tokenizer} of the language model, {tokenizer} of the tokenizer",
    }
    write_text(run.folder / MODEL_FILE, json.dumps({"files": files_of(run.model)}, indent=1) + "\n")
    measured = {f"inspect/{name}": value for name, value in {**token_use(adapter, tokens), **quality}.items()}
    run.finish(measured | {"inspect/tokens": float(most)}, protocol)


def _check_batches(run: Stage, train: Split, grid: Grid) -> None:
    """Raises InfotokError where a later stage would find no batch of images of one size. What they ask for is no
    setting of this stage, whose result does not depend on it."""
    params = run.study.params
    assert isinstance(params, PretrainedParams)
    batches = {"calibrate.batch": params.calibrate.batch} if params.calibrate.steps else {}
    for key, batch in (batches | {"tune.batch": params.tune.batch}).items():
        Shown(train, grid, batch=batch, caption_dropout=0.0, seed=0, key=key)


def files_of(model: ModelConfig) -> dict[str, str]:
    """What stands for the model's weights: the digests of a folder's files, or the revision of the hub's."""
    if model.folder is None:
        from huggingface_hub import hf_hub_download

        return {"revision": Path(hf_hub_download(model.name, "config.json", revision=model.revision)).parent.name}
    files = [path for path in sorted(model.folder.rglob("*")) if path.is_file()]
    return {path.relative_to(model.folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main("inspect")
