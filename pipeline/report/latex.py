"""ablation.tex: the main tables as LaTeX."""

from __future__ import annotations

from pipeline.report import tables
from pipeline.report.analysis import Analysis
from pipeline.report.tables import Table

WIDE = 110  # characters of a row, above which a table is scaled down to the page
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$", "−": "$-$", "–": "--", "β": r"$\beta$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\to$",
    "×": r"$\times$", "γ": r"$\gamma$", "…": r"\dots{}",
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
    wide = sum(max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)) > WIDE
    lines += [r"\resizebox{\textwidth}{!}{%"] * wide
    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(latex_text(text) for text in table.header) + r" \\", r"\midrule"]
    for r, row in enumerate(table.rows):
        cells = [rf"\textbf{{{latex_text(t)}}}" if (r, c) in table.bold else latex_text(t) for c, t in enumerate(row)]
        # An optional argument would follow \\ if a row began with a bracket.
        lines.append("{}" * row[0].startswith("[") + " & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    if wide:
        lines[-1] += "}"
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def latex(analysis: Analysis) -> str:
    """The content of ablation.tex: headline, factorial, understanding and generation tables, for \\input."""
    printed = [tables.headline(analysis), *(table for table in tables.tables(analysis) if table.printed)]
    head = f"% Remade by `{analysis.study.repro}`. Needs \\usepackage{{booktabs,graphicx}}.\n"
    return head + "\n" + "\n".join(latex_table(table) for table in printed)
