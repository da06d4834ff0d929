"""Stage `train`: IB-regularized joint training of one cell of the grid."""

from dataclasses import dataclass

from infotok.data.arrow import read_manifest, read_split
from infotok.data.text import TextCodec
from infotok.distributed import World
from infotok.examiners.perceptual import Distortion, load_perceptual
from infotok.information.kernels import Kernels
from infotok.models.backbone import BackboneConfig
from infotok.models.files import load_tokenizer, new_model, save_model
from infotok.models.unified import UnifiedModel
from infotok.tokenizer.passes import through
from infotok.training.batches import Batches, Remembered, unseen_tasks
from infotok.training.checkpoints import Checkpoints
from infotok.training.joint import JointConfig, StepData, joint_steps
from infotok.training.loop import Training, to_the_end
from infotok.training.order import check_images
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main


@dataclass
class Begun:
    """A cell whose training is ready. model, codec: what it trains, and the text tokenizer."""

    training: Training
    model: UnifiedModel
    codec: TextCodec
    checkpoints: Checkpoints
    world: World


def begun(run: Stage, *, keep_end: bool = False, shared: dict[int, StepData] | None = None) -> Begun:
    """Make the model of a cell from the pretrained tokenizer, and its training.

    keep_end: leave a checkpoint of the end. shared: batches by seed, for cells of one process that see the same.
    """
    device, config, cell, data = start(), run.config(JointConfig), run.cell, run.input("prepare")
    world = run.join(device)
    split = read_split(data, "train")
    check_images(len(split), config.batch, "train.batch")
    for warning in unseen_tasks(config, read_manifest(data)["tasks"]):
        run.warn(warning)
    tokenizer = load_tokenizer(run.input("pretrain"), run.remedy("pretrain"))
    model, codec = new_model(cell.family, tokenizer, run.config(BackboneConfig), data / "text.json", cell.seed)
    checkpoints = run.checkpoints()
    batches: StepData = Batches(split, codec, config, seed=cell.seed, world=world)
    if shared is not None:
        batches = shared.setdefault(cell.seed, Remembered(batches))
    training = joint_steps(
        model,
        load_perceptual(run.input("perceptual") / "perceptual.safetensors", run.remedy("perceptual")),
        batches,
        config,
        estimator=cell.estimator,
        beta=cell.beta,
        gamma=cell.gamma,
        kernels=run.config(Kernels),
        distortion=run.config(Distortion),
        seed=cell.seed,
        device=device,
        checkpoints=checkpoints,
        keep_end=keep_end,
        observe=run.observe,
        world=world,
    )
    return Begun(training, model, codec, checkpoints, world)


def train(run: Stage) -> None:
    """Train tokenizer, priors and language model together, from the pretrained tokenizer."""
    config, cell = run.config(JointConfig), run.cell
    cell_begun = begun(run)
    model, tokenizer = cell_begun.model, cell_begun.model.tokenizer
    with run.progress(config.steps):
        history = to_the_end(cell_begun.training)
    if not cell_begun.world.first:
        return
    health = tokenizer.health(*through(tokenizer, read_split(run.input("prepare"), "validation").images, cell.seed))
    if warning := tokenizer.collapse_warning(health):
        run.warn(warning)
    save_model(model, cell_begun.codec, run.folder)
    last = {f"train/{name}": value for name, value in history[-1].items() if name != "step"}
    run.finish(last | {f"train/{name}": value for name, value in health.items()}, {"steps": config.steps}, history)
    cell_begun.checkpoints.clear()


if __name__ == "__main__":
    main("train")
