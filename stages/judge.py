"""Stage `judge`: train the examiner that tells what an image shows, and measure what it can tell."""

import torch

from infotok.data.arrow import read_manifest, read_split
from infotok.data.text import TextCodec
from infotok.examiners.detector import Detector
from infotok.examiners.judge import Judge
from infotok.examiners.judges import ObjectJudge
from infotok.examiners.matcher import Matcher
from infotok.examiners.matching import CANDIDATES, chance, retrieval
from infotok.examiners.places import attribute_names
from infotok.examiners.reading import accuracies, attribute_classes
from infotok.examiners.scenes import scene_accuracies
from infotok.tensors import save_module
from infotok.training.examiners import ExaminerConfig, train_at_places, train_examiner, train_matching
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main

CEILING = 1000  # test images, at most, whose captions the judge of matching has to find
LEAST_OBJECTS = 0.95  # of held-out objects read right, below which the judge's scores say little
LEAST_OVER_CHANCE = 3  # times what guessing finds; below it a judge of matching says little


def judge(run: Stage) -> None:
    """Train the judge once, on images that no arm is scored on, and measure its ceiling on held-out images."""
    manifest = read_manifest(run.input("prepare"))
    kind = manifest["judge"]
    if kind is None:
        run.finish({}, {"judge": "none: the data set has no captions to draw from"})
    elif kind == "objects":
        _objects(run, manifest)
    else:
        _matching(run)


def _objects(run: Stage, manifest: dict) -> None:
    """The judge that reads objects; it learns from renders that no arm trains on."""
    device, config, data = start(), run.config(ExaminerConfig), run.input("prepare")
    split, size = read_split(data, "judge"), manifest["config"]["image_size"]
    test, novel = read_split(data, "test"), read_split(data, "novel")
    network: ObjectJudge
    torch.manual_seed(config.seed)
    checkpoints = run.checkpoints()
    shared: dict = {"device": device, "checkpoints": checkpoints, "observe": run.observe}
    if manifest.get("layout") == "free":
        names = attribute_names(manifest)
        about = {name: len(values) for name, values in names.items()}
        description = {"classes": about, "image_size": size, "most": manifest["most_objects"]}
        description |= {"apart": manifest["centres_apart"]}
        network = Detector(**description)
        with run.progress(config.steps):
            history = train_at_places(network, split, config, names, **shared)
        metrics = scene_accuracies(network, test, manifest, "judge/")
        of_novel = scene_accuracies(network, novel, manifest, "judge/")
        description["kind"] = "detection"
    else:
        description = {"classes": attribute_classes(manifest), "image_size": size}
        network = Judge(**description)
        with run.progress(config.steps):
            history = train_examiner(network, split, config, **shared)
        metrics, of_novel = (accuracies(network, split, "judge/") for split in (test, novel))
    metrics["judge/objects_novel"] = of_novel["judge/objects"]
    if metrics["judge/objects"] < LEAST_OBJECTS:
        run.warn(f"the judge reads only {metrics['judge/objects']:.1%} of objects; raise judge.steps")
    save_module(network, run.folder / "judge.safetensors", description)
    run.finish(metrics, {"reference": "test and novel renders", "seed": config.seed}, history)
    checkpoints.clear()


def _matching(run: Stage) -> None:
    """The judge that matches images and captions; it learns from the training images, which every arm trains on."""
    device, config, data = start(), run.config(ExaminerConfig), run.input("prepare")
    codec, split = TextCodec.from_file(data / "text.json"), read_split(data, "train")
    description = {"image_size": split.images.shape[1], "vocabulary": codec.vocabulary}
    torch.manual_seed(config.seed)
    network = Matcher(**description)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = train_matching(
            network, split, codec, config, device=device, checkpoints=checkpoints, observe=run.observe
        )
    test = read_split(data, "test")
    longest = {index: max(captions, key=len) for index, captions in enumerate(test.captions) if captions}
    pool, rows = list(longest.values()), list(longest)[:CEILING]
    images = torch.from_numpy(test.images[rows])
    found = retrieval(network, images, [longest[row] for row in rows], pool, codec, seed=config.seed)
    metrics = {"judge/retrieval": float(found.mean()), "judge/retrieval_chance": chance(pool)}
    if metrics["judge/retrieval"] < LEAST_OVER_CHANCE * metrics["judge/retrieval_chance"]:
        run.warn(
            f"the judge finds only {metrics['judge/retrieval']:.1%} of real images' captions (guessing: "
            f"{metrics['judge/retrieval_chance']:.1%}), too few to tell how well images are drawn; "
            "bring more images or raise judge.steps"
        )
    save_module(network, run.folder / "judge.safetensors", {"kind": "matching", **description})
    number = min(CANDIDATES, len(set(pool)))
    protocol = {
        "judge": "matching: contrastive two-tower network, trained on the training split; "
        f"retrieval among {number} captions",
        "reference": f"{len(rows)} test images with their longest captions, the others drawn from the test captions",
        "seed": config.seed,
    }
    run.finish(metrics, protocol, history)
    checkpoints.clear()


if __name__ == "__main__":
    main("judge")
