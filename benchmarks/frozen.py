"""A joint step whose tokenizer is frozen: with images that are opened and encoded in every step, and with tokens that
were made once. Chameleon's own VQGAN, which real folders have, beside a language model that is small.

What is saved does not depend on the language model, whose part of a step is the same in both forms.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import Result, in_turns, timed
from benchmarks.device import Row, device
from infotok.data.arrow import Split
from infotok.mllm.cache import Cached
from infotok.mllm.data import Shown
from infotok.mllm.loading import load
from infotok.mllm.scoring import grid_of
from infotok.mllm.tiny import WORDS, chameleon
from infotok.mllm.tuning import TuneConfig, Tuner, regularizer
from pipeline.config.params import Params

OWN = {"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2}  # of Chameleon
OWN |= {"embed_dim": 256, "latent_channels": 256}
PHOTO = (1280, 960)
BATCH = 2
VARIANCE = 1.0


def measure(params: Params, quick: bool) -> Result:
    rounds, side = (1, 32) if quick else (3, 256)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        chameleon(folder / "model", WORDS, tokenizer=None if quick else OWN)
        adapter = load(str(folder / "model"))
        adapter.limit((side // 2 ** (3 if quick else 4)) ** 2)
        adapter.extra_is_new = False
        adapter.to(device())
        config = TuneConfig(batch=BATCH, tokenizer="frozen", train="lora", rank=4)
        tokens = adapter.grid(torch.zeros(1, 3, side, side, device=device()))
        bottleneck = regularizer(adapter, config, tokens=tokens[0] * tokens[1])
        tuner = Tuner(adapter, bottleneck, VARIANCE, config)
        settings = {"batch": BATCH, "caption_dropout": 0.1, "seed": 0}
        shown = Shown(_photos(folder, 2 * BATCH), grid_of(adapter), **settings)
        before = time.process_time()
        known = Cached(tuner, shown, folder / "tokens")
        making = (time.process_time() - before) / len(shown.split)
        size = sum(file.stat().st_size for file in (folder / "tokens").iterdir()) / len(shown.split)
        rows: list[Row] = []
        for form, data in (("encoded in the step", shown), ("made once", known)):
            busy: list[float] = []

            def step(data: Shown | Cached = data, busy: list[float] = busy) -> None:
                begin = time.process_time()
                tuner.gradients(*data.examples(0))
                busy.append(time.process_time() - begin)

            seconds = in_turns({form: step}, rounds, warmup=1)
            cpu = float(np.median(busy[1:]))
            rows.append({"tokens": form, "cpu_s": cpu} | timed({form: step}, seconds)[form])
    about: list[Row] = [{"cpu_s an image": making, "KiB an image": size / 2**10}]
    sizes = {"batch": BATCH, "image": f"{side} x {side} of {PHOTO[0]} x {PHOTO[1]}", "rounds": rounds}
    return Result(sizes, {"A joint step with a frozen tokenizer": rows, "Making tokens once": about})


def _photos(folder: Path, count: int) -> Split:
    """JPEG files of smooth noise, which compress about as photographs do."""
    numbers, files = np.random.default_rng(0), []
    for index in range(count):
        coarse = Image.fromarray(numbers.integers(0, 256, (PHOTO[1] // 8, PHOTO[0] // 8, 3), np.uint8))
        files.append(str(folder / f"{index}.jpg"))
        coarse.resize(PHOTO, Image.Resampling.BICUBIC).save(files[-1], quality=90)
    words = [[f"a picture, number {index}"] for index in range(count)]
    asked = [[{"question": "which number?", "answer": str(index)}] for index in range(count)]
    small = np.zeros((count, 8, 8, 3), np.uint8)
    return Split(small, words, asked, [[]] * count, files=files, sizes=np.array([PHOTO] * count))
