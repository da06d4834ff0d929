"""Stage `render`: let a tuned model draw images from captions, and score them."""

import json

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infotok.data.arrow import Split, read_manifest, read_split
from infotok.data.images import fit
from infotok.data.text import TextCodec
from infotok.evaluation.generation import frechet_distance, kernel_distance, standardized_features
from infotok.evaluation.geneval_prompts import TAGS
from infotok.evaluation.prompted import GenEval, Retrieval, Verdict
from infotok.examiners.judges import ObjectJudge, load_judge
from infotok.files import write_text
from infotok.mllm.adapter import Adapter
from infotok.mllm.codes import CodeAdapter
from infotok.mllm.data import Pictures, background_of
from infotok.mllm.options import RenderConfig
from infotok.mllm.scoring import draw_tokens, grid_of, pictures_of, reconstruct, tokens_of_images
from infotok.training.runtime import start
from pipeline.pictures import grid as tiled
from pipeline.pictures import write_png
from pipeline.running.stage import Stage
from stages.common import main
from stages.opening import open_tuned

SHOWN = 12  # prompts in samples.png
IMAGES = 200  # of the test split, at most, whose codes are compared with those drawn from their captions
SPLITS = ("validation", "test", "novel")  # of prompts


def render(run: Stage) -> None:
    """Choose temperature and guidance on validation captions, then score test captions; gFID and KID; the share of
    codes that are the image's own where the model draws its caption greedily."""
    device, data = start(), run.input("prepare")
    adapter = open_tuned(run, run.model, run.input("tune"), run.remedy("tune"), device).adapter
    manifest, test = read_manifest(data), read_split(data, "test")
    metrics, protocol = {}, {}
    _write_reconstructions(run, adapter, test)
    if manifest["judge"] is None:
        protocol["generation"] = f"not scored: {manifest['why_not']['generation']}"
    else:
        judge = load_judge(run.input("judge") / "judge.safetensors", run.remedy("judge")).to(device)
        metrics, protocol = _draw(run, adapter, judge, manifest, test)
    run.finish(metrics, protocol)


def _draw(run: Stage, adapter: Adapter, judge, manifest: dict, test: Split) -> tuple[dict[str, float], dict]:
    """Metrics of drawn images and their protocol; writes samples.png and samples.json."""
    config, seed, side = run.config(RenderConfig), run.cell.seed, test.images.shape[1]
    grid = grid_of(adapter)
    pictures, rows = (
        Pictures(test, background_of(run.input("prepare"))),
        [row for row, captions in enumerate(test.captions) if captions][:IMAGES],
    )
    tokens = tokens_of_images(adapter, pictures, rows, grid, config.batch)
    sizes = [tuple(part.shape[:2]) for part in tokens]
    size = max(dict.fromkeys(sizes), key=sizes.count)
    shared = {"size": size, "batch": config.batch, "top_k": config.top_k}

    def drawn(captions: list[str], noise: int, temperature: float, guidance: float) -> Tensor:
        made = draw_tokens(adapter, captions, seed=noise, temperature=temperature, guidance=guidance, **shared)
        return _small(pictures_of(adapter, made, config.batch), side)

    def score(split: str, temperature: float, guidance: float) -> tuple[Verdict, Tensor]:
        captions = [prompt for prompt in task.asks(split) for _ in range(config.images)]
        images = drawn(captions, config.seed + SPLITS.index(split) + 1000 * seed, temperature, guidance)
        return task.verdict(split, images), images

    task = _task(run, judge, manifest)
    tried = [(temperature, guidance) for guidance in config.guidance for temperature in config.temperatures]
    scores = [score("validation", *sampling)[0].score for sampling in tried]
    chosen = tried[scores.index(max(scores))]
    verdict, images = score("test", *chosen)
    at_one = verdict if chosen == (1.0, 1.0) else score("test", 1.0, 1.0)[0]
    metrics = {
        f"generation/{task.name}": verdict.score,
        f"generation/{task.name}_t1": at_one.score,
        "generation/validation": max(scores),
        "generation/temperature": chosen[0],
        "generation/guidance": chosen[1],
        **{f"generation/tag/{tag}": value for tag, value in verdict.by_tag().items()},
    }
    if "novel" in manifest["splits"]:
        metrics[f"generation/{task.name}_novel"] = score("novel", *chosen)[0].score
    captions = [max(test.captions[row], key=len) for row in rows]
    reference, of_drawn = standardized_features(
        judge, torch.from_numpy(test.images[rows]), drawn(captions, config.seed + 1000 * seed, *chosen)
    )
    metrics["generation/gfid"] = frechet_distance(reference, of_drawn)
    metrics["generation/kid"] = kernel_distance(reference, of_drawn, seed)
    _write_samples(run, task.asks("test"), verdict, images)
    protocol = {
        **task.protocol(),
        "images": f"{config.images} per prompt, of {size[0]} x {size[1]} tokens, by the saved model's own generate",
        "chosen": f"on {len(task.asks('validation'))} validation prompts among temperatures {config.temperatures} "
        f"and guidance {config.guidance}",
        f"{task.name}_t1": "temperature 1, no guidance",
        "seeds": f"sampling {config.seed} + 1000 * {seed}",
        "gfid": f"{len(rows)} images drawn from the longest caption of each test image against those images, in "
        f"{judge.num_features} features of the judge, standardized over them; KID over 50 subsets",
    }
    if isinstance(adapter, CodeAdapter):
        metrics |= _own_codes(adapter, captions, tokens, size, config)
        protocol["own_codes"] = (
            "share of codes, drawn greedily from a test image's longest caption, that are the image's own; guessed: "
            "without a caption, always the code that these images have most often at a place"
        )
    return metrics, protocol


def _own_codes(
    adapter: CodeAdapter, captions: list[str], codes: list[Tensor], size: tuple[int, int], config: RenderConfig
) -> dict[str, float]:
    """How many codes are those of the images, which have the size that is drawn: drawn, and guessed."""
    kept = [row for row, own in enumerate(codes) if tuple(own.shape) == size]
    own = torch.stack([codes[row] for row in kept])
    made = draw_tokens(adapter, [captions[row] for row in kept], size, seed=config.seed, batch=config.batch)
    return {
        "generation/own_codes": float((made == own).float().mean()),
        "generation/own_codes_guessed": float((own.mode(0).values == own).float().mean()),
    }


def _task(run: Stage, judge, manifest: dict) -> GenEval | Retrieval:
    """What is asked of the generator, and how its images are judged."""
    config, data = run.config(RenderConfig), run.input("prepare")
    if isinstance(judge, ObjectJudge):
        per_tag = max(1, config.prompts // len(TAGS))
        return GenEval(judge, manifest, per_tag=per_tag, most=manifest["most_objects"], seed=config.seed)
    splits = {name: read_split(data, name) for name in ("validation", "test")}
    return Retrieval(judge, splits, TextCodec.from_file(data / "text.json"), most=config.prompts, seed=config.seed)


def _small(images: list[Image.Image], side: int) -> Tensor:
    """(n, side, side, 3) uint8, as the judge sees images."""
    return torch.from_numpy(np.stack([fit(image, side, "pad", (255, 255, 255)) for image in images]))


def _write_samples(run: Stage, prompts: list[str], verdict: Verdict, images: Tensor) -> None:
    """Of the test prompts a few, with all their images: samples.png, a row a prompt, and samples.json with prompts and
    verdicts. images: (prompts * n, S, S, 3) uint8."""
    shown = images.view(len(prompts), -1, *images.shape[1:])[:SHOWN]
    columns = shown.shape[1]
    write_png(run.folder / "samples.png", tiled(shown.flatten(0, 1), columns))
    samples = {"prompts": prompts[:SHOWN], "columns": columns, "correct": verdict.right[:SHOWN].tolist()}
    write_text(run.folder / "samples.json", json.dumps(samples, indent=1) + "\n")


def _write_reconstructions(run: Stage, adapter: Adapter, test: Split) -> None:
    rows, side = range(min(16, len(test))), test.images.shape[1]
    _, decoded = reconstruct(adapter, Pictures(test, background_of(run.input("prepare"))), rows, grid_of(adapter), 8)
    both = torch.cat([torch.from_numpy(test.images[list(rows)]), _small(decoded, side)])
    write_png(run.folder / "reconstructions.png", tiled(both, len(rows)))


if __name__ == "__main__":
    main("render")
