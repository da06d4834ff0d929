"""A tiny model with continuous tokens in the manner of Harmon and Show-o2, as a folder of a user would bring it: a
causal language model that reads vectors, and a rectified flow that draws them one after the other."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from infotok.random import shared_random

PATCH = 8
STEPS = 8  # of the flow, by Euler's rule


class TinyConfig(PretrainedConfig):
    model_type = "continuous"

    def __init__(self, vocab_size=400, width=64, dimension=8, image_side=32, **others):
        super().__init__(**others)
        self.vocab_size, self.width, self.dimension, self.image_side = vocab_size, width, dimension, image_side


class Vision(nn.Module):
    def __init__(self, dimension):
        super().__init__()
        self.inward = nn.Sequential(nn.Conv2d(3, 32, PATCH, PATCH), nn.GELU(), nn.Conv2d(32, dimension, 1))
        self.norm = nn.LayerNorm(dimension, elementwise_affine=False)
        self.outward = nn.Sequential(nn.Conv2d(dimension, 64, 1), nn.GELU(), nn.ConvTranspose2d(64, 3, PATCH, PATCH))


class TinyModel(PreTrainedModel):
    config_class = TinyConfig
    lm_layers = r"language\.model\.layers\.\d+\..*_proj"

    def __init__(self, config):
        super().__init__(config)
        sizes = {"hidden_size": config.width, "intermediate_size": 2 * config.width, "num_attention_heads": 4}
        self.language = LlamaForCausalLM(LlamaConfig(vocab_size=config.vocab_size, num_hidden_layers=2, **sizes))
        self.vision = Vision(config.dimension)
        self.project = nn.Linear(config.dimension, config.width)
        self.begin = nn.Parameter(torch.randn(config.width) * 0.5)
        inputs = config.width + config.dimension + 1
        self.flow = nn.Sequential(nn.Linear(inputs, 128), nn.SiLU(), nn.Linear(128, config.dimension))
        self.post_init()

    @property
    def encoders(self):
        return [self.vision.inward]

    @property
    def image_side(self):
        return self.config.image_side

    def get_input_embeddings(self):
        return self.language.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language.lm_head

    def encode(self, pixels):
        return self.vision.norm(self.vision.inward(pixels).permute(0, 2, 3, 1))

    def decode(self, vectors):
        return self.vision.outward(vectors.permute(0, 3, 1, 2))

    def embed(self, vectors):
        return self.project(vectors.flatten(1, 2))

    def hidden(self, embedded, mask, image):
        return self.language.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state

    def write(self, embedded, mask, image, max_new_tokens):
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
        return self.language.generate(inputs_embeds=embedded, attention_mask=mask, **settings)

    def states(self, embedded, mask, vectors):
        """Of every token, given the prompt and the tokens before it; vectors: (B, k, D)."""
        begin = self.begin.expand(len(embedded), 1, -1)
        read = torch.cat([embedded, begin, self.project(vectors)], 1)
        longer = torch.cat([mask, mask.new_ones(len(mask), vectors.shape[1] + 1)], 1)
        return self.hidden(read, longer, None)[:, embedded.shape[1] :]

    def velocity(self, vectors, time, states):
        return self.flow(torch.cat([vectors, time, states], -1))

    def draw_loss(self, embedded, mask, vectors, generator):
        vectors = vectors.flatten(1, 2)
        states = self.states(embedded, mask, vectors[:, :-1])
        time = shared_random(torch.rand, (*vectors.shape[:2], 1), generator)
        noise = shared_random(torch.randn, vectors.shape, generator)
        velocity = self.velocity(torch.lerp(noise, vectors, time), time, states)
        return (velocity - (vectors - noise)).square().mean()

    def draw(self, embedded, mask, h, w, generator, temperature=1.0):
        vectors = embedded.new_zeros(len(embedded), 0, self.config.dimension)
        for _ in range(h * w):
            states = self.states(embedded, mask, vectors)[:, -1:]
            made = temperature * torch.randn(len(states), 1, self.config.dimension, generator=generator)
            for step in range(STEPS):
                time = torch.full((len(states), 1, 1), step / STEPS)
                made = made + self.velocity(made, time, states) / STEPS
            vectors = torch.cat([vectors, made], 1)
        return vectors.view(len(vectors), h, w, -1)

    def question(self, text):
        return f"<s>user: <image>{text} assistant: "

    def caption(self, text):
        return f"<s>{text}<draw>"
