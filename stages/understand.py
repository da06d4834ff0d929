"""Stage `understand`: answers, and what information the tokens hold."""

from stages.common import Stage, cell_stage, single


@cell_stage
def understand(run: Stage) -> None:
    """Answer every question of validation, test and novel images, and measure the information in the tokens."""
    import numpy as np

    from infotok.data.arrow import read_manifest, read_split
    from infotok.evaluation.information import (
        channel_information,
        dependences,
        factor_information,
        generator_code_length,
    )
    from infotok.evaluation.reconstruction import through
    from infotok.evaluation.understanding import answer_all
    from infotok.information.objective import Kernels
    from infotok.tokenizer import smaller_budgets
    from infotok.training.runtime import start
    from pipeline.artifacts import load_model

    device, seed = start(), run.cell.seed
    config, precision = run.params.understanding, run.params.train.precision
    model, codec = load_model(run.layout, run.cell)
    model.to(device)
    data, metrics, sent = run.layout.data, {}, {}
    splits = {name: read_split(data, name) for name in ("train", "validation", "test", "novel")}
    splits["train"] = splits["train"].take(np.arange(min(config.probe_images, len(splits["train"]))))
    for name, split in splits.items():
        sent[name] = through(model.tokenizer, split.images, seed)
        if name == "train":
            continue
        answers = answer_all(model, sent[name][0].vectors, split, codec, batch=config.batch, precision=precision)
        if name == "test":
            low, high = answers.interval()
            metrics |= {"understanding/accuracy": answers.accuracy}
            metrics |= {"understanding/accuracy_low": low, "understanding/accuracy_high": high}
            metrics |= {f"understanding/family/{kind}": value for kind, value in answers.by_family().items()}
        elif name == "novel":
            low, high = answers.interval()
            metrics |= {"understanding/accuracy_novel": answers.accuracy}
            metrics |= {"understanding/accuracy_novel_low": low, "understanding/accuracy_novel_high": high}
        else:
            metrics["understanding/validation"] = answers.accuracy
    manifest = read_manifest(data)
    metrics["understanding/question_only"] = manifest["splits"]["test"]["question_only"]
    metrics["understanding/question_only_novel"] = manifest["splits"]["novel"]["question_only"]
    if model.tokenizer.config.nested_dropout:
        for budget in smaller_budgets(run.cell.tokens):
            kept = model.tokenizer.keep(sent["test"][0].vectors, budget)
            answers = answer_all(model, kept, splits["test"], codec, batch=config.batch, precision=precision)
            metrics[f"understanding/accuracy_at_{budget}"] = answers.accuracy
    (seen, seen_channel), (held, held_channel) = sent["train"], sent["test"]
    metrics |= channel_information(model, seen_channel, held_channel, held)
    captions = [max(said, key=len) for said in splits["test"].captions]
    metrics["information/generator_nll_bits"] = generator_code_length(
        model, held, captions, codec, precision=precision
    )
    noise = metrics["information/posterior_entropy_bits"]
    metrics["information/conditional_rate_bits"] = metrics["information/generator_nll_bits"] - noise
    kernels = Kernels(**run.params.kernels.model_dump())
    metrics |= dependences(held, splits["test"].images, captions, codec, kernels)
    metrics |= factor_information(
        seen.vectors,
        splits["train"],
        held.vectors,
        splits["test"],
        manifest["factors"],
        steps=config.probe_steps,
        seed=seed,
    )
    protocol = {
        "answers": "greedy, exact match after trimming and lowering case",
        "images": f"{len(splits['test'])} test, {len(splits['novel'])} novel, "
        f"{len(splits['validation'])} validation",
        "questions": f"{sum(map(len, splits['test'].questions))} test",
        "channel": model.tokenizer.config.channel,
        "question_only": "most frequent training answer to the same text, else start, else family",
        "probe": f"MLP 256, {config.probe_steps} steps on {len(splits['train'])} training images",
        "generator_nll": "given the longest caption of each test image",
    }
    run.finish(metrics, protocol)


if __name__ == "__main__":
    single(understand)
