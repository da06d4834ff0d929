"""Stage `tune`: tune tokenizer and language model of a pretrained model together, in one cell of the grid."""

import torch

from infotok.data.arrow import read_split
from infotok.information.bottleneck import InformationBottleneck
from infotok.information.kernels import Kernels
from infotok.mllm.data import Shown
from infotok.mllm.loading import open_model
from infotok.mllm.scoring import grid_of
from infotok.mllm.tuned import MODEL, load_tokenizer, save_prior
from infotok.mllm.tuning import TuneConfig, Tuner
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main


def tune(run: Stage) -> None:
    """Tune from the calibrated tokenizer, and save the model as `from_pretrained` loads it."""
    config, cell, data, device = run.config(TuneConfig), run.cell, run.input("prepare"), start()
    adapter = open_model(run.model, cell.tokens, device)
    variance = load_tokenizer(adapter, run.input("calibrate"), run.remedy("calibrate"))
    shown = Shown(
        read_split(data, "train"),
        grid_of(adapter),
        batch=config.batch,
        caption_dropout=config.caption_dropout,
        seed=cell.seed,
    )
    if shown.never:
        run.warn(f"{shown.never} training images are never shown: fewer than tune.batch have their size")
    torch.manual_seed(cell.seed)
    bottleneck = InformationBottleneck(
        cell.estimator,
        beta=cell.beta,
        gamma=cell.gamma,
        tokens=cell.tokens,
        codebook=len(adapter.codebook()),
        dimension=adapter.codebook().shape[1],
        prior="shared",
        rates=True,
        kernels=run.config(Kernels),
        text_width=adapter.model.get_input_embeddings().weight.shape[1],
    )
    tuner = Tuner(adapter, bottleneck, variance, config)
    history = []
    with run.progress(config.steps):
        for step in range(config.steps):
            from infotok.mllm.batches import make_batch

            values = tuner.update(make_batch(adapter, *shown.examples(step)))
            if (step + 1) % 10 == 0 or step + 1 == config.steps:
                history.append({"step": step + 1, **values})
                run.observe(step + 1, values)
    save_prior(bottleneck, 16, variance, run.folder)
    tuner.save(run.folder / MODEL)
    last = {f"train/{name}": value for name, value in history[-1].items() if name != "step"}
    run.finish(last, {"steps": config.steps}, history)


if __name__ == "__main__":
    main("tune")
