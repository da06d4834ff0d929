"""Stage `generate`: draw images from prompts and score them; and how well images come back from their tokens."""

from stages.common import Stage, cell_stage, single

SHOWN = 2  # prompts per tag in samples.png, twelve where there are no tags
OWN = ("top_k", "decoding_steps", "choice_temperature", "ode_steps")  # settings of sampling that are not chosen among
MOST = 1000  # test images that are reconstructed and compared


@cell_stage
def generate(run: Stage) -> None:
    """Choose temperature and guidance on validation prompts, then score test prompts; gFID, KID, rFID."""
    import numpy as np
    import torch

    from infotok.data.arrow import read_manifest, read_split
    from infotok.evaluation.generation import frechet_distance, standardized_features
    from infotok.evaluation.reconstruction import fidelity, objects_kept, reconstruct
    from infotok.examiners.judge import Judge
    from infotok.tokenizer.passes import through
    from infotok.training.runtime import start
    from pipeline.pictures import grid, write_png
    from pipeline.running.artifacts import load_judge, load_model

    device, seed = start(), run.cell.seed
    model, codec = load_model(run.layout, run.cell)
    model.to(device)
    judge, manifest = load_judge(run.layout), read_manifest(run.layout.data)
    test = read_split(run.layout.data, "test")
    test = test.take(np.arange(min(MOST, len(test))))

    real = torch.from_numpy(test.images)
    decoded = reconstruct(model.tokenizer, through(model.tokenizer, test.images, seed)[0].vectors)
    psnr, ssim = fidelity(real, decoded)
    metrics = {"reconstruction/psnr": psnr, "reconstruction/ssim": ssim}
    protocol = {"reconstruction": f"{len(real)} test images", "channel": model.tokenizer.config.channel}
    if judge is not None:
        judge.to(device)
        reference, of_decoded = standardized_features(judge, real, decoded)
        metrics["reconstruction/rfid"] = frechet_distance(reference, of_decoded)
    if isinstance(judge, Judge):
        metrics["reconstruction/objects"] = objects_kept(judge, real, decoded)
    shown = min(16, len(real))
    write_png(run.folder / "reconstructions.png", grid(torch.cat([real[:shown], decoded[:shown]]), shown))

    if "generation" in manifest["tasks"]:
        drawn, how = _draw(run, model, codec, judge, manifest, test)
        metrics, protocol = metrics | drawn, protocol | how
    else:
        protocol["generation"] = f"not scored: {manifest['why_not']['generation']}"
    run.finish(metrics, protocol)


def _draw(run: Stage, model, codec, judge, manifest: dict, test) -> tuple[dict[str, float], dict]:
    """Metrics of drawn images and their protocol; writes samples.png and samples.json."""
    from dataclasses import replace

    import torch

    from infotok.data.arrow import read_split
    from infotok.data.text import TextCodec
    from infotok.evaluation.generation import draw, frechet_distance, kernel_distance, standardized_features
    from infotok.evaluation.geneval_prompts import TAGS
    from infotok.evaluation.prompted import GenEval, Retrieval
    from infotok.models.family import Sampling
    from infotok.tokenizer import smaller_budgets

    config, precision, seed = run.params.generation, run.params.train.precision, run.cell.seed
    if manifest["judge"] == "objects":
        most = {"per_tag": config.prompts, "most": manifest["most_objects"], "seed": config.seed}
        task = GenEval(judge, manifest, **most)
    else:
        splits = {name: read_split(run.layout.data, name) for name in ("validation", "test")}
        of_judge = TextCodec.from_file(run.layout.data / "text.json")
        task = Retrieval(judge, splits, of_judge, most=config.prompts * len(TAGS), seed=config.seed)

    def score(split: str, sampling: Sampling, budget: int = 0):
        captions = [prompt for prompt in task.asks(split) for _ in range(config.images)]
        noise = config.seed + ("validation", "test", "novel").index(split) + 1000 * seed
        images = draw(model, captions, codec, sampling, seed=noise, precision=precision, budget=budget)
        return task.verdict(split, images), images

    plain = Sampling(**{name: getattr(config, name) for name in OWN})
    tried = [replace(plain, temperature=t, guidance=g) for g in config.guidance for t in config.temperatures]
    scores = [score("validation", sampling)[0].score for sampling in tried]
    chosen = tried[scores.index(max(scores))]
    verdict, images = score("test", chosen)
    at_one = verdict if chosen == plain else score("test", plain)[0]
    metrics = {
        f"generation/{task.name}": verdict.score,
        f"generation/{task.name}_t1": at_one.score,
        "generation/validation": max(scores),
        "generation/temperature": chosen.temperature,
        "generation/guidance": chosen.guidance,
        **{f"generation/tag/{tag}": value for tag, value in verdict.by_tag().items()},
    }
    if "novel" in manifest["splits"]:
        metrics[f"generation/{task.name}_novel"] = score("novel", chosen)[0].score
    if model.tokenizer.config.nested_dropout:
        for budget in smaller_budgets(run.cell.tokens):
            metrics[f"generation/{task.name}_at_{budget}"] = score("test", chosen, budget)[0].score

    told = [index for index, said in enumerate(test.captions) if said]
    captions = [max(test.captions[index], key=len) for index in told]
    drawn = draw(model, captions, codec, chosen, seed=config.seed + 1000 * seed, precision=precision)
    reference, of_drawn = standardized_features(judge, torch.from_numpy(test.images[told]), drawn)
    metrics["generation/gfid"] = frechet_distance(reference, of_drawn)
    metrics["generation/kid"] = kernel_distance(reference, of_drawn, seed)

    asked = task.asks("test")
    tags = verdict.tags or [""] * len(asked)
    rows = [i for i, tag in enumerate(tags) if tags[:i].count(tag) < (SHOWN if tag else SHOWN * len(TAGS))]
    by_prompt = images.view(len(asked), -1, *images.shape[1:])
    _write_samples(run, [asked[i] for i in rows], verdict.right[rows], by_prompt[rows])
    protocol = {
        **task.protocol(),
        "images": f"{config.images} per prompt",
        "chosen": f"on {len(task.asks('validation'))} validation prompts among temperatures {config.temperatures} "
        f"and guidance {config.guidance}",
        "temperature": chosen.temperature,
        "guidance": chosen.guidance,
        **{name: getattr(config, name) for name in OWN},
        f"{task.name}_t1": "temperature 1, no guidance",
        "seeds": f"sampling {config.seed} + 1000 * {seed}",
        "gfid": f"{len(drawn)} images drawn from the longest caption of each test image against those images, "
        f"in {judge.num_features} features of the judge, standardized over them; KID over 50 subsets",
    }
    return metrics, protocol


def _write_samples(run: Stage, prompts: list[str], right, images) -> None:
    """samples.png, a row a prompt, and samples.json with prompts and verdicts; images (prompts, n, S, S, 3) uint8."""
    import json

    from pipeline.files import write_text
    from pipeline.pictures import grid, write_png

    columns = images.shape[1]
    write_png(run.folder / "samples.png", grid(images.flatten(0, 1), columns))
    samples = {"prompts": prompts, "columns": columns, "correct": right.tolist()}
    write_text(run.folder / "samples.json", json.dumps(samples, indent=1) + "\n")


if __name__ == "__main__":
    single(generate)
