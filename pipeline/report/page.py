"""index.html: the whole report as a page, with the SVG figures beside it."""

from __future__ import annotations

import html

from pipeline.report import tables
from pipeline.report.analysis import Analysis
from pipeline.report.protocol import protocol, settings, tasks_sentence, warnings
from pipeline.report.tables import Table
from pipeline.report.texts import captions, findings, seeds_sentence

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
    """The content of index.html; it loads the figures beside it and nothing else."""
    title, head = html.escape(analysis.params.report.title), tables.headline(analysis)

    def items(texts: list[str]) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"

    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>',
        f"<body><h1>{title}</h1>",
        f'<p class="soft">Remade by <code>{html.escape(analysis.study.repro)}</code></p>',
        f"<p>{html.escape(tasks_sentence(analysis))}</p>",
        f"{items(findings(analysis))}<p>{html.escape(seeds_sentence(analysis))}</p>",
        f"<h2>{html.escape(head.title)}</h2>{html_table(head)}<h2>Figures</h2>",
    ]
    below = captions(analysis)
    for name in figures:
        caption = html.escape(below[name])
        vector = f"figures/{name}.svg"
        # A figure that an earlier report left has its PNG alone.
        source = vector if (analysis.study.reports / "page" / vector).is_file() else f"../figures/{name}.png"
        parts.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    note = "Mean ± standard deviation over seeds, the best of a column in bold."
    parts.append(f'<h2>Tables</h2><p class="soft">{note}</p>')
    parts += [f"<h3>{html.escape(table.title)}</h3>{html_table(table)}" for table in tables.tables(analysis)]
    pairs = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in protocol(analysis))
    parts.append(f"<h2>Protocol</h2><dl>{pairs}</dl>")
    if chosen := settings(analysis):
        parts.append(f"<h3>{html.escape(chosen.title)}</h3>{html_table(chosen)}")
    parts.append(f"<h2>Warnings of the stages</h2>{items(warnings(analysis))}</body></html>\n")
    return "\n".join(parts)
