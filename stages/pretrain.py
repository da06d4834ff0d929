"""Stage `pretrain`: teach a tokenizer to reconstruct, before any language."""

from infotok.data.arrow import read_split
from infotok.examiners.perceptual import Distortion, load_perceptual
from infotok.models.files import new_tokenizer, save_tokenizer
from infotok.tokenizer.base import TokenizerConfig
from infotok.tokenizer.passes import mean_psnr, through
from infotok.training.order import check_images
from infotok.training.pretrain import PretrainConfig
from infotok.training.pretrain import pretrain as pretrain_tokenizer
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main

IMAGES = 1000  # of the validation split, at most, that are reconstructed


def pretrain(run: Stage) -> None:
    """Pretrain the tokenizer that all arms of one family, budget and seed share."""
    device, config, cell, data = start(), run.config(PretrainConfig), run.cell, run.input("prepare")
    world = run.join(device)
    split = read_split(data, "train")
    check_images(len(split), config.batch, "pretrain.batch")
    size = split.images.shape[1]
    sizes = {"image_size": size, "tokens": cell.tokens}
    tokenizer = new_tokenizer(cell.family, run.config(TokenizerConfig), **sizes, seed=cell.seed)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = pretrain_tokenizer(
            tokenizer,
            load_perceptual(run.input("perceptual") / "perceptual.safetensors", run.remedy("perceptual")),
            split.images,
            config,
            distortion=run.config(Distortion),
            seed=cell.seed,
            device=device,
            checkpoints=checkpoints,
            observe=run.observe,
            world=world,
        )
    if not world.first:
        return
    images = read_split(data, "validation").images[:IMAGES]
    tokens, channel = through(tokenizer, images, cell.seed)
    health = tokenizer.health(tokens, channel)
    if warning := tokenizer.collapse_warning(health):
        run.warn(warning)
    save_tokenizer(tokenizer, cell.family, run.folder)
    metrics = {f"pretrain/{name}": value for name, value in health.items()}
    psnr = mean_psnr(tokenizer, images, tokens.vectors)
    run.finish(metrics | {"pretrain/psnr": psnr}, {"split": "validation"}, history)
    checkpoints.clear()


if __name__ == "__main__":
    main("pretrain")
