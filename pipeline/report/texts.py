"""The report in sentences: what was found, what its seeds can show, and what every figure shows."""

from __future__ import annotations

import math

from infotok.evaluation.statistics import student_quantile
from pipeline.config.cells import NONE
from pipeline.report.analysis import Analysis, Choice
from pipeline.report.frame import of_arm, present, terms_of
from pipeline.report.metrics import HEADLINE, shown
from pipeline.report.tables import interval, p_text, signed


def findings(analysis: Analysis) -> list[str]:
    """One sentence per family and token budget: what the best validated arm did to every task."""
    sentences = []
    for choice in (choice for choice in analysis.choices if choice.best):
        parts, blind = [], []
        for task in analysis.tasks:
            if row := analysis.comparison(choice, task.claim):
                change = f"{task.title} {row['baseline']:.3f} → {row['infotok']:.3f}"
                parts.append(f"{change} ({signed(row['difference'])}; {_verdict(row)})")
                floor = max((analysis.frame[name].mean() for name in task.floors if name in analysis.frame), default=0)
                if max(row["baseline"], row["infotok"]) <= floor:
                    blind.append(f" Neither exceeds {task.label} without the image ({floor:.3f}).")
        if not parts:
            continue
        name = f"{choice.arm} ({terms_of(choice.terms)})"
        chosen = f"validation chooses {name}"
        if choice.tied:
            chosen = f"on validation all arms tie ({choice.validation:.3f}), so that it chooses none; this is {name}"
        text = f"{choice.family}, K = {choice.tokens}: {chosen}. {'; '.join(parts)}."
        text += "".join(blind)
        if choice.validation == choice.baseline and not choice.tied:
            text += f" On validation it ties with none-0-0 ({choice.baseline:.3f})."
        if choice.validation < choice.baseline:
            scores = f"{choice.validation:.3f} against {choice.baseline:.3f}"
            text += f" Validation itself prefers none-0-0 to it ({scores})."
        if added := _added(analysis, choice):
            text += f" {added}"
        if choice.estimator == NONE and len(analysis.chosen(choice.family, choice.tokens)) > 1:
            text += " No arm with compression validates higher."
        if choice.edges:
            lie = "lie" if "and" in choice.edges else "lies"
            text += f" Its {choice.edges} {lie} at the edge of the grid, so the optimum may lie outside it."
        sentences.append(text)
    return sentences or ["No arm has both a validation score and none-0-0 beside it: there is nothing to compare."]


def _added(analysis: Analysis, choice: Choice) -> str:
    """What compression adds to consistency in a chosen arm that has both, where that can be told."""
    rows = of_arm(analysis.factorial, choice.terms)
    rows = rows[(rows.family == choice.family) & (rows.tokens == choice.tokens) & (rows.effect == "beta_after_gamma")]
    found = {row["metric"]: row for row in rows.to_dict("records")}
    parts = [
        f"{task.label} {signed(row['difference'])}" + (f" {interval(row)}" if row["seeds"] > 1 else "")
        for task in analysis.tasks
        if (row := found.get(task.claim))
    ]
    return f"Of that, β adds to consistency alone: {', '.join(parts)}." if parts else ""


def _verdict(row: dict) -> str:
    answer = row["excludes_zero"]
    if answer == "no interval":
        return "one seed gives no interval" if row["seeds"] == 1 else answer
    verdict = f"95 % interval {interval(row)}, {'excludes' if answer == 'yes' else 'does not exclude'} zero"
    return f"{verdict}, Holm-adjusted p {_equals(p_text(row['p_holm']))}"


def _equals(value: str) -> str:
    return value.replace("<", "< ") if value.startswith("<") else f"= {value}"


def seeds_sentence(analysis: Analysis) -> str:
    """What this number of seeds can and cannot show."""
    rows = [analysis.comparison(choice, metric) for choice in analysis.choices for metric in HEADLINE]
    counts = [row["seeds"] for row in rows if row]
    if not counts:
        return "Without none-0-0 beside the other arms no difference can be shown."
    seeds = min(counts)
    if seeds == 1:
        return (
            "With one seed no interval can be given: every difference here is a single observation and may "
            f"be chance. Add seeds to grid.seed in {analysis.study.params_file} for a claim about the method."
        )
    reach = student_quantile(0.975, seeds - 1) / math.sqrt(seeds)
    freedom = f"{seeds - 1} degree{'s' if seeds > 2 else ''} of freedom"
    number = f"{len(counts)} headline interval{'s' * (len(counts) != 1)}"
    return (
        f"With {seeds} seeds, Student's t ({freedom}) reaches {reach:.2f} standard deviations of the seeds' "
        "differences to each side: a smaller mean difference cannot exclude zero, and an interval that holds zero does "
        f"not prove that there is no difference. Of the {number} about {0.05 * len(counts):.1f} would "
        "exclude zero by chance if nothing differed; they are not corrected for their number, the adjusted p-values "
        "beside them are. The spread is that of seeds on one data set and one size: it says nothing of others."
    )


def captions(analysis: Analysis) -> dict[str, str]:
    """The caption of every figure, by its name."""
    tasks, generation = analysis.tasks, analysis.generation
    gains = [task.label for task in tasks if not task.plain]
    gains += [
        f"{task.label} at the temperature and guidance that validation chose for each arm, and, paler, {task.label} at "
        "temperature 1"
        for task in tasks
        if task.plain
    ]
    floors = [name for task in tasks for name in task.floors if present(analysis.frame, name)]
    scores = tasks[0].label if len(tasks) == 1 else "both tasks' scores"
    filled = "Filled: with consistency (γ above 0); hollow: without."
    samples = "Test images and their reconstructions by the baseline and the best validated arm."
    if generation:
        samples = (
            "Images that the baseline and the best validated arm make from the same prompts: the first ones, not "
            f"selected. Solid green frame: {generation.right}; dashed orange: not. Below, test images and their "
            "reconstructions."
        )
    return {
        "gains": "What each chosen arm changes against none-0-0, paired over seeds, with 95 % intervals: "
        f"{', '.join(gains)}. Filled: the interval excludes zero. An arrow: the interval goes on. Bold name: the arm "
        "validates best of its budget. Asterisk: p < 0.05 after Holm's adjustment.",
        "score_over_beta": f"Scores against β, a line per token budget and γ. {filled} Left of the broken axis stand "
        "the arms without compression: the baseline, whose level the dashed line carries on, and consistency alone. "
        "Faint points are seeds, bars one standard deviation. The β of hsic weighs a dependence between 0 and 1, "
        "that of the others nats per image."
        + f" Dotted, where that is near: {' and '.join(shown(name).label for name in floors)}."
        * bool(floors),
        "budget_curve": "One elastic training (nested dropout over tokens), evaluated on the first k tokens alone: "
        "line and band are mean and one standard deviation over seeds. Diamonds: a training of its own for each "
        "budget, its weights chosen there.",
        "information_plane": f"Bits per image against {scores}. {filled} Small points, where arms are few, are seeds; "
        "a line joins arms of one estimator and γ from the arm without compression through rising β.",
        "structure_nuisance": "Usable bits about structure against usable bits about nuisance. Up and to the left is "
        f"what the regularizer is for. {filled}",
        "factors": "Usable bits about every factor: the baseline, the validated arm of each estimator, and what the "
        f"best of them has alone. {filled}",
        "samples": samples,
        "training": "Training curves at the best validated arm's token budget, means over seeds. Solid: with "
        "consistency (γ above 0); dashed: without.",
    }
