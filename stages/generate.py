"""Stage `generate`: draw images from prompts and score them; and how well images come back from their tokens."""

from stages.common import Stage, cell_stage, single

SHOWN = 2  # prompts per tag in samples.png
OWN = ("top_k", "decoding_steps", "choice_temperature", "ode_steps")  # settings of sampling that are not chosen among


@cell_stage
def generate(run: Stage) -> None:
    """Choose temperature and guidance on validation prompts, then score test and novel prompts; gFID, KID, rFID."""
    import json
    from dataclasses import replace

    import torch

    from infotok.data.arrow import read_manifest, read_split
    from infotok.data.questions import prompts
    from infotok.evaluation.generation import (
        draw,
        frechet_distance,
        geneval,
        kernel_distance,
        standardized_features,
    )
    from infotok.evaluation.reconstruction import fidelity, objects_kept, reconstruct, through
    from infotok.models.family import Sampling
    from infotok.tokenizer import smaller_budgets
    from infotok.training.runtime import start
    from pipeline.artifacts import load_judge, load_model
    from pipeline.pictures import grid, write_png
    from pipeline.results import write_text

    device, seed = start(), run.cell.seed
    config, precision = run.params.generation, run.params.train.precision
    model, codec = load_model(run.layout, run.cell)
    judge, metadata = load_judge(run.layout).to(device), read_manifest(run.layout.data)
    model.to(device)
    test = read_split(run.layout.data, "test")
    asked = {
        split: prompts(split, config.prompts, metadata, run.params.data.objects, config.seed)
        for split in ("validation", "test", "novel")
    }

    def score(split: str, sampling: Sampling, budget: int = 0):
        noise = {"seed": config.seed + ("validation", "test", "novel").index(split) + 1000 * seed}
        settings = {"precision": precision, "budget": budget}
        return geneval(model, judge, asked[split], config.images, codec, metadata, sampling, **noise, **settings)

    plain = Sampling(**{name: getattr(config, name) for name in OWN})
    tried = [replace(plain, temperature=t, guidance=g) for g in config.guidance for t in config.temperatures]
    scores = [score("validation", sampling)[0].score for sampling in tried]
    chosen = tried[scores.index(max(scores))]
    verdict, images = score("test", chosen)
    at_one = verdict if chosen == plain else score("test", plain)[0]
    metrics = {
        "generation/geneval": verdict.score,
        "generation/geneval_t1": at_one.score,
        "generation/geneval_novel": score("novel", chosen)[0].score,
        "generation/validation": max(scores),
        "generation/temperature": chosen.temperature,
        "generation/guidance": chosen.guidance,
        **{f"generation/tag/{tag}": value for tag, value in verdict.by_tag().items()},
    }

    if model.tokenizer.config.nested_dropout:
        for budget in smaller_budgets(run.cell.tokens):
            metrics[f"generation/geneval_at_{budget}"] = score("test", chosen, budget)[0].score

    real = torch.from_numpy(test.images.copy())
    captions = [max(said, key=len) for said in test.captions]
    drawn = draw(model, captions, codec, chosen, seed=config.seed + 1000 * seed, precision=precision)
    decoded = reconstruct(model.tokenizer, through(model.tokenizer, test.images, seed)[0].vectors)
    psnr, ssim = fidelity(real, decoded)
    metrics |= {"reconstruction/psnr": psnr, "reconstruction/ssim": ssim}
    reference, of_drawn, of_decoded = standardized_features(judge, real, drawn, decoded)
    metrics["generation/gfid"] = frechet_distance(reference, of_drawn)
    metrics["generation/kid"] = kernel_distance(reference, of_drawn, seed)
    metrics["reconstruction/rfid"] = frechet_distance(reference, of_decoded)
    metrics["reconstruction/objects"] = objects_kept(judge, real, decoded)

    tags = [prompt["tag"] for prompt in asked["test"]]
    rows = [i for i, tag in enumerate(tags) if tags[:i].count(tag) < SHOWN]
    tiles = torch.cat([images[i * config.images : (i + 1) * config.images] for i in rows])
    write_png(run.folder / "samples.png", grid(tiles, config.images))
    samples = {
        "prompts": [asked["test"][i]["prompt"] for i in rows],
        "columns": config.images,
        "correct": [verdict.right[i].tolist() for i in rows],
    }
    write_text(run.folder / "samples.json", json.dumps(samples, indent=1) + "\n")
    shown = min(16, len(real))
    write_png(run.folder / "reconstructions.png", grid(torch.cat([real[:shown], decoded[:shown]]), shown))

    protocol = {
        "geneval": f"{len(asked['test'])} test prompts of {len(set(tags))} tags, "
        f"{config.images} images each; mean over tags",
        "geneval_novel": f"{len(asked['novel'])} prompts with unseen color-shape pairs",
        "chosen": f"on {len(asked['validation'])} validation prompts among temperatures {config.temperatures} "
        f"and guidance {config.guidance}",
        "temperature": chosen.temperature,
        "guidance": chosen.guidance,
        **{name: getattr(config, name) for name in OWN},
        "geneval_t1": "temperature 1, no guidance",
        "seeds": f"sampling {config.seed} + 1000 * {seed}",
        "gfid": f"{len(drawn)} images drawn from the longest caption of each test image against those images, "
        "in 128 features of the judge, standardized over them; KID over 50 subsets",
        "judge": "reads objects per quadrant; its ceiling stands in the judge's metrics",
        "channel": model.tokenizer.config.channel,
    }
    run.finish(metrics, protocol)


if __name__ == "__main__":
    single(generate)
