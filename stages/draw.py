"""`infotok draw` and `infotok draw-model`: images of a trained cell or of a pretrained model for a file of prompts, in
the folders that GenEval's evaluator reads."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from infotok.errors import InfotokError, SettingError, dotted
from pipeline.config.study import Study
from pipeline.graph import PRETRAINED
from stages.common import (
    ArmOption,
    FamilyOption,
    SeedOption,
    StudyOption,
    TokensOption,
    cell_of,
    clear_errors,
    errors,
    single,
)

LARGEST = 4096  # pixels
EVALUATOR = "python evaluation/evaluate_images.py {out} --outfile results.jsonl --model-path DETECTOR"


def _place(name: str) -> str:
    """A folder's whole path, before the command goes to the root of its checkout."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


PromptsOption = Annotated[
    Path,
    typer.Option(
        metavar="FILE", help='JSON Lines with "prompt", such as evaluation_metadata.jsonl, or .txt, one a line.'
    ),
]
OutOption = Annotated[
    Path, typer.Option(metavar="FOLDER", help="New or empty, or that of the same command stopped earlier.")
]
ImagesOption = Annotated[int, typer.Option(help="Images per prompt.")]


@clear_errors
def draw(
    *,
    family: FamilyOption = "ar",
    arm: ArmOption = "none-0-0",
    tokens: TokensOption = 8,
    seed: SeedOption = 0,
    study: StudyOption = "default",
    prompts: PromptsOption,
    out: OutOption,
    images: ImagesOption = 4,
    temperature: Annotated[
        float | None, typer.Option(help="Of sampling, above 0.", show_default="as validation chose, else 1")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free; 1 is none.", show_default="as validation chose, else 1")
    ] = None,
    sampling_seed: Annotated[
        int | None, typer.Option(help="Seed of the drawing.", show_default="generation.seed + 1000 * seed")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Pixels a side to enlarge to, bicubic.", show_default="the model's own")
    ] = None,
) -> None:
    """Draw a file of prompts with a trained model, in the folders that GenEval's official evaluator reads."""
    _check(images, temperature, guidance, sampling_seed, resolution)
    from infotok.models.files import load_model
    from infotok.training.runtime import has_bf16, start
    from pipeline.export import (
        Recipe,
        cell_drawing,
        cell_source,
        check_lengths,
        chosen_sampling,
        read_prompts,
        record_of,
    )

    chosen = Study(study)
    if chosen.graph is PRETRAINED:
        raise InfotokError(
            f"--study: {study} tunes pretrained models; draw with one by `infotok draw-model --model "
            f"{chosen.results}/tune/<cell>/model`"
        )
    config, cell, asked = chosen.params, cell_of(chosen, family, tokens, seed, arm), read_prompts(prompts)
    device, folder = start(), chosen.output("train", cell)
    model, codec = load_model(folder, chosen.remedy("train", cell))
    model.to(device)
    places = getattr(model.backbone.model.config, "max_position_embeddings", None)
    room = None if places is None else places - model.tokenizer.tokens - 1  # the begin mark
    check_lengths(prompts, asked, lambda text: len(codec.encode(text)), room)
    own = model.tokenizer.image_size
    if resolution is not None and resolution < own:
        raise InfotokError(f"--resolution: {resolution} is below the model's own {own} pixels; use {own} or more")
    sampling, said = chosen_sampling(chosen, cell, temperature, guidance)
    bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and has_bf16(device))
    recipe = Recipe(
        images=images,
        sampling=sampling.model_dump(),
        sampling_seed=config.generation.seed + 1000 * seed if sampling_seed is None else sampling_seed,
        precision="bf16" if bf16 else "fp32",
        device=device.type,
        pixels=resolution or own,
    )
    drawing = cell_drawing(model, codec, sampling, recipe.precision)
    record = record_of("infotok draw", cell_source(chosen, cell), asked, recipe)
    _export(drawing, asked, recipe, out, record, cell.key, said)


@clear_errors
def draw_model(
    *,
    model: Annotated[
        str,
        typer.Option(metavar="NAME", callback=_place, help="Of a model on the Hugging Face hub, or its folder."),
    ],
    decoder: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Of what the model lacks to draw, such as Anole's vqgan.ckpt.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run code that comes with the model.")] = False,
    tokens: Annotated[
        int | None, typer.Option(help="Of a square image, at most.", show_default="those of 512 x 512 pixels")
    ] = None,
    prompts: PromptsOption,
    out: OutOption,
    images: ImagesOption = 4,
    temperature: Annotated[float, typer.Option(help="Of sampling, above 0.")] = 1.0,
    guidance: Annotated[float, typer.Option(help="Classifier-free; 1 is none.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Likeliest codes that are sampled from; 0 for all.")] = 0,
    sampling_seed: Annotated[int, typer.Option(help="Seed of the drawing.")] = 7,
    together: Annotated[int, typer.Option(help="Prompts drawn together; fewer take less memory.")] = 4,
) -> None:
    """Draw a file of prompts with a pretrained or a tuned model, in the same folders as `draw`."""
    _check(images, temperature, guidance, sampling_seed, None)
    for name, value, least in (("--top-k", top_k, 0), ("--together", together, 1), ("--tokens", tokens, 1)):
        if value is not None and value < least:
            raise InfotokError(f"{name}: {value} is below {least}; use {least} or more")
    import torch

    from infotok.mllm.codes import CodeAdapter
    from infotok.mllm.harness.geneval import images_for, prompt_length, prompt_room, square
    from infotok.mllm.loading import load
    from infotok.tensors import state_digest
    from infotok.training.runtime import has_bf16, start
    from pipeline.export import Recipe, check_lengths, read_prompts, record_of

    asked, device = read_prompts(prompts), start()
    bf16 = has_bf16(device)
    dtype = torch.bfloat16 if bf16 else torch.float32
    try:
        adapter = load(model, dtype=dtype, decoder=decoder, control=True, trust=trust)
    except SettingError as error:
        option = "model" if error.key == ("name",) else dotted(error.key)
        raise InfotokError(f"--{option}: {error.problem}") from None
    if not isinstance(adapter, CodeAdapter):
        raise InfotokError(f"--model: {model} has continuous tokens, and codes are drawn here; choose another model")
    if adapter.extra_is_new:
        raise InfotokError(f"--model: {model} has no decoder to draw with; give --decoder, such as Anole's vqgan.ckpt")
    parts = torch.nn.ModuleList([adapter.model] if adapter.extra is None else [adapter.model, adapter.extra])
    source = {"model": {"name": model, "sha256": state_digest(parts, 0)}}
    adapter.to(device)
    try:
        h, w, pixels = square(adapter, tokens)
        room = prompt_room(adapter, h, w)
    except InfotokError as error:
        raise InfotokError(f"--tokens: {error}") from None
    check_lengths(prompts, asked, lambda text: prompt_length(adapter, text, h, w), room)
    sampling = {"temperature": temperature, "guidance": guidance, "top_k": top_k}
    recipe = Recipe(
        images=images,
        sampling=sampling,
        sampling_seed=sampling_seed,
        precision="bf16" if bf16 else "fp32",
        device=device.type,
        pixels=pixels,
        prompts_drawn_together=together,
    )

    def drawing(captions: list[str], noise: int):
        return images_for(adapter, captions, (h, w), seed=noise, **sampling)

    said = f"{h} x {w} tokens, {pixels} x {pixels} pixels, temperature {temperature:g}, guidance {guidance:g}"
    _export(drawing, asked, recipe, out, record_of("infotok draw-model", source, asked, recipe), model, said)


def _export(drawing, asked: list, recipe, out: Path, record: dict, name: str, said: str) -> None:
    """Draw into `out`, and tell how far it is."""
    from pipeline.export import export, is_whole, open_folder

    with open_folder(out, record):
        print(f"{name}: {said}")
        if there := sum(is_whole(out / f"{i:05}", recipe.images) for i in range(len(asked))):
            errors.print(f"draw {name}: goes on from {there} of {len(asked)} prompts in {out}", markup=False)
        with _progress(name, len(asked)) as advance:
            export(drawing, asked, recipe, out, advance)
    print(f"{len(asked) * recipe.images} images of {len(asked)} prompts in {out}; {_scoring(out, asked)}")


def _check(images, temperature, guidance, sampling_seed, resolution) -> None:
    if images < 1:
        raise InfotokError(f"--images: {images} is below 1; GenEval takes 4")
    if temperature is not None and not 0 < temperature < math.inf:
        raise InfotokError(f"--temperature: {temperature:g} is not above 0 and finite; 1 samples as the model predicts")
    if guidance is not None and not 1 <= guidance < math.inf:
        raise InfotokError(f"--guidance: {guidance:g} is not 1 or more and finite; 1 is no guidance")
    if sampling_seed is not None and sampling_seed < 0:
        raise InfotokError(f"--sampling-seed: {sampling_seed} is negative; use 0 or more")
    if resolution is not None and not 0 < resolution <= LARGEST:
        raise InfotokError(f"--resolution: {resolution} is not between 1 and {LARGEST} pixels; 512 suits detectors")


def _scoring(out: Path, asked: list) -> str:
    """How to score the images; the evaluator counts a prompt that asks for nothing as right."""
    bare = sum(not prompt.scorable for prompt in asked)
    evaluate = EVALUATOR.format(out=shlex.quote(str(out.resolve())))
    text = f"score them in a checkout of github.com/djghosh13/geneval: {evaluate}"
    if bare:
        text += f' (it needs "tag" and "include" of every prompt, missing of {bare} here)'
    return text


@contextmanager
def _progress(name: str, prompts: int) -> Iterator[Callable[[int], None]]:
    """A progress line on a terminal, else nothing."""
    if not errors.is_terminal:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task(f"draw {name}", total=prompts)
        yield lambda done: progress.advance(task, done)


if __name__ == "__main__":
    single(draw)
