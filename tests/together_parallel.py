"""What test_parallel.py does in one process and again in two, which hold a part of the weights each."""

import contextlib
import json
import sys
from pathlib import Path

import together
import torch
from torch import nn

from infotok.distributed import join, leave
from infotok.errors import InfotokError
from infotok.random import stream
from infotok.tensors import module_tensors, own_part, write_tensors
from infotok.training import loop
from infotok.training.checkpoints import Checkpoints
from infotok.training.parallel import replicated, sharded
from infotok.training.step import clip_gradients
from tiny import Stopped

CPU = torch.device("cpu")
FEW = {"steps": 4, "parallel": "shard"}
CASES = {
    "ar-ceb": ("ar", {**together.ARMS["ceb"], **FEW}),
    "mask-vib": ("mask", {**together.ARMS["vib"], **FEW}),
    "flow-hsic": ("flow", {**together.ARMS["hsic"], **FEW}),
    "ar-none": ("ar", {**FEW, "weight_decay": 0.5, "clip": 0.01}),
}
KILLED = "mask-vib"
together.ARMS |= {name: settings for name, (_, settings) in CASES.items()}


def joint(material, name, world, **settings):
    return together.joint(*material, CASES[name][0], name, world, **settings)


def leave_behind(folder, name, world, module, history):
    write_tensors(folder / f"{name}-{world.rank}", module_tensors(module), {"history": history})


class Network(nn.Module):
    """Two layers, a scalar, and a layer that no loss reaches."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 3)])
        self.scale, self.unused = nn.Parameter(torch.tensor(2.0)), nn.Linear(3, 3)

    def losses(self, rows):
        for layer in self.layers:
            rows = layer(rows).tanh()
        return {"loss": (self.scale * rows).square().mean()}


def steps_of(how, world):
    """A few steps of a network whose batches come in one part or in two; what this process holds at their end."""
    network, parts = Network(), 2 if how == "parts" else 1
    losses = network.losses
    if world.size > 1 and how == "shard":
        losses = sharded(network, losses, world, [network.layers[0]])
    elif world.size > 1:
        losses = replicated(network, losses, backwards=parts)
    optimizer = loop.make_optimizer([(list(network.parameters()), 0.01)], 0.5, CPU)
    for step in range(3):
        optimizer.zero_grad()
        batch = torch.randn(parts, 8, 5, generator=stream(CPU, step))
        for index in range(parts):
            last = index == parts - 1
            with contextlib.nullcontext() if last or world.size == 1 else losses.no_sync():
                (losses(batch[index, world.rows(8)])["loss"] / parts).backward()
        norm = clip_gradients(list(network.parameters()), 0.1)
        optimizer.step()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {
        "norm": float(norm),
        "gradients": {n: own_part(g).flatten().tolist() for n, g in gradients.items() if g is not None},
        "weights": {n: own_part(p).flatten().tolist() for n, p in network.named_parameters()},
    }


def gathered(world):
    """All rows, and the gradient of this process's, where each process weights them in another way."""
    rows = (torch.arange(6.0).view(2, 3) + 10 * world.rank).T.requires_grad_()  # which are not contiguous
    whole = world.gather(rows)
    weights = (1 + world.rank) * torch.arange(1.0, 13.0).view(6, 2)
    (weights * whole.square()).sum().backward()
    flags = world.gather(torch.tensor([world.first]))
    return {"rows": whole.tolist(), "gradient": rows.grad.tolist(), "flags": flags.tolist()}


def unlike(world):
    """What processes are told whose weights are not the same."""
    network = Network()
    nn.init.constant_(network.unused.bias, world.rank)
    try:
        sharded(network, network.losses, world)
    except InfotokError as error:
        return str(error)
    return ""


def stop(step, values):
    if step == 3:
        raise Stopped


def all_of_it(world, folder):
    """Run everything and leave in `folder` files per process."""
    loop.LOG_EVERY = 1
    material, said = together.material(), {}
    for name in CASES:
        seen = said[name] = []
        trained = joint(material, name, world, observe=lambda step, values, seen=seen: seen.append(values))
        leave_behind(folder, name, world, *trained)
    for family in ("ar", "flow"):
        trained = together.pretrained(material[0], family, world, parallel="shard")
        leave_behind(folder, f"pretrain-{family}", world, *trained)
    with contextlib.suppress(Stopped):
        joint(material, KILLED, world, observe=stop, checkpoints=Checkpoints(folder / "kept"))
    world.any(False)  # until all have stopped
    leave_behind(folder, "resumed", world, *joint(material, KILLED, world, checkpoints=Checkpoints(folder / "kept")))
    for how in ("shard", "replicate", "parts"):
        said[how] = steps_of(how, world)
    if world.size > 1:
        ended = joint(material, KILLED, world, checkpoints=Checkpoints(folder / "alone" / "kept"))
        leave_behind(folder, "taken-over", world, *ended)
        said |= {"gathered": gathered(world), "unlike": unlike(world)}
    (folder / f"said-{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    all_of_it(join(torch.distributed.FileStore(str(folder / "store"), 2), rank, 2, CPU), folder)
    leave()
