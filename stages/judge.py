"""Stage `judge`: train the examiner that tells what an image shows, and measure what it can tell."""

from stages.common import Stage, shared_stage, single

CEILING = 1000  # test images, at most, whose captions the judge of matching has to find
FLOOR = 3  # times what guessing finds; below it a judge of matching tells little


@shared_stage
def judge(run: Stage) -> None:
    """Train the judge once, on images that no arm is scored on, and measure its ceiling on held-out images."""
    from infotok.data.arrow import read_manifest
    from pipeline.running.artifacts import judge_of

    kind = judge_of(read_manifest(run.layout.data))
    if kind is None:
        run.finish({}, {"judge": "none: the data set has no captions to draw from"})
    else:
        {"objects": _objects, "matching": _matching}[kind](run)


def _objects(run: Stage) -> None:
    """The judge that reads objects; it learns from renders that no arm trains on."""
    import torch

    from infotok.data.arrow import read_manifest, read_split
    from infotok.examiners.judge import Judge
    from infotok.examiners.reading import accuracies
    from infotok.examiners.training import train_examiner
    from infotok.training.runtime import start
    from pipeline.running.artifacts import attribute_classes, save_module

    device, config, data = start(), run.params.judge, run.layout.data
    description = {"classes": attribute_classes(read_manifest(data)), "image_size": run.params.data.image_size}
    torch.manual_seed(config.seed)
    network = Judge(**description)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = train_examiner(
            network,
            read_split(data, "judge"),
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=config.seed,
            device=device,
            checkpoints=checkpoints,
            observe=run.observe,
        )
    metrics = accuracies(network, read_split(data, "test"), "judge/")
    novel = accuracies(network, read_split(data, "novel"), "judge/")
    metrics["judge/objects_novel"] = novel["judge/objects"]
    if metrics["judge/objects"] < 0.95:
        run.warn(f"the judge reads only {metrics['judge/objects']:.1%} of objects; raise judge.steps")
    save_module(network, run.folder / "judge.safetensors", description)
    run.finish(metrics, {"reference": "test and novel renders", "seed": config.seed}, history)
    checkpoints.clear()


def _matching(run: Stage) -> None:
    """The judge that matches images and captions; it learns from the training images, which every arm trains on."""
    import torch

    from infotok.data.arrow import read_split
    from infotok.data.text import TextCodec
    from infotok.examiners.matching import CANDIDATES, Matcher, chance, retrieval
    from infotok.examiners.training import train_matching
    from infotok.training.runtime import start
    from pipeline.running.artifacts import save_module

    device, config, data = start(), run.params.judge, run.layout.data
    codec = TextCodec.from_file(data / "text.json")
    description = {"image_size": run.params.data.image_size, "vocabulary": codec.vocabulary}
    torch.manual_seed(config.seed)
    network = Matcher(**description)
    checkpoints = run.checkpoints()
    with run.progress(config.steps):
        history = train_matching(
            network,
            read_split(data, "train"),
            codec,
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=config.seed,
            device=device,
            checkpoints=checkpoints,
            observe=run.observe,
        )
    test = read_split(data, "test")
    longest = {index: max(said, key=len) for index, said in enumerate(test.captions) if said}
    pool, rows = list(longest.values()), list(longest)[:CEILING]
    images = torch.from_numpy(test.images[rows])
    found = retrieval(network, images, [longest[row] for row in rows], pool, codec, seed=config.seed)
    metrics = {"judge/retrieval": float(found.mean()), "judge/retrieval_chance": chance(pool)}
    if metrics["judge/retrieval"] < FLOOR * metrics["judge/retrieval_chance"]:
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
    single(judge)
