"""Where the splits go that data name: known names however they are written, unknown ones only as params say."""

import pytest
from brought import listed, options, picture, prepared, rejects, write

from infotok.data.arrow import read_split
from infotok.data.intake import SplitNames
from infotok.errors import InfotokError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Train", "train"), ("TRAINING", "train"), ("train2014", "train"), ("train_2017", "train"),
        ("val", "validation"), ("valid", "validation"), ("Validation", "validation"), ("dev", "validation"),
        ("val2017", "validation"), ("test", "test"), ("testing", "test"), ("Test2015", "test"), (" test ", "test"),
        ("test_hard", None), ("testdev", None), ("test-dev2015", None), ("minival", None), ("trainval", None),
        ("train3", None), ("holdout", None), ("", None), ("2014", None), (None, None), (3, None), (["test"], None),
    ],
)  # fmt: skip
def test_a_name_means_the_split_that_it_names_and_no_other(name, split):
    assert SplitNames(options("jsonl", path="x"))(name) == split


def test_params_say_where_other_names_go_and_may_say_it_of_known_ones():
    names = SplitNames(options("jsonl", path="x", splits={"minival": "validation", "dev": "test", "extra": "skip"}))
    assert [names(name) for name in ("minival", "Minival", "dev", "extra", "train", "other")] == [
        "validation", "validation", "test", "skip", "train", None,
    ]  # fmt: skip
    assert names.became == {
        "minival": "validation", "Minival": "validation", "dev": "test", "extra": "skip", "train": "train",
    }  # fmt: skip


def origins(folder, name):
    return list(read_split(folder, name).origins)


def saved(tmp_path, **splits):
    """A saved data set of Hugging Face with so many rows in each split."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    made, index = {}, 0
    for name, count in splits.items():
        paths = [str(picture(tmp_path / "files" / f"{index + i}.png", index + i)) for i in range(count)]
        rows = {"image": paths, "caption": [f"a {i}" for i in range(count)]}
        made[name], index = datasets.Dataset.from_dict(rows, features=features), index + count
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize("unknown", ["test_hard", "testdev", "minival"])
def test_rows_of_an_unknown_split_are_never_trained_on(tmp_path, unknown):
    place = saved(tmp_path, **{"train": 40, "val": 8, unknown: 40})
    says = rf"saved: unknown split '{unknown}'; say where it goes with data\.splits: {{{unknown}: test}}"
    with pytest.raises(InfotokError, match=says):
        prepared(place, tmp_path / "out", "huggingface")
    manifest = prepared(place, tmp_path / "out", "huggingface", splits={unknown: "test"})
    assert manifest["given_splits"] == {"train": "train", "val": "validation", unknown: "test"}
    assert set(origins(tmp_path / "out", "test")) == {f"{unknown}:{row}" for row in range(40)}
    assert {where.partition(":")[0] for where in origins(tmp_path / "out", "train")} == {"train"}
    manifest = prepared(place, tmp_path / "out", "huggingface", splits={unknown: "skip"})
    assert manifest["skipped"] == {f"a split that is skipped: {unknown}": 40}
    assert not [where for name in ("train", "validation", "test") for where in origins(tmp_path / "out", name)
                if where.startswith(unknown)]  # fmt: skip


def test_a_lone_split_of_unknown_name_is_asked_about_too(tmp_path):
    place = saved(tmp_path, holdout=60)
    with pytest.raises(InfotokError, match="unknown split 'holdout'"):
        prepared(place, tmp_path / "out", "huggingface")
    manifest = prepared(place, tmp_path / "out", "huggingface", splits={"holdout": "train"})
    assert all(manifest["splits"][name]["images"] for name in ("train", "validation", "test"))


def test_lines_of_an_unknown_split_are_rejects_that_name_the_remedy(tmp_path):
    given = ["Train", "training", "VAL", "Test", "test_hard", "extra"]
    lines = listed(tmp_path / "in", 60, split=lambda i: given[i % 6])
    write(tmp_path / "in", lines)
    manifest = prepared(tmp_path / "in", tmp_path / "out", max_rejects=20, splits={"extra": "skip"})
    assert manifest["given_splits"] == {
        "Train": "train", "training": "train", "VAL": "validation", "Test": "test", "extra": "skip",
    }  # fmt: skip
    assert {name: about["images"] for name, about in manifest["splits"].items()} == {
        "train": 20, "validation": 10, "test": 10,
    }  # fmt: skip
    assert manifest["skipped"] == {"a split that is skipped: extra": 10}
    told = rejects(tmp_path / "out")
    assert [line["line"] for line in told] == [5 + 6 * i for i in range(10)]
    assert told[0]["reason"] == (
        "names an unknown split 'test_hard'; say where it goes with data.splits: {test_hard: test} "
        "(train, validation, test or skip)"
    )


def folders(tmp_path, *roots, count=12):
    index = 0
    for root in roots:
        for name in ("cat", "dog"):
            for _ in range(count):
                picture(tmp_path / "in" / root / name / f"{index}.png", index)
                index += 1
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("roots", "counts"),
    [
        (("Train", "Val", "Test"), (24, 24, 24)),
        (("training", "testing", "valid"), (24, 24, 24)),
        (("train2017", "val2017", "test2017"), (24, 24, 24)),
        (("train", "val", "valid", "test"), (24, 48, 24)),  # one that has two names
    ],
)
def test_folders_of_splits_however_they_are_called(tmp_path, roots, counts):
    manifest = prepared(folders(tmp_path, *roots), tmp_path / "out", "imagefolder")
    assert [manifest["splits"][name]["images"] for name in ("train", "validation", "test")] == list(counts)
    assert set(manifest["given_splits"]) == set(roots)


@pytest.mark.parametrize("extra", ["unlabeled", "test_hard", "extra/cat"])
def test_an_unknown_folder_beside_splits_is_asked_about(tmp_path, extra):
    place = folders(tmp_path, "train", "val", "test")
    for index in range(5):
        picture(place / extra / f"more{index}.png", 500 + index)
    name = extra.partition("/")[0]
    with pytest.raises(InfotokError, match=rf"in/{name}: lies beside folders of splits, unknown split '"):
        prepared(place, tmp_path / "out", "imagefolder")
    manifest = prepared(place, tmp_path / "out", "imagefolder", splits={name: "skip"})
    assert sum(about["images"] for about in manifest["splits"].values()) == 72
    assert manifest["skipped"] == {f"a split that is skipped: {name}": 5}


def test_folders_that_are_all_unknown_are_splits_once_params_say_so(tmp_path):
    place = folders(tmp_path, "fold1", "fold2")
    with pytest.raises(InfotokError, match=r"fold1/cat: folder lies in a class folder"):
        prepared(place, tmp_path / "out", "imagefolder")
    given = {"fold1": "train", "fold2": "test"}
    manifest = prepared(place, tmp_path / "out", "imagefolder", splits=given, validation=0.3)
    assert manifest["splits"]["test"]["images"] == 24


@pytest.mark.parametrize("name", ["train", "test", "Val"])
def test_a_class_may_be_called_as_a_split_is(tmp_path, name):
    """Vehicles: bus, car and train."""
    for index in range(60):
        picture(tmp_path / "in" / ("bus", "car", name)[index % 3] / f"{index}.png", index)
    manifest = prepared(tmp_path / "in", tmp_path / "out", "imagefolder")
    train = read_split(tmp_path / "out", "train")
    assert {pair["answer"] for pairs in train.questions for pair in pairs} == {"bus", "car", name}
    assert manifest["given_splits"] == {}


def test_images_above_and_below_class_folders_are_rejects(tmp_path):
    place = folders(tmp_path, ".", count=30)
    picture(place / "loose.png", 700)
    picture(place / "cat" / "tabby" / "1.png", 701)
    (place / "README.txt").write_text("mine")
    manifest = prepared(place, tmp_path / "out", "imagefolder", max_rejects=2)
    told = {(line["file"], line["kept"]): line["reason"] for line in rejects(tmp_path / "out")}
    assert told == {
        ("loose.png", False): "lies in no class folder; put it at <class>/<name>",
        ("README.txt", True): "lies in no class folder; put it at <class>/<name>",
        ("cat/tabby", False): "lies in a class folder; images belong at <class>/<name>, one folder deep",
    }
    assert manifest["rejects"]["count"] == 2
