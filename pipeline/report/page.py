"""The report's files: CSV, Markdown, LaTeX, JSON and a self-contained HTML page, all from one analysis."""

from __future__ import annotations

import base64
import html
import json
import math
from pathlib import Path

from pipeline.config.params import Params
from pipeline.files import write_text
from pipeline.report import tables
from pipeline.report.analysis import Analysis, Results, analyse, present
from pipeline.report.figures import draw_figures
from pipeline.report.metrics import HEADLINE, shown
from pipeline.report.protocol import protocol, settings, tasks_sentence, warnings
from pipeline.report.tables import Table, signed
from pipeline.running.results import Layout


def write_report(results: Results, judge: dict, layout: Layout, params: Params) -> Analysis:
    """Write every table, figure and page into `layout.reports`; returns what they show."""
    analysis = analyse(results, judge, layout, params)
    reports = layout.reports
    reports.mkdir(parents=True, exist_ok=True)
    write_text(reports / "ablation.csv", analysis.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_text(reports / "paired.csv", analysis.paired.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    write_text(reports / "summary.json", json.dumps(tables.summary(analysis), indent=1) + "\n")
    drawn = draw_figures(analysis)
    write_text(reports / "ablation.md", markdown(analysis, drawn))
    write_text(reports / "ablation.tex", latex(analysis))
    write_text(reports / "index.html", page(analysis, drawn))
    return analysis


# What is said beside the tables and figures.


def command(params: Params) -> str:
    """The command that remakes the report."""
    path = Path(params.paths.params)
    return "dvc repro" if path == Path("params.yaml") else f"dvc repro {(path.parent / 'dvc.yaml').as_posix()}"


def findings(analysis: Analysis) -> list[str]:
    """One sentence per family and token budget: what the best validated arm did to every task."""
    said = []
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
        text = f"{choice.family}, K = {choice.tokens}: validation chooses {choice.arm}. {'; '.join(parts)}."
        text += "".join(blind)
        if not math.isnan(choice.baseline) and choice.validation <= choice.baseline:
            scores = f"{choice.validation:.3f} against {choice.baseline:.3f}"
            text += f" Validation itself does not prefer it to none-0-0 ({scores})."
        if choice.edge:
            text += " This β lies at the edge of the grid, so the optimum may lie outside it."
        said.append(text)
    return said or ["No arm has a validation score and a β = 0 twin: there is nothing to compare."]


def _verdict(row: dict) -> str:
    answer = row["excludes_zero"]
    if answer == "no interval":
        return "one seed gives no interval" if row["seeds"] == 1 else answer
    said = f"95 % interval {tables.interval(row)}, {'excludes' if answer == 'yes' else 'does not exclude'} zero"
    return f"{said}, Holm-adjusted p {_equals(tables.p_text(row['p_holm']))}"


def _equals(value: str) -> str:
    return value.replace("<", "< ") if value.startswith("<") else f"= {value}"


def seeds_sentence(analysis: Analysis) -> str:
    """What this number of seeds can and cannot show."""
    from scipy.stats import t as student

    rows = [analysis.comparison(choice, metric) for choice in analysis.choices for metric in HEADLINE]
    counts = [row["seeds"] for row in rows if row]
    if not counts:
        return "Without a β = 0 twin no difference can be shown."
    seeds = min(counts)
    if seeds == 1:
        return (
            "With one seed no interval can be given: every difference here is a single observation and may "
            "be chance. Add seeds to grid.seed for a claim about the method."
        )
    reach = student.ppf(0.975, seeds - 1) / math.sqrt(seeds)
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
    """What is said below each figure, by its name."""
    tasks, drawn = analysis.tasks, analysis.generation
    gains = [task.label for task in tasks if not task.plain]
    gains += [
        f"{task.label} at the temperature and guidance that validation chose for each arm, and, paler, {task.label} at "
        "temperature 1"
        for task in tasks
        if task.plain
    ]
    floors = [name for task in tasks for name in task.floors if present(analysis.frame, name)]
    scores = tasks[0].label if len(tasks) == 1 else "both tasks' scores"
    samples = "Test images and their reconstructions by the baseline and the best validated arm."
    if drawn:
        samples = (
            "Images that the baseline and the best validated arm make from the same prompts: the first ones, not "
            f"selected. Solid green frame: {drawn.right}; dashed orange: not. Below, test images and their "
            "reconstructions."
        )
    return {
        "gains": "What each chosen arm changes against its β = 0 twin, paired over seeds, with 95 % intervals: "
        f"{', '.join(gains)}. Filled: the interval excludes zero. An arrow: the interval goes on. Bold name: the arm "
        "validates best of its budget. Asterisk: p < 0.05 after Holm's adjustment.",
        "score_over_beta": "Scores against β per token budget. Faint points are seeds, lines their mean, bars "
        "one standard deviation; the dashed line is the β = 0 baseline. The β of hsic weighs a dependence between 0 "
        "and 1, that of the others nats per image."
        + f" Dotted, where that is near: {' and '.join(shown(name).label for name in floors)}."
        * bool(floors),
        "budget_curve": "One elastic training (nested dropout over tokens), evaluated on the first k tokens alone: "
        "line and band are mean and one standard deviation over seeds. Diamonds: a training of its own for each "
        "budget, β chosen there.",
        "information_plane": f"Bits per image against {scores}. Small points, where arms are few, are seeds; a line "
        "follows one estimator from the baseline through rising β.",
        "structure_nuisance": "Usable bits about structure against usable bits about nuisance. Up and to the left is "
        "what the regularizer is for.",
        "factors": "Usable bits about every factor: the baseline beside the validated arm of each estimator.",
        "samples": samples,
        "training": "Training curves at the best validated arm's token budget, means over seeds.",
    }


# Markdown.


def _markdown_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("\n", " ")


def markdown_table(table: Table) -> str:
    """A pipe table, best values in bold."""
    lines = ["| " + " | ".join(_markdown_text(text) for text in table.header) + " |"]
    lines.append("|" + "|".join(":--" if i < table.labels else "--:" for i in range(len(table.header))) + "|")
    for r, row in enumerate(table.rows):
        cells = [f"**{_markdown_text(t)}**" if (r, c) in table.bold else _markdown_text(t) for c, t in enumerate(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(analysis: Analysis, figures: list[str]) -> str:
    """The content of ablation.md."""
    head = tables.headline(analysis)
    parts = [
        f"# {_markdown_text(analysis.params.report.title)}\n",
        f"Remade by `{command(analysis.params)}`.\n",
        _markdown_text(tasks_sentence(analysis)) + "\n",
    ]
    parts.append("\n".join(f"- {_markdown_text(text)}" for text in findings(analysis)) + "\n")
    parts.append(_markdown_text(seeds_sentence(analysis)) + "\n")
    parts += [f"## {head.title}\n", markdown_table(head), _markdown_text(head.note) + "\n"]
    parts.append("Tables below: mean ± standard deviation over seeds, the best of a column in bold.\n")
    for table in tables.tables(analysis):
        parts += [f"## {_markdown_text(table.title)}\n", markdown_table(table)]
        parts += [_markdown_text(table.note) + "\n"] if table.note else []
    parts.append("## Figures\n")
    said = captions(analysis)
    parts += [f"![{name}](figures/{name}.png)\n\n{said[name]}\n" for name in figures]
    parts.append("## Protocol\n")
    lines = [f"- {_markdown_text(key)}: {_markdown_text(value)}" for key, value in protocol(analysis)]
    parts.append("\n".join(lines) + "\n")
    if chosen := settings(analysis):
        parts += [f"### {chosen.title}\n", markdown_table(chosen)]
    parts.append("## Warnings of the stages\n")
    parts.append("\n".join(f"- {_markdown_text(text)}" for text in warnings(analysis) or ["none"]) + "\n")
    return "\n".join(parts)


# LaTeX.

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "β": r"$\beta$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\to$",
    "×": r"$\times$", "…": r"\dots{}",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex_table(table: Table) -> str:
    """A booktabs table."""
    columns = "l" * table.labels + "r" * (len(table.header) - table.labels)
    lines = [
        r"\begin{table}[tp]",
        r"\centering",
        r"\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{latex_text(table.title)}}}",
    ]
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(latex_text(text) for text in table.header) + r" \\", r"\midrule"]
    for r, row in enumerate(table.rows):
        cells = [rf"\textbf{{{latex_text(t)}}}" if (r, c) in table.bold else latex_text(t) for c, t in enumerate(row)]
        # An optional argument would follow \\ if a row began with a bracket.
        lines.append("{}" * row[0].startswith("[") + " & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def latex(analysis: Analysis) -> str:
    """The content of ablation.tex: headline, understanding and generation tables, for \\input."""
    printed = [tables.headline(analysis), *(t for t in tables.tables(analysis) if "over β" in t.title)]
    head = f"% Remade by `{command(analysis.params)}`. Needs \\usepackage{{booktabs}}.\n"
    return head + "\n" + "\n".join(latex_table(table) for table in printed)


# HTML.

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --paper: #fdfdfb; --line: #d9dde3;
  --tint: #eef3f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa6b5; --paper: #14181e; --line: #323a45; --tint: #1d2530; } }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.2rem 5rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
p, li, figcaption { max-width: 46rem; }
.soft, figcaption, dl { font-size: .92rem; }
.soft, figcaption, dt { color: var(--soft); }
code { background: var(--tint); border-radius: 4px; padding: .1em .35em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--soft); }
th.label, td.label { text-align: left; }
tbody tr:hover { background: var(--tint); }
td.best { font-weight: 700; }
figure { margin: 1.6rem 0; }
img { max-width: 100%; height: auto; box-sizing: border-box; padding: .6rem; }
img { background: #fff; border-radius: 8px; }
dl { display: grid; grid-template-columns: minmax(11rem, auto) 1fr; gap: .25rem 1.2rem; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def html_table(table: Table) -> str:
    """An HTML table, best values of class `best`."""

    def cell(tag: str, text: str, column: int, best: bool = False) -> str:
        kind = " ".join(["label"] * (column < table.labels) + ["best"] * best)
        start = f'{tag} class="{kind}"' if kind else tag
        return f"<{start}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", text, column) for column, text in enumerate(table.header))
    rows = [
        "<tr>" + "".join(cell("td", text, c, (r, c) in table.bold) for c, text in enumerate(row)) + "</tr>"
        for r, row in enumerate(table.rows)
    ]
    note = f'<p class="soft">{html.escape(table.note)}</p>' if table.note else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>{note}'


def page(analysis: Analysis, figures: list[str]) -> str:
    """The content of index.html; it loads nothing from anywhere."""
    title, head = html.escape(analysis.params.report.title), tables.headline(analysis)

    def items(texts: list[str]) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"

    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>',
        f"<body><h1>{title}</h1>",
        f'<p class="soft">Remade by <code>{html.escape(command(analysis.params))}</code></p>',
        f"<p>{html.escape(tasks_sentence(analysis))}</p>",
        f"{items(findings(analysis))}<p>{html.escape(seeds_sentence(analysis))}</p>",
        f"<h2>{html.escape(head.title)}</h2>{html_table(head)}<h2>Figures</h2>",
    ]
    said = captions(analysis)
    for name in figures:
        image = (analysis.layout.reports / "figures" / f"{name}.png").read_bytes()
        source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        width, caption = int.from_bytes(image[16:20], "big") // 2, html.escape(said[name])
        picture = f'<img src="{source}" width="{width}" alt="{caption}">'
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    note = "Mean ± standard deviation over seeds, the best of a column in bold."
    parts.append(f'<h2>Tables</h2><p class="soft">{note}</p>')
    parts += [f"<h3>{html.escape(table.title)}</h3>{html_table(table)}" for table in tables.tables(analysis)]
    pairs = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in protocol(analysis))
    parts.append(f"<h2>Protocol</h2><dl>{pairs}</dl>")
    if chosen := settings(analysis):
        parts.append(f"<h3>{html.escape(chosen.title)}</h3>{html_table(chosen)}")
    parts.append(f"<h2>Warnings of the stages</h2>{items(warnings(analysis) or ['none'])}</body></html>\n")
    return "\n".join(parts)
