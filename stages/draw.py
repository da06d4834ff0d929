"""`infotok draw`: images of a trained cell for a file of prompts, in the folders that GenEval's evaluator reads."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from infotok.errors import InfotokError
from pipeline.config.study import Study
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


@clear_errors
def draw(
    *,
    family: FamilyOption = "ar",
    arm: ArmOption = "none-0-0",
    tokens: TokensOption = 8,
    seed: SeedOption = 0,
    study: StudyOption = "default",
    prompts: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help='JSON Lines with "prompt", such as evaluation_metadata.jsonl, or .txt, one a line.'
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="New or empty, or that of the same command stopped earlier.")
    ],
    images: Annotated[int, typer.Option(help="Images per prompt.")] = 4,
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
        check_lengths,
        chosen_sampling,
        export,
        is_whole,
        open_folder,
        read_prompts,
        record_of,
    )

    chosen = Study(study)
    config, cell, asked = chosen.params, cell_of(chosen, family, tokens, seed, arm), read_prompts(prompts)
    device, folder = start(), chosen.output("train", cell)
    model, codec = load_model(folder, chosen.remedy("train", cell))
    model.to(device)
    check_lengths(prompts, asked, model, codec)
    own = model.tokenizer.image_size
    if resolution is not None and resolution < own:
        raise InfotokError(f"--resolution: {resolution} is below the model's own {own} pixels; use {own} or more")
    sampling, said = chosen_sampling(chosen, cell, temperature, guidance)
    bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and has_bf16(device))
    recipe = Recipe(
        images=images,
        sampling=sampling,
        sampling_seed=config.generation.seed + 1000 * seed if sampling_seed is None else sampling_seed,
        precision="bf16" if bf16 else "fp32",
        device=device.type,
        pixels=resolution or own,
    )
    with open_folder(out, record_of(chosen, cell, asked, recipe)):
        print(f"{cell.key}: {said}")
        if there := sum(is_whole(out / f"{i:05}", images) for i in range(len(asked))):
            errors.print(f"draw {cell.key}: goes on from {there} of {len(asked)} prompts in {out}", markup=False)
        with _progress(cell.key, len(asked)) as advance:
            export(model, codec, asked, recipe, out, advance)
    print(f"{len(asked) * images} images of {len(asked)} prompts in {out}; {_scoring(out, asked)}")


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
