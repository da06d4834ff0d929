"""Stage `train`: IB-regularized joint training of one cell of the grid."""

from infotok.data.arrow import read_manifest, read_split
from infotok.examiners.perceptual import Distortion, load_perceptual
from infotok.information.kernels import Kernels
from infotok.models.backbone import BackboneConfig
from infotok.models.files import load_tokenizer, new_model, save_model
from infotok.tokenizer.passes import through
from infotok.training.batches import Batches, unseen_tasks
from infotok.training.joint import JointConfig, train_jointly
from infotok.training.order import check_images
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main


def train(run: Stage) -> None:
    """Train tokenizer, priors and language model together, from the pretrained tokenizer."""
    device, config, cell, data = start(), run.config(JointConfig), run.cell, run.input("prepare")
    world = run.join(device)
    split = read_split(data, "train")
    check_images(len(split), config.batch, "train.batch")
    for warning in unseen_tasks(config, read_manifest(data)["tasks"]):
        run.warn(warning)
    tokenizer = load_tokenizer(run.input("pretrain"), run.remedy("pretrain"))
    model, codec = new_model(cell.family, tokenizer, run.config(BackboneConfig), data / "text.json", cell.seed)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = train_jointly(
            model,
            load_perceptual(run.input("perceptual") / "perceptual.safetensors", run.remedy("perceptual")),
            Batches(split, codec, config, seed=cell.seed, world=world),
            config,
            estimator=cell.estimator,
            beta=cell.beta,
            gamma=cell.gamma,
            kernels=run.config(Kernels),
            distortion=run.config(Distortion),
            seed=cell.seed,
            device=device,
            checkpoints=checkpoints,
            observe=run.observe,
            world=world,
        )
    if not world.first:
        return
    health = tokenizer.health(*through(tokenizer, read_split(data, "validation").images, cell.seed))
    if warning := tokenizer.collapse_warning(health):
        run.warn(warning)
    save_model(model, codec, run.folder)
    last = {f"train/{name}": value for name, value in history[-1].items() if name != "step"}
    run.finish(last | {f"train/{name}": value for name, value in health.items()}, {"steps": config.steps}, history)
    checkpoints.clear()


if __name__ == "__main__":
    main("train")
