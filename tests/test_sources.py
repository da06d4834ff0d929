"""Data that researchers bring, through `prepare`: what is kept, what is rejected and how it is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from brought import color, listed, picture, prepared, rejects, write
from PIL import Image

from infotok.data.arrow import read_manifest, read_split
from infotok.errors import InfotokError
from infotok.evaluation.blind import Guess
from infotok.training.order import check_images

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("INFOTOK_SHARED_DATA", ROOT.parent / "shared" / "data"))


def test_lines_become_splits_that_hold_what_they_said(tmp_path):
    asked = {"question": lambda i: f"which is {i % 3}?", "answer": lambda i: str(i % 2)}
    write(tmp_path / "in", listed(tmp_path / "in", **asked))
    manifest = prepared(tmp_path / "in", tmp_path / "out")
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest["tasks"] == ["understanding", "generation"]
    assert (manifest["judge"], manifest["rejects"]["count"]) == ("matching", 0)
    seen = []
    for name in ("train", "validation", "test"):
        split = read_split(tmp_path / "out", name)
        assert manifest["splits"][name]["images"] == len(split) > 0
        for row, origin in enumerate(split.origins):
            index = int(origin.removeprefix("data.jsonl:")) - 1
            assert split.captions[row] == [f"picture {index}"]
            wanted = {"question": f"which is {index % 3}?", "answer": str(index % 2), "family": "question"}
            assert split.questions[row] == [wanted]
            assert (split.images[row] == np.array(color(index))).all()
            seen.append(index)
    assert sorted(seen) == list(range(60))


def members(folder, place, **changes):
    prepared(place, folder, **changes)
    return {name: {said[0] for said in read_split(folder, name).captions} for name in ("train", "validation", "test")}


def test_splits_follow_content_not_order_name_or_format(tmp_path):
    lines = listed(tmp_path / "a", 80)
    write(tmp_path / "a", lines)
    first = members(tmp_path / "1", tmp_path / "a")
    for index in range(80):  # other names, another format, another order, and 20 images more
        path = tmp_path / "b" / "images" / f"x{index}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(tmp_path / "a" / "images" / f"{index}.png").save(path)
    more = [line | {"image": f"images/x{i}.bmp"} for i, line in enumerate(lines)][::-1]
    for index in range(80, 100):
        picture(tmp_path / "b" / "images" / f"{index}.png", index)
        more.append({"image": f"images/{index}.png", "caption": f"new {index}"})
    write(tmp_path / "b", more)
    second = members(tmp_path / "2", tmp_path / "b")
    for name, captions in first.items():
        assert captions == {text for text in second[name] if text.startswith("picture")}
    assert members(tmp_path / "3", tmp_path / "a", seed=1)["test"] != first["test"]


def test_given_splits_stand_and_validation_comes_out_of_training(tmp_path):
    write(tmp_path / "in", listed(tmp_path / "in", 80, split=lambda i: "test" if i < 20 else "train"))
    prepared(tmp_path / "in", tmp_path / "out")
    test = read_split(tmp_path / "out", "test")
    assert {int(origin.partition(":")[2]) for origin in test.origins} == set(range(1, 21))
    assert len(read_split(tmp_path / "out", "validation")) + len(read_split(tmp_path / "out", "train")) == 60


def test_copies_of_an_image_are_counted_and_named(tmp_path):
    lines = listed(tmp_path / "in", 60, split=lambda i: "test" if i < 20 else "train")
    picture(tmp_path / "in" / "images" / "59.png", 5)  # of test
    picture(tmp_path / "in" / "images" / "58.png", 30)  # of train; either may be drawn into validation
    write(tmp_path / "in", lines)
    found = prepared(tmp_path / "in", tmp_path / "out")["duplicates"]
    assert found == {"within": 1, "across": 1}
    noted = [line for line in rejects(tmp_path / "out") if line["kept"]]
    assert [(line["file"], line["line"]) for line in noted] == [("data.jsonl", 60)]
    assert "is a copy of one in test" in noted[0]["reason"]


LLAVA = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A dot."},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes."},
]


@pytest.mark.parametrize("array", [False, True])
def test_conversations_of_llava_become_questions(tmp_path, array):
    lines = listed(tmp_path / "in", 60, conversations=lambda i: LLAVA)
    write(tmp_path / "in", lines)
    if array:
        (tmp_path / "in" / "data.jsonl").write_text(" " + json.dumps(lines, indent=1))
    prepared(tmp_path / "in", tmp_path / "out")
    asked = read_split(tmp_path / "out", "test").questions[0]
    assert [(pair["question"], pair["answer"]) for pair in asked] == [("What is it?", "A dot."), ("Sure?", "Yes.")]


BOMB = bytes.fromhex("89504e470d0a1a0a0000000d49484452") + (60000).to_bytes(4) * 2 + bytes.fromhex("0802000000")
BAD = {  # line -> (its number's what, words of the reason)
    "missing": ({"image": "images/none.png", "caption": "a"}, "image", "is missing: images/none.png"),
    "zero bytes": ({"image": "images/zero.png", "caption": "a"}, "image", "0 bytes"),
    "truncated": ({"image": "images/cut.png", "caption": "a"}, "image", "truncated"),
    "bomb": ({"image": "images/bomb.png", "caption": "a"}, "image", ""),
    "leaves": ({"image": "../secret.png", "caption": "a"}, "image", "leaves the folder"),
    "absolute": ({"image": "/etc/hostname", "caption": "a"}, "image", "leaves the folder"),
    "link": ({"image": "images/link.png", "caption": "a"}, "image", "is a link out of the folder"),
    "no name": ({"image": " ", "caption": "a"}, "image", "no file name"),
    "not UTF-8": (b'{"image": "images/1.png", "caption": "\xff"}', "line", "not UTF-8"),
    "not JSON": (b'{"image": "images/1.png", ', "line", "not JSON"),
    "deep": (b"[" * 100_000, "line", "nested too deep"),
    "no object": (b"[1]", "line", "no JSON object"),
    "unknown split": (
        {"image": "images/1.png", "caption": "a", "split": "holdout"},
        "line",
        "names an unknown split 'holdout'",
    ),
    "empty caption": ({"image": "images/1.png", "captions": ["  ", "fine"]}, "caption", "is empty"),
    "no text": ({"image": "images/1.png", "captions": [3, "fine"]}, "caption", "is no text but int"),
    "long": ({"image": "images/1.png", "captions": ["x" * 2001, "fine"]}, "caption", "longer than 2000"),
    "no answer": ({"image": "images/1.png", "caption": "fine", "question": "why?"}, "answer", "is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_listed_with_file_line_and_reason(tmp_path, case):
    folder = tmp_path / "in"
    lines = listed(folder)
    picture(tmp_path / "secret.png")
    (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "images" / "zero.png").touch()
    whole = picture(folder / "images" / "whole.png", size=(64, 64)).read_bytes()
    (folder / "images" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images" / "bomb.png").write_bytes(BOMB)
    bad, what, reason = BAD[case]
    write(folder, [*lines[:7], bad, *lines[7:]])
    manifest = prepared(folder, tmp_path / "out", max_rejects=1)
    found = rejects(tmp_path / "out")
    assert [line["line"] for line in found] == [8]
    assert (found[0]["file"], found[0]["what"], found[0]["kept"]) == ("data.jsonl", what, False)
    assert reason in found[0]["reason"]
    assert manifest["rejects"]["count"] == 1
    kept = sum(about["images"] for about in manifest["splits"].values())
    assert kept == 60 + (what in ("caption", "answer"))
    with pytest.raises(InfotokError, match=r"data\.jsonl:8: .*data\.max_rejects \(0\)") as caught:
        prepared(folder, tmp_path / "strict")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "strict").exists()
    assert (tmp_path / "strict.rejects.jsonl").read_text()


def test_an_image_of_which_nothing_is_said_is_rejected(tmp_path):
    lines = listed(tmp_path / "in")
    lines[4].pop("caption")
    write(tmp_path / "in", lines)
    with pytest.raises(InfotokError, match=rf"^{tmp_path}/in/data\.jsonl:5: image has no caption and no question"):
        prepared(tmp_path / "in", tmp_path / "out")


def test_a_test_answer_that_training_never_shows_is_kept_and_told(tmp_path):
    lines = listed(
        tmp_path / "in", 60, question=lambda i: "why?", answer=lambda i: "odd" if i == 3 else "so",
        split=lambda i: "test" if i < 20 else "train",
    )  # fmt: skip
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out")
    train, test = (read_split(tmp_path / "out", name) for name in ("train", "test"))
    guess = Guess(train.questions)
    assert guess.accuracies(test.questions) == {"question_only": 19 / 20, "majority": 19 / 20}
    assert guess.unseen(test) == [f"{tmp_path}/in/data.jsonl:4"]
    assert guess.unseen(train) == []


def test_questions_alone_and_captions_alone_allow_their_task(tmp_path):
    captions = listed(tmp_path / "in")
    write(tmp_path / "in", captions)
    only = prepared(tmp_path / "in", tmp_path / "captions")
    assert (only["tasks"], only["judge"]) == (["generation"], "matching")
    assert only["why_not"] == {"understanding": "the data have no questions"}
    for line in captions:
        line.pop("caption")
        line |= {"question": "why?", "answer": "so"}
    write(tmp_path / "in", captions)
    only = prepared(tmp_path / "in", tmp_path / "questions")
    assert (only["tasks"], only["judge"]) == (["understanding"], None)
    assert only["why_not"] == {"generation": "the data have no captions"}


@pytest.mark.parametrize("split", [False, True])
def test_class_folders_become_captions_and_questions(tmp_path, split):
    place, index = tmp_path / "in", 0
    for part in ("train", "val", "test") if split else ("",):
        for name in ("red_panda", "cat"):
            for _ in range(12 if split else 30):
                picture(place / part / name / f"{index}.png", index)
                index += 1
    picture(place / ("train" if split else "") / "lonely" / "one.png", 999)
    manifest = prepared(place, tmp_path / "out", "imagefolder")
    train = read_split(tmp_path / "out", "train")
    assert {text for said in train.captions for text in said} >= {"a picture of red panda", "a picture of cat"}
    for said, asked, origin in zip(train.captions, train.questions, train.origins, strict=True):
        name = Path(origin).parent.name.replace("_", " ")
        assert said == [f"a picture of {name}"]
        assert asked == [{"question": "what is this?", "answer": name, "family": "class"}]
    if split:
        assert {name: manifest["splits"][name]["images"] for name in ("train", "validation", "test")} == {
            "train": 25, "validation": 24, "test": 24,
        }  # fmt: skip
    lonely = [line for line in rejects(tmp_path / "out") if line["what"] == "class"]
    assert [(line["file"], line["reason"], line["kept"]) for line in lonely] == [("lonely", "has one image", True)]


def test_a_saved_data_set_of_hugging_face_is_read_by_its_columns(tmp_path):
    import datasets

    features = datasets.Features(
        {"picture": datasets.Image(), "text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["a_b", "c"])}
    )
    paths = [str(picture(tmp_path / "files" / f"{i}.png", i)) for i in range(60)]
    rows = {"picture": paths, "text": [f"number {i}" for i in range(60)], "kind": [i % 2 for i in range(60)]}
    made = datasets.Dataset.from_dict(rows, features=features)
    bytes_inside = made.map(lambda row: row)  # writes the images' bytes
    datasets.DatasetDict({"train": bytes_inside}).save_to_disk(str(tmp_path / "saved"))
    columns = {"image": "picture", "caption": "text", "label": "kind"}
    prepared(tmp_path / "saved", tmp_path / "out", "huggingface", columns=columns)
    split = read_split(tmp_path / "out", "train")
    for row, origin in enumerate(split.origins):
        index = int(origin.removeprefix("train:"))
        assert (split.images[row] == np.array(color(index))).all()
        name = ("a b", "c")[index % 2]
        assert split.captions[row] == [f"number {index}", f"a picture of {name}"]
        assert split.questions[row][0]["answer"] == name
    wrong = {"image": "picture", "caption": "words"}
    says = r"no column 'words'; set data\.columns\.caption to one of picture, text, kind"
    with pytest.raises(InfotokError, match=says):
        prepared(tmp_path / "saved", tmp_path / "wrong", "huggingface", columns=wrong)
    with pytest.raises(InfotokError, match="cannot be loaded by `datasets`"):
        prepared(tmp_path / "nowhere", tmp_path / "wrong", "huggingface", columns=columns)


def test_prepared_files_open_in_hugging_faces_datasets(tmp_path):
    import datasets

    write(tmp_path / "in", listed(tmp_path / "in"))
    prepared(tmp_path / "in", tmp_path / "out")
    theirs = datasets.Dataset.from_file(str(tmp_path / "out" / "train.arrow"))
    ours = read_split(tmp_path / "out", "train")
    assert theirs["captions"][:] == list(ours.captions)
    assert np.array_equal(np.frombuffer(theirs[3]["image"], np.uint8).reshape(16, 16, 3), ours.images[3])


@pytest.mark.skipif(not (SHARED / "easy_vqa").is_dir(), reason=f"{SHARED / 'easy_vqa'} is not here")
def test_easy_vqas_own_baselines_come_out(tmp_path):
    manifest = prepared(SHARED / "easy_vqa", tmp_path / "out", "easy_vqa")
    counts = {name: (about["images"], about["questions"]) for name, about in manifest["splits"].items()}
    assert counts["test"] == (1000, 9673)
    assert counts["train"][0] + counts["validation"][0] == 4000
    assert counts["train"][1] + counts["validation"][1] == 38575
    splits = {name: read_split(tmp_path / "out", name) for name in counts}
    guess = Guess([*splits["train"].questions, *splits["validation"].questions])
    found = guess.accuracies(splits["test"].questions)
    # The published folder's: the question alone answers 67.0 %, the most frequent answer 37.3 %.
    assert round(found["question_only"], 3) == 0.670
    assert round(found["majority"], 3) == 0.373
    families = {pair["family"] for asked in splits["test"].questions for pair in asked}
    assert families == {"yes_no", "color", "shape"}


def test_a_preparation_that_is_killed_leaves_nothing_half_made(tmp_path):
    write(tmp_path / "in", listed(tmp_path / "in", 400))
    code = """
import os, sys
from infotok.data import images, intake
count = 0
def open_image(*args):
    global count
    count += 1
    if count == 300:
        os.kill(os.getpid(), 9)
    return images.open_image(*args)
intake.open_image = open_image
from infotok.data.prepare import prepare
from infotok.data.sources.jsonl import Options
from pathlib import Path
prepare(Options(path=sys.argv[1], image_size=16, vocabulary=300), Path(sys.argv[2]))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "in", tmp_path / "out"], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    prepared(tmp_path / "in", tmp_path / "out")
    assert sum(len(read_split(tmp_path / "out", name)) for name in ("train", "validation", "test")) == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_missing_files_and_too_few_images_are_one_clear_error(tmp_path):
    with pytest.raises(InfotokError, match=r"data\.jsonl: is missing; data\.path names the folder"):
        prepared(tmp_path, tmp_path / "out")
    with pytest.raises(InfotokError, match="no folder"):
        prepared(tmp_path / "none", tmp_path / "out", "imagefolder")
    with pytest.raises(InfotokError, match=r"questions\.json: is missing"):
        prepared(tmp_path, tmp_path / "out", "easy_vqa")
    write(tmp_path / "in", listed(tmp_path / "in", 40))
    with pytest.raises(InfotokError, match=r"^train\.batch: 40 training images are fewer than one batch of 48; lower"):
        check_images(40, 48, "train.batch")
    check_images(48, 48, "train.batch")
    with pytest.raises(InfotokError, match=r"in: the data have no validation images, of 40 .*; raise data\.val"):
        prepared(tmp_path / "in", tmp_path / "out", validation=0.0)


def test_rows_come_from_their_record_batches(tmp_path):
    """3,000 images are three record batches; what an index takes is the same as from one array."""
    from infotok.data.arrow import Split, SplitWriter

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3000, 8, 8, 3), dtype=np.uint8)
    writer = SplitWriter(tmp_path / "train.arrow")
    for start in range(0, 3000, 700):
        part = images[start : start + 700]
        rows = range(start, start + len(part))
        writer.write(Split(part, [[f"c{i}"] for i in rows], [[] for _ in rows], [[] for _ in rows]))
    writer.close()
    back = read_split(tmp_path, "train")
    assert back.images.shape == images.shape
    rows = rng.integers(0, 3000, 500)
    assert np.array_equal(back.images[rows], images[rows])
    assert np.array_equal(back.images[690:1400], images[690:1400])
    assert np.array_equal(back.images[-1], images[-1])
    assert np.array_equal(np.asarray(back.images), images)
    assert [back.captions[int(i)] for i in rows] == [[f"c{i}"] for i in rows]
    assert back.captions[2998:] == [["c2998"], ["c2999"]]
    with pytest.raises(IndexError):
        back.images[3000]
