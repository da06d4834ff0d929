"""Stage `train`: IB-regularized joint training of one cell of the grid."""

from stages.common import Stage, cell_stage, single


@cell_stage
def train(run: Stage) -> None:
    """Train tokenizer, prior and language model together, from the pretrained tokenizer."""
    from infotok.data.arrow import read_split
    from infotok.examiners.perceptual import Distortion
    from infotok.tokenizer.passes import through
    from infotok.training.batches import Batches
    from infotok.training.joint import JointConfig, train_jointly
    from infotok.training.order import check_images
    from infotok.training.runtime import start
    from pipeline.running.artifacts import load_perceptual, new_model, save_model

    device, config, seed = start(), JointConfig(**run.params.train.model_dump()), run.cell.seed
    split = read_split(run.layout.data, "train")
    check_images(len(split), config.batch, "train.batch")
    world = run.processes.join(device)
    model, codec = new_model(run.layout, run.cell)
    batches = Batches(split, codec, config, seed=seed, world=world)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = train_jointly(
            model,
            load_perceptual(run.layout),
            batches,
            config,
            estimator=run.cell.estimator,
            beta=run.cell.beta,
            gamma=run.cell.gamma,
            seed=seed,
            device=device,
            kernels=run.params.kernels,
            distortion=Distortion(**run.params.reconstruction.model_dump()),
            checkpoints=checkpoints,
            observe=run.observe,
            world=world,
        )
    if not world.first:
        return
    tokenizer = model.tokenizer
    health = tokenizer.health(*through(tokenizer, read_split(run.layout.data, "validation").images, seed))
    if warning := tokenizer.collapse_warning(health):
        run.warn(warning)
    save_model(model, codec, run.folder)
    last = {f"train/{name}": value for name, value in history[-1].items() if name != "step"}
    run.finish(last | {f"train/{name}": value for name, value in health.items()}, {"steps": config.steps}, history)
    checkpoints.clear()


if __name__ == "__main__":
    single(train)
