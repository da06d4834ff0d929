"""Scenes, captions, questions and prompts, recomputed from the objects by a parser of the tests' own."""

import hashlib
import json
import re

import numpy as np
import pytest

from infotok.data import scene_texts as questions
from infotok.data.arrow import read_split, write_split
from infotok.data.sources import scenes
from infotok.data.text import TextCodec, train_text_tokenizer
from infotok.errors import InfotokError
from infotok.evaluation.blind import Guess
from infotok.evaluation.geneval_prompts import TAGS, prompts, satisfies

CONFIG = {"seed": 3, "image_size": 32, "objects": 3, "nuisance": 1.0, "questions": 8}
# Of numpy's PCG64 and float64 arithmetic, which are the same on every platform.
PINNED = "6690d8bd678a15e8119cc35984d2851049e42ed12285ef59bd5a0b8525ec0672"
# Of all that is made of these scenes, as it was before there were scenes of another kind.
ALL_PINNED = {
    (2, 32, 1.0): "b1b5599c9122180935b3e3f15169af192d306cd271cc22b6306aec9de6562cc0",
    (4, 48, 0.5): "8930d160753e7e989ab0809c15fbb0ecaf797c454838c6692fc7060f15690fdc",
}
NUMBERS = {"a": 1, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def splits():
    return {name: scenes.make_split(name, 300, CONFIG) for name in scenes.SPLITS}


def thing(shape, color, size="small", row=0, column=0):
    return {"shape": shape, "color": color, "size": size, "row": row, "column": column}


def pairs(split):
    return {(t["color"], t["shape"]) for scene in split.objects for t in scene}


def holds(a, b, relation):
    return {
        "left of": a["column"] < b["column"],
        "right of": a["column"] > b["column"],
        "above": a["row"] < b["row"],
        "below": a["row"] > b["row"],
    }[relation]


def parse(phrase):
    """`a small red circle` or `two circles` as (count, wanted attributes)."""
    number, *words = phrase.split()
    shape = next(s for s in scenes.SHAPES if words[-1] in (s, s + "s", s + "es"))
    wanted = {"shape": shape}
    for word in words[:-1]:
        wanted["color" if word in scenes.COLORS else "size"] = word
    return NUMBERS[number], wanted


def matching(scene, wanted):
    return [t for t in scene if all(t[key] == value for key, value in wanted.items())]


def answer(scene, question):
    """The right answer, worked out from the words of the question."""
    if found := re.fullmatch(r"is there a (\w+) (\w+)\?", question):
        return "yes" if matching(scene, {"color": found[1], "shape": found[2]}) else "no"
    if found := re.fullmatch(r"how many (\w+) are there\?", question):
        count = len(matching(scene, parse(f"zero {found[1]}")[1]))
        return ["zero", "one", "two", "three", "four"][count]
    if found := re.fullmatch(r"what (color|size) is the (\w+)\?", question):
        (only,) = matching(scene, {"shape": found[2]})
        return only[found[1]]
    if found := re.fullmatch(r"what shape is the (\w+) thing\?", question):
        (only,) = matching(scene, {"color": found[1]})
        return only["shape"]
    found = re.fullmatch(r"is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", question)
    (a,) = matching(scene, {"color": found[1], "shape": found[2]})
    (b,) = matching(scene, {"color": found[4], "shape": found[5]})
    return "yes" if holds(a, b, found[3]) else "no"


def test_a_seed_gives_the_same_bytes_on_every_machine():
    config = CONFIG | {"image_size": 16}
    images = scenes.make_split("test", 20, config).images
    assert np.array_equal(images, scenes.make_split("test", 20, config).images)
    assert not np.array_equal(images, scenes.make_split("test", 20, config | {"seed": 4}).images)
    assert hashlib.sha256(images.tobytes()).hexdigest() == PINNED


@pytest.mark.parametrize("options", ALL_PINNED)
def test_images_texts_objects_and_factors_stay_what_they_were(options):
    objects, size, nuisance = options
    config = {"seed": 0, "image_size": size, "objects": objects, "nuisance": nuisance, "questions": 6}
    split = scenes.make_split("train", 200, config)
    digest = hashlib.sha256(split.images.tobytes())
    digest.update(json.dumps([split.captions, split.questions, split.objects]).encode())
    for name in sorted(split.factors):
        digest.update(name.encode() + split.factors[name].tobytes())
    assert digest.hexdigest() == ALL_PINNED[options]


def test_color_shape_pairs_of_the_splits(splits):
    for name in ("train", "validation", "test"):
        assert not pairs(splits[name]) & scenes.NOVEL
    assert all({(t["color"], t["shape"]) for t in scene} & scenes.NOVEL for scene in splits["novel"].objects)
    assert len(pairs(splits["judge"])) == len(scenes.COLORS) * len(scenes.SHAPES)


def test_captions_are_true_and_name_every_object(splits):
    for scene, captions in zip(splits["train"].objects, splits["train"].captions, strict=True):
        for caption in captions:
            if relation := re.fullmatch(r"(.+) (left of|right of|above|below) (.+)", caption):
                (_, first), (_, second) = parse(relation[1]), parse(relation[3])
                a, b = matching(scene, first), matching(scene, second)
                assert any(holds(x, y, relation[2]) for x in a for y in b)
                continue
            named = 0
            for phrase in re.split(r", | and ", caption):
                count, wanted = parse(phrase)
                assert len(matching(scene, wanted)) >= count
                named += count
            assert named == len(scene)


def test_answers_are_right_and_yes_is_as_frequent_as_no(splits):
    said = {"exist": [], "relation": []}
    for scene, asked in zip(splits["train"].objects, splits["train"].questions, strict=True):
        assert len(asked) == CONFIG["questions"]
        for pair in asked:
            assert pair["answer"] == answer(scene, pair["question"]), pair
            if pair["family"] in said:
                said[pair["family"]].append(pair["answer"] == "yes")
    for family, yes in said.items():
        assert abs(np.mean(yes) - 0.5) < 3 * 0.5 / len(yes) ** 0.5, family


def test_objects_are_drawn_where_and_as_they_are_recorded():
    split = scenes.make_split("train", 60, CONFIG | {"nuisance": 0.0})
    for image, scene in zip(split.images, split.objects, strict=True):
        places = {(t["row"], t["column"]): t for t in scene}
        for row in range(2):
            for column in range(2):
                center = image[row * 16 + 8, column * 16 + 8] / 255
                distances = {name: np.abs(center - color).max() for name, color in scenes.COLORS.items()}
                if (row, column) in places:
                    assert min(distances, key=distances.get) == places[row, column]["color"]
                    assert min(distances.values()) < 0.01
                else:
                    assert min(distances.values()) > 0.05


def test_a_stronger_nuisance_varies_the_background_more():
    quiet, loud = (scenes.make_split("train", 50, CONFIG | {"nuisance": n}).images for n in (0.0, 1.0))
    edge = np.s_[:, :1]  # outside every object
    assert quiet[edge].std(axis=(1, 2)).max() == 0
    assert loud[edge].std(axis=(1, 2)).mean() > 3


def test_prompts_of_the_splits():
    chosen = {name: prompts(name, 16, scenes.METADATA, 2, 0) for name in ("validation", "test", "novel")}
    assert {p["tag"] for p in chosen["test"]} == set(TAGS)
    for tag in ("colors", "color_attr", "position"):
        texts = [{p["prompt"] for p in chosen[name] if p["tag"] == tag} for name in ("validation", "test")]
        if tag != "colors":  # twenty prompts, fewer than twice sixteen
            assert not texts[0] & texts[1]
    for name, items in chosen.items():
        for prompt in items:
            novel = any((i.get("color"), i["class"]) in scenes.NOVEL for i in prompt["include"])
            assert novel == (name == "novel")


def wanted_by(text):
    """What a prompt's words ask for, as GenEval metadata."""
    if relation := re.fullmatch(r"(.+) (left of|right of|above|below) (.+)", text):
        (_, a), (_, b) = parse(relation[1]), parse(relation[3])
        return [
            {"class": b["shape"], "count": 1},
            {"class": a["shape"], "count": 1, "position": [relation[2], 0]},
        ], []
    include, exclude = [], []
    for phrase in text.split(" and "):
        count, wanted = parse(phrase)
        include.append({"class": wanted["shape"], "count": count})
        include[-1] |= {"color": wanted["color"]} if "color" in wanted else {}
        exclude += [{"class": wanted["shape"], "count": count + 1}] if count > 1 else []
    return include, exclude


def test_prompts_metadata_is_what_their_words_ask_for():
    chosen = prompts("test", 40, scenes.METADATA, 4, 1) + prompts("novel", 40, scenes.METADATA, 4, 1)
    assert {p["tag"] for p in chosen} == set(TAGS)
    for prompt in chosen:
        assert (prompt["include"], prompt["exclude"]) == wanted_by(prompt["prompt"]), prompt


def test_factors_are_those_of_the_recorded_objects(splits):
    split = splits["train"]
    for index, scene in enumerate(split.objects):
        places = {t["row"] * 2 + t["column"]: t for t in scene}
        for quadrant in range(4):
            found = {name: split.factors[name][index, quadrant] for name in ("presence", "shape", "color", "size")}
            there = places.get(quadrant)
            assert found == (
                {
                    "presence": 1,
                    "shape": scenes.SHAPES.index(there["shape"]),
                    "color": list(scenes.COLORS).index(there["color"]),
                    "size": scenes.SIZES.index(there["size"]),
                }
                if there
                else {"presence": 0, "shape": -1, "color": -1, "size": -1}
            )
            assert (split.factors["jitter"][index, quadrant] >= 0) == bool(there)
    drawn = np.random.Generator(np.random.PCG64(np.random.SeedSequence([CONFIG["seed"], 0])))
    hues = scenes.sample_factors(drawn, 300, CONFIG["objects"], "seen")
    for name in ("hue", "gradient", "texture", "noise"):
        assert np.array_equal(split.factors[name][:, 0], np.floor(hues[name] * 8))


def test_images_taken_keep_what_is_said_of_them(splits):
    chosen = splits["test"].take(np.array([7, 2, 5]))
    assert np.array_equal(chosen.images[1], splits["test"].images[2])
    assert chosen.captions == [splits["test"].captions[i] for i in (7, 2, 5)]
    assert chosen.questions[0] == splits["test"].questions[7]
    assert chosen.objects[2] == splits["test"].objects[5]
    assert np.array_equal(chosen.factors["hue"], splits["test"].factors["hue"][[7, 2, 5]])


RED_SQUARE, BLUE_CIRCLE = thing("square", "red"), thing("circle", "blue", row=1, column=1)


@pytest.mark.parametrize(
    ("include", "exclude", "scene", "right"),
    [
        ([{"class": "square", "count": 1}], [], [RED_SQUARE], True),
        ([{"class": "circle", "count": 1}], [], [RED_SQUARE], False),
        ([{"class": "square", "count": 1}, {"class": "circle", "count": 1}], [], [RED_SQUARE, BLUE_CIRCLE], True),
        ([{"class": "square", "count": 1}, {"class": "circle", "count": 1}], [], [RED_SQUARE], False),
        ([{"class": "square", "count": 2}], [{"class": "square", "count": 3}], [RED_SQUARE] * 2, True),
        ([{"class": "square", "count": 2}], [{"class": "square", "count": 3}], [RED_SQUARE] * 3, False),
        ([{"class": "square", "count": 1, "color": "red"}], [], [RED_SQUARE], True),
        ([{"class": "square", "count": 1, "color": "blue"}], [], [RED_SQUARE, BLUE_CIRCLE], False),
        (
            [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["left of", 0]}],
            [],
            [RED_SQUARE, BLUE_CIRCLE],
            True,
        ),
        (
            [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["below", 0]}],
            [],
            [RED_SQUARE, BLUE_CIRCLE],
            False,
        ),
        (  # right of the square, but not of the circle that was asked for
            [{"class": "circle", "count": 1}, {"class": "cross", "count": 1, "position": ["right of", 0]}],
            [],
            [RED_SQUARE, BLUE_CIRCLE, thing("cross", "red", column=1)],
            False,
        ),
        (  # right of one of two circles is enough
            [{"class": "circle", "count": 1}, {"class": "cross", "count": 1, "position": ["right of", 0]}],
            [],
            [thing("circle", "red"), BLUE_CIRCLE, thing("cross", "red", column=1)],
            True,
        ),
    ],
)
def test_geneval_checks_hand_worked_scenes(include, exclude, scene, right):
    assert satisfies(scene, {"include": include, "exclude": exclude}) is right


def test_question_only_guesses_from_text_then_start_then_family():
    def asked(text, reply, family="color"):
        return {"question": text, "answer": reply, "family": family}

    train = [[asked("what color is it?", "red")] * 2 + [asked("what color is it?", "blue")], [asked("how?", "two")]]
    test = [
        [asked("what color is it?", "red"), asked("what color is it?", "blue")],  # the text's majority: red
        [asked("what color is that?", "red")],  # the same first three words
        [asked("which hue?", "red"), asked("which hue?", "green")],  # the family's majority
        [asked("why?", "red", "other")],  # nothing alike: the majority of all
    ]
    assert Guess(train).accuracies(test)["question_only"] == pytest.approx(4 / 6)
    begun = [[asked("what color a b", "red")] * 3 + [asked("what color z", "blue", "other")] * 2]
    assert Guess(begun).accuracies([[asked("what color z y", "blue", "other")]])["question_only"] == 1.0


def test_questions_cannot_be_answered_without_the_image(splits):
    majority = Guess(splits["train"].questions).accuracies(splits["test"].questions)["question_only"]
    assert 0.25 < majority < 0.55
    assert set(questions.FAMILIES) == {pair["family"] for asked in splits["test"].questions for pair in asked}


def test_an_arrow_file_keeps_everything(splits, tmp_path):
    split = splits["novel"]
    write_split(split, tmp_path / "novel.arrow")
    back = read_split(tmp_path, "novel")
    assert np.array_equal(back.images, split.images)
    assert (back.captions, back.questions, back.objects) == (split.captions, split.questions, split.objects)
    assert all(np.array_equal(back.factors[name], values) for name, values in split.factors.items())


@pytest.mark.parametrize("kept", [0, 100, 40_000])
def test_a_truncated_arrow_file_is_named(splits, tmp_path, kept):
    path = tmp_path / "test.arrow"
    write_split(splits["test"], path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InfotokError, match=r"test\.arrow: is damaged"):
        read_split(tmp_path, "test")


def test_texts_come_back_from_their_ids(splits):
    texts = {text for said in splits["train"].captions for text in said}
    texts |= {pair[key] for asked in splits["train"].questions for pair in asked for key in ("question", "answer")}
    tokenizer = train_text_tokenizer(sorted(texts), 400)
    codec = TextCodec(tokenizer, tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("<end>"))
    for text in texts:
        assert codec.decode([*codec.encode(text), codec.end, *codec.encode("more")]) == text
