"""Pretrained language models in the backbone's place, and models from their files."""

import json

import pytest
import torch

from infotok.data.text import TextCodec, train_text_tokenizer
from infotok.data.texts import TextBatch
from infotok.errors import InfotokError
from infotok.models.backbone import Backbone, BackboneConfig, text_codec
from infotok.models.files import load_model, save_model
from infotok.models.unified import UnifiedModel
from infotok.tensors import load_module, module_tensors
from tiny import gradients, images, model, question, seeded, tokenizer


@pytest.fixture
def saved_lm(tmp_path):
    """A causal LM of another architecture with its own text tokenizer, as save_pretrained leaves it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "what", "color", "red", "blue", "a", "thing"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    own = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=8, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    GPT2LMHeadModel(sizes).save_pretrained(tmp_path)
    own.save_pretrained(tmp_path)
    return tmp_path


def test_a_pretrained_lm_takes_the_backbones_place(saved_lm, tmp_path):
    config = BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1)
    codec = text_codec(config, tmp_path / "unused.json")
    assert isinstance(codec, TextCodec)
    assert codec.decode([*codec.encode("red thing"), codec.end]) == "red thing"
    tested = model(config)
    assert tested.backbone.width == 16
    asked = question([[*codec.encode("what color"), *codec.encode("red"), codec.end]] * 3, 2)
    captions = torch.tensor([[codec.end, *codec.encode("a red thing")]] * 3)
    batch = TextBatch([asked], captions, torch.ones_like(captions, dtype=torch.bool))
    out = tested(images(), batch, seeded())
    (out.answer_loss + out.drawing.loss).backward()
    assert gradients(tested.backbone) > 0

    description = json.loads(json.dumps(tested.backbone.describe()))
    again = UnifiedModel("ar", tokenizer(), Backbone.from_description(description))
    load_module(again, module_tensors(tested), tmp_path / "model.safetensors", "")
    with torch.no_grad():
        back = again.eval()(images(), batch, seeded())
    assert torch.equal(back.answer_loss, out.answer_loss)
    answers = tested.answer(out.tokens.vectors.detach(), asked.ids[:, :2], asked.valid[:, :2], 3, codec.end)
    assert answers.shape == (3, 3)


def test_a_backbone_that_cannot_be_loaded_is_named(tmp_path):
    config = BackboneConfig(name=str(tmp_path / "nothing"), width=1, layers=1, heads=1)
    for load in (lambda: Backbone.create(config, 8), lambda: text_codec(config, tmp_path)):
        with pytest.raises(InfotokError, match=r"^backbone\.name: .* cannot be loaded"):
            load()


@pytest.mark.parametrize("name", ["llama", "folder"])
def test_a_saved_model_is_loaded_from_its_own_files_alone(saved_lm, tmp_path, name):
    if name == "folder":
        config = BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1)
        codec, made = text_codec(config, saved_lm / "unused.json"), model(config)
    else:
        trained = train_text_tokenizer(["what color", "a red thing"], 300)
        codec = TextCodec(trained, trained.token_to_id("<pad>"), trained.token_to_id("<end>"))
        made = model()
    folder = tmp_path / "trained"
    save_model(made, codec, folder)
    for file in saved_lm.iterdir():  # the pretrained folder may be gone by then
        if file.is_file():
            file.unlink()
    back, codec_back = load_model(folder, "")
    assert not back.training
    assert (codec_back.pad, codec_back.end) == (codec.pad, codec.end)
    assert codec_back.encode("a red thing") == codec.encode("a red thing")
    captions = torch.tensor([[1, 5, 6], [1, 4, 7], [1, 2, 3]])
    batch = TextBatch([question([[2, 3, 4, 1]] * 3, 2)], captions, torch.ones_like(captions, dtype=torch.bool))
    with torch.no_grad():
        one, other = (each(images(), batch, seeded()) for each in (made, back))
        assert torch.equal(one.answer_loss, other.answer_loss)
        assert torch.equal(one.drawing.distribution.logits, other.drawing.distribution.logits)
        assert torch.equal(one.text, other.text)
        asked = [each.answer(one.tokens.vectors, captions, captions > 0, 4, codec.end) for each in (made, back)]
        assert torch.equal(*asked)
        assert torch.equal(made.tokenizer.decode(one.tokens.vectors), back.tokenizer.decode(one.tokens.vectors))


def test_a_missing_model_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(InfotokError, match=r"model\.safetensors: is missing; run `dvc repro train@ar-none-0-0-4-0`"):
        load_model(tmp_path, "run `dvc repro train@ar-none-0-0-4-0`")


def without_tokenizer(kind, folder):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(folder)
    else:
        GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    return BackboneConfig(name=str(folder), width=1, layers=1, heads=1)


@pytest.mark.parametrize(
    "kind",
    ["llama", "gpt2"],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path, kind):
    config = without_tokenizer(kind, tmp_path / kind)
    assert Backbone.create(config, 8).width == 16
    with pytest.raises(InfotokError, match=r"^backbone\.name: "):
        text_codec(config, tmp_path / "unused.json")


def test_a_tokenizer_without_an_end_token_is_refused(saved_lm):
    settings = json.loads((saved_lm / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (saved_lm / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InfotokError, match=r"^backbone\.name: .* no fast tokenizer with an end token"):
        text_codec(BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1), saved_lm / "unused.json")


def test_a_pretrained_lm_computes_the_same_twice_in_training(saved_lm):
    tested = model(BackboneConfig(name=str(saved_lm), width=1, layers=1, heads=1)).train()
    captions = torch.ones(3, 2, dtype=torch.long)
    batch = TextBatch([question([[2, 3, 4, 1]] * 3, 2)], captions, captions > 0)
    with torch.no_grad():
        one, other = (tested(images(), batch, seeded()) for _ in range(2))
    assert torch.equal(one.answer_loss, other.answer_loss)
