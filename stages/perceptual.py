"""Stage `perceptual`: train the features that reconstructions are compared in."""

from stages.common import Stage, shared_stage, single

MOST = 1000  # test images, at most, whose texts the features have to find


@shared_stage
def perceptual(run: Stage) -> None:
    """Train the perceptual features on the training images; another architecture and seed than the judge."""
    from infotok.data.arrow import read_manifest
    from pipeline.running.artifacts import judge_of

    (_from_objects if judge_of(read_manifest(run.layout.data)) == "objects" else _from_texts)(run)


def _from_objects(run: Stage) -> None:
    import torch

    from infotok.data.arrow import read_manifest, read_split
    from infotok.examiners.perceptual import Perceptual
    from infotok.examiners.reading import accuracies
    from infotok.examiners.training import train_examiner
    from infotok.training.runtime import start
    from pipeline.running.artifacts import attribute_classes, save_module

    device, config, data = start(), run.params.judge, run.layout.data
    description = {"classes": attribute_classes(read_manifest(data))}
    torch.manual_seed(config.seed + 1)
    network = Perceptual(**description)
    checkpoints = run.checkpoints()
    with run.progress(config.perceptual_steps):
        history = train_examiner(
            network,
            read_split(data, "train"),
            steps=config.perceptual_steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=config.seed + 1,
            device=device,
            checkpoints=checkpoints,
            observe=run.observe,
        )
    save_module(network, run.folder / "perceptual.safetensors", description)
    metrics = accuracies(network, read_split(data, "test"), "perceptual/")
    run.finish(metrics, {"reference": "test renders", "seed": config.seed + 1}, history)
    checkpoints.clear()


def _from_texts(run: Stage) -> None:
    """The text network that the features learn with is thrown away."""
    import numpy as np
    import torch

    from infotok.data.arrow import read_split
    from infotok.data.text import TextCodec
    from infotok.examiners.matching import CANDIDATES, STATEMENTS, Towers, draw_text, retrieval
    from infotok.examiners.perceptual import Perceptual
    from infotok.examiners.training import train_matching
    from infotok.training.runtime import start
    from pipeline.running.artifacts import save_module

    device, config, data = start(), run.params.judge, run.layout.data
    codec = TextCodec.from_file(data / "text.json")
    torch.manual_seed(config.seed + 1)
    network = Perceptual(None)
    towers = Towers(network, codec.vocabulary)
    checkpoints = run.checkpoints()
    with run.progress(config.perceptual_steps):
        history = train_matching(
            towers,
            read_split(data, "train"),
            codec,
            steps=config.perceptual_steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=config.seed + 1,
            device=device,
            checkpoints=checkpoints,
            observe=run.observe,
        )
    save_module(network, run.folder / "perceptual.safetensors", {"classes": None})
    test = read_split(data, "test")
    rng = np.random.default_rng(config.seed + 1)
    texts = [draw_text(*both, rng) for both in zip(test.captions, test.questions, strict=True)]
    rows = np.arange(min(MOST, len(test)))
    images = torch.from_numpy(test.images[rows])
    found = retrieval(towers, images, [texts[row] for row in rows], texts, codec, seed=config.seed + 1)
    protocol = {
        "features": "contrastive two-tower network, trained on the training split; the text tower is not kept",
        "reference": f"{len(rows)} test images, the text of each (a caption, or up to {STATEMENTS} questions with "
        f"answers) found among {min(CANDIDATES, len(set(texts)))} of the test split",
        "seed": config.seed + 1,
    }
    run.finish({"perceptual/retrieval": float(found.mean())}, protocol, history)
    checkpoints.clear()


if __name__ == "__main__":
    single(perceptual)
