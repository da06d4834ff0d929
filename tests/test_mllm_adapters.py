"""Adapters of real model classes, on tiny random checkpoints that `save_pretrained` has written."""

import importlib
import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
import tiny_mllm
import torch
from safetensors.torch import load_file, save_file

from infotok.errors import InfotokError
from infotok.mllm.adapter import PADDING
from infotok.mllm.codes import codes_of
from infotok.mllm.loading import adapter_names, check_codes, check_finite, load
from infotok.mllm.tiny import CODES

NAMES = tiny_mllm.SHARED


@pytest.fixture
def adapter(folders, request):
    adapter = load(folders[request.param])
    tiny_mllm.settle(adapter, asked(adapter)["pixel_values"])
    return adapter


def asked(adapter, count=3):
    images, questions, *_ = tiny_mllm.toy()
    return adapter.ask(images[:count], questions[:count])


both = pytest.mark.parametrize("adapter", NAMES, indirect=True)
of_chameleon = pytest.mark.parametrize("adapter", ["chameleon"], indirect=True)
of_emu3 = pytest.mark.parametrize("adapter", ["emu3"], indirect=True)


def test_there_is_an_adapter_for_each():
    assert set(NAMES) <= set(adapter_names())


def test_the_page_names_what_each_kind_of_adapter_asks_for():
    page = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text().split("\n## A model\n")[1]
    kinds = re.findall(r"^\| `(\w+)\.(\w+)` \|[^|]*\|([^|]*)\|$", page, re.MULTILINE)
    assert len(kinds) == 3
    for module, kind, given in kinds:
        asked = getattr(importlib.import_module(f"infotok.mllm.{module}"), kind).__abstractmethods__
        assert set(re.findall(r"`(\w+)`", given)) == asked, kind


@both
def test_codes_are_those_of_the_model_s_own_encoding(adapter):
    pixels = asked(adapter)["pixel_values"]
    assert check_codes(adapter, pixels) is None
    assert len(adapter.codes(pixels).unique()) > 4  # not equal because all are one code


@both
def test_codes_that_differ_are_said_or_refused(adapter, monkeypatch):
    pixels = asked(adapter)["pixel_values"]
    own = adapter.own_codes(pixels)
    wrong = own.clone()
    wrong[0, 0, 0] += 1
    monkeypatch.setattr(adapter, "own_codes", lambda pixels: wrong.repeat(3, 1, 1)[: len(pixels)])
    with pytest.raises(InfotokError, match=r"97.92% of the adapter's codes .* requirements.lock"):
        check_codes(adapter, pixels)
    many = pixels.repeat(4, 1, 1, 1)
    monkeypatch.setattr(adapter, "own_codes", lambda pixels: torch.cat([wrong, own, own, own]))
    assert check_codes(adapter, many).startswith("99.48% of the adapter's codes")


@both
def test_embeddings_of_its_codes_are_what_the_model_reads_of_an_image(adapter):
    """Hidden states with codes' embeddings in the place of the image are those of its own forward on pixels."""
    inputs = asked(adapter)
    own = adapter.model.model(**inputs, use_cache=False).last_hidden_state
    embedded = adapter.code_embeddings()[adapter.codes(inputs["pixel_values"])]
    torch.testing.assert_close(adapter.hidden(inputs, adapter.image_outputs(embedded)), own)
    assert not torch.allclose(adapter.hidden(inputs, adapter.image_outputs(embedded.flip(1))), own, atol=1e-3)


@both
def test_gradients_reach_the_embeddings(adapter):
    inputs = asked(adapter)
    embedded = adapter.code_embeddings()[adapter.codes(inputs["pixel_values"])].detach().requires_grad_()
    adapter.hidden(inputs, adapter.image_outputs(embedded))[:, -1].sum().backward()
    assert (embedded.grad.abs().sum(-1) > 0).all()


@both
def test_targets_of_drawing_hold_the_codes(adapter):
    codes = torch.randint(CODES, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    targets = adapter.draw_targets(codes)
    found = codes_of(targets[:, adapter.code_columns(3, 5)], adapter.code_ids(), 10_000)
    assert torch.equal(found.view(2, 3, 5), codes)
    others = targets[:, [c for c in range(targets.shape[1]) if c not in adapter.code_columns(3, 5).tolist()]]
    assert not torch.isin(others, adapter.code_ids()).any()


@both
def test_it_draws_codes_alone_in_the_size_that_is_asked_for(adapter):
    drawn = adapter.draw(["a red square", "a much longer caption"], 2, 3)
    assert drawn.shape == (2, 2, 3)
    torch.manual_seed(0)
    sampled = adapter.draw(["a red square"] * 8, 2, 3, do_sample=True, top_k=0)
    assert len(sampled.unique()) > 8  # every draw is of other codes: 48 of 64
    assert adapter.decode(adapter.codebook()[drawn]).shape == (2, 3, 16, 24)


@both
def test_guided_drawing_follows_logits_with_and_without_the_caption(adapter):
    """Against whole sequences, each alone and without padding or cache: the drawn code is the largest of
    g * with + (1 - g) * without."""
    captions, scale = ["a red square", "a much longer caption than that", ""], 6.0
    drawn = adapter.draw(captions, 3, 4, guidance=scale)

    def logits(caption, codes):
        prompt = adapter.draw_prompt([caption], 3, 4)
        states = adapter.states(prompt, adapter.draw_targets(codes[None]))
        return adapter.head(states)[0, adapter.code_columns(3, 4)][:, adapter.code_ids()]

    with torch.no_grad():
        for caption, codes in zip(captions, drawn, strict=True):
            guided = scale * logits(caption, codes) + (1 - scale) * logits("", codes)
            assert torch.equal(guided.argmax(-1), codes.flatten())
    plain = adapter.draw(captions, 3, 4)
    assert torch.equal(plain[2], drawn[2])  # an empty caption is led nowhere
    assert all((plain[row] != drawn[row]).any() for row in (0, 1))


@of_emu3
def test_emu3_draws_its_prompts_line_ends_and_closing_marks(adapter):
    prompt = adapter.draw_prompt(["a red square"], 2, 3)
    text = adapter.processor.tokenizer.decode(prompt["input_ids"][0])
    assert text.endswith("<|image start|>2*3<|image token|>")
    closing = adapter.processor.tokenizer.convert_ids_to_tokens(adapter.draw_targets(torch.zeros(1, 2, 3).long())[0])
    assert closing[3] == closing[7] == "<|extra_200|>"
    assert closing[-3:] == ["<|extra_201|>", "<|image end|>", "<|extra_204|>"]


def test_emu3_asks_in_its_original_words_where_it_has_no_chat_template(tmp_path):
    adapter = load(tiny_mllm.make("emu3", tmp_path, chat=False))
    text = adapter.processor.tokenizer.decode(asked(adapter)["input_ids"][0])
    assert text.endswith("<|extra_201|><|image end|>what color? ASSISTANT:")


@both
def test_answers_are_texts(adapter):
    images, questions, *_ = tiny_mllm.toy()
    assert len(adapter.answer(images[:2], questions[:2], max_new_tokens=3)) == 2
    targets = adapter.answer_targets(["red", "a green square"])
    end = adapter.processor.tokenizer.eos_token_id
    assert (targets == end).sum(1).tolist() == [1, 1]
    assert targets[0, -1] == PADDING


@both
def test_pixels_come_back_between_0_and_1(adapter):
    images, questions, *_ = tiny_mllm.toy()
    given = adapter.unit_pixels(adapter.ask(images[:1], questions[:1])["pixel_values"])
    wanted = torch.tensor(list(images[0].getdata())).view(32, 32, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(given[0], wanted, rtol=0, atol=0.02)  # Chameleon's factor is 0.0078, not 2 / 255


@both
def test_layers_of_the_language_model_are_none_of_the_tokenizer(adapter):
    linear = [name for name, module in adapter.model.named_modules() if isinstance(module, torch.nn.Linear)]
    chosen = [name for name in linear if re.fullmatch(adapter.lm_layers, name)]
    assert len(chosen) == 7 * 2  # q, k, v, o, gate, up, down of two layers
    inside = {id(module) for module in adapter.tokenizer.modules()}
    assert not any(id(adapter.model.get_submodule(name)) in inside for name in chosen)


# What goes wrong without a word.


@of_chameleon
def test_chameleon_s_own_loss_of_codes_is_useless_and_ours_is_not(adapter):
    """Its forward sets the logits of codes to the smallest of numbers."""
    targets = adapter.draw_targets(torch.zeros(1, 2, 2).long())
    own = adapter.model(input_ids=targets, labels=targets).loss
    assert not own < 1e30
    hidden = adapter.hidden({"input_ids": targets, "attention_mask": torch.ones_like(targets)})
    ours = torch.nn.functional.cross_entropy(adapter.head(hidden[:, :-1]).flatten(0, 1), targets[:, 1:].flatten())
    assert ours < 20


@of_emu3
def test_emu3_s_features_depend_on_the_batch_unless_its_batch_norms_are_in_evaluation_mode(adapter):
    pixels = asked(adapter)["pixel_values"]
    with torch.no_grad():
        alone, together = adapter.features(pixels[:1]), adapter.features(pixels)[:1]
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
        adapter.model.train()
        assert (adapter.features(pixels[:1]) - adapter.features(pixels)[:1]).abs().max() > 0.01


@of_emu3
def test_emu3_s_dropout_is_gone_and_its_configuration_keeps_it(adapter, tmp_path):
    inputs = asked(adapter)
    for layer in adapter.model.model.text_model.layers:
        layer.train()
    first, second = (adapter.model.model(**inputs, use_cache=False).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    adapter.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["attention_dropout"] == 0.1


# Files.


@both
def test_what_is_saved_is_an_ordinary_folder(adapter, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    images, questions, *_ = tiny_mllm.toy()
    adapter.save(tmp_path)
    again = load(str(tmp_path))
    drawn = adapter.draw(["a red square"], 2, 2)
    assert torch.equal(again.draw(["a red square"], 2, 2), drawn)
    assert torch.equal(again.decode(again.codebook()[drawn]), adapter.decode(adapter.codebook()[drawn]))
    plain, processor = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    inputs = asked(adapter, 1)
    own = plain.eval().generate(**inputs, do_sample=False, max_new_tokens=4)
    told = processor.decode(own[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert adapter.answer(images[:1], questions[:1], max_new_tokens=4) == [told.strip()]


@of_chameleon
def test_chameleon_s_decoder_is_found_where_it_lies(adapter, folders, tmp_path):
    assert adapter.extra_is_new
    state = {f"decoder.{name}": value + 1 for name, value in adapter.extra.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")  # the original's form
    found = load(folders["chameleon"], decoder=tmp_path / "vqgan.ckpt")
    assert not found.extra_is_new
    assert torch.equal(found.extra.conv_in.weight, adapter.extra.conv_in.weight + 1)
    # Anole's form: among the weights of transformers
    adapter.model.save_pretrained(tmp_path / "anole")
    adapter.processor.save_pretrained(tmp_path / "anole")
    weights = load_file(tmp_path / "anole/model.safetensors")
    weights |= {f"model.vqmodel.{name}": value for name, value in state.items()}
    save_file(weights, tmp_path / "anole/model.safetensors", {"format": "pt"})
    found = load(str(tmp_path / "anole"))
    assert torch.equal(found.extra.conv_in.weight, adapter.extra.conv_in.weight + 1)


# Bad input.


def said(function, *arguments, **settings):
    with pytest.raises(InfotokError) as error:
        function(*arguments, **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_folder_that_is_no_model(tmp_path):
    assert "save_pretrained" in said(load, str(tmp_path))
    for content in ("{}", '{"transformers_version": "5.0.0"}'):
        (tmp_path / "config.json").write_text(content)
        assert "names a model_type" in (message := said(load, str(tmp_path)))
        assert "save_pretrained" in message


def test_a_configuration_with_values_of_other_types(folders, tmp_path):
    import json
    import shutil

    shutil.copytree(folders["emu3"], tmp_path / "emu3")
    config = json.loads((tmp_path / "emu3/config.json").read_text())
    config["vq_config"]["attn_resolutions"] = None
    (tmp_path / "emu3/config.json").write_text(json.dumps(config))
    assert "attn_resolutions" in said(load, str(tmp_path / "emu3"))


def test_a_model_without_an_adapter(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig().save_pretrained(tmp_path)
    assert "'llama'" in (message := said(load, str(tmp_path)))
    assert "infotok/mllm/adapters/llama.py" in message


def test_weights_that_are_missing(folders, tmp_path):
    import shutil

    shutil.copytree(folders["emu3"], tmp_path / "emu3")
    (tmp_path / "emu3/model.safetensors").unlink()
    assert "cannot be loaded" in said(load, str(tmp_path / "emu3"))


@pytest.mark.parametrize("family", ["chameleon", "emu3"])
def test_weights_some_of_which_are_missing(family, folders, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folders[family], tmp_path / family)
    weights = load_file(path := tmp_path / family / "model.safetensors")
    name = next(name for name in weights if name.endswith("encoder.conv_in.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, path, {"format": "pt"})
    assert "lack 1 of the model's tensors" in (message := said(load, str(tmp_path / family)))
    assert f"{name}; " in message


def test_weights_that_are_not_finite(folders):
    adapter = load(folders["emu3"])
    check_finite(adapter)
    name, weights = list(adapter.model.named_parameters())[-1]
    with torch.no_grad():
        weights.view(-1)[-1] = torch.nan
    assert f"name: its weights are not finite, such as {name}; " in said(check_finite, adapter)


def test_a_decoder_that_does_not_fit(folders, tmp_path):
    torch.save({"state_dict": {}, "callbacks": Fraction(1, 2)}, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    for content in (b"nonsense", b"hello", b"", b"PK\x03\x04" + bytes(200), whole[: len(whole) // 2]):
        for name in ("other.ckpt", "other.safetensors"):
            (tmp_path / name).write_bytes(content)
            message = said(load, folders["chameleon"], decoder=tmp_path / name)
            assert message.startswith(f"decoder: {tmp_path / name} is no checkpoint, or is damaged; give a VQGAN's")
    assert "other objects" in said(load, folders["chameleon"], decoder=tmp_path / "whole.ckpt")
    assert "No such file" in said(load, folders["chameleon"], decoder=tmp_path / "none.ckpt")
    assert "Is a directory" in said(load, folders["chameleon"], decoder=tmp_path)
    torch.save([torch.zeros(1)], tmp_path / "other.ckpt")
    assert "has no decoder" in said(load, folders["chameleon"], decoder=tmp_path / "other.ckpt")
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "other.ckpt")
    assert "has no decoder" in said(load, folders["chameleon"], decoder=tmp_path / "other.ckpt")
    torch.save({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "other.ckpt")
    assert "another shape" in said(load, folders["chameleon"], decoder=tmp_path / "other.ckpt")
    assert "of its own" in said(load, folders["emu3"], decoder=tmp_path / "other.ckpt")


@of_emu3
def test_images_that_do_not_become_one_size(adapter):
    images, questions, *_ = tiny_mllm.toy()
    assert "one size" in said(adapter.ask, [images[0], images[1].crop((0, 0, 32, 16))], questions[:2])


@of_emu3
def test_an_image_that_the_processor_refuses(adapter):
    image = tiny_mllm.toy()[0][0].resize((1100, 5))
    assert "refuses this input (absolute aspect ratio" in said(adapter.ask, [image], ["what?"])
