"""Stage `generate`: draw images from prompts and score them; and how well images come back from their tokens."""

import json

import numpy as np
import torch
from torch import Tensor

from infotok.data.arrow import Split, read_manifest, read_split
from infotok.data.text import TextCodec
from infotok.evaluation.generation import (
    GenerationConfig,
    draw,
    frechet_distance,
    kernel_distance,
    standardized_features,
)
from infotok.evaluation.geneval_prompts import TAGS
from infotok.evaluation.prompted import GenEval, Retrieval, Verdict
from infotok.evaluation.reconstruction import fidelity, objects_kept, reconstruct
from infotok.examiners.judges import ObjectJudge, load_judge
from infotok.examiners.matcher import Matcher
from infotok.files import write_text
from infotok.models.family import Decoding, Sampling
from infotok.models.files import load_model
from infotok.models.unified import UnifiedModel
from infotok.tokenizer import smaller_budgets
from infotok.tokenizer.passes import through
from infotok.training.joint import JointConfig
from infotok.training.runtime import start
from pipeline.pictures import grid, write_png
from pipeline.running.stage import Stage
from stages.common import main

SHOWN = 2  # prompts per tag in samples.png, twelve where there are no tags
IMAGES = 1000  # of the test split, at most, that are reconstructed and compared with drawn ones
SPLITS = ("validation", "test", "novel")  # of prompts


def generate(run: Stage) -> None:
    """Choose temperature and guidance on validation prompts, then score test prompts; gFID, KID, rFID."""
    device, seed, data = start(), run.cell.seed, run.input("prepare")
    model, codec = load_model(run.input("train"), run.remedy("train"))
    model.to(device)
    manifest, test = read_manifest(data), read_split(data, "test")
    test = test.take(np.arange(min(IMAGES, len(test))))
    judge = None
    if manifest["judge"] is not None:
        judge = load_judge(run.input("judge") / "judge.safetensors", run.remedy("judge")).to(device)

    real = torch.from_numpy(test.images)
    decoded = reconstruct(model.tokenizer, through(model.tokenizer, test.images, seed)[0].vectors)
    psnr, ssim = fidelity(real, decoded)
    metrics = {"reconstruction/psnr": psnr, "reconstruction/ssim": ssim}
    protocol = {"reconstruction": f"{len(real)} test images", "channel": model.tokenizer.config.channel}
    if judge is not None:
        reference, of_decoded = standardized_features(judge, real, decoded)
        metrics["reconstruction/rfid"] = frechet_distance(reference, of_decoded)
    if isinstance(judge, ObjectJudge):
        metrics["reconstruction/objects"] = objects_kept(judge, real, decoded, manifest)
    shown = min(16, len(real))
    write_png(run.folder / "reconstructions.png", grid(torch.cat([real[:shown], decoded[:shown]]), shown))

    if judge is not None and "generation" in manifest["tasks"]:
        drawn, how = _draw(run, model, codec, judge, manifest, test)
        metrics, protocol = metrics | drawn, protocol | how
    else:
        protocol["generation"] = f"not scored: {manifest['why_not']['generation']}"
    run.finish(metrics, protocol)


def _task(run: Stage, judge: ObjectJudge | Matcher, manifest: dict) -> GenEval | Retrieval:
    """What is asked of the generator, and how its images are judged."""
    config, data = run.config(GenerationConfig), run.input("prepare")
    if isinstance(judge, ObjectJudge):
        return GenEval(judge, manifest, per_tag=config.prompts, most=manifest["most_objects"], seed=config.seed)
    splits = {name: read_split(data, name) for name in ("validation", "test")}
    codec = TextCodec.from_file(data / "text.json")
    return Retrieval(judge, splits, codec, most=config.prompts * len(TAGS), seed=config.seed)


def _draw(
    run: Stage, model: UnifiedModel, codec: TextCodec, judge: ObjectJudge | Matcher, manifest: dict, test: Split
) -> tuple[dict[str, float], dict]:
    """Metrics of drawn images and their protocol; writes samples.png and samples.json."""
    config, precision, seed = run.config(GenerationConfig), run.config(JointConfig).precision, run.cell.seed
    task = _task(run, judge, manifest)

    def score(split: str, sampling: Sampling, budget: int = 0) -> tuple[Verdict, Tensor]:
        captions = [prompt for prompt in task.asks(split) for _ in range(config.images)]
        noise = config.seed + SPLITS.index(split) + 1000 * seed
        images = draw(model, captions, codec, sampling, seed=noise, precision=precision, budget=budget)
        return task.verdict(split, images), images

    plain = config.sampling()
    tried = [config.sampling(temperature, g) for g in config.guidance for temperature in config.temperatures]
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

    rows = [index for index, captions in enumerate(test.captions) if captions]
    captions = [max(test.captions[index], key=len) for index in rows]
    drawn = draw(model, captions, codec, chosen, seed=config.seed + 1000 * seed, precision=precision)
    reference, of_drawn = standardized_features(judge, torch.from_numpy(test.images[rows]), drawn)
    metrics["generation/gfid"] = frechet_distance(reference, of_drawn)
    metrics["generation/kid"] = kernel_distance(reference, of_drawn, seed)
    _write_samples(run, task.asks("test"), verdict, images)
    protocol = {
        **task.protocol(),
        "images": f"{config.images} per prompt",
        "chosen": f"on {len(task.asks('validation'))} validation prompts among temperatures {config.temperatures} "
        f"and guidance {config.guidance}",
        "temperature": chosen.temperature,
        "guidance": chosen.guidance,
        **{name: getattr(config, name) for name in Decoding.model_fields},
        f"{task.name}_t1": "temperature 1, no guidance",
        "seeds": f"sampling {config.seed} + 1000 * {seed}",
        "gfid": f"{len(drawn)} images drawn from the longest caption of each test image against those images, "
        f"in {judge.num_features} features of the judge, standardized over them; KID over 50 subsets",
    }
    return metrics, protocol


def _write_samples(run: Stage, prompts: list[str], verdict: Verdict, images: Tensor) -> None:
    """Of the test prompts a few, with all their images: samples.png, a row a prompt, and samples.json with prompts and
    verdicts. images: (prompts * n, S, S, 3) uint8."""
    tags = verdict.tags or [""] * len(prompts)
    rows = [i for i, tag in enumerate(tags) if tags[:i].count(tag) < (SHOWN if tag else SHOWN * len(TAGS))]
    shown = images.view(len(prompts), -1, *images.shape[1:])[rows]
    columns = shown.shape[1]
    write_png(run.folder / "samples.png", grid(shown.flatten(0, 1), columns))
    samples = {"prompts": [prompts[i] for i in rows], "columns": columns, "correct": verdict.right[rows].tolist()}
    write_text(run.folder / "samples.json", json.dumps(samples, indent=1) + "\n")


if __name__ == "__main__":
    main("generate")
