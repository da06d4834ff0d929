"""Data sets of Hugging Face in the forms in which people publish them."""

import base64
import io

import datasets
import numpy as np
import pytest
from brought import all_questions, color, picture, prepared, rejects
from PIL import Image

from infotok.data.arrow import read_split
from infotok.errors import InfotokError

COUNT = 60


def save(tmp_path, rows, features=None, name="saved"):
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        str(tmp_path / name)
    )
    return tmp_path / name


def files(tmp_path):
    return [str(picture(tmp_path / "files" / f"{index}.png", index)) for index in range(COUNT)]


def plain(index):
    return np.full((16, 16, 3), color(index), np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def assert_colors(folder):
    """Row n shows its color."""
    seen = 0
    for name in ("train", "validation", "test"):
        split = read_split(folder, name)
        for row, where in enumerate(split.origins):
            assert tuple(split.images[row][0, 0].tolist()) == color(int(where.rpartition(":")[2])), where
            seen += 1
    assert seen == COUNT


def column(kind, tmp_path):
    """A column of images, and its feature."""
    if kind == "files":
        return files(tmp_path), datasets.Image()
    if kind == "lists":
        return [[path] for path in files(tmp_path)], datasets.List(datasets.Image())
    if kind == "array":
        pixels = [plain(index) for index in range(COUNT)]
        return pixels, datasets.Array3D((16, 16, 3), "uint8")
    if kind == "channels first":
        pixels = [plain(index).transpose(2, 0, 1).astype(np.float32) / 255 for index in range(COUNT)]
        return pixels, datasets.Array3D((3, 16, 16), "float32")
    if kind == "bytes":
        return [png(plain(index)) for index in range(COUNT)], datasets.Value("binary")
    if kind == "base64":
        return [base64.b64encode(png(plain(index))).decode() for index in range(COUNT)], datasets.Value("string")
    pixels = [plain(index).tolist() for index in range(COUNT)]
    return pixels, datasets.List(datasets.List(datasets.List(datasets.Value("int64"))))


@pytest.mark.parametrize("kind", ["files", "lists", "array", "channels first", "bytes", "base64", "numbers"])
@pytest.mark.parametrize("name", ["image", "images"])
def test_a_column_of_images_of_every_form(tmp_path, kind, name):
    images, feature = column(kind, tmp_path)
    features = datasets.Features({name: feature, "caption": datasets.Value("string")})
    place = save(tmp_path, {name: images, "caption": [f"a {i}" for i in range(COUNT)]}, features)
    prepared(place, tmp_path / "out", "huggingface")
    assert_colors(tmp_path / "out")


def test_the_cauldron_simply_works(tmp_path):
    turn = [("what color?", "red"), ("what shape?", "circle")]
    texts = [[{"user": q, "assistant": a, "source": "x"} for q, a in turn] for _ in range(COUNT)]
    words = {name: datasets.Value("string") for name in ("user", "assistant", "source")}
    features = datasets.Features({"images": datasets.List(datasets.Image()), "texts": datasets.List(words)})
    place = save(tmp_path, {"images": [[path] for path in files(tmp_path)], "texts": texts}, features)
    manifest = prepared(place, tmp_path / "out", "huggingface")
    assert manifest["tasks"] == ["understanding"]
    asked = all_questions(tmp_path / "out")
    assert len(asked) == COUNT
    assert all([(pair["question"], pair["answer"]) for pair in pairs] == turn for pairs in asked.values())
    assert_colors(tmp_path / "out")


def test_conversations_stand_beside_a_caption(tmp_path):
    turns = [{"from": "system", "value": "be brief"}, {"from": "human", "value": "<image> what?"}]
    rows = {"image": files(tmp_path), "text": [f"a {i}" for i in range(COUNT)]}
    rows["talk"] = [[*turns, {"from": "gpt", "value": f"{i}"}] for i in range(COUNT)]
    words = {name: datasets.Value("string") for name in ("from", "value")}
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "talk": datasets.List(words)}
    )
    place = save(tmp_path, rows, features)
    prepared(place, tmp_path / "out", "huggingface", columns={"caption": "text", "conversations": "talk"})
    for number, pairs in all_questions(tmp_path / "out").items():
        assert [(pair["question"], pair["answer"]) for pair in pairs] == [("what?", str(number))]
    assert read_split(tmp_path / "out", "train").captions[0][0].startswith("a ")


def test_rows_of_several_images_or_none(tmp_path):
    paths = files(tmp_path)
    images = [[path] for path in paths[:-2]] + [paths[:2], []]
    features = datasets.Features({"images": datasets.List(datasets.Image()), "caption": datasets.Value("string")})
    place = save(tmp_path, {"images": images, "caption": [f"a {i}" for i in range(COUNT)]}, features)
    manifest = prepared(place, tmp_path / "out", "huggingface", max_rejects=1)
    assert [(line["line"], line["reason"]) for line in rejects(tmp_path / "out")] == [
        (58, "list holds 2 images; a line may have one")
    ]
    assert manifest["skipped"] == {"no image": 1}


def test_lists_numbers_and_truth_are_answers(tmp_path):
    rows = {"image": files(tmp_path), "question": ["how many?"] * COUNT, "answer": list(range(COUNT))}
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("int32")}
    )
    prepared(save(tmp_path, rows, features), tmp_path / "out", "huggingface")
    assert all(pairs[0]["answer"] == str(row) for row, pairs in all_questions(tmp_path / "out").items())
    people = [["yes"] * 6 + ["no"] * 4 for _ in range(COUNT)]
    features = features | {"answers": datasets.List(datasets.Value("string"))}
    del features["answer"]
    rows = {"image": rows["image"], "question": rows["question"], "answers": people}
    prepared(save(tmp_path, rows, datasets.Features(features), "people"), tmp_path / "lists", "huggingface")
    (pair,) = all_questions(tmp_path / "lists")[3]
    assert (pair["answer"], pair["answers"]) == ("yes", people[0])


def test_what_cannot_be_read_is_one_clear_error(tmp_path):
    def says(place, **changes):
        with pytest.raises(InfotokError) as caught:
            prepared(place, tmp_path / "out", "huggingface", **changes)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    features = datasets.Features({"image": datasets.Image(), "words": datasets.Value("string")})
    place = save(tmp_path, {"image": files(tmp_path), "words": ["a"] * COUNT}, features)
    assert "no column of captions or questions is named; set data.columns.caption, captions" in says(place)
    assert "no column 'picture'; set data.columns.image to one of image, words" in says(
        place, columns={"image": "picture", "caption": "words"}
    )
    assert "give either data.path, a folder, or data.name" in says(place, name="x/y")
    bare = save(tmp_path, {"caption": ["a"] * COUNT}, name="bare")
    assert "'train' has no column 'image'; set data.columns.image to one of caption" in says(bare)
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded by `datasets`" in says(tmp_path / "empty")


@pytest.mark.parametrize("how", ["pad", "crop", "stretch"])
def test_what_stands_at_the_edge_of_a_wide_image_stays_unless_it_is_cropped(tmp_path, how):
    """400 x 100 pixels, red at the left: what color is at the left?"""
    pixels = np.full((100, 400, 3), 255, np.uint8)
    pixels[:, :50] = (255, 0, 0)
    rows = {"image": [], "caption": [f"a {i}" for i in range(COUNT)]}
    for index in range(COUNT):
        pixels[0, 0] = color(index)
        rows["image"].append(png(pixels))
    manifest = prepared(save(tmp_path, rows), tmp_path / "out", "huggingface", **({} if how == "pad" else {"fit": how}))
    assert manifest["config"]["fit"] == how
    image = read_split(tmp_path / "out", "train").images[0].astype(int)
    red = (image[:, :, 0] - image[:, :, 1]) > 128
    assert red.any() == (how != "crop")
    if how == "pad":  # 16 x 4 pixels in the middle of the height, as wide as it was to its height
        assert red.sum() == 8
        assert red[6:10, :2].all()
