"""Stage `prepare`: make the data set, its questions and the text tokenizer."""

import json

from stages.common import Stage, shared_stage, single


@shared_stage
def prepare(run: Stage) -> None:
    """Make the data: images, captions, questions and factors as Arrow, a manifest, and the text tokenizer."""
    import importlib

    from infotok.data.arrow import write_split
    from infotok.data.questions import question_only
    from infotok.data.text import train_text_tokenizer
    from pipeline.results import write_text

    config = run.params.data
    source = importlib.import_module(f"infotok.data.sources.{config.source}")
    folder, splits, texts, train = run.folder, {}, [], []
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in source.prepare(config.model_dump()):
        questions = [pair for asked in split.questions for pair in asked]
        splits[name] = {
            "images": len(split),
            "captions": sum(map(len, split.captions)),
            "questions": len(questions),
            "sha256": write_split(split, folder / f"{name}.arrow"),
        }
        if name == "train":
            texts = [text for said in split.captions for text in said]
            texts += [text for pair in questions for text in (pair["question"], pair["answer"])]
            train = split.questions
        else:
            splits[name]["question_only"] = question_only(train, split.questions)
    write_text(folder / "text.json", train_text_tokenizer(texts, config.vocabulary).to_str())
    manifest = {"source": config.source, "config": config.model_dump(), "splits": splits, **source.METADATA}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    metrics = {f"data/{name}": float(about["images"]) for name, about in splits.items()}
    metrics |= {f"data/question_only_{name}": splits[name]["question_only"] for name in splits if name != "train"}
    run.finish(metrics, {"source": config.source, "seed": config.seed})


if __name__ == "__main__":
    single(prepare)
