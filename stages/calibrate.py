"""Stage `calibrate`: the tokenizer that all arms of a model, budget and seed start from."""

import hashlib

from infotok.data.arrow import read_split
from infotok.mllm.data import Pictures
from infotok.mllm.loading import MODEL_FILE, open_model
from infotok.mllm.scoring import grid_of, of_one_size
from infotok.mllm.tuned import save_tokenizer
from infotok.mllm.tuning import CalibrateConfig, calibrated
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main


def calibrate(run: Stage) -> None:
    """Train what the tokenizer lacks, and fix the variance of its codes."""
    config, data, device = run.config(CalibrateConfig), run.input("prepare"), start()
    adapter = open_model(run.model, run.cell.tokens, device)
    validation = Pictures(read_split(data, "validation"))
    rows = range(min(config.images, len(validation)))
    batches = of_one_size(validation.split, rows, grid_of(adapter), 8)
    pixels = (adapter.ask([validation[row] for row in some], [""] * len(some))["pixel_values"] for some in batches)
    variance = calibrated(adapter, pixels, config.entropy_bits)
    save_tokenizer(adapter, variance, run.folder)
    weights = hashlib.sha256((run.input("inspect") / MODEL_FILE).read_bytes()).hexdigest()
    run.finish({"pretrain/variance": variance}, {"images": f"{len(rows)} validation images", "weights": weights}, [])


if __name__ == "__main__":
    main("calibrate")
