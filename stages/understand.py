"""Stage `understand`: answers, and what information the tokens hold."""

from stages.common import Stage, cell_stage, single

SCORED = {"validation": "", "test": "", "novel": "_novel"}  # splits, and how the names of their metrics end
KERNEL_IMAGES = 1000


@cell_stage
def understand(run: Stage) -> None:
    """Answer every question of validation, test and novel images, and measure the information in the tokens."""
    import numpy as np

    from infotok.data.arrow import read_manifest, read_split, texts_about
    from infotok.evaluation.information import (
        channel_information,
        dependences,
        factor_information,
        generator_code_length,
    )
    from infotok.tokenizer.passes import through
    from infotok.training.runtime import start
    from pipeline.running.artifacts import load_model

    device, seed = start(), run.cell.seed
    config, precision = run.params.understanding, run.params.train.precision
    model, codec = load_model(run.layout, run.cell)
    model.to(device)
    data, manifest = run.layout.data, read_manifest(run.layout.data)
    splits = {name: read_split(data, name) for name in ("train", *SCORED) if name in manifest["splits"]}
    splits["train"] = splits["train"].take(np.arange(min(config.probe_images, len(splits["train"]))))
    sent = {name: through(model.tokenizer, split.images, seed) for name, split in splits.items()}
    test = splits["test"]
    protocol = {
        "images": ", ".join(f"{len(splits[name])} {name}" for name in SCORED if name in splits),
        "channel": model.tokenizer.config.channel,
    }
    metrics = {}
    if "understanding" in manifest["tasks"]:
        answered, how = _answer(run, model, codec, manifest, splits, sent)
        metrics, protocol = metrics | answered, protocol | how
    else:
        protocol["answers"] = f"not asked: {manifest['why_not']['understanding']}"

    (seen, seen_channel), (held, held_channel) = sent["train"], sent["test"]
    metrics |= channel_information(model, seen_channel, held_channel, held)
    said = [texts_about(*both) for both in zip(test.captions, test.questions, strict=True)]
    captions = [max(texts, key=len) for texts in said]
    metrics["information/generator_nll_bits"] = generator_code_length(model, held, captions, codec, precision=precision)
    noise = metrics["information/posterior_entropy_bits"]
    metrics["information/conditional_rate_bits"] = metrics["information/generator_nll_bits"] - noise
    protocol["generator_nll"] = "given the longest text about each test image"
    few = slice(KERNEL_IMAGES)  # their cost grows with the square
    metrics |= dependences(held[few], test.images[few], captions[few], codec, run.params.kernels)
    if factors := manifest.get("factors"):
        metrics |= factor_information(
            seen.vectors, splits["train"], held.vectors, test, factors, steps=config.probe_steps, seed=seed
        )
        protocol["probe"] = f"MLP 256, {config.probe_steps} steps on {len(splits['train'])} training images"
    run.finish(metrics, protocol)


def _answer(run: Stage, model, codec, manifest: dict, splits: dict, sent: dict) -> tuple[dict[str, float], dict]:
    """Accuracies and their protocol."""
    from infotok.data.answers import DESCRIPTIONS
    from infotok.data.arrow import read_split
    from infotok.evaluation.blind import Guess
    from infotok.evaluation.understanding import answer_all
    from infotok.tokenizer import smaller_budgets

    rule = manifest["config"]["answers"]
    batch, longest = run.params.understanding.batch, run.params.understanding.longest_answer
    settings = {"batch": batch, "longest": longest, "precision": run.params.train.precision, "rule": rule}
    guess = Guess(read_split(run.layout.data, "train").questions, rule)
    metrics = {}
    for name, suffix in SCORED.items():
        if name not in splits:
            continue
        answers = answer_all(model, sent[name][0].vectors, splits[name], codec, **settings)
        if name == "validation":
            metrics["understanding/validation"] = answers.accuracy
            continue
        if answers.beyond:
            run.warn(
                f"{answers.beyond} of {len(answers.right)} {name} questions have answers longer than {longest} tokens, "
                "which count as wrong; raise understanding.longest_answer"
            )
        low, high = answers.interval()
        metrics |= {f"understanding/accuracy{suffix}": answers.accuracy}
        metrics |= {f"understanding/accuracy{suffix}_low": low, f"understanding/accuracy{suffix}_high": high}
        blind = guess.accuracies(splits[name].questions)
        metrics |= {f"understanding/{floor}{suffix}": value for floor, value in blind.items()}
        if name == "test":
            cut = answers.cut
            metrics |= {f"understanding/family/{kind}": value for kind, value in answers.by_family().items()}
    if model.tokenizer.config.nested_dropout:
        for budget in smaller_budgets(run.cell.tokens):
            kept = model.tokenizer.keep(sent["test"][0].vectors, budget)
            answers = answer_all(model, kept, splits["test"], codec, **settings)
            metrics[f"understanding/accuracy_at_{budget}"] = answers.accuracy
    protocol = {
        "answers": f"greedy; {DESCRIPTIONS[rule]}",
        "questions": f"{sum(map(len, splits['test'].questions))} test",
        "longest_answer": f"{longest} tokens, which cut {cut} of the model's answers to test questions",
        "question_only": "most frequent training answer to the same text, else start, else family",
        "majority": "most frequent training answer of all",
    }
    return metrics, protocol


if __name__ == "__main__":
    single(understand)
