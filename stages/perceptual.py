"""Stage `perceptual`: train the features that reconstructions are compared in."""

from stages.common import Stage, shared_stage, single


@shared_stage
def perceptual(run: Stage) -> None:
    """Train the perceptual features on the training images; another architecture and seed than the judge."""
    import torch

    from infotok.data.arrow import read_manifest, read_split
    from infotok.evaluation.networks import Perceptual
    from infotok.training.examiners import accuracies, train_examiner
    from infotok.training.runtime import start
    from pipeline.artifacts import attribute_classes, save_module

    device, config, data = start(), run.params.judge, run.layout.data
    description = {"classes": attribute_classes(read_manifest(data))}
    torch.manual_seed(config.seed + 1)
    network = Perceptual(**description)
    with run.progress(config.perceptual_steps):
        history = train_examiner(
            network,
            read_split(data, "train"),
            steps=config.perceptual_steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=config.seed + 1,
            device=device,
            observe=run.observe,
        )
    save_module(network, run.folder / "perceptual.safetensors", description)
    metrics = accuracies(network, read_split(data, "test"), "perceptual/")
    run.finish(metrics, {"reference": "test renders", "seed": config.seed + 1}, history)


if __name__ == "__main__":
    single(perceptual)
