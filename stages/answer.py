"""Stage `answer`: a tuned model's answers, and what information its tokens hold."""

from infotok.data.answers import DESCRIPTIONS
from infotok.data.arrow import read_manifest, read_split
from infotok.evaluation.blind import Guess
from infotok.evaluation.statistics import wilson_interval
from infotok.mllm.data import Pictures, background_of
from infotok.mllm.options import AnswerConfig
from infotok.mllm.scoring import answer_all, grid_of, information, reconstruct, token_use, tokens_of_images
from infotok.mllm.tuning import TuneConfig
from infotok.training.runtime import start
from pipeline.running.stage import Stage
from stages.common import main
from stages.opening import open_tuned

SCORED = {"validation": "", "test": "", "novel": "_novel"}  # splits, and how the names of their metrics end


def answer(run: Stage) -> None:
    """Answer every question about validation, test and novel images, and measure the tokens of the test images."""
    config, data, device = run.config(AnswerConfig), run.input("prepare"), start()
    tuned = open_tuned(run, run.model, run.input("tune"), run.remedy("tune"), device)
    adapter = tuned.adapter
    manifest, grid = read_manifest(data), grid_of(adapter)
    splits = {name: read_split(data, name) for name in SCORED if name in manifest["splits"]}
    seen = {name: Pictures(split, background_of(data)) for name, split in splits.items()}
    rows = {name: range(min(config.images, len(split))) for name, split in splits.items()}
    metrics: dict[str, float] = {}
    protocol = {"images": ", ".join(f"{len(chosen)} {name}" for name, chosen in rows.items())}
    if "understanding" in manifest["tasks"]:
        guess = Guess(read_split(data, "train").questions, config.answers)
        settings = {"batch": config.batch, "longest": config.longest_answer, "rule": config.answers}
        for name, suffix in SCORED.items():
            if name not in seen:
                continue
            answers = answer_all(adapter, seen[name], rows[name], grid, **settings)
            if name == "validation":
                metrics["understanding/validation"] = answers.accuracy
                continue
            low, high = wilson_interval(float(answers.right.sum()), len(answers.right))
            metrics[f"understanding/accuracy{suffix}"] = answers.accuracy
            metrics |= {f"understanding/accuracy{suffix}_low": low, f"understanding/accuracy{suffix}_high": high}
            asked = [splits[name].questions[row] for row in rows[name]]
            metrics |= {f"understanding/{floor}{suffix}": value for floor, value in guess.accuracies(asked).items()}
            if name == "test":
                metrics |= {f"understanding/family/{kind}": value for kind, value in answers.by_family().items()}
                protocol["questions"] = f"{len(answers.right)} test"
                protocol["longest_answer"] = f"{config.longest_answer} tokens, which cut {answers.cut} of the answers"
        protocol["answers"] = f"greedy, by the saved model's own generate; {DESCRIPTIONS[config.answers]}"
    else:
        protocol["answers"] = f"not asked: {manifest['why_not']['understanding']}"
    pictures, chosen, batch = seen["test"], rows["test"], run.config(TuneConfig).batch
    tokens = tokens_of_images(adapter, pictures, chosen, grid, batch)
    found = token_use(adapter, tokens, tuned.variance)
    found |= information(adapter, tuned.bottleneck, tuned.variance, pictures, chosen, grid, batch)
    metrics |= {f"information/{name}": value for name, value in found.items()}
    quality, _ = reconstruct(adapter, pictures, chosen, grid, batch)
    metrics |= {f"reconstruction/{name}": value for name, value in quality.items()}
    run.finish(metrics, protocol)


if __name__ == "__main__":
    main("answer")
