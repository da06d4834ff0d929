"""Stage `understand`: answers, and what information the tokens hold."""

from dataclasses import dataclass

import numpy as np

from infotok.data.answers import DESCRIPTIONS
from infotok.data.arrow import Split, read_manifest, read_split, texts_about
from infotok.data.text import TextCodec
from infotok.evaluation.blind import Guess
from infotok.evaluation.information import (
    channel_information,
    dependences,
    factor_information,
    generator_code_length,
)
from infotok.evaluation.understanding import Answers, UnderstandingConfig, answer_all
from infotok.information.channel import Channel
from infotok.information.kernels import Kernels
from infotok.models.files import load_model
from infotok.models.unified import UnifiedModel
from infotok.tokenizer import smaller_budgets
from infotok.tokenizer.base import Tokens
from infotok.tokenizer.passes import through
from infotok.training.joint import JointConfig
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main

SCORED = {"validation": "", "test": "", "novel": "_novel"}  # splits, and how the names of their metrics end
KERNEL_IMAGES = 1000  # of the test split, at most, in kernel dependences, whose cost grows with the square


@dataclass
class Seen:
    """A split, its images' tokens and the distribution that these follow."""

    split: Split
    tokens: Tokens
    channel: Channel


def understand(run: Stage) -> None:
    """Answer every question of validation, test and novel images, and measure the information in the tokens."""
    device, seed, data = start(), run.cell.seed, run.input("prepare")
    config, precision = run.config(UnderstandingConfig), run.config(JointConfig).precision
    model, codec = load_model(run.input("train"), run.remedy("train"))
    model.to(device)
    manifest = read_manifest(data)
    splits = {name: read_split(data, name) for name in ("train", *SCORED) if name in manifest["splits"]}
    whole_train = splits["train"]
    splits["train"] = whole_train.take(np.arange(min(config.probe_images, len(whole_train))))
    seen = {name: Seen(split, *through(model.tokenizer, split.images, seed)) for name, split in splits.items()}
    train, test = seen["train"], seen["test"]
    protocol = {
        "images": ", ".join(f"{len(seen[name].split)} {name}" for name in SCORED if name in seen),
        "channel": model.tokenizer.config.channel,
    }
    metrics: dict[str, float] = {}
    if "understanding" in manifest["tasks"]:
        answered, how = _answer(run, model, codec, whole_train, seen)
        metrics, protocol = metrics | answered, protocol | how
    else:
        protocol["answers"] = f"not asked: {manifest['why_not']['understanding']}"

    metrics |= channel_information(model, train.channel, test.channel, test.tokens)
    texts = [texts_about(*both) for both in zip(test.split.captions, test.split.questions, strict=True)]
    captions = [max(about, key=len) for about in texts]
    length = generator_code_length(model, test.tokens, captions, codec, precision=precision)
    metrics["information/generator_nll_bits"] = length
    metrics["information/conditional_rate_bits"] = length - metrics["information/posterior_entropy_bits"]
    protocol["generator_nll"] = "given the longest text about each test image"
    few = slice(KERNEL_IMAGES)
    metrics |= dependences(test.tokens[few], test.split.images[few], captions[few], codec, run.config(Kernels))
    if factors := manifest.get("factors"):
        metrics |= factor_information(
            train.tokens.vectors,
            train.split,
            test.tokens.vectors,
            test.split,
            factors,
            steps=config.probe_steps,
            seed=seed,
        )
        protocol["probe"] = f"MLP 256, {config.probe_steps} steps on {len(train.split)} training images"
    run.finish(metrics, protocol)


def _answer(
    run: Stage, model: UnifiedModel, codec: TextCodec, train: Split, seen: dict[str, Seen]
) -> tuple[dict[str, float], dict]:
    """Accuracies, what guessing without the image would reach, and their protocol."""
    config, precision = run.config(UnderstandingConfig), run.config(JointConfig).precision
    rule, longest = config.answers, config.longest_answer
    settings = {"batch": config.batch, "longest": longest, "precision": precision, "rule": rule}

    def answer(name: str, budget: int = 0) -> Answers:
        vectors = seen[name].tokens.vectors
        kept = model.tokenizer.keep(vectors, budget) if budget else vectors
        return answer_all(model, kept, seen[name].split, codec, **settings)

    metrics, guess, cut = {}, Guess(train.questions, rule), 0
    for name, suffix in SCORED.items():
        if name not in seen:
            continue
        answers = answer(name)
        if name == "validation":
            metrics["understanding/validation"] = answers.accuracy
            continue
        if unseen := guess.unseen(seen[name].split):
            first = f", the first in {unseen[0]}" if unseen[0] else ""
            run.warn(
                f"{len(unseen)} of {len(answers.right)} {name} questions have answers that training never shows{first}"
            )
        if answers.beyond:
            run.warn(
                f"{answers.beyond} of {len(answers.right)} {name} questions have answers longer than {longest} tokens, "
                "which count as wrong; raise understanding.longest_answer"
            )
        low, high = answers.interval()
        metrics |= {f"understanding/accuracy{suffix}": answers.accuracy}
        metrics |= {f"understanding/accuracy{suffix}_low": low, f"understanding/accuracy{suffix}_high": high}
        floors = guess.accuracies(seen[name].split.questions)
        metrics |= {f"understanding/{floor}{suffix}": value for floor, value in floors.items()}
        if name == "test":
            cut = answers.cut
            metrics |= {f"understanding/family/{kind}": value for kind, value in answers.by_family().items()}
    if model.tokenizer.config.nested_dropout:
        for budget in smaller_budgets(run.cell.tokens):
            metrics[f"understanding/accuracy_at_{budget}"] = answer("test", budget).accuracy
    protocol = {
        "answers": f"greedy; {DESCRIPTIONS[rule]}",
        "questions": f"{sum(map(len, seen['test'].split.questions))} test",
        "longest_answer": f"{longest} tokens, which cut {cut} of the model's answers to test questions",
        "question_only": "most frequent training answer to the same text, else start, else family",
        "majority": "most frequent training answer of all",
    }
    return metrics, protocol


if __name__ == "__main__":
    main("understand")
