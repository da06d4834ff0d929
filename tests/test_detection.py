"""The judge of free scenes: sets of objects, their matching, and what a detector reads, against hand-worked cases."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from infotok.data.sources.free_scenes import Options, describe, make_split
from infotok.evaluation.reconstruction import objects_kept
from infotok.examiners.detector import Detections, Detector, cell_centres, detection_loss
from infotok.examiners.judges import load_judge
from infotok.examiners.perceptual import Perceptual
from infotok.examiners.places import accuracies_at_places, as_tensors, attribute_names
from infotok.examiners.scenes import matched, read_scenes, scene_accuracies
from infotok.tensors import save_module
from infotok.training.examiners import ExaminerConfig, train_at_places

CLASSES = {"shape": 4, "color": 6, "size": 2, "material": 1}
NEAR = 0.05


def thing(x, y, shape="circle", color="red", size="small"):
    return {"shape": shape, "color": color, "size": size, "material": "plain", "x": x, "y": y}


def wrong(a, b):
    return sum(a[name] != b[name] for name in CLASSES)


def distance(a, b):
    return ((a["x"] - b["x"]) ** 2 + (a["y"] - b["y"]) ** 2) ** 0.5


@pytest.mark.parametrize(
    ("found", "truth", "pairs"),
    [
        ([], [thing(0.5, 0.5)], []),
        ([thing(0.5, 0.5)], [thing(0.54, 0.5)], [(0, 0)]),
        ([thing(0.5, 0.5)], [thing(0.54, 0.54)], []),  # too far, across both axes
        ([thing(0.5, 0.5), thing(0.51, 0.5)], [thing(0.5, 0.5)], [(0, 0)]),  # the nearer of two alike
        ([thing(0.5, 0.5, "square"), thing(0.53, 0.5)], [thing(0.5, 0.5)], [(1, 0)]),  # the right one, though farther
        # Two pairs rather than a perfect one.
        ([thing(0.5, 0.5), thing(0.44, 0.5)], [thing(0.48, 0.5), thing(0.54, 0.5)], [(0, 1), (1, 0)]),
    ],
)
def test_objects_are_matched_by_place_and_class(found, truth, pairs):
    assert matched(found, truth) == pairs


def test_matching_is_the_best_of_all_assignments():
    rng = np.random.default_rng(0)
    for _ in range(200):
        sides = [
            [
                thing(
                    *rng.uniform(0.45, 0.55, 2), ("circle", "square")[rng.integers(2)], ("red", "blue")[rng.integers(2)]
                )
                for _ in range(rng.integers(1, 5))
            ]
            for _ in range(2)
        ]
        found, truth = sides

        def value(pairs, found=found, truth=truth):
            away = sum(distance(found[i], truth[j]) for i, j in pairs)
            return -len(pairs), sum(wrong(found[i], truth[j]) for i, j in pairs), round(away, 9)

        few, many = sorted((range(len(found)), range(len(truth))), key=len)
        every = []
        for order in itertools.permutations(many, len(few)):
            pairs = list(zip(few, order, strict=True))
            pairs = pairs if len(few) == len(found) and few == range(len(found)) else [(j, i) for i, j in pairs]
            every.append(value([(i, j) for i, j in pairs if distance(found[i], truth[j]) <= NEAR]))
        assert value(matched(found, truth)) == min(every)


def test_objects_of_the_grid_are_matched_by_quadrant():
    grid = [{"shape": "circle", "color": "red", "size": "small", "row": row, "column": 1} for row in (0, 1)]
    assert matched(grid, grid[::-1]) == [(0, 1), (1, 0)]
    assert matched(grid[:1], grid[1:]) == []


class Says(Detector):
    """Reads what it was told, whatever the images are: each image's first pixel says which scene of `scenes`."""

    def __init__(self, scenes, names):
        nn.Module.__init__(self)
        self.anchor = nn.Parameter(torch.zeros(()))
        self.place, self.values = as_tensors(scenes, names)

    def detect(self, images):
        row = ((images[:, 0, 0, 0] + 1) * 127.5).round().long()
        score = (~self.place[row, :, 0].isnan()).float()
        return Detections(score, self.place[row], {name: values[row] for name, values in self.values.items()})


def numbered(*rows):
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3)


TRUTH = [thing(0.2, 0.2), thing(0.8, 0.2, "square", "blue", "large"), thing(0.5, 0.8, "cross")]
READ = [thing(0.21, 0.2), thing(0.8, 0.22, "square", "red", "large"), thing(0.4, 0.8, "cross"), thing(0.1, 0.9)]
MANIFEST = describe(Options())


def test_a_judges_reading_becomes_a_scene_and_is_compared_with_the_truth():
    judge = Says([TRUTH, READ], attribute_names(MANIFEST))
    read = read_scenes(judge, numbered(1, 0), MANIFEST)
    assert [[t["shape"] for t in scene] for scene in read] == [
        ["circle", "square", "cross", "circle"],
        ["circle", "square", "cross"],
    ]
    assert read[0][1]["x"] == pytest.approx(0.8)
    # Of the three one is right, one has another color, one is elsewhere; of the four that are read two are nowhere.
    split = make_split("test", 1, Options())
    split.images, split.objects = numbered(1).numpy(), [TRUTH]
    found = scene_accuracies(judge, split, MANIFEST, "")
    wanted = {"objects": 1 / 3, "found": 2 / 3, "spurious": 1 / 2, "shape": 1.0, "color": 0.5, "size": 1.0}
    assert found == pytest.approx(wanted)
    # Five places hold an object in either image, at one the same.
    assert objects_kept(judge, numbered(0), numbered(1), MANIFEST) == pytest.approx(1 / 5)
    assert objects_kept(judge, numbered(0, 1), numbered(0, 1), MANIFEST) == 1.0


class Maps(Detector):
    """A detector whose maps are given."""

    def __init__(self, maps, cells, most, apart):
        super().__init__(CLASSES, 4 * cells, most, apart)
        self.given = maps

    def forward(self, images):
        return self.given


def blank(cells):
    maps = {"heat": torch.full((1, cells**2), -9.0), "place": cell_centres(cells, torch.device("cpu"))[None].clone()}
    return maps | {name: torch.zeros(1, cells**2, values) for name, values in CLASSES.items()}


def test_hot_cells_that_tell_of_one_centre_are_one_object():
    maps = blank(8)
    # Cells 9 and 10 lie beside each other and both tell a centre between them; 12 is another object, 14 too cool.
    for cell, heat, place, color in ((9, 1.0, 0.25, 2), (10, 0.5, 0.26, 4), (12, 0.2, 0.56, 5), (14, -2.0, 0.8, 1)):
        maps["heat"][0, cell] = heat
        maps["place"][0, cell, 0] = place
        maps["color"][0, cell, color] = 1.0
    found = Maps(maps, 8, 4, 0.2).detect(torch.zeros(1, 3, 32, 32))
    kept = found.score[0] > 0
    assert found.place[0][kept][:, 0].tolist() == pytest.approx([0.25, 0.56])
    assert found.attributes["color"][0][kept].tolist() == [2, 5]
    assert found.score[0][kept].tolist() == pytest.approx([0.7310586, 0.5498340], abs=1e-6)
    # Where objects may stand nearer to each other the two are two.
    assert (Maps(maps, 8, 4, 0.016).detect(torch.zeros(1, 3, 32, 32)).score > 0).sum() == 3


def test_the_loss_is_that_of_its_closed_form():
    """One object in the middle of a cell: heat 1 there, exp(-1 / (2 * .36)) in the four next cells and so on."""
    maps, cells = blank(4), 4
    maps["heat"].zero_()
    place = torch.tensor([[[0.375, 0.375], [torch.nan, torch.nan]]])
    what = {name: torch.tensor([[0, -1]]) for name in CLASSES}
    offset = np.array([[(i - 1) ** 2 + (j - 1) ** 2 for j in range(cells)] for i in range(cells)])
    heat = np.exp(-offset / 0.72)
    # At logit 0 every cross-entropy is log 2, whatever the heat is. The places are the cells' own: right in that of the
    # object, a cell's side off in those beside it, whose heat is .249 and so counts for nothing.
    assert sorted(heat.ravel())[-2] == pytest.approx(0.2494, abs=1e-4)
    wanted = 10 * np.log(2) + sum(np.log(values) for values in CLASSES.values())
    assert detection_loss(maps, place, what).item() == pytest.approx(wanted, rel=1e-5)
    maps["place"][0, 5, 0] += 0.05
    assert detection_loss(maps, place, what).item() == pytest.approx(wanted + 0.05 * cells, rel=1e-5)
    assert torch.equal(torch.from_numpy(heat > 0.3).flatten().nonzero().flatten(), torch.tensor([5]))


@pytest.fixture(scope="module")
def split():
    return make_split("judge", 600, Options(seed=1))


def test_a_detector_learns_and_comes_back_from_its_file(split, tmp_path):
    torch.manual_seed(0)
    about = {"classes": CLASSES, "image_size": 32, "most": 4, "apart": MANIFEST["centres_apart"]}
    judge, names = Detector(**about), attribute_names(MANIFEST)
    history = train_at_places(
        judge, split, ExaminerConfig(steps=100, batch=32, seed=0), names, device=torch.device("cpu")
    )
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    found = scene_accuracies(judge, split, MANIFEST, "")
    assert found["found"] > 0.8
    assert found["color"] > 0.8
    save_module(judge, tmp_path / "judge.safetensors", about | {"kind": "detection"})
    loaded = load_judge(tmp_path / "judge.safetensors", "")
    assert isinstance(loaded, Detector)
    images = torch.from_numpy(split.images[:8])
    assert read_scenes(loaded, images, MANIFEST) == read_scenes(judge, images, MANIFEST)


def test_features_read_objects_where_they_stand(split):
    torch.manual_seed(0)
    names = {name: values for name, values in attribute_names(MANIFEST).items() if len(values) > 1}
    features = Perceptual({name: len(values) for name, values in names.items()}, free=True)
    train_at_places(features, split, ExaminerConfig(steps=60, batch=32, seed=0), names, device=torch.device("cpu"))
    right = accuracies_at_places(features, split, MANIFEST, "")
    assert right["color"] > 0.8
    # Elsewhere there is nothing of them.
    moved = split.take(np.arange(600))
    moved.objects = [[t | {"x": 1 - t["x"], "y": 1 - t["y"]} for t in scene] for scene in split.objects]
    assert accuracies_at_places(features, moved, MANIFEST, "")["color"] < right["color"] - 0.3


@pytest.mark.parametrize("size", [32, 48, 64, 72, 96, 128])
def test_no_two_centres_share_a_cell(size):
    for objects, sizes, occlusion in itertools.product((1, 4, 9), (1, 3), (False, True)):
        about = describe(Options(image_size=size, objects=objects, sizes=sizes, occlusion=occlusion))
        assert 1 / Detector(CLASSES, size, objects, about["centres_apart"]).cells < about["centres_apart"]
