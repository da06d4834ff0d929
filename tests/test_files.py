"""Files as people have them: names, links, images of every form, JSON of every kind; and what is said of bad ones."""

import base64
import gzip
import io
import json
import unicodedata

import numpy as np
import pytest
from brought import all_questions, color, listed, picture, prepared, rejects, write
from PIL import Image

from infotok.data.arrow import read_split
from infotok.data.files import inside
from infotok.data.images import Unreadable
from infotok.errors import InfotokError


def pixels_of(folder):
    """The color of every image, by its line."""
    found = {}
    for name in ("train", "validation", "test"):
        split = read_split(folder, name)
        for row, where in enumerate(split.origins):
            assert (split.images[row] == split.images[row][0, 0]).all()
            found[int(where.rpartition(":")[2])] = tuple(split.images[row][0, 0].tolist())
    return found


def png(index):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), color(index)).save(stream, "PNG")
    return stream.getvalue()


# --- what an image may be ---


def test_images_of_every_form_are_read(tmp_path):
    """Line n shows the color n - 1, in whichever way it is written."""
    lines = listed(tmp_path / "in", 60)
    plain = Image.new("RGB", (16, 16), color(6))
    encoded = [base64.b64encode(png(index)).decode() for index in range(6)]
    lines[0]["image"] = encoded[0]
    lines[1]["image"] = "data:image/png;base64," + encoded[1]
    lines[2] |= {"image": None, "images": ["images/2.png"]}
    lines[3] = {"images": "images/3.png", "caption": "picture 3"}
    lines[4]["image"] = {"bytes": None, "path": "images\\4.png"}
    lines[5]["image"] = encoded[5][:70] + "\n" + encoded[5][70:]
    lines[6]["image"] = np.asarray(plain).tolist()
    lines[7]["image"] = (np.full((3, 16, 16), 1.0) * np.array(color(7))[:, None, None] / 255).tolist()
    lines[8]["image"] = ".\\images\\8.png"
    lines[9]["image"] = "images//9.png"
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out")
    assert pixels_of(tmp_path / "out") == {index + 1: color(index) for index in range(60)}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (["images/1.png", "images/2.png"], "list holds 2 images; a line may have one"),
        ([[1, 2], [3]], "is no image: numbers in rows of unlike length"),
        ([[[1, 2], [3, 4]]] * 2, "is no image: numbers of shape (2, 2, 2)"),
        ([[0, 300]], "holds values from 0 to 300, not from 0 to 255 or 1"),
        (7, "is no image: numbers of shape ()"),
        (True, "is no image but bool"),
        ("data:image/png;base64,iVBORw0KGgo=", "is no image that Pillow reads"),
        ({"bytes": None, "path": None}, "has no file name"),
    ],
)
def test_what_is_no_image_is_one_reject(tmp_path, image, reason):
    lines = listed(tmp_path / "in", 60)
    lines[4]["image"] = image
    write(tmp_path / "in", lines)
    prepared(tmp_path / "in", tmp_path / "out", max_rejects=1)
    assert [(line["line"], line["what"], line["reason"]) for line in rejects(tmp_path / "out")] == [
        (5, "image", reason)
    ]


def test_lines_without_an_image_are_skipped_and_counted(tmp_path):
    lines = listed(tmp_path / "in", 60)
    talk = [{"from": "human", "value": "how are you?"}, {"from": "gpt", "value": "well"}]
    lines += [{"conversations": talk}, {"image": None, "conversations": talk}, {"images": [], "caption": "a"}]
    write(tmp_path / "in", lines)
    manifest = prepared(tmp_path / "in", tmp_path / "out")
    assert manifest["skipped"] == {"no image": 3}
    assert manifest["rejects"]["count"] == 0
    write(tmp_path / "in", [{"img": line["image"], "caption": "a"} for line in lines[:60]])
    with pytest.raises(InfotokError, match=r"in: no image can be used; 60 entries are left out, having no image$"):
        prepared(tmp_path / "in", tmp_path / "none")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_in_the_other_form_of_unicode_is_found(tmp_path, form):
    name = unicodedata.normalize(form, "images/é ü.png")
    other = unicodedata.normalize("NFC" if form == "NFD" else "NFD", name)
    picture(tmp_path / name)
    assert other != name
    assert inside(tmp_path, other) == tmp_path / name
    with pytest.raises(Unreadable, match="leaves the folder"):
        inside(tmp_path / "images", f"../../{other}")


def test_a_name_that_no_text_can_hold_is_kept_in_classes_of_folders(tmp_path):
    """A file called by bytes that are not UTF-8, as old archives hold them."""
    for index in range(60):
        picture(tmp_path / "in" / f"c{index % 2}" / f"{index}.png", index)
    picture(tmp_path / "in" / "c0" / "caf\udce9.png", 77)
    picture(tmp_path / "in" / "\udce9" / "7.png", 78)
    manifest = prepared(tmp_path / "in", tmp_path / "out", "imagefolder", max_rejects=3)
    assert sum(split["images"] for split in manifest["splits"].values()) == 61
    assert {(line["file"], line["what"]) for line in rejects(tmp_path / "out") if not line["kept"]} == {
        ("\\udce9/7.png", "caption"), ("\\udce9/7.png", "answer"), ("\\udce9/7.png", "image"),
    }  # fmt: skip


# --- links ---


@pytest.mark.parametrize("kind", ["file", "folder", "cache"])
def test_a_link_out_of_the_folder_is_named_and_may_be_allowed(tmp_path, kind):
    lines = listed(tmp_path / "in", 60)
    scratch = tmp_path / "scratch" / "images"
    scratch.parent.mkdir()
    (tmp_path / "in" / "images").rename(scratch)
    if kind == "folder":
        (tmp_path / "in" / "images").symlink_to(scratch)
    else:  # one by one, as DVC links from its cache, whose files have other names
        (tmp_path / "in" / "images").mkdir()
        for index, path in enumerate(sorted(scratch.iterdir())):
            kept = path if kind == "file" else path.rename(scratch / f"{index:032x}")
            (tmp_path / "in" / "images" / path.name).symlink_to(kept)
    write(tmp_path / "in", lines)
    says = r"data\.jsonl:1: image is a link out of the folder, which data\.outside must allow: images/0\.png leads to "
    with pytest.raises(InfotokError, match=says + str(scratch)):
        prepared(tmp_path / "in", tmp_path / "out")
    prepared(tmp_path / "in", tmp_path / "out", outside=[str(tmp_path / "scratch")])
    assert pixels_of(tmp_path / "out") == {index + 1: color(index) for index in range(60)}
    with pytest.raises(InfotokError, match="is a link out of the folder"):
        prepared(tmp_path / "in", tmp_path / "other", outside=[str(tmp_path / "scratch" / "elsewhere")])


def test_the_data_themselves_may_be_a_link(tmp_path):
    write(tmp_path / "real", listed(tmp_path / "real", 60))
    (tmp_path / "in").symlink_to(tmp_path / "real")
    prepared(tmp_path / "in", tmp_path / "out")


def test_a_folder_outside_may_be_named_in_lines_once_it_is_allowed(tmp_path):
    lines = listed(tmp_path / "in", 60)
    picture(tmp_path / "more" / "0.png", 0)
    lines[0]["image"] = str(tmp_path / "more" / "0.png")
    write(tmp_path / "in", lines)
    with pytest.raises(InfotokError, match=r"data\.jsonl:1: image leaves the folder: /"):
        prepared(tmp_path / "in", tmp_path / "out")
    prepared(tmp_path / "in", tmp_path / "out", outside=[str(tmp_path / "more")])
    lines[1]["image"] = "/etc/hostname"
    write(tmp_path / "in", lines)
    with pytest.raises(InfotokError, match=r"data\.jsonl:2: image leaves the folder: /etc/hostname"):
        prepared(tmp_path / "in", tmp_path / "out", outside=[str(tmp_path / "more")])


def test_class_folders_may_be_links_that_are_allowed(tmp_path):
    for index in range(60):
        picture(tmp_path / "scratch" / f"c{index % 2}" / f"{index}.png", index)
    (tmp_path / "in").mkdir()
    for name in ("c0", "c1"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "scratch" / name)
    with pytest.raises(InfotokError, match=r"c0/0\.png: image is a link out of the folder"):
        prepared(tmp_path / "in", tmp_path / "out", "imagefolder")
    prepared(tmp_path / "in", tmp_path / "out", "imagefolder", outside=[str(tmp_path / "scratch")])


# --- JSON ---


def as_lines(lines):
    return "\n".join(map(json.dumps, lines)) + "\n"


FILES = {
    "plain": lambda lines: as_lines(lines).encode(),
    "windows": lambda lines: as_lines(lines).replace("\n", "\r\n").encode(),
    "old mac": lambda lines: as_lines(lines).replace("\n", "\r").encode(),
    "mark": lambda lines: as_lines(lines).encode("utf-8-sig"),
    "compressed": lambda lines: gzip.compress(as_lines(lines).encode()),
    "compressed, mark": lambda lines: gzip.compress(as_lines(lines).encode("utf-8-sig")),
    "array": lambda lines: json.dumps(lines, indent=1).encode(),
    "array, mark": lambda lines: json.dumps(lines).encode("utf-8-sig"),
    "array, compressed": lambda lines: gzip.compress(json.dumps(lines).encode()),
    "array, spaces": lambda lines: (" " * 500 + "\n" * 3 + json.dumps(lines)).encode(),
    "letters": lambda lines: "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode(),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_json_of_every_kind_is_read(tmp_path, kind, name):
    lines = listed(tmp_path / "in", 60, question=lambda i: "größe\u2028?", answer=lambda i: "😀 red")
    (tmp_path / "in" / name).write_bytes(FILES[kind](lines))
    prepared(tmp_path / "in", tmp_path / "out", file=name)
    assert all_questions(tmp_path / "out") == {
        line: [{"question": "größe\u2028?", "answer": "😀 red", "family": "question"}] for line in range(1, 61)
    }


COCO = {"info": {}, "images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "caption": "a"}]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps(COCO).encode(), r"data\.jsonl: is one JSON object, not one a line; .*data\.source: coco"),
        (json.dumps(COCO, indent=2).encode(), r"data\.jsonl: is one JSON object, not one a line"),
        (json.dumps({"data": [{"image": "1.png"}]}).encode(), r"data\.jsonl: is one JSON object, not one a line"),
        (as_lines([COCO["images"][0]] * 3).encode("utf-16"), r"data\.jsonl: is UTF-16; write it as UTF-8"),
        (gzip.compress(as_lines([{"image": "1.png"}] * 999).encode(), mtime=0)[:-20], r"data\.jsonl: cannot be read"),
        (b"\x1f\x8b no archive", r"data\.jsonl: cannot be read"),
        (b'[{"image": "1.png"},\n{"image": \n', r"data\.jsonl:3: is not JSON \(Expecting value\)"),
        (b'[{"caption": "\xff"}]', r"data\.jsonl: is not UTF-8"),
        (b"[" * 100_000, r"data\.jsonl:1: is not JSON \(nested too deep\)"),
        (b"", r"in: no image can be used"),
        (b"\n\n", r"in: no image can be used"),
    ],
    ids=[
        "coco",
        "coco, indented",
        "data",
        "UTF-16",
        "cut",
        "no gzip",
        "array, cut",
        "latin-1",
        "deep",
        "empty",
        "blank",
    ],
)
def test_a_file_that_holds_no_lines_is_one_clear_error(tmp_path, content, says):
    picture(tmp_path / "in" / "1.png")
    (tmp_path / "in" / "data.jsonl").write_bytes(content)
    with pytest.raises(InfotokError, match=says) as caught:
        prepared(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(caught.value)


# --- what is said where nothing is left ---


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda line: line | {"image": "img/" + line["image"]}, "image is missing: img/images/0.png"),
        (lambda line: line | {"caption": ""}, "caption is empty"),
        (lambda line: line | {"split": "fold1"}, "line names an unknown split 'fold1'"),
    ],
)
def test_the_first_reason_stands_where_no_image_is_left(tmp_path, change, reason):
    write(tmp_path / "in", [change(line) for line in listed(tmp_path / "in", 10)])
    with pytest.raises(InfotokError) as caught:
        prepared(tmp_path / "in", tmp_path / "out", max_rejects=100)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'in'}: no image can be used; ")
    assert f"left out: {tmp_path / 'in'}/data.jsonl:1: {reason}" in message
    assert f"and {17 if 'empty' in reason else 7} more ({tmp_path / 'out'}.rejects.jsonl lists them)" in message
    assert len((tmp_path / "out.rejects.jsonl").read_text().splitlines()) == (20 if "empty" in reason else 10)


def test_what_became_of_the_others_stands_where_a_split_is_lacking(tmp_path):
    lines = listed(tmp_path / "in", 40, split=lambda i: "val" if i % 2 else "test")
    write(tmp_path / "in", lines)
    with pytest.raises(InfotokError) as caught:
        prepared(tmp_path / "in", tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path / 'in'}: the data have no train images, of 40 that can be used; bring more images; "
        "their splits became test: test, val: validation"
    )
