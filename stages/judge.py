"""Stage `judge`: train the examiner that reads objects out of images."""

from stages.common import Stage, shared_stage, single


@shared_stage
def judge(run: Stage) -> None:
    """Train the judge once, on renders that no arm trains on, and measure its ceiling on held-out images."""
    import torch

    from infotok.data.arrow import read_manifest, read_split
    from infotok.evaluation.networks import Judge
    from infotok.training.examiners import accuracies, train_examiner
    from infotok.training.runtime import start
    from pipeline.artifacts import attribute_classes, save_module

    device, config, data = start(), run.params.judge, run.layout.data
    description = {"classes": attribute_classes(read_manifest(data)), "image_size": run.params.data.image_size}
    torch.manual_seed(config.seed)
    network = Judge(**description)
    with run.progress(config.steps):
        history = train_examiner(
            network,
            read_split(data, "judge"),
            steps=config.steps,
            batch=config.batch,
            learning_rate=config.learning_rate,
            seed=config.seed,
            device=device,
            observe=run.observe,
        )
    metrics = accuracies(network, read_split(data, "test"), "judge/")
    novel = accuracies(network, read_split(data, "novel"), "judge/")
    metrics["judge/objects_novel"] = novel["judge/objects"]
    if metrics["judge/objects"] < 0.95:
        run.warn(f"the judge reads only {metrics['judge/objects']:.1%} of objects; raise judge.steps")
    save_module(network, run.folder / "judge.safetensors", description)
    run.finish(metrics, {"reference": "test and novel renders", "seed": config.seed}, history)


if __name__ == "__main__":
    single(judge)
