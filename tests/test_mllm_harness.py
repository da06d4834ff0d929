"""Models in lmms-eval, by its own command line, and as VLMEvalKit asks them: against transformers' own calls."""

import json
import os
import subprocess
import sys

import datasets
import pytest
import tiny_mllm
import torch
from lmms_eval.api.instance import Instance, unwrap_generation_output
from PIL import Image
from smoke import ROOT

from infotok.errors import InfotokError
from infotok.mllm.harness.lmms import LONGEST, Infotok, before, sampling_of
from infotok.mllm.harness.vlmeval import Answering

CHOICES = list(tiny_mllm.COLORS)
TASK = """
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_visual: !function utils.images
doc_to_text: !function utils.text
doc_to_target: answer
"""
ANSWERED = """
task: toy_answers
output_type: generate_until
generation_kwargs: {max_new_tokens: 5, temperature: 0, until: ['!']}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOSEN = f"""
task: toy_choices
output_type: multiple_choice
doc_to_choice: {CHOICES}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
def images(document):
    return [document["image"].convert("RGB")]

def text(document, lmms_eval_specific_kwargs=None):
    return "<image>" + document["question"]
"""


@pytest.fixture
def model(folders, request):
    """In lmms-eval's class, with four documents whose images have two sizes."""
    model = Infotok(folders[request.param], dtype="float32", batch_size="2", device="cpu")
    model.task_dict["toy"] = {"test": documents()[:4]}
    return model


all_models = pytest.mark.parametrize("model", tiny_mllm.MODELS, indirect=True)
of_emu3 = pytest.mark.parametrize("model", ["emu3"], indirect=True)


def documents() -> list[dict]:
    """Every second image is wide."""
    images, questions, answers, _ = tiny_mllm.toy()
    wide = [image.resize((64, 32)) if row % 2 else image for row, image in enumerate(images)]
    keys = ("image", "question", "answer")
    return [dict(zip(keys, row, strict=True)) for row in zip(wide, questions, answers, strict=True)]


def instance(kind, document, *arguments) -> Instance:
    """A request as lmms-eval makes it."""
    metadata = {"task": "toy", "doc_id": document, "repeats": 1}
    return Instance(kind, (*arguments, document, "toy", "test"), 0, metadata)


def image_of(document) -> list[Image.Image]:
    return [document["image"]]


def plain(adapter, image, question) -> dict:
    """What transformers' model takes of one image and one question."""
    return adapter.ask([image], [question])


def generated(adapter, image, question, tokens) -> str:
    """By transformers' own generate, of one image alone."""
    inputs = plain(adapter, image, question)
    made = adapter.model.generate(**inputs, do_sample=False, max_new_tokens=tokens)[0, inputs["input_ids"].shape[1] :]
    return adapter.processor.tokenizer.decode(made, skip_special_tokens=True)


@torch.no_grad()
def loss(adapter, image, question, continuation) -> tuple[float, bool]:
    """Mean of a continuation's tokens, and whether they are the most likely: by transformers' own forward, of one image
    alone and without padding."""
    inputs = plain(adapter, image, question)
    target = adapter.processor.tokenizer(continuation, add_special_tokens=False, return_tensors="pt")["input_ids"]
    joined = torch.cat([inputs.pop("input_ids"), target], 1)
    inputs.pop("attention_mask")
    logits = adapter.model(input_ids=joined, **inputs).logits[0, -target.shape[1] - 1 : -1]
    each = logits.log_softmax(-1)[range(target.shape[1]), target[0]]
    return float(-each.mean()), bool((logits.argmax(-1) == target[0]).all())


def test_its_own_command_line_finds_the_model_and_scores_a_local_task(folders, tmp_path):
    folder, data = tmp_path / "tasks", tmp_path / "toy.parquet"
    folder.mkdir()
    columns = {name: [document[name] for document in documents()] for name in ("image", "question", "answer")}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).to_parquet(data)
    (folder / "utils.py").write_text(UTILS)
    for name, text in (("answers", ANSWERED), ("choices", CHOSEN)):
        (folder / f"{name}.yaml").write_text(TASK.format(data=data) + text)
    words = ["--model", "infotok", "--model_args", f"pretrained={folders['emu3']},dtype=float32", "--batch_size", "3"]
    words += ["--tasks", "toy_answers,toy_choices", "--include_path", str(folder)]
    words += ["--output_path", str(tmp_path / "out"), "--log_samples"]
    places = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lmms_eval", *words]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | places, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    adapter = Infotok(folders["emu3"], dtype="float32", device="cpu").adapter

    def samples(task):
        (path,) = (tmp_path / "out").rglob(f"*_samples_{task}.jsonl")
        return sorted((json.loads(line) for line in path.open()), key=lambda sample: sample["doc_id"])

    answers = [generated(adapter, row["image"], row["question"], 5) for row in documents()]
    assert any("!" in text for text in answers)  # where the task's `until` cuts
    assert [sample["filtered_resps"] for sample in samples("toy_answers")] == [
        text.strip().partition("!")[0].strip() for text in answers
    ]
    right = []
    for row, sample in zip(documents(), samples("toy_choices"), strict=True):
        wanted = [loss(adapter, row["image"], row["question"], f" {choice}") for choice in CHOICES]
        scored = [float(value) for value, _ in sample["filtered_resps"]]
        assert scored == pytest.approx([value for value, _ in wanted], abs=1e-3)
        right.append(CHOICES[scored.index(min(scored))] == row["answer"])
    (results,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["toy_choices"]["acc,none"] == sum(right) / len(right)


@all_models
def test_answers_are_those_of_each_question_alone_in_batches_of_one_size(model, monkeypatch):
    settings = [{"max_new_tokens": 3}, {"max_new_tokens": 3}, {"max_new_tokens": 3}, {"max_new_tokens": 6}]
    mark = model.adapter.processor.image_token
    asked = [instance("generate_until", i, f"{mark}what {i}?", settings[i], image_of) for i in (3, 2, 1, 0)]
    wanted = []
    for request in asked:
        document = model.task_dict["toy"]["test"][request.doc_id]
        text = generated(model.adapter, document["image"], f"what {request.doc_id}?", request.args[1]["max_new_tokens"])
        wanted.append(text.strip())
    together, answer = [], model.adapter.answer

    def told(images, questions, **sampling):
        together.append(([image.size for image in images], sampling["max_new_tokens"]))
        return answer(images, questions, **sampling)

    monkeypatch.setattr(model.adapter, "answer", told)
    assert model.generate_until(asked) == wanted
    assert sorted(together) == [([(32, 32), (32, 32)], 3), ([(64, 32)], 3), ([(64, 32)], 6)]


@all_models
def test_losses_are_those_of_transformers_own_forward(model):
    adapter, (first, *_) = model.adapter, model.task_dict["toy"]["test"]
    (token,) = adapter.processor.tokenizer(" red", add_special_tokens=False)["input_ids"]
    with torch.no_grad():  # one continuation is the most likely
        inputs = plain(adapter, first["image"], "what color?")
        state = adapter.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
        adapter.model.get_output_embeddings().weight[token] = state
    words = [" red", " a green square", "", "stripe red"]
    asked = [instance("loglikelihood", row, "what color?", word, image_of) for word in words for row in range(4)]
    asked.append(instance("loglikelihood", 0, "what color?", lambda document: " " + document["answer"], image_of))
    scored = [unwrap_generation_output(one)[0] for one in model.loglikelihood(asked)]
    assert scored[8:12] == [(0.0, True)] * 4
    assert scored[16] == scored[0]
    assert scored[0][1]
    for request, (value, greedy) in zip(asked[:8] + asked[12:16], scored[:8] + scored[12:16], strict=True):
        document = model.task_dict["toy"]["test"][request.doc_id]
        wanted = loss(adapter, document["image"], *request.args[:2])
        assert value == pytest.approx(wanted[0], abs=1e-3)
        assert greedy == wanted[1]


@of_emu3
def test_a_round_is_made_of_the_answers_before(model):
    def next_round(document, previous_output, round_idx, previous_round_info):
        info = (previous_round_info or []) + [round_idx]
        text = f"is it {previous_output[-1]}?"
        return [document["image"].rotate(90)], text, round_idx == 3, [*previous_output[:-1], f"{text}!"], info

    adapter, settings = model.adapter, {"max_new_tokens": 3}
    request = instance("generate_until_multi_round", 0, "what color?", settings, image_of, next_round)
    image, wanted, text = model.task_dict["toy"]["test"][0]["image"], [], "what color?"
    for turn in range(3):
        text = f"is it {generated(adapter, image.rotate(90 * (turn > 0)), text, 3).strip()}?"
        wanted.append(f"{text}!")
    assert model.generate_until_multi_round([request]) == [wanted]


@of_emu3
@pytest.mark.parametrize(
    ("images", "says"), [([], "here are 0;"), (["one", "two"], "here are 2;"), (["film.mp4"], "1 that is no image")]
)
def test_a_task_of_no_or_several_images_fails_before_anything_is_answered(model, monkeypatch, images, says):
    monkeypatch.setattr(model.adapter, "answer", lambda *given, **sampling: pytest.fail("answered"))
    asked = [instance("generate_until", 0, "what?", {}, image_of)]
    asked += [instance("generate_until", 1, "what?", {}, lambda document: images)]
    with pytest.raises(InfotokError, match="document 1 of toy: a question is asked about one image") as error:
        model.generate_until(asked)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"max_new_tokens": LONGEST}),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "do_sample": False, "num_beams": 1, "until": ["\n"]},
         {"max_new_tokens": 16}),
        ({"num_beams": 3}, {"max_new_tokens": LONGEST, "num_beams": 3}),
        ({"temperature": 0.5, "top_p": 0.9, "image_aspect_ratio": "pad"},
         {"max_new_tokens": LONGEST, "do_sample": True, "temperature": 0.5, "top_p": 0.9}),
        ({"do_sample": True}, {"max_new_tokens": LONGEST, "do_sample": True, "temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.7}, {"max_new_tokens": LONGEST}),
    ],
)  # fmt: skip
def test_settings_of_a_task_become_those_of_generate(settings, wanted):
    assert sampling_of(settings) == wanted


def test_it_is_found_whichever_is_imported_first():
    asked = "import lmms_eval.models as models; print(models.get_model('infotok').__module__)"
    for first in ("", "import infotok.mllm.harness.lmms; "):
        command = [sys.executable, "-c", first + asked]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stdout == "infotok.mllm.harness.lmms\n", done.stdout + done.stderr


def test_a_model_with_continuous_tokens_answers_and_has_no_likelihoods(tmp_path, trusted_code):
    tiny_mllm.make("continuous", tmp_path)
    with pytest.raises(InfotokError, match="trust"):
        Infotok(str(tmp_path), dtype="float32", device="cpu")
    model = Infotok(str(tmp_path), dtype="float32", device="cpu", trust=True)
    document = documents()[0]
    model.task_dict["toy"] = {"test": [document]}
    settings = {"max_new_tokens": 3, "temperature": 0, "do_sample": False, "num_beams": 1, "until": ["\n\n"]}
    said = model.generate_until([instance("generate_until", 0, "<image>what color?", settings, image_of)])
    assert said == model.adapter.answer([document["image"]], ["what color?"], max_new_tokens=3)
    with pytest.raises(InfotokError, match="no likelihood in one forward; choose tasks that it answers"):
        model.loglikelihood([instance("loglikelihood", 0, "what color?", "red", image_of)])


def test_an_answer_ends_where_a_stop_begins():
    assert before("red. blue\n\ngreen", ["\n\n", ". ", ""]) == "red"
    assert before(" red ", []) == "red"


def test_bad_arguments_of_the_model_are_one_line(folders, tmp_path):
    for given, says in (
        ({"dtype": "int8"}, "--model_args: dtype=int8 is unknown; use one of float32"),
        ({"batch_size": "auto"}, "--batch_size: auto is no number of questions"),
        ({"batch_size": 0}, "--batch_size: 0 is no number of questions"),
        ({"pretrained": str(tmp_path)}, "cannot be loaded"),
    ):
        with pytest.raises(InfotokError) as error:
            Infotok(**{"pretrained": folders["emu3"], "device": "cpu"} | given)
        assert says in str(error.value)
        assert "\n" not in str(error.value)


# VLMEvalKit.


class BaseModel:
    """What VLMEvalKit's own does with a message that has the form of a list of dictionaries."""

    allowed_types = ["text", "image"]

    def generate(self, message, dataset=None):
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)


class Kit(Answering, BaseModel):
    pass


@pytest.fixture(scope="module")
def kit(folders):
    return Kit(folders["chameleon"], dtype=torch.float32, device="cpu", max_new_tokens=4)


@pytest.fixture
def image(tmp_path):
    images, *_ = tiny_mllm.toy()
    images[2].save(tmp_path / "a.png")
    return {"type": "image", "value": str(tmp_path / "a.png")}


def text(value):
    return {"type": "text", "value": value}


def test_texts_of_a_message_become_one_question_about_its_image(kit, image):
    said = kit.generate([text("Look."), image, text("<image> what color?"), text("A. red")], dataset="Toy")
    with Image.open(image["value"]) as opened:
        assert said == generated(kit.adapter, opened, "Look.\n what color?\nA. red", 4).strip()
        assert said != generated(kit.adapter, opened, "what color?", 4).strip()


def test_a_message_that_it_cannot_answer_is_one_line(kit, image, tmp_path):
    gone, page = ({"type": "image", "value": str(tmp_path / name)} for name in ("gone.png", "page.png"))
    (tmp_path / "page.png").write_text("<html>")
    for message, says in (
        ([text("what?")], "Toy: a question is asked about one image, and here are 0"),
        ([image, image, text("what?")], "here are 2"),
        ([gone], "gone.png cannot be read (No such file or directory)"),
        ([page], "page.png cannot be read (it is no image)"),
        ([image, {"type": "video", "value": "film.mp4"}], "'video' is no part that the model reads"),
    ):
        with pytest.raises(InfotokError) as error:
            kit.generate_inner(message, "Toy")
        assert says in str(error.value)
        assert "\n" not in str(error.value)
