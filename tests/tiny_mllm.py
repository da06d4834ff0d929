"""Tiny random checkpoints of real model classes with their processors, and a toy that they can learn."""

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CODES = 64
COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 60, 230), "yellow": (230, 220, 40)}
SHAPES = ("square", "stripe")
QUESTION = "what color?"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TOKENIZER = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1}
LANGUAGE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def toy(shift=range(1)):
    """Images of 32 x 32, a question, an answer and a caption of each; shift: pixels by which shapes are moved."""
    rows = []
    for color, rgb in COLORS.items():
        for shape in SHAPES:
            for by in shift:
                pixels = np.full((32, 32, 3), 235, np.uint8)
                across = slice(8 + by, 24 + by) if shape == "square" else slice(12 + by, 20 + by)
                pixels[slice(8, 24) if shape == "square" else slice(None), across] = rgb
                rows.append((Image.fromarray(pixels), QUESTION, color, f"a {color} {shape}"))
    images, questions, answers, captions = map(list, zip(*rows, strict=True))
    return images, questions, answers, captions


def text_tokenizer(specials, **named):
    words = [f"a {color} {shape}" for color in COLORS for shape in SHAPES] + [QUESTION]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(specials) + 40, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def chameleon(folder):
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    codes = ["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(CODES)]
    named = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    base = ["<pad>", "<s>", "</s>", "<reserved08706>"]
    special = dict(zip(("pad_token", "bos_token", "eos_token", "sep_token"), base, strict=True))
    tokenizer = text_tokenizer([*base, *named.values(), *codes], **special, extra_special_tokens=named)
    vocabulary = tokenizer.get_vocab()
    config = ChameleonConfig(
        vocabulary_map={name: vocabulary[name] for name in (*codes, *named.values())},
        vocab_size=len(tokenizer),
        num_key_value_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        vq_config=TOKENIZER | {"embed_dim": 16, "num_embeddings": CODES, "latent_channels": 16, "resolution": 32},
        **LANGUAGE,
    )
    images = ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ChameleonProcessor(images, tokenizer, image_seq_length=16).save_pretrained(folder)
    ChameleonForConditionalGeneration(config).save_pretrained(folder)


def emu3(folder, chat=True):
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3ImageProcessor, Emu3Processor

    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
        "eol_token": "<|extra_200|>",
    }
    base = ["<|endoftext|>", "<|extra_203|>", "<|extra_204|>"]
    special = dict(zip(("pad_token", "bos_token", "eos_token"), base, strict=True))
    tokenizer = text_tokenizer([*base, *named.values(), *codes], **special, extra_special_tokens=named)
    vocabulary = tokenizer.get_vocab()
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LANGUAGE | ends | {"vocab_size": len(tokenizer), "num_key_value_heads": 2, "max_position_embeddings": 512}
    vq = {"codebook_size": CODES, "embed_dim": 4, "latent_channels": 4, "hidden_size": 32, "attn_resolutions": [3]}
    config = Emu3Config(
        vocabulary_map={name: vocabulary[name] for name in (*codes, *named.values())},
        text_config=text | {"attention_dropout": 0.1},  # as Emu3's own
        vq_config=TOKENIZER | vq | {"temporal_downsample_factor": 4},
    )
    images = Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64, spatial_factor=8)
    Emu3Processor(images, tokenizer, chat_template=TEMPLATE if chat else None).save_pretrained(folder)
    Emu3ForConditionalGeneration(config).save_pretrained(folder)


def janus(folder):
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor, LlamaConfig
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    named = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    base = ["<pad>", "<s>", "</s>"]
    special = dict(zip(("pad_token", "bos_token", "eos_token"), base, strict=True))
    tokenizer = text_tokenizer([*base, *named.values()], **special, extra_special_tokens=named)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    vq = {"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 16, "num_patches": 4}
    config = JanusConfig(
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        text_config=LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=4, **LANGUAGE, **ends),
        vision_config=vision | {"projection_dim": 64, "num_image_tokens": 16},
        vq_config=TOKENIZER | vq | {"projection_dim": 64, "image_token_embed_dim": 64},
    )
    model = JanusForConditionalGeneration(config)
    begin = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    model.generation_config.generation_kwargs = {"boi_token_id": begin}
    model.generation_config._from_model_config = False
    half = [0.5] * 3
    images = JanusImageProcessorPil(size={"height": 32, "width": 32}, image_mean=half, image_std=half)
    JanusProcessor(images, tokenizer, num_image_tokens=16).save_pretrained(folder)
    model.save_pretrained(folder)


SHARED = ("chameleon", "emu3")
MAKERS = {"chameleon": chameleon, "emu3": emu3, "janus": janus}


def make(name, folder, **settings):
    torch.manual_seed(0)
    MAKERS[name](folder, **settings)
    return str(folder)


@torch.no_grad()
def settle(adapter, pixels):
    """Give a random tokenizer what a trained one has: codes that lie where its features do."""
    flat = adapter.features(pixels).flatten(0, 2)
    book = adapter.codebook()
    chosen = torch.randint(len(flat), (len(book),), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(book.shape, generator=torch.Generator().manual_seed(1))
    book.copy_(flat[chosen] + 0.05 * flat.std() * noise)
