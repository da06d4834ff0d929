"""Stage `calibrate`: the tokenizer that all arms of a model, budget and seed start from."""

import hashlib

import torch

from infotok.data.arrow import read_split
from infotok.mllm.data import Pictures, Shown, background_of
from infotok.mllm.loading import MODEL_FILE
from infotok.mllm.scoring import grid_of, of_one_size, reconstruct, token_use, tokens_of_images
from infotok.mllm.tuned import save_tokenizer
from infotok.mllm.tuning import calibrated
from infotok.mllm.warming import CalibrateConfig, warm_up
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main
from stages.opening import open_pretrained, section


def calibrate(run: Stage) -> None:
    """Train what the tokenizer lacks, and fix the variance of its codes."""
    config, data, device, seed = run.config(CalibrateConfig), run.input("prepare"), start(), run.cell.seed
    torch.manual_seed(seed)  # of a decoder that is new
    adapter = open_pretrained(run, run.model, device)
    grid, history, checkpoints = grid_of(adapter), [], run.checkpoints()
    if config.steps:
        train = read_split(data, "train")
        shown = Shown(
            train,
            grid,
            batch=config.batch,
            caption_dropout=0.0,
            seed=seed,
            key="calibrate.batch",
            background=background_of(data),
        )
        with run.progress(config.steps), section("calibrate"):
            history = warm_up(adapter, shown, config, seed=seed, checkpoints=checkpoints, observe=run.observe)
    elif adapter.extra_is_new:
        run.warn("the model has no decoder, and the new one is not trained before the language model; see calibrate")
    adapter.model.eval()
    pictures = Pictures(read_split(data, "validation"), background_of(data))
    rows = range(min(config.images, len(pictures)))
    batches = of_one_size(pictures.split, rows, grid, config.batch)
    pixels = (adapter.ask([pictures[row] for row in some], [""] * len(some))["pixel_values"] for some in batches)
    variance = calibrated(adapter, pixels, config.entropy_bits)
    save_tokenizer(adapter, variance, run.folder)
    tokens = tokens_of_images(adapter, pictures, rows, grid, config.batch)
    quality, _ = reconstruct(adapter, pictures, rows, grid, config.batch)
    measured = {"variance": variance, **quality, **token_use(adapter, tokens, variance)}
    weights = hashlib.sha256((run.input("inspect") / MODEL_FILE).read_bytes()).hexdigest()
    protocol = {"images": f"{len(rows)} validation images", "weights": weights}
    run.finish({f"pretrain/{name}": value for name, value in measured.items()}, protocol, history)
    checkpoints.clear()


if __name__ == "__main__":
    main("calibrate")
