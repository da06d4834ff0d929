"""What test_distributed.py does in one process and again in two: tiny trainings, and all that they leave."""

import contextlib
import json
import sys
from pathlib import Path

import torch

from infotok.distributed import ALONE, join, leave
from infotok.errors import InfotokError
from infotok.examiners.perceptual import Distortion, Perceptual
from infotok.information.kernels import Kernels
from infotok.models.backbone import Backbone, BackboneConfig
from infotok.models.unified import UnifiedModel
from infotok.tensors import module_tensors, write_tensors
from infotok.training import loop
from infotok.training.batches import Batches
from infotok.training.checkpoints import Checkpoints
from infotok.training.joint import JointConfig, train_jointly
from infotok.training.pretrain import PretrainConfig, pretrain
from tiny import Stopped, small_scenes, tokenizer, trained_codec

CPU = torch.device("cpu")
BATCH, STEPS = 12, 6
FAMILIES = ("ar", "mask", "flow")
CONSISTENT = {"gamma": 0.5, "caption_dropout": 0.4}  # so many dropped captions that processes differ in number
RANDOM = Kernels(estimator="rff", consistency="kernels")
ARMS = {
    "none": {},
    "vib": {"estimator": "vib", "beta": 0.1, "target_bits": 6.0, "prior": "autoregressive", **CONSISTENT},
    "ceb": {"estimator": "ceb", "beta": 0.1, "ema": 0.5, **CONSISTENT},
    "hsic": {"estimator": "hsic", "beta": 1.0, **CONSISTENT},
    "kernels": {"estimator": "hsic", "beta": 1.0, "kernels": RANDOM, **CONSISTENT},
}
JOINT = JointConfig(
    steps=STEPS, batch=BATCH, learning_rate=0.01, tokenizer_learning_rate=0.01, prior_learning_rate=0.1, warmup=1,
    final_fraction=0.1, weight_decay=0.0, precision="fp32", checkpoint_every=2,
)  # fmt: skip
DISTORTION = Distortion(pixel=1.0)


def material():
    split = small_scenes(60)
    return split, trained_codec(split)


def joint(split, codec, family, arm, world=ALONE, **settings):
    torch.manual_seed(1)
    backbone = Backbone.create(BackboneConfig(name="llama", width=16, layers=1, heads=2), codec.vocabulary)
    model = UnifiedModel(family, tokenizer(family=family, nested_dropout=0.5), backbone)
    changes = dict(ARMS[arm])
    settings |= {name: changes.pop(name) for name in ("estimator", "beta", "gamma", "kernels") if name in changes}
    config = JOINT.model_copy(update=changes)
    batches = Batches(split, codec, config, seed=0, world=world)
    torch.manual_seed(2)
    perceptual = Perceptual({"shape": 4})
    shared = {"seed": 0, "device": CPU, "distortion": DISTORTION, "world": world}
    return model, train_jointly(model, perceptual, batches, config, **shared, **settings)


def pretrained(split, family, world=ALONE, revive_every=3, **changes):
    made = tokenizer(family=family, codebook=64, logit_scale=200.0, nested_dropout=0.5)
    config = PretrainConfig(
        steps=12, batch=BATCH, learning_rate=0.003, warmup=2, usage_weight=0.05, revive_every=revive_every,
        precision="fp32", **changes,
    )  # fmt: skip
    torch.manual_seed(2)
    perceptual = Perceptual({"shape": 4})
    settings = {"seed": 0, "device": CPU, "distortion": DISTORTION, "world": world}
    return made, pretrain(made, perceptual, split.images, config, **settings)


def interrupt(step, values):
    if step == 4:
        raise Stopped


def complaint(world, spoil=None, **settings):
    """What stops a training whose loss process `spoil` makes infinite, or which processes start unlike."""
    torch.manual_seed(world.rank if spoil is None else 0)
    module = torch.nn.Linear(4, 1)

    def losses(step):
        loss = module(torch.ones(2, 4)).square().mean()
        return {"loss": loss * (torch.inf if (step, world.rank) == (5, spoil) else 1.0)}

    optimizer = loop.make_optimizer([(list(module.parameters()), 0.01)], 0.0, CPU)
    try:
        loop.run(module, optimizer, losses, steps=8, warmup=1, world=world, **settings)
    except InfotokError as error:
        return str(error)
    return ""


def all_of_it(world, folder):
    """Run everything and leave in `folder` a file per training and process."""
    loop.LOG_EVERY = 1
    split, codec = material()

    def leave_behind(name, trained):
        write_tensors(folder / f"{name}-{world.rank}", module_tensors(trained[0]), {"history": trained[1]})

    for family in FAMILIES:
        for arm in ARMS:
            leave_behind(f"{family}-{arm}", joint(split, codec, family, arm, world))
    for family in ("ar", "flow"):
        leave_behind(f"pretrain-{family}", pretrained(split, family, world))
    if world.size == 1:
        return
    with contextlib.suppress(Stopped):
        kept = Checkpoints(folder / f"kept-{world.rank}")
        joint(split, codec, "mask", "vib", world, observe=interrupt, checkpoints=kept)
    kept = {"checkpoints": Checkpoints(folder / "spoiled"), "checkpoint_every": 2}
    said = {"unlike": complaint(world), "spoiled": complaint(world, spoil=1, **kept)}
    (folder / f"said-{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    all_of_it(join(torch.distributed.FileStore(str(folder / "store"), 2), rank, 2, CPU), folder)
    leave()
