"""The report's tables as text, from an analysis of all cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pandas as pd

from infotok.evaluation.statistics import mean_and_deviation
from pipeline.config.cells import NONE, arm_name
from pipeline.report.analysis import Analysis, luck_of_choice
from pipeline.report.factorial import complete
from pipeline.report.frame import ARM, TERMS, Arm, present, terms_of
from pipeline.report.metrics import FAMILY, HEADLINE, METRICS, PAIRED, TASKS, Metric, elastic, shown

MISSING = "–"
FAMILIES = 12  # of questions, at most, that a table has columns for


@dataclass(frozen=True)
class Table:
    """A table as text; `labels` leading columns name the row, `bold` holds (row, column) of what stands out, `printed`
    tells whether a paper would show it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    labels: int
    bold: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    note: str = ""
    printed: bool = False


def interval(row: dict, digits: int = 3) -> str:
    """A 95 % interval as text."""
    if math.isnan(row["ci_low"]):
        return "one seed" if row["seeds"] == 1 else MISSING
    return f"[{signed(row['ci_low'], digits)}, {signed(row['ci_high'], digits)}]"


def signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def p_text(value: float) -> str:
    """A p-value to three digits."""
    return MISSING if math.isnan(value) else "<0.001" if value < 0.0005 else f"{value:.3f}"


def _labels(arm: Arm) -> list[str]:
    """An arm in a table's first columns: its name, and in words what it adds."""
    return [arm_name(*arm), terms_of(arm)]


def _score(values: pd.Series, metric: Metric) -> tuple[str, float]:
    """Mean ± sd over seeds as text, and the mean rounded as shown (NaN when missing)."""
    values = values.dropna()
    if values.empty:
        return MISSING, math.nan
    mean, deviation = mean_and_deviation(list(values))
    text = f"{mean:.{metric.digits}f}"
    if len(values) > 1:
        text += f" ± {deviation:.{metric.digits}f}"
    return text.replace("-", "−"), round(mean, metric.digits)


def _best(means: list[float], better: int) -> set[int]:
    """Indices of the best values, none where all are alike."""
    known = {value for value in means if not math.isnan(value)}
    if not better or len(known) < 2:
        return set()
    top = max(known) if better > 0 else min(known)
    return {index for index, value in enumerate(means) if value == top}


def table_by_budget(frame: pd.DataFrame, family: str, names: list[str], title: str, note: str = "") -> Table:
    """Rows: arms. Columns: every metric at every token budget. Best of a column in bold."""
    frame = frame[frame.family == family]
    names = [name for name in names if present(frame, name)]
    columns = [(name, tokens) for name in names for tokens in sorted(frame.tokens.unique())]
    groups = dict(list(frame.groupby(TERMS, sort=False)))
    rows, bold = [_labels(arm) for arm in groups], set()
    for index, (name, tokens) in enumerate(columns):
        metric = shown(name)
        scores = [_score(group.loc[group.tokens == tokens, name], metric) for group in groups.values()]
        for row, (text, _) in zip(rows, scores, strict=True):
            row.append(text)
        bold |= {(row, index + 2) for row in _best([mean for _, mean in scores], metric.better)}
    header = ["arm", "adds", *(f"{shown(name).label}, K={tokens}" for name, tokens in columns)]
    return Table(title, header, rows, 2, frozenset(bold), note, printed=True)


def table_by_arm(frame: pd.DataFrame, family: str, names: list[str], title: str, note: str = "") -> Table:
    """Rows: arms within token budgets. Columns: metrics. Best of a column within a budget in bold."""
    frame = frame[frame.family == family]
    names = [name for name in names if present(frame, name)]
    rows, bold = [], set()
    for tokens in sorted(frame.tokens.unique()):
        start = len(rows)
        groups = frame[frame.tokens == tokens].groupby(TERMS, sort=False)
        rows += [[str(tokens), *_labels(arm)] for arm, _ in groups]
        for index, name in enumerate(names):
            metric = shown(name)
            scores = [_score(group[name], metric) for _, group in groups]
            for row, (text, _) in zip(rows[start:], scores, strict=True):
                row.append(text)
            bold |= {(start + row, index + 3) for row in _best([mean for _, mean in scores], metric.better)}
    header = ["K", "arm", "adds", *(shown(name).label for name in names)]
    return Table(title, header, rows, 3, frozenset(bold), note)


def table_of_budgets(frame: pd.DataFrame, family: str, title: str) -> Table:
    """Rows: tasks and arms of elastic trainings. Columns: the first k tokens alone, up to K itself."""
    frame = frame[frame.family == family]
    at = {task.score: names for task in TASKS if (names := elastic(frame, task.score))}
    elastic_names = [name for names in at.values() for name in names.values()]
    frame = frame[frame[elastic_names].notna().any(axis=1)]
    budgets = sorted({k for names in at.values() for k in names} | set(frame.tokens)) if len(frame) else []
    rows, bold = [], set()
    for score, names in at.items():
        metric = shown(score)
        for tokens in sorted(frame.tokens.unique()):
            start = len(rows)
            groups = frame[frame.tokens == tokens].groupby(TERMS, sort=False)
            rows += [[metric.label, str(tokens), *_labels(arm)] for arm, _ in groups]
            for index, k in enumerate(budgets):
                name = score if k == tokens else names.get(k) if k < tokens else None
                scores = [_score(group[name], metric) if name else (MISSING, math.nan) for _, group in groups]
                for row, (text, _) in zip(rows[start:], scores, strict=True):
                    row.append(text)
                bold |= {(start + row, index + 4) for row in _best([mean for _, mean in scores], metric.better)}
    header = ["metric", "K", "arm", "adds", *(f"k={k}" for k in budgets)]
    note = (
        "Trained with nested dropout over K tokens and evaluated on the first k of them alone; k = K is the plain "
        "score. Best of a column within a metric and K in bold."
    )
    return Table(title, header, rows, 4, frozenset(bold), note)


def headline(analysis: Analysis) -> Table:
    """none-0-0 against the arms chosen on validation, per family, token budget and estimator."""
    header = ["family", "K", "chosen arm", "adds", "metric", "none-0-0", "InfoTok", "difference", "relative"]
    header += ["95 % interval", "excludes zero", "p, Holm"]
    rows, bold = [], set()
    for choice in analysis.choices:
        for metric in HEADLINE:
            if (row := analysis.comparison(choice, metric)) is None:
                continue
            gain = row["difference"] / row["baseline"] if row["baseline"] > 0 else math.nan
            relative = MISSING if math.isnan(gain) else f"{signed(100 * gain, 1)} %"
            if choice.best:
                bold.add((len(rows), 2))
            scores = [f"{row['baseline']:.3f}", f"{row['infotok']:.3f}", signed(row["difference"]), relative]
            names = [choice.family, str(choice.tokens), *_labels(choice.terms), METRICS[PAIRED[metric]].label]
            below = ", below" if row["ci_high"] < 0 else ""
            rows.append([*names, *scores, interval(row), row["excludes_zero"] + below, p_text(row["p_holm"])])
    note = " ".join([*_choosing(analysis), *floors(analysis).values()]) if rows else ""
    return Table("Headline: validated arms against none-0-0", header, rows, 5, frozenset(bold), note, printed=True)


def _choosing(analysis: Analysis) -> list[str]:
    """Sentences: how the arms were chosen, and what chance and Holm's adjustment count."""
    tasks = analysis.tasks
    score = (
        f"{tasks[0].label} on the validation split" if len(tasks) == 1 else "the mean of both tasks' validation scores"
    )
    alone = any(choice.estimator == NONE for choice in analysis.choices)
    rival = ", consistency alone being a candidate beside the estimators" * alone
    sentences = [
        f"Per family, token budget and estimator, {score} chooses β and γ{rival}; the arm in bold validates best of "
        "its budget. All numbers are of the test split, means over seeds: validation chooses, test reports, so no "
        "correction counts the arms tried."
    ]
    if luck := _luck(analysis):
        sentences.append(luck)
    sentences.append("The intervals and whether they exclude zero are of each row alone.")
    if tests := int(analysis.paired.p_holm.notna().sum()):
        unclaimed = "".join(f"; {task.label} at T=1 is no claim of its own" for task in tasks if task.plain)
        sentences.append(
            "p, Holm: two-sided paired t-tests, adjusted by Holm's step-down method over the "
            f"{tests} test{'s' * (tests != 1)} of {' and '.join(task.label for task in tasks)} of all chosen arms of "
            f"this report{unclaimed}."
        )
    return sentences


def _luck(analysis: Analysis) -> str:
    """What choosing among several arms leaves of chance, for this report's numbers of arms and seeds."""
    counts = [
        (choice.tried, row["seeds"])
        for choice in analysis.choices
        for metric in HEADLINE
        if choice.tried > 1 and (row := analysis.comparison(choice, metric)) and row["seeds"] > 1
    ]
    if not counts:
        return ""
    arms, seeds = max(dict.fromkeys(counts), key=lambda count: luck_of_choice(*count))
    share = f"{100 * luck_of_choice(arms, seeds):.0f} %"
    return (
        f"The luck of a training is in both splits and stays: of {arms} arms without effect the chosen one excludes "
        f"zero upward in up to {share} of cases instead of 2.5 % (simulated, {seeds} seeds)."
    )


# Columns of the factorial table, by the effect in factorial.csv, and what they compare.
ADDED = {
    "gamma": ("γ alone adds", "none-0-γ against none-0-0"),
    "beta": ("β alone adds", "the arm at γ = 0 against none-0-0"),
    "both": ("both add", "the arm against none-0-0"),
    "interaction": ("beyond the sum", "what both add beyond what each adds alone"),
    "beta_after_gamma": ("β adds to γ", "the arm against none-0-γ"),
    "gamma_after_beta": ("γ adds to β", "the arm against itself at γ = 0"),
}


def table_of_terms(analysis: Analysis, family: str, title: str) -> Table:
    """What compression and consistency add, alone and together: rows are arms with both terms and metrics.

    Every complete 2 × 2 is shown; of the incomplete ones those whose arm validation chose, all where it chose none.
    """
    effects = analysis.factorial[analysis.factorial.family == family]
    if analysis.choices:
        effects = effects[complete(effects) | effects.chosen]
    columns = [effect for effect in ADDED if effect in set(effects.effect)]
    rows, bold = [], set()
    for (_, *arm, tokens, name), group in effects.groupby([*ARM, "metric"], sort=False):
        found = {row["effect"]: row for row in group.to_dict("records")}
        digits = METRICS[PAIRED[name]].digits
        texts = [_effect(found[effect], digits) if effect in found else MISSING for effect in columns]
        bold |= {
            (len(rows), 4 + index)
            for index, effect in enumerate(columns)
            if effect in found and found[effect]["excludes_zero"] == "yes"
        }
        rows.append([str(tokens), arm_name(*arm), METRICS[PAIRED[name]].label, str(group.seeds.max()), *texts])
    header = ["K", "arm with both", "metric", "seeds", *(ADDED[effect][0] for effect in columns)]
    note = (
        "Differences of means, paired over seeds, with Student's 95 % intervals; bold where they exclude zero. "
        f"{'; '.join(': '.join(ADDED[effect]) for effect in columns)}. These intervals explain the headline's claims, "
        "are none of their own and are not adjusted for their number. factorial.csv holds all arms."
    )
    return Table(title, header, rows, 4, frozenset(bold), note, printed=True)


def _effect(row: dict, digits: int) -> str:
    """A difference with its interval, where there is one."""
    text = signed(row["difference"], digits)
    return text if math.isnan(row["ci_low"]) else f"{text} {interval(row, digits)}"


def floors(analysis: Analysis) -> dict[str, str]:
    """By task, a sentence of what its score is without looking, or where the judge gives it, of real images."""
    frame, judge, sentences = analysis.frame, analysis.judge.get("metrics", {}), {}
    for task in analysis.tasks:
        known = [f"{shown(name).label} {frame[name].mean():.3f}" for name in task.floors if present(frame, name)]
        if known:
            sentences[task.name] = f"{task.title} without the image: {', '.join(known)}."
        real, chance = (judge.get(f"judge/{task.claim}{part}") for part in ("", "_chance"))
        if real is not None and chance is not None:
            sentences[task.name] = (
                f"{task.title} of real test images: {real:.3f}, the judge's ceiling; by guessing one of "
                f"{round(1 / chance)} captions: {chance:.3f}."
            )
    return sentences


def _under(frame: pd.DataFrame, prefix: str) -> list[str]:
    return [name for name in frame.columns if name.startswith(prefix)]


def tables(analysis: Analysis) -> list[Table]:
    """All tables after the headline, family by family."""
    frame, made = analysis.frame, []
    blind, judged = (floors(analysis).get(name, "") for name in ("understanding", "generation"))
    understanding = ["understanding/accuracy", "understanding/accuracy_novel"]
    generation = ["geneval", "geneval_t1", "geneval_novel", "retrieval", "retrieval_t1"]
    generation += ["own_codes", "own_codes_guessed", "gfid", "kid"]
    generation = [f"generation/{name}" for name in generation]
    questions, left_out = _under(frame, FAMILY), ""
    if len(questions) > FAMILIES:
        left_out = f"Accuracy of each of the {len(questions)} families stands in ablation.csv: too many for a table."
        questions = []
    questions += ["understanding/question_only", "understanding/majority"]
    information = ["rate_bits", "autoregressive_rate_bits", "conditional_rate_bits", "code_entropy_bits"]
    information += ["lower_bits", "upper_bits", "generator_nll_bits", "capacity_bits"]
    information = [f"information/{name}" for name in information]
    structure = [f"information/{name}_bits" for name in ("structure", "nuisance")]
    structure += _under(frame, "information/factor/")
    use = [name for name in METRICS if name.startswith("information/") and name not in information + structure]
    bits = "Bits per image; no value is better in itself."
    used = (
        "No value is better in itself, except fewer dead codes. CKA: dependence between 0 and 1 of images X and tokens "
        "Z, of tokens and captions T."
    )
    usable = "Usable bits per image: what a small probe reads out of the tokens about each factor."
    for family in frame.family.unique():
        made += [
            table_of_terms(analysis, family, f"{family}: what compression and consistency add"),
            table_by_budget(frame, family, understanding, f"{family}: understanding by arm and token budget", blind),
            table_by_budget(frame, family, generation, f"{family}: generation by arm and token budget", judged),
            table_of_budgets(frame, family, f"{family}: one training, every budget"),
            table_by_arm(frame, family, _under(frame, "generation/tag/"), f"{family}: GenEval tags"),
            table_by_arm(frame, family, questions, f"{family}: question families", left_out),
            table_by_arm(frame, family, _under(frame, "reconstruction/"), f"{family}: reconstruction"),
            table_by_arm(frame, family, information, f"{family}: information in the tokens", bits),
            table_by_arm(frame, family, use, f"{family}: use of codes and dimensions, dependence", used),
            table_by_arm(frame, family, structure, f"{family}: structure against nuisance", usable),
        ]
    return [table for table in made if table.rows and len(table.header) > table.labels]
