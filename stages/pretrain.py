"""Stage `pretrain`: teach a tokenizer to reconstruct, before any language."""

from stages.common import Stage, single, tokenizer_stage

MOST = 1000  # validation images that are reconstructed


@tokenizer_stage
def pretrain(run: Stage) -> None:
    """Pretrain the tokenizer that all arms of one family, budget and seed share."""
    from infotok.data.arrow import read_split
    from infotok.evaluation.reconstruction import fidelity, reconstruct
    from infotok.examiners.perceptual import Distortion
    from infotok.tokenizer.passes import through
    from infotok.training.order import check_images
    from infotok.training.pretrain import PretrainConfig
    from infotok.training.pretrain import pretrain as train
    from infotok.training.runtime import start
    from pipeline.running.artifacts import load_perceptual, new_tokenizer, save_module

    device, config, seed = start(), PretrainConfig(**run.params.pretrain.model_dump()), run.cell.seed
    images = read_split(run.layout.data, "train").images
    check_images(len(images), config.batch, "pretrain.batch")
    world = run.processes.join(device)
    tokenizer = new_tokenizer(run.params, run.cell)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = train(
            tokenizer,
            load_perceptual(run.layout),
            images,
            config,
            seed=seed,
            device=device,
            distortion=Distortion(**run.params.reconstruction.model_dump()),
            checkpoints=checkpoints,
            observe=run.observe,
            world=world,
        )
    if not world.first:
        return
    images = read_split(run.layout.data, "validation").images[:MOST]
    tokens, channel = through(tokenizer, images, seed)
    health = tokenizer.health(tokens, channel)
    if warning := tokenizer.collapse_warning(health):
        run.warn(warning)
    psnr, ssim = fidelity(images, reconstruct(tokenizer, tokens.vectors))
    save_module(tokenizer, run.folder / "tokenizer.safetensors", {"tokenizer": vars(tokenizer.config)})
    metrics = {f"pretrain/{name}": value for name, value in health.items()}
    run.finish(metrics | {"pretrain/psnr": psnr, "pretrain/ssim": ssim}, {"split": "validation"}, history)
    checkpoints.clear()


if __name__ == "__main__":
    single(pretrain)
