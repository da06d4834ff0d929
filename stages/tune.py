"""Stage `tune`: tune tokenizer and language model of a pretrained model together, in one cell of the grid."""

from dataclasses import replace

import torch

from infotok.data.arrow import read_split
from infotok.information.kernels import Kernels
from infotok.mllm.cache import Cached, can_cache
from infotok.mllm.data import Pictures, Shown, background_of
from infotok.mllm.health import collapse, health
from infotok.mllm.scoring import grid_of, of_one_size
from infotok.mllm.tuned import MODEL, load_tokenizer, save_prior
from infotok.mllm.tuning import TuneConfig, Tuner, regularizer
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main
from stages.opening import open_pretrained, section

CACHE = "tokens"  # folder beside the checkpoints, which goes with them
WATCHED = 64  # validation images, at most, on whose codes the tuned tokenizer is compared with the one before


def tune(run: Stage) -> None:
    """Tune from the calibrated tokenizer, and save the model as `from_pretrained` loads it."""
    config, cell, data, device = run.config(TuneConfig), run.cell, run.input("prepare"), start()
    world = replace(run.join(device), device=device)
    # In main memory, as float32: the tuner moves to the device what it needs there, narrowed or sharded.
    adapter = open_pretrained(run, run.model, torch.device("cpu"))
    variance = load_tokenizer(adapter, run.input("calibrate"), run.remedy("calibrate"))
    grid, settings = grid_of(adapter), {"batch": config.batch, "caption_dropout": config.caption_dropout}
    shown = Shown(
        read_split(data, "train"), grid, seed=cell.seed, key="tune.batch", background=background_of(data), **settings
    )
    if shown.never:
        run.warn(f"{shown.never} training images are never shown: fewer than tune.batch have their size")
    watched = Pictures(read_split(data, "validation"), background_of(data))
    rows = next(of_one_size(watched.split, range(len(watched)), grid, WATCHED))
    torch.manual_seed(cell.seed)  # of the prior's, the critic's and low-rank updates' first weights
    bottleneck = regularizer(
        adapter,
        config,
        tokens=cell.tokens,
        estimator=cell.estimator,
        beta=cell.beta,
        gamma=cell.gamma,
        kernels=run.config(Kernels),
    )
    with section("tune"):
        tuner = Tuner(adapter, bottleneck, variance, config, world)
    with tuner.whole(), torch.no_grad():
        pixels = adapter.ask([watched[row] for row in rows], [""] * len(rows))["pixel_values"]
        before = torch.cat([adapter.tokens_of(some) for some in pixels.split(8)])
    marked = run.checkpoints()
    checkpoints = tuner.checkpoints(marked.folder)
    caches = config.cache and can_cache(tuner)
    known = Cached(tuner, shown, marked.folder / CACHE) if caches else shown
    with run.progress(config.steps):
        history = tuner.run(known, seed=cell.seed, checkpoints=checkpoints, observe=run.observe)
    with tuner.whole():
        found = health(adapter, pixels, before)
    prior = tuner.prior()
    tuner.save(run.folder / MODEL)
    if not world.first:
        return
    if warning := collapse(found):
        run.warn(warning)
    save_prior(bottleneck, prior, config.prior_rank, variance, run.folder)
    last = {f"train/{name}": value for name, value in history[-1].items() if name != "step"}
    run.finish(last | {f"train/{name}": value for name, value in found.items()}, {"steps": config.steps}, history)
    checkpoints.clear()


if __name__ == "__main__":
    main("tune")
