"""ablation.md: the whole report as Markdown, with the PNG figures beside it."""

from __future__ import annotations

from pipeline.report import tables
from pipeline.report.analysis import Analysis
from pipeline.report.protocol import protocol, settings, tasks_sentence, warnings
from pipeline.report.tables import Table
from pipeline.report.texts import captions, findings, seeds_sentence


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
        f"Remade by `{analysis.study.repro}`.\n",
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
    below = captions(analysis)
    parts += [f"![{name}](figures/{name}.png)\n\n{below[name]}\n" for name in figures]
    parts.append("## Protocol\n")
    lines = [f"- {_markdown_text(key)}: {_markdown_text(value)}" for key, value in protocol(analysis)]
    parts.append("\n".join(lines) + "\n")
    if chosen := settings(analysis):
        parts += [f"### {chosen.title}\n", markdown_table(chosen)]
    parts.append("## Warnings of the stages\n")
    parts.append("\n".join(f"- {_markdown_text(text)}" for text in warnings(analysis)) + "\n")
    return "\n".join(parts)
