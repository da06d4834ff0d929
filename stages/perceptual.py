"""Stage `perceptual`: train the features that reconstructions are compared in."""

import numpy as np
import torch

from infotok.data.arrow import read_manifest, read_split
from infotok.data.text import TextCodec
from infotok.examiners.matching import CANDIDATES, STATEMENTS, Towers, draw_text, retrieval
from infotok.examiners.perceptual import Perceptual
from infotok.examiners.places import accuracies_at_places, attribute_names
from infotok.examiners.reading import accuracies, attribute_classes
from infotok.tensors import save_module
from infotok.training.examiners import PerceptualConfig, train_at_places, train_examiner, train_matching
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main

IMAGES = 1000  # of the test split, at most, whose texts the features have to find


def perceptual(run: Stage) -> None:
    """Train the perceptual features on the training images; another architecture and seed than the judge's."""
    manifest = read_manifest(run.input("prepare"))
    if manifest["judge"] == "objects":
        _from_objects(run, manifest)
    else:
        _from_texts(run)


def _from_objects(run: Stage, manifest: dict) -> None:
    device, config, data = start(), run.config(PerceptualConfig), run.input("prepare")
    train, test = read_split(data, "train"), read_split(data, "test")
    checkpoints = run.checkpoints()
    shared: dict = {"device": device, "checkpoints": checkpoints, "observe": run.observe}
    torch.manual_seed(config.seed)
    if manifest.get("layout") == "free":
        names = {name: values for name, values in attribute_names(manifest).items() if len(values) > 1}
        description = {"classes": {name: len(values) for name, values in names.items()}, "free": True}
        network = Perceptual(**description)
        with run.progress(config.steps):
            history = train_at_places(network, train, config, names, **shared)
        metrics = accuracies_at_places(network, test, manifest, "perceptual/")
    else:
        description = {"classes": attribute_classes(manifest)}
        network = Perceptual(**description)
        with run.progress(config.steps):
            history = train_examiner(network, train, config, **shared)
        metrics = accuracies(network, test, "perceptual/")
    save_module(network, run.folder / "perceptual.safetensors", description)
    run.finish(metrics, {"reference": "test renders", "seed": config.seed}, history)
    checkpoints.clear()


def _from_texts(run: Stage) -> None:
    """The text network that the features learn with is thrown away."""
    device, config, data = start(), run.config(PerceptualConfig), run.input("prepare")
    codec = TextCodec.from_file(data / "text.json")
    torch.manual_seed(config.seed)
    network = Perceptual(None)
    towers = Towers(network, codec.vocabulary)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = train_matching(
            towers,
            read_split(data, "train"),
            codec,
            config,
            device=device,
            checkpoints=checkpoints,
            observe=run.observe,
        )
    save_module(network, run.folder / "perceptual.safetensors", {"classes": None})
    test = read_split(data, "test")
    rng = np.random.default_rng(config.seed)
    texts = [draw_text(*both, rng) for both in zip(test.captions, test.questions, strict=True)]
    rows = np.arange(min(IMAGES, len(test)))
    images = torch.from_numpy(test.images[rows])
    found = retrieval(towers, images, [texts[row] for row in rows], texts, codec, seed=config.seed)
    protocol = {
        "features": "contrastive two-tower network, trained on the training split; the text tower is not kept",
        "reference": f"{len(rows)} test images, the text of each (a caption, or up to {STATEMENTS} questions with "
        f"answers) found among {min(CANDIDATES, len(set(texts)))} of the test split",
        "seed": config.seed,
    }
    run.finish({"perceptual/retrieval": float(found.mean())}, protocol, history)
    checkpoints.clear()


if __name__ == "__main__":
    main("perceptual")
