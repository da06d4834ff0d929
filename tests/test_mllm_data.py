"""What a tuning shows: images of their own size in batches of one size, texts by seed and step."""

import json
from collections import Counter

import numpy as np
import pytest
import tiny_mllm
import torch
from PIL import Image

from infotok.data.arrow import Split
from infotok.errors import InfotokError
from infotok.mllm.data import DESCRIBE, Pictures, Shown, background_of
from infotok.mllm.lengths import check_lengths
from infotok.mllm.loading import load, open_model
from infotok.mllm.options import ModelConfig

WIDE, TALL = (60, 40), (40, 60)


def split(folder, sizes, captions=None, questions=None):
    files = []
    for index, size in enumerate(sizes):
        files.append(str(folder / f"{index}.png"))
        Image.new("RGB", size, (index, 0, 0)).save(files[-1])
    count = len(sizes)
    return Split(
        np.zeros((count, 16, 16, 3), np.uint8),
        captions or [[f"number {i}", f"no {i}"] for i in range(count)],
        questions or [[{"question": f"which {k}?", "answer": f"{i}{k}"} for k in "ab"] for i in range(count)],
        [[] for _ in sizes],
        files=files,
        sizes=np.array(sizes),
    )


def number(example):
    return example.image.getpixel((0, 0))[0]


def shown(data, batch=4, dropout=0.0, seed=0):
    settings = {"batch": batch, "caption_dropout": dropout, "seed": seed, "key": "tune.batch"}
    return Shown(data, lambda width, height: (height, width), **settings)


def test_a_step_shows_images_of_one_size_and_an_epoch_each_at_most_once(tmp_path):
    sizes = [WIDE] * 10 + [TALL] * 7
    made = shown(split(tmp_path, sizes))
    assert made.per_epoch == 2 + 1
    for epoch in range(3):
        seen = []
        for step in range(3 * epoch, 3 * epoch + 3):
            examples, dropped = made.examples(step)
            assert len({example.image.size for example in examples}) == 1
            assert dropped == [False] * 4
            seen += [number(example) for example in examples]
        assert max(Counter(seen).values()) == 1
    assert made.never == 0


def test_over_many_epochs_every_image_is_shown_as_often(tmp_path):
    made = shown(split(tmp_path, [WIDE] * 6), batch=4)
    counts = Counter(int(row) for step in range(300) for row in made.rows(step))
    assert sorted(counts) == list(range(6))
    assert max(counts.values()) - min(counts.values()) < 60  # 200 each, by a fair draw of four of six


def test_the_same_seed_and_step_show_the_same_whatever_was_asked_before(tmp_path):
    data = split(tmp_path, [WIDE] * 12)

    def said(made, step):
        examples, dropped = made.examples(step)
        return [(number(e), e.question, e.answer, e.caption) for e in examples], dropped

    first, again = shown(data, dropout=0.5), shown(data, dropout=0.5)
    later = said(again, 7)
    assert [said(first, step) for step in range(8)][7] == later
    assert said(shown(data, dropout=0.5, seed=1), 7) != later


def test_texts_belong_to_their_image_and_all_of_them_come_up(tmp_path):
    made, captions, questions = shown(split(tmp_path, [WIDE] * 8)), set(), set()
    for step in range(40):
        for example in made.examples(step)[0]:
            own = number(example)
            assert example.caption in (f"number {own}", f"no {own}")
            assert example.answer in (f"{own}a", f"{own}b")
            assert example.question == f"which {example.answer[-1]}?"
            captions.add(example.caption)
            questions.add(example.answer)
    assert (len(captions), len(questions)) == (16, 16)


def test_captions_are_dropped_at_their_rate(tmp_path):
    made = shown(split(tmp_path, [WIDE] * 8), batch=8, dropout=0.25)
    dropped = [flag for step in range(100) for flag in made.examples(step)[1]]
    assert np.mean(dropped) == pytest.approx(0.25, abs=0.05)  # of 800; three standard deviations are 0.046


def test_an_image_without_questions_is_described_and_one_without_captions_is_not_drawn_from_one(tmp_path):
    asked = [[{"question": "what?", "answer": "x"}], []]
    made = shown(split(tmp_path, [WIDE] * 2, captions=[[], ["a caption"]], questions=asked), batch=2)
    examples, dropped = made.examples(0)
    found = {number(e): (e.question, e.answer, e.caption, d) for e, d in zip(examples, dropped, strict=True)}
    assert found == {0: ("what?", "x", "", True), 1: (DESCRIBE, "a caption", "a caption", False)}


def test_sizes_that_never_fill_a_batch_are_counted_and_none_that_does_is_an_error(tmp_path):
    assert shown(split(tmp_path, [WIDE] * 5 + [TALL] * 3)).never == 3
    with pytest.raises(
        InfotokError,
        match=r"tune.batch: 8 images of one size are needed, and of the 8 training images, of 2 sizes, no more than 5",
    ):
        shown(split(tmp_path, [WIDE] * 5 + [TALL] * 3), batch=8)
    with pytest.raises(InfotokError, match=r"8 images of one size are needed, and there are 5 training images; lower"):
        shown(split(tmp_path, [WIDE] * 5), batch=8)


def test_pictures_are_the_files_themselves_and_their_loss_is_told(tmp_path):
    data = split(tmp_path, [WIDE, TALL])
    pictures = Pictures(data)
    assert [image.size for image in pictures] == [WIDE, TALL]
    (tmp_path / "1.png").unlink()
    with pytest.raises(InfotokError, match=r"1.png: is missing; bring it back"):
        pictures[1]
    data.files = ["", ""]
    assert pictures[1].size == (16, 16)


def test_an_image_that_the_processor_refuses_is_named(tmp_path):
    data = split(tmp_path, [WIDE] * 4 + [(900, 3)])
    data.origins, data.root = [f"data.jsonl:{line}" for line in range(1, 6)], "my/data"

    def grid(width, height):
        if width > 200 * height:
            raise InfotokError("the model's processor refuses this input (too long); remove or crop it")
        return height, width

    settings = {"batch": 4, "caption_dropout": 0.0, "seed": 0}
    with pytest.raises(
        InfotokError, match=r"^my/data/data.jsonl:5: an image of 900 x 3 pixels: the model's processor refuses"
    ):
        Shown(data, grid, **settings)


@pytest.mark.parametrize("name", ["chameleon", "emu3"])
def test_a_text_that_does_not_fit_beside_an_image_is_named(tmp_path, name):
    """The most that fits makes a sequence of just the context's length."""
    adapter = load(tiny_mllm.make(name, tmp_path / name))
    data = split(tmp_path, [(32, 32)] * 2)
    data.origins = ["data.jsonl:1", "data.jsonl:2"]
    tokenizer, words = adapter.processor.tokenizer, "a red square " * 400
    lengths = {len(tokenizer(words[:n], add_special_tokens=False)["input_ids"]): words[:n] for n in range(len(words))}

    def longest(text):
        asked = adapter.ask([Image.new("RGB", (32, 32))], [text])["input_ids"].shape[1] + 1  # and the answer's end
        drawn = adapter.draw_targets(torch.zeros(1, 4, 4, dtype=torch.long)).shape[1]
        return max(asked, adapter.draw_prompt([text], 4, 4)["input_ids"].shape[1] + drawn)

    fits = max(count for count, text in lengths.items() if longest(text) <= 512)
    data.captions = [["short"], [lengths[fits]]]
    check_lengths(adapter, data, (32, 32))
    data.captions = [["short"], [lengths[fits + 1]]]
    with pytest.raises(InfotokError, match=f"data.jsonl:2: a text of {fits + 1} tokens does not fit the model's"):
        check_lengths(adapter, data, (32, 32))


def test_what_is_transparent_lies_over_the_background_of_the_prepared_data(tmp_path):
    data = split(tmp_path, [WIDE])
    Image.new("RGBA", WIDE, (255, 0, 0, 0)).save(tmp_path / "0.png")
    for config, color in (({"background": "blue"}, (0, 0, 255)), ({}, (255, 255, 255))):
        (tmp_path / "manifest.json").write_text(json.dumps({"config": config}))
        assert Pictures(data, background_of(tmp_path))[0].getpixel((5, 5)) == color


def test_a_revision_of_the_hub_is_the_one_that_is_loaded(tmp_path, monkeypatch):
    folder, asked = tiny_mllm.make("emu3", tmp_path / "emu3"), []

    def download(name, revision):
        asked.append((name, revision))
        return folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = ModelConfig(name="some/model", revision="abc")
    assert open_model(model, 16, torch.device("cpu")).model.config.model_type == "emu3"
    assert asked == [("some/model", "abc")]

    def fail(name, revision):
        raise OSError("no such revision")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InfotokError, match="revision: abc of some/model cannot be loaded"):
        open_model(model, 16, torch.device("cpu"))
