"""Data sets as published: COCO's captions with VQAv2's questions, and shards of webdataset."""

import gzip
import io
import json
import tarfile

import pytest
from brought import color, picture, prepared, rejects
from PIL import Image

from infotok.data.arrow import read_split
from infotok.errors import InfotokError

# --- COCO and VQAv2 ---


def of_people(kind, *answers):
    listed = [{"answer": answer, "answer_id": index} for index, answer in enumerate(answers)]
    return {"answer_type": kind, "multiple_choice_answer": answers[0], "answers": listed}


PEOPLE = [of_people("number", *["two"] * 7, *["three"] * 3), of_people("yes/no", *["yes"] * 10)]


def coco(tmp_path, train=40, val=12, compress=False):
    """Their layout: images named by number, files named by split; three captions and two questions an image."""
    root, number = tmp_path / "in", 100
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2014", train), ("val2014", val)):
        numbers = list(range(number, number := number + count))
        for index in numbers:
            picture(root / split / f"COCO_{split}_{index:012d}.png", index)
        captions = {
            "info": {},
            "images": [{"id": index, "file_name": f"COCO_{split}_{index:012d}.png"} for index in numbers],
            "annotations": [{"image_id": index, "caption": f"a {index} {k}"} for index in numbers for k in range(3)],
        }
        asked = [(index, k) for index in numbers for k in range(2)]
        questions = [{"image_id": index, "question": f"q{k}?", "question_id": 10 * index + k} for index, k in asked]
        answers = [PEOPLE[k] | {"image_id": index, "question_id": 10 * index + k} for index, k in asked]
        for name, content in {
            f"annotations/captions_{split}.json": captions,
            f"v2_OpenEnded_mscoco_{split}_questions.json": {"data_subtype": split, "questions": questions},
            f"v2_mscoco_{split}_annotations.json": {"data_subtype": split, "annotations": answers},
        }.items():
            text = json.dumps(content).encode()
            (root / (name + ".gz" * compress)).write_bytes(gzip.compress(text) if compress else text)
    return root


CAPTIONS = [f"annotations/captions_{split}.json" for split in ("train2014", "val2014")]
QUESTIONS = [f"v2_OpenEnded_mscoco_{split}_questions.json" for split in ("train2014", "val2014")]
ANSWERS = [f"v2_mscoco_{split}_annotations.json" for split in ("train2014", "val2014")]


@pytest.mark.parametrize("compress", [False, True])
def test_captions_and_questions_meet_at_their_image(tmp_path, compress):
    files = [name + ".gz" * compress for name in (*CAPTIONS, *QUESTIONS, *ANSWERS)]
    manifest = prepared(coco(tmp_path, compress=compress), tmp_path / "out", "coco", files=files)
    assert manifest["given_splits"] == {"train2014": "train", "val2014": "validation"}
    assert manifest["splits"]["validation"]["images"] == 12
    assert manifest["splits"]["train"]["images"] + manifest["splits"]["test"]["images"] == 40
    for name in ("train", "validation", "test"):
        split = read_split(tmp_path / "out", name)
        for row, where in enumerate(split.origins):
            index = int(where.rpartition("#")[2])
            assert tuple(split.images[row][0, 0].tolist()) == color(index)
            assert split.captions[row] == [f"a {index} {k}" for k in range(3)]
            assert split.questions[row] == [
                {"question": "q0?", "answer": "two", "family": "number", "answers": ["two"] * 7 + ["three"] * 3},
                {"question": "q1?", "answer": "yes", "family": "yes_no", "answers": ["yes"] * 10},
            ]


@pytest.mark.parametrize("files", [CAPTIONS, [*QUESTIONS, *ANSWERS]])
def test_captions_alone_and_questions_alone_are_enough(tmp_path, files):
    manifest = prepared(coco(tmp_path), tmp_path / "out", "coco", files=files)
    assert manifest["tasks"] == ["generation" if files is CAPTIONS else "understanding"]


def test_what_is_missing_of_coco_is_named(tmp_path):
    root = coco(tmp_path)

    def says(**changes):
        with pytest.raises(InfotokError) as caught:
            prepared(root, tmp_path / "out", "coco", **changes)
        return str(caught.value)

    assert "annotations/none.json: is missing" in says(files=["annotations/none.json"])
    assert "train2014_questions.json: no answers to its questions; name the file of annotations" in says(
        files=QUESTIONS
    )
    (root / "instances_train2014.json").write_text(json.dumps({"annotations": [{"bbox": [1], "category_id": 3}]}))
    assert "holds neither captions nor questions" in says(files=["instances_train2014.json"])
    (root / "list.json").write_text("[1, 2]")
    assert "list.json: is no object with 'annotations' or 'questions'" in says(files=["list.json"])
    (root / "captions_minival2014.json").write_bytes((root / CAPTIONS[0]).read_bytes())
    assert "unknown split 'minival2014'; say where it goes" in says(files=[*CAPTIONS, "captions_minival2014.json"])
    assert "images/x: is no folder; data.images names" in says(files=CAPTIONS, images="images/x")
    (root / "train2014" / f"COCO_train2014_{100:012d}.png").unlink()
    assert f"captions_train2014.json#100: image is missing: COCO_train2014_{100:012d}.png" in says(files=CAPTIONS)


def test_a_file_of_ones_own_in_cocos_form_names_its_images(tmp_path):
    root = tmp_path / "in"
    names = [f"{kind}/{index % 30}.png" for index, kind in enumerate(["cat"] * 30 + ["dog"] * 30)]
    for index, name in enumerate(names):
        picture(root / "pictures" / name, index)
    content = {
        "images": [{"id": f"x{index}", "file_name": name} for index, name in enumerate(names)],
        "annotations": [{"image_id": f"x{index}", "caption": f"a {index}"} for index in range(60)],
    }
    (root / "mine.json").write_text(json.dumps(content))
    prepared(root, tmp_path / "out", "coco", files=["mine.json"], images="pictures")
    for name in ("train", "validation", "test"):
        split = read_split(tmp_path / "out", name)
        for row, (caption,) in enumerate(split.captions):
            assert tuple(split.images[row][0, 0].tolist()) == color(int(caption.removeprefix("a ")))


# --- shards ---


def shard(path, samples):
    """A tar archive of [(name, content)]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in samples:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def sample(index, **more):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), color(index)).save(stream, "PNG")
    return [(f"./{index:05d}.{ending}", content) for ending, content in
            {"png": stream.getvalue(), "txt": f"a {index}".encode()} .items()] + [
        (f"./{index:05d}.{ending}", content) for ending, content in more.items()]  # fmt: skip


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_shards_are_read_sample_by_sample(tmp_path, ending):
    for number in range(3):
        samples = [file for index in range(20 * number, 20 * number + 20) for file in sample(index, json=json.dumps(
            {"caption": f"a {index}", "question": "which?", "answer": index, "width": 16}).encode())]  # fmt: skip
        shard(tmp_path / "in" / f"{number:05d}.{ending}", samples)
    manifest = prepared(tmp_path / "in", tmp_path / "out", "webdataset")
    assert sum(about["images"] for about in manifest["splits"].values()) == 60
    for name in ("train", "validation", "test"):
        split = read_split(tmp_path / "out", name)
        for row, where in enumerate(split.origins):
            index = int(where.rpartition("/")[2])
            assert where == f"{index // 20:05d}.{ending}/{index:05d}"
            assert tuple(split.images[row][0, 0].tolist()) == color(index)
            assert split.captions[row] == [f"a {index}"]  # which stands in both files
            assert split.questions[row] == [{"question": "which?", "answer": str(index), "family": "question"}]


@pytest.mark.parametrize(
    ("names", "became"),
    [
        (["train-000.tar", "val-000.tar", "test-000.tar"], {"train": "train", "val": "validation", "test": "test"}),
        (["train/000.tar", "val/000.tar", "test/000.tar"], {"train": "train", "val": "validation", "test": "test"}),
        (["x-train-0of3.tar", "x-val-0.tar", "x-test-0.tar"], {"train": "train", "val": "validation", "test": "test"}),
    ],
)
def test_shards_are_of_the_split_that_they_are_named_for(tmp_path, names, became):
    for number, name in enumerate(names):
        shard(tmp_path / "in" / name, [file for index in range(8) for file in sample(8 * number + index)])
    manifest = prepared(tmp_path / "in", tmp_path / "out", "webdataset")
    assert manifest["given_splits"] == became
    assert {about["images"] for about in manifest["splits"].values()} == {8}


def test_shards_of_an_unknown_split_are_asked_about(tmp_path):
    for number, name in enumerate(["train-0.tar", "testdev-0.tar"]):
        shard(tmp_path / "in" / name, [file for index in range(40) for file in sample(40 * number + index)])
    with pytest.raises(InfotokError, match=r"testdev-0\.tar: unknown split 'testdev'"):
        prepared(tmp_path / "in", tmp_path / "out", "webdataset")
    manifest = prepared(tmp_path / "in", tmp_path / "out", "webdataset", splits={"testdev": "skip"})
    assert sum(about["images"] for about in manifest["splits"].values()) == 40


def test_bad_samples_are_rejects_and_bad_shards_one_error(tmp_path):
    samples = [file for index in range(60) for file in sample(index)]
    samples += [("60.txt", b"no image"), *sample(61, json=b"{"), *sample(62, json=b"[1]"), *sample(63, json=b"3")]
    samples += [("64.png", b"no picture"), ("64.txt", b"a"), *sample(65)[:1], ("./00065.txt", b"\xff")]
    shard(tmp_path / "in" / "0.tar", samples)
    manifest = prepared(tmp_path / "in", tmp_path / "out", "webdataset", max_rejects=9)
    assert manifest["skipped"] == {"no image": 1}
    told = [(line["file"], line["what"], line["reason"].partition(" (")[0]) for line in rejects(tmp_path / "out")]
    assert told == [
        ("0.tar/00061", "json", "is not JSON"), ("0.tar/00062", "turn", "has an unknown speaker"),
        ("0.tar/00063", "json", "is no object"), ("0.tar/64", "image", "is no image that Pillow reads"),
        ("0.tar/00065", "caption", "is not UTF-8"), ("0.tar/00065", "image", "has no caption and no question"),
    ]  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(InfotokError, match=r"empty: holds no shards"):
        prepared(tmp_path / "empty", tmp_path / "other", "webdataset")


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("kept", [0, 1, 700, 1024, 3 * 1024, 20 * 1024 + 100])
def test_a_shard_that_was_cut_is_one_error(tmp_path, ending, kept):
    """Also between two of its files, where tarfile would see the end of a shorter one."""
    path = tmp_path / "in" / f"0.{ending}"
    shard(path, [(f"{index}.txt", b"a" * 512) for index in range(20)] + sample(1))
    with open(path, "r+b") as file:
        file.truncate(min(kept, path.stat().st_size - 9))
    with pytest.raises(InfotokError, match=rf"0\.{ending}: cannot be read as a tar archive"):
        prepared(tmp_path / "in", tmp_path / "out", "webdataset")
