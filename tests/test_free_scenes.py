"""Free scenes: places, drawing, texts and factors, recomputed from the objects by code of the tests' own."""

import hashlib
import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest

from infotok.data.free.objects import sample
from infotok.data.free.places import GAP, MOST_COVERED, NEAREST, apart, place, radii
from infotok.data.free.rendering import render
from infotok.data.free.shapes import DISTANCE
from infotok.data.free.vocabulary import COLORS, Vocabulary
from infotok.data.sources import free_scenes, scenes
from infotok.data.sources.free_scenes import Options, describe, make_split
from infotok.errors import InfotokError
from infotok.evaluation.blind import Guess
from infotok.evaluation.geneval_prompts import TAGS, prompts, satisfies
from pipeline.config.params import load_params

FULL = Options(seed=3, objects=6, objects_at_least=2, shapes=8, colors=10, sizes=3, materials=3, questions=8)
FEW = Options(seed=3, questions=8)
# Of numpy's PCG64 and float64 arithmetic, which are the same on every platform.
PINNED = "47b33b9c3bdd966c921243c7394efe7cbdc84eaf9ed47d94f320802096bbddb1"
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MARGIN = 0.1


@pytest.fixture(scope="module", params=["few", "full"])
def made(request):
    options = {"few": FEW, "full": FULL}[request.param]
    return options, {name: make_split(name, 300, options) for name in free_scenes.SPLITS}


def holds(a, b, relation):
    return {
        "left of": b["x"] - a["x"] > MARGIN,
        "right of": a["x"] - b["x"] > MARGIN,
        "above": b["y"] - a["y"] > MARGIN,
        "below": a["y"] - b["y"] > MARGIN,
    }[relation]


def described(words):
    """`small striped red circles` or `red things` as wanted attributes."""
    wanted, last = {}, words.split()[-1]
    for shape in free_scenes.Vocabulary.of(8, 10, 3, 3).shapes:
        if last in (shape, shape + "s", shape + "es"):
            wanted["shape"] = shape
    assert wanted or last in ("thing", "things"), words
    for word in words.split()[:-1]:
        kind = "color" if word in COLORS else "size" if word in ("small", "medium", "large") else "material"
        assert word in COLORS or kind == "size" or word in ("plain", "striped", "dotted"), words
        wanted[kind] = word
    return wanted


def matching(scene, words):
    return [t for t in scene if all(t[key] == value for key, value in described(words).items())]


def answer(scene, question):
    """The right answer, worked out from the words of the question."""

    def only(words):
        (found,) = matching(scene, words)
        return found

    def number(words):
        return len(matching(scene, words))

    if found := re.fullmatch(r"is there (a|an) (\w+ \w+)\?", question):
        assert (found[1] == "an") == (found[2][0] in "aeiou")
        return "yes" if number(found[2]) else "no"
    if found := re.fullmatch(r"how many (.+) are there\?", question):
        return NUMBERS[number(found[1])]
    if found := re.fullmatch(r"what (color|shape|size|material) is the (.+)\?", question):
        return only(found[2])[found[1]]
    if found := re.fullmatch(r"are there more (.+) than (.+)\?", question):
        assert number(found[1]) + number(found[2]) > 0
        return "yes" if number(found[1]) > number(found[2]) else "no"
    if found := re.fullmatch(r"is the (.+) larger than the (.+)\?", question):
        a, b = only(found[1]), only(found[2])
        assert a["radius"] != b["radius"]
        return "yes" if a["radius"] > b["radius"] else "no"
    if found := re.fullmatch(r"is the (.+) (on the left or on the right|at the top or at the bottom)\?", question):
        axis, low, high = ("x", "left", "right") if "left" in found[2] else ("y", "top", "bottom")
        place = only(found[1])[axis]
        assert abs(place - 0.5) > MARGIN
        return low if place < 0.5 else high
    found = re.fullmatch(r"is the (.+) (left of|right of|above|below) the (.+)\?", question)
    a, b = only(found[1]), only(found[3])
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert holds(a, b, found[2]) or holds(a, b, opposite[found[2]])  # nothing is asked within the margin
    return "yes" if holds(a, b, found[2]) else "no"


def named(phrase):
    """`a small red circle` or `two circles` as (count, words)."""
    first, words = phrase.split(" ", 1)
    assert first in ("a", "an", *NUMBERS)
    assert first not in ("a", "an") or (first == "an") == (words[0] in "aeiou"), phrase
    return (1 if first in ("a", "an") else NUMBERS.index(first)), words


def is_true(scene, caption):
    """Whether what a caption names is there; and how many objects it names."""
    total, listed = 0, []
    if relation := re.match(r"(.+?) (left of|right of|above|below) (.+?)(?:, with (.+))?$", caption):
        (_, a), (_, b) = named(relation[1]), named(relation[3])
        pairs = itertools.product(matching(scene, a), matching(scene, b))
        if not any(holds(x, y, relation[2]) for x, y in pairs):
            return False, 0
        listed = [relation[1], relation[3]]
        caption = relation[4]
    listed += re.split(r", | and ", caption) if caption else []
    for phrase in listed:
        count, words = named(phrase)
        total += count
        found = len(matching(scene, words))
        if found != count if count > 1 else found < sum(named(other)[1] == words for other in listed):
            return False, 0
    return True, total


def test_a_seed_gives_the_same_bytes_on_every_machine():
    options = FULL.model_copy(update={"occlusion": True})
    split = make_split("test", 20, options)
    assert np.array_equal(split.images, make_split("test", 20, options).images)
    assert not np.array_equal(split.images, make_split("test", 20, options.model_copy(update={"seed": 4})).images)
    said = json.dumps([split.captions, split.questions, split.objects]).encode()
    assert hashlib.sha256(split.images.tobytes() + said).hexdigest() == PINNED


def test_radii_shrink_with_the_number_of_objects():
    assert radii(1, 1).tolist() == [0.215]
    assert radii(4, 2) == pytest.approx([0.68 * 0.42**0.5 / 4, 0.42**0.5 / 4])  # four boxes fill 42 % of the image
    assert 9 * (2 * radii(9, 1)[0]) ** 2 == pytest.approx(0.42)


@pytest.mark.parametrize(("objects", "sizes"), [(2, 1), (4, 2), (9, 1), (9, 3)])
def test_objects_stand_apart_and_inside(objects, sizes):
    vocabulary = Vocabulary.of(8, 10, sizes, 1)
    f = sample(np.random.default_rng(0), 300, vocabulary, objects, objects, False, "seen")
    for scene in range(300):
        boxes = np.stack([f["x"][scene], f["y"][scene], f["radius"][scene]], -1)
        assert (boxes[:, :2].min(-1) >= boxes[:, 2]).all()
        assert (boxes[:, :2].max(-1) <= 1 - boxes[:, 2]).all()
        for a, b in itertools.combinations(boxes, 2):
            away = np.abs(a[:2] - b[:2]).max()
            assert away >= a[2] + b[2] + GAP - 1e-12
            assert away >= apart(objects, sizes, False) - 1e-12


@pytest.mark.parametrize(("objects", "grid"), [(3, 3), (9, 3), (4, 2), (5, 4), (1, 1)])
def test_in_a_grid_every_object_has_a_cell_of_its_own(objects, grid):
    vocabulary = Vocabulary.of(4, 6, 1, 1)
    f = sample(np.random.default_rng(0), 400, vocabulary, objects, objects, False, "seen", grid)
    cells = np.stack([f["x"], f["y"]], -1) * grid - 0.5
    assert np.abs(cells - cells.round()).max() < 1e-9
    number = (cells.round() @ [1, grid]).astype(int)
    assert (np.diff(np.sort(number, axis=1), axis=1) > 0).all()
    shares = np.bincount(number.ravel(), minlength=grid**2) / number.size
    assert np.abs(shares - 1 / grid**2).max() < 4 / (grid * number.size**0.5)  # every cell as often
    assert (f["radius"] <= 0.5 / grid - GAP / 2 + 1e-12).all()
    assert apart(objects, 1, False, grid) == 1 / grid


def test_centres_are_uniform_where_nothing_is_in_the_way():
    radius = np.full((4000, 1), 0.2)
    centres = place(np.random.default_rng(0), radius, np.ones(4000, dtype=np.int64), None, ())
    for axis in range(2):
        shares = np.histogram(centres[:, 0, axis], 4, (0.2, 0.8))[0] / 4000
        assert np.abs(shares - 0.25).max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_an_object_is_covered_by_a_third_at_most():
    vocabulary = Vocabulary.of(8, 10, 2, 1)
    f = sample(np.random.default_rng(0), 100, vocabulary, 9, 9, True, "seen")
    y, x = np.meshgrid((np.arange(300) + 0.5) / 300, (np.arange(300) + 0.5) / 300, indexing="ij")
    covered = 0
    for scene in range(100):
        inside = [
            DISTANCE[vocabulary.shapes[shape]]((x - cx) / r, (y - cy) / r) <= 0
            for shape, cx, cy, r in zip(*(f[name][scene] for name in ("shape", "x", "y", "radius")), strict=True)
        ]
        for slot, mask in enumerate(inside):
            share = (mask & np.any(inside[slot + 1 :], axis=0)).sum() / mask.sum() if slot < 8 else 0.0
            covered += share > 0
            assert share < MOST_COVERED + 0.05  # the rule looks at a grid of 10 x 10 points
        centres = np.stack([f["x"][scene], f["y"][scene]], -1)
        assert min(np.abs(a - b).max() for a, b in itertools.combinations(centres, 2)) >= NEAREST
    assert covered > 100


# In squares of the radius, from what the shapes are called.
AREAS = {
    "circle": np.pi,
    "square": 1.76**2,
    "triangle": 1.9 * 1.9 / 2,
    "cross": 2 * 2 * 0.72 - 0.72**2,
    "diamond": 2.0,
    "ring": np.pi * (1 - 0.44**2),
    "star": 5 * 0.42 * np.sin(np.pi / 5),
    "bar": 2 * 0.72,
}


@pytest.mark.parametrize("shape", AREAS)
def test_a_shape_covers_its_area_where_it_stands(shape):
    vocabulary = Vocabulary.of(8, 10, 1, 1)
    f = {name: np.zeros(1) for name in ("hue", "gradient", "texture", "phase", "noise")} | {"number": np.array([1])}
    one = {"shape": vocabulary.shapes.index(shape), "color": 5, "size": 0, "material": 0}  # white
    f |= {name: np.array([[value]]) for name, value in (one | {"radius": 0.2, "x": 0.3, "y": 0.65}).items()}
    image = render(f, vocabulary, 128, 0.0, np.random.default_rng(0))[0, :, :, 1].astype(float)
    ground = image[0, 0]
    cover = (image - ground) / (np.round(0.98 * 255) - ground)
    assert cover.sum() / (0.2 * 128) ** 2 == pytest.approx(AREAS[shape], rel=0.02)
    rows, columns = np.nonzero(cover > 0.5)
    assert columns.min() >= 0.1 * 128 - 1
    assert columns.max() <= 0.5 * 128
    assert rows.min() >= 0.45 * 128 - 1
    assert rows.max() <= 0.85 * 128


def test_materials_differ_in_tone_alone():
    vocabulary = Vocabulary.of(4, 10, 1, 3)
    f = {name: np.zeros(3) for name in ("hue", "gradient", "texture", "phase", "noise")}
    f |= {"number": np.ones(3, dtype=np.int64), "material": np.arange(3)[:, None]}
    f |= {n: np.full((3, 1), v) for n, v in {"shape": 0, "color": 0, "radius": 0.4, "x": 0.5, "y": 0.5}.items()}
    images = render(f, vocabulary, 64, 0.0, np.random.default_rng(0))
    red = np.array(COLORS["red"]) * 255
    inside = np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5)) < 0.39 * 64
    for image, least, most in zip(images, (0.99, 0.3, 0.5), (1.0, 0.7, 0.95), strict=True):
        bright = np.abs(image[inside] - red).max(-1) < 3
        assert least <= bright.mean() <= most
        assert np.array_equal(image[~inside & (images[0] == images[0][0, 0]).all(-1)][0], images[0][0, 0])


def test_novel_pairs_are_in_no_scene_of_training_and_in_no_question_of_it(made):
    options, splits = made
    novel = options.words.novel
    assert Counter(shape for _, shape in novel).keys() == set(options.words.shapes)
    for name, split in splits.items():
        pairs = [{(t["color"], t["shape"]) for t in scene} for scene in split.objects]
        if name == "novel":
            assert all(found & novel for found in pairs)
        elif name != "judge":
            assert not set.union(*pairs) & novel
            text = " ".join(pair["question"] for asked in split.questions for pair in asked)
            assert not [pair for pair in novel if " ".join(pair) in text]
    every = set.union(*({(t["color"], t["shape"]) for t in scene} for scene in splits["judge"].objects))
    assert every >= novel


def test_the_novel_pairs_of_four_shapes_and_six_colors():
    novel = {("red", "cross"), ("green", "triangle"), ("blue", "square"), ("yellow", "circle")}
    assert FEW.words.novel == scenes.NOVEL == novel


def test_captions_are_true_and_name_every_object(made):
    options, splits = made
    for scene, captions in zip(splits["train"].objects, splits["train"].captions, strict=True):
        closed = [text for text in captions if not text.startswith("a picture with ")]
        assert len(captions) - len(closed) == (2 if options.objects_at_least > 1 else 0)
        for caption in captions:
            right, number = is_true(scene, caption.removeprefix("a picture with "))
            assert right, (caption, scene)
            assert number == len(scene) if caption in closed else number <= len(scene)
        full = max(closed, key=len)
        assert all(thing["color"] in full and thing["shape"] in full for thing in scene)


def test_answers_are_right_and_none_is_asked_for_more_often(made):
    options, splits = made
    given = {}
    for scene, asked in zip(splits["train"].objects, splits["train"].questions, strict=True):
        assert len(asked) == options.questions
        for pair in asked:
            assert pair["answer"] == answer(scene, pair["question"]), (pair, scene)
            given.setdefault(pair["family"], Counter())[pair["answer"]] += 1
    families = {"exist", "count", "color", "shape", "size", "where", "relation", "compare"}
    assert set(given) == families | ({"material"} if options.materials > 1 else set())
    for family in ("exist", "relation", "compare", "where", "size"):
        assert max(given[family].values()) - min(given[family].values()) <= 6, given[family]
    total = sum(map(len, splits["train"].questions))
    assert 0.12 < given["where"].total() / total < 0.18
    assert 0.15 < given["relation"].total() / total < 0.25


def test_questions_cannot_be_answered_without_the_image(made):
    _, splits = made
    guess = Guess(splits["train"].questions)
    chances = {"exist": 1 / 2, "relation": 1 / 2, "compare": 1 / 2, "where": 1 / 2}
    for family, chance in chances.items():
        asked = [[pair for pair in of if pair["family"] == family] for of in splits["test"].questions]
        number = sum(map(len, asked))
        assert guess.accuracies(asked)["question_only"] < chance + 3 * 0.5 / number**0.5, family
    assert guess.accuracies(splits["test"].questions)["question_only"] < 0.48


def test_weights_of_questions_are_kept():
    weights = dict.fromkeys(("count", "color", "shape", "size", "relation", "compare"), 0.0)
    options = Options(question_weights=weights | {"exist": 1.0, "where": 3.0}, questions=1)
    asked = Counter(q["family"] for pairs in make_split("train", 400, options).questions for q in pairs)
    assert set(asked) == {"exist", "where"}
    assert 2 < asked["where"] / asked["exist"] < 4


def test_factors_are_those_of_the_recorded_objects(made):
    options, splits = made
    split, words = splits["train"], options.words
    told = {"shape": words.shapes, "size": words.sizes} | (
        {"material": words.materials} if options.materials > 1 else {}
    )
    about = describe(options)["factors"]
    assert set(split.factors) == set(about["structure"]) | set(about["nuisance"])
    for name, number in (about["structure"] | about["nuisance"]).items():
        assert split.factors[name].max() < number
    for index, scene in enumerate(split.objects):
        for slot, color in enumerate(words.colors):
            those = [t for t in scene if t["color"] == color]
            assert split.factors["presence"][index, slot] == bool(those)
            wanted = {name: values.index(those[0][name]) for name, values in told.items()} if len(those) == 1 else {}
            if wanted:
                wanted |= {"column": int(those[0]["x"] * 3), "row": int(those[0]["y"] * 3)}
            for name in (*told, "column", "row"):
                assert split.factors[name][index, slot] == wanted.get(name, -1)


def thing(shape, color, x, y):
    return {"shape": shape, "color": color, "size": "large", "material": "plain", "x": x, "y": y, "radius": 0.1}


@pytest.mark.parametrize(
    ("relation", "dx", "dy", "right"),
    [
        ("left of", 0.11, 0, True),
        ("left of", 0.09, 0, False),
        ("left of", -0.3, 0, False),
        ("right of", -0.11, 0.4, True),
        ("above", 0.4, 0.11, True),
        ("above", 0.4, 0.09, False),
        ("below", 0, -0.11, True),
        ("below", 0, 0.5, False),
    ],
)
def test_geneval_wants_centres_apart_by_more_than_the_margin(relation, dx, dy, right):
    scene = [thing("square", "red", 0.4, 0.4), thing("circle", "blue", 0.4 + dx, 0.4 + dy)]
    include = [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": [relation, 0]}]
    assert satisfies(scene, {"include": include, "exclude": []}) is right


def test_a_prompt_is_fulfilled_by_the_scenes_that_its_words_describe(made):
    options, splits = made
    manifest = describe(options)
    fulfilled = Counter()
    for name, split in (("test", "test"), ("novel", "novel")):
        for prompt in prompts(name, 12, manifest, options.objects, 0):
            text = prompt["prompt"]
            assert text.startswith("a picture with ") == (options.objects_at_least > 1)
            for scene in splits[split].objects:
                right = is_true(scene, re.sub(r"(small|medium|large) ", "", text.removeprefix("a picture with ")))[0]
                assert satisfies(scene, prompt) == right, (text, scene)
                fulfilled[prompt["tag"]] += right
    assert set(fulfilled) == set(TAGS)
    assert all(fulfilled[tag] for tag in TAGS)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("objects: 10", "'data.objects'"),
        ("image_size: 24", "'data.image_size'"),
        ("objects_at_least: 5", "objects_at_least (5) is more than objects (4)"),
        ("grid: 1", "grid has 1 x 1 cells, too few for 4 objects"),
        ("grid: 3\n  occlusion: true", "occlusion needs free places"),
        ("question_weights: {relations: 2}", "knows no family 'relations'; the families are exist, count"),
        ("question_weights: {exist: 0, count: 0}", "leaves scenes without a question; give exist or count a weight"),
        ("question_weights: {material: 2}", "names material, of which nothing can be asked: materials is 1"),
    ],
)
def test_options_that_cannot_be_are_one_clear_line(tmp_path, line, says):
    path = tmp_path / "params.yaml"
    path.write_text(f"grid:\n  arm: [none-0-0]\ndata:\n  source: free_scenes\n  {line}\n")
    with pytest.raises(InfotokError) as caught:
        load_params(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert re.search(r"params\.yaml:\d+: 'data", str(caught.value))
