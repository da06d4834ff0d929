"""What test_mllm_sharded.py does in one process and again in two: short tunings, and all that they leave."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import tiny_mllm
import torch

from infotok.data.arrow import Split
from infotok.distributed import ALONE, join, leave
from infotok.errors import InfotokError
from infotok.mllm import cache
from infotok.mllm.batches import Example
from infotok.mllm.data import Shown
from infotok.mllm.examples import Shuffled
from infotok.mllm.health import health
from infotok.mllm.loading import load
from infotok.mllm.tuning import TuneConfig, Tuner, calibrated, regularizer
from infotok.mllm.warming import CalibrateConfig, warm_up
from infotok.training import loop
from tiny import Stopped

ROWS = enumerate(zip(*tiny_mllm.toy(range(-2, 2)), strict=True))
# 32, with answers of unlike lengths, so that processes differ in how many tokens they predict.
EXAMPLES = [Example(image, asked, told if index % 3 else said, said) for index, (image, asked, told, said) in ROWS]
ARMS = {
    "vib": {"estimator": "vib", "beta": 0.003, "gamma": 0.5},
    "hsic": {"estimator": "hsic", "beta": 1.0, "gamma": 0.5},
    "dib": {"estimator": "dib", "beta": 0.003},
    "none": {"estimator": "none"},
}
# A name for files, the model, the arm, and how two processes do it.
TUNINGS = {
    "chameleon-shard": ("chameleon", "vib", {"parallel": "shard"}),
    "chameleon-parts": ("chameleon", "hsic", {"parallel": "shard", "accumulate": 2, "recompute": True}),
    "chameleon-lora": ("chameleon", "dib", {"parallel": "shard", "train": "lora", "tokenizer": "encoder"}),
    "chameleon-replicate": ("chameleon", "hsic", {"accumulate": 2}),
    "emu3-shard": ("emu3", "hsic", {"parallel": "shard", "accumulate": 2}),
    "emu3-replicate": ("emu3", "vib", {}),
}
SETTINGS = {
    "steps": 3, "batch": 8, "lm_rate": 1e-3, "tokenizer_rate": 3e-4, "prior_rate": 0.01, "warmup": 1,
    "beta_warmup": 0.5, "caption_dropout": 0.3, "precision": "fp32", "checkpoint_every": 1,
}  # fmt: skip


def tuner(root, name, arm, world=ALONE, seed=0, **settings):
    torch.manual_seed(seed)  # of a new decoder and of the regularizer
    adapter = load(str(root / name))
    pixels = adapter.ask([e.image for e in EXAMPLES], [e.question for e in EXAMPLES])["pixel_values"]
    tiny_mllm.settle(adapter, pixels)
    config = TuneConfig(**SETTINGS | settings)
    made = regularizer(adapter, config, tokens=16, **ARMS[arm])
    return Tuner(adapter, made, calibrated(adapter, [pixels], 1.0), config, world), pixels


class Data(Shuffled):
    """Ends a run at a step, as a killed process does."""

    def __init__(self, stop_at=None):
        super().__init__(EXAMPLES, 8, 0.3, seed=0)
        self.stop_at = stop_at

    def examples(self, step):
        if step == self.stop_at:
            raise Stopped
        return super().examples(step)


def tuned(root, folder, name, world=ALONE):
    """Train, and leave history, saved model and the health of codes."""
    model, arm, how = TUNINGS[name]
    if world.size == 1:
        how = {"train": how.get("train", "full"), "tokenizer": how.get("tokenizer", "full")}
    made, pixels = tuner(root, model, arm, world, **how)
    before = made.adapter.own_codes(pixels).view(len(pixels), 4, 4) if not made.sharded else None

    def look(step, values):
        """Between two steps, which must not change what follows."""
        with made.whole():
            health(made.adapter, pixels[:2], made.adapter.codes(pixels[:2]))

    history = made.run(Data(), seed=0, observe=look)
    with made.whole():
        healthy = health(made.adapter, pixels, made.adapter.codes(pixels) if before is None else before)
    local = [p.to_local() if made.sharded else p for p in made.step.parameters()]
    left = {"history": history, "psnr": healthy["psnr"], "numbers": sum(p.numel() for p in local)}
    (folder / f"{name}-{world.rank}.json").write_text(json.dumps(left))
    made.save(folder / name)


def warmed(root, folder, world):
    torch.manual_seed(0)
    adapter = load(str(root / "chameleon"))
    config = CalibrateConfig(steps=3, batch=8, tokenizer="full", settle=True, rate=1e-3, warmup=1, precision="fp32")
    history = warm_up(adapter, Data(), config, seed=0, world=world)
    (folder / f"warmed-{world.rank}.json").write_text(json.dumps({"history": history}))


def interrupted(root, folder, world):
    """A sharded tuning that stops, whose newest checkpoint is whole, damaged, or half there, and that goes on."""
    how = {"parallel": "shard", "steps": 5}
    whole, _ = tuner(root, "chameleon", "vib", world, **how)
    history = whole.run(Data(), seed=0)
    stopped, _ = tuner(root, "chameleon", "vib", world, **how)
    try:
        stopped.run(Data(stop_at=4), seed=0, checkpoints=stopped.checkpoints(folder / "kept-none"))
    except Stopped:
        world.any(False)
    faults, said = ("none", "damaged", "partial"), {}
    if world.first:
        for fault in faults[1:]:
            shutil.copytree(folder / "kept-none", folder / f"kept-{fault}")
        file = folder / "kept-damaged/step-00000004/__1_0.distcp"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
        (folder / "kept-partial/step-00000004/__0_0.distcp").unlink()
    world.any(False)
    for fault in faults:
        kept = folder / f"kept-{fault}"
        names = sorted(path.name for path in kept.iterdir())
        world.any(False)
        resumed, _ = tuner(root, "chameleon", "vib", world, **how)
        again = resumed.run(Data(), seed=0, checkpoints=resumed.checkpoints(kept))
        pairs = zip(whole.step.parameters(), resumed.step.parameters(), strict=True)
        same = all(torch.equal(one.to_local(), other.to_local()) for one, other in pairs)
        said[fault] = {"kept": names, "same": same and again == history}
        said[fault]["aside"] = sorted(path.name for path in kept.glob("*.damaged"))
    return said


def unwritable(root, folder, world):
    """Of processes whose folder for checkpoints is a file, and of one that fits another configuration."""
    (folder / "file").touch()
    found = []
    for place, how in (("file", {}), ("kept-none", {"train": "lora"})):
        made, _ = tuner(root, "chameleon", "vib", world, parallel="shard", **how)
        try:
            made.run(Data(), seed=0, checkpoints=made.checkpoints(folder / place))
        except InfotokError as error:
            found.append(str(error))
    return found


def frozen(root, folder, world):
    """Tokens that both processes make, each its files; how many, and the tuning's history."""
    cache.IMAGES = 8
    made, _ = tuner(root, "emu3", "none", world, parallel="shard", tokenizer="frozen")
    count = len(EXAMPLES)
    prepared = Split(
        np.stack([np.array(example.image) for example in EXAMPLES]),
        [[example.caption] for example in EXAMPLES],
        [[{"question": example.question, "answer": example.answer}] for example in EXAMPLES],
        [[]] * count,
    )
    shown = Shown(prepared, lambda width, height: (height, width), batch=8, caption_dropout=0.3, seed=0)
    own, encode = [], cache._encoded
    cache._encoded = lambda *given: own.append(0) or encode(*given)
    known = cache.Cached(made, shown, folder / "tokens")
    cache._encoded = encode
    history = made.run(known, seed=0)
    plain, _ = tuner(root, "emu3", "none", world, parallel="shard", tokenizer="frozen")
    left = {"history": history, "plain": plain.run(shown, seed=0), "made": len(own)}
    (folder / f"frozen-{world.rank}.json").write_text(json.dumps(left))


def complaint(root, world):
    """Of processes that start with unlike weights."""
    try:
        tuner(root, "chameleon", "vib", world, seed=world.rank, parallel="shard")
    except InfotokError as error:
        return str(error)
    return ""


def all_of_it(root, folder, world):
    loop.LOG_EVERY = 1
    for name in TUNINGS:
        tuned(root, folder, name, world)
    warmed(root, folder, world)
    frozen(root, folder, world)
    if world.size > 1:
        said = interrupted(root, folder, world) | {"unlike": complaint(root, world)}
        said["unwritable"], said["unfit"] = unwritable(root, folder, world)
        (folder / f"said-{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, root, folder = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    world = join(torch.distributed.FileStore(str(folder / "store"), 2), rank, 2, torch.device("cpu"))
    all_of_it(root, folder, world)
    leave()
