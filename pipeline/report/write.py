"""The report's files, all from one analysis.

    ablation.csv  paired.csv  factorial.csv  training.csv  summary.json     the numbers
    ablation.md  figures/*.png                                              what git shows
    page/index.html  page/ablation.tex  page/figures/*.svg                  made, too large for git

All their bytes depend on the results alone. The page refers to the SVG files beside it and to nothing else.
"""

from __future__ import annotations

import io
import json
import warnings

import pandas as pd

from infotok.files import whole, write_text
from pipeline.config.study import Study
from pipeline.report.analysis import Analysis, analyse, read_analysis
from pipeline.report.comparisons import budget_curve, gains
from pipeline.report.curves import training, training_table
from pipeline.report.figures import factors, information_plane, score_over_beta, structure_nuisance
from pipeline.report.frame import Results
from pipeline.report.galleries import samples
from pipeline.report.latex import latex
from pipeline.report.markdown import markdown
from pipeline.report.page import page
from pipeline.report.style import DPI, STYLE
from pipeline.report.summary import summary

FIGURES = (gains, score_over_beta, budget_curve, information_plane, structure_nuisance, factors, samples, training)
FROM_FILES = (samples, training)  # these also need what the stages left on disk


def write_report(results: Results, judge: dict, study: Study) -> Analysis:
    """Write every table, figure and page into `study.reports`; returns what they show."""
    analysis = analyse(results, judge, study)
    study.reports.mkdir(parents=True, exist_ok=True)
    write_text(study.reports / "ablation.csv", csv_text(analysis.frame))
    write_text(study.reports / "training.csv", csv_text(training_table(analysis)))
    _write_rest(analysis, save_figures(analysis))
    return analysis


def rewrite_report(study: Study, judge: dict | None = None) -> Analysis:
    """Make a report again from its `ablation.csv` alone, where the results are gone.

    Everything that the numbers give is written anew. Figures that need more than numbers (samples, training curves) and
    training.csv stay as they are. judge: what `metrics.json` of the judge held, for its ceilings.

    Raises:
        InfotokError: ablation.csv is missing or damaged.
    """
    analysis = read_analysis(study, judge)
    _write_rest(analysis, save_figures(analysis, kept=tuple(make.__name__ for make in FROM_FILES)))
    return analysis


def _write_rest(analysis: Analysis, figures: list[str]) -> None:
    """Everything but what only results give."""
    reports = analysis.study.reports
    write_text(reports / "paired.csv", csv_text(analysis.paired))
    write_text(reports / "factorial.csv", csv_text(analysis.factorial))
    write_text(reports / "summary.json", json.dumps(summary(analysis), indent=1) + "\n")
    write_text(reports / "ablation.md", markdown(analysis, figures))
    write_text(reports / "page" / "ablation.tex", latex(analysis))
    write_text(reports / "page" / "index.html", page(analysis, figures))


def csv_text(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def save_figures(analysis: Analysis, kept: tuple[str, ...] = ()) -> list[str]:
    """Save every figure that the results allow as PNG and SVG; returns the names of all that are there.

    kept: names of figures that stay as an earlier report left them.
    """
    from matplotlib import rc_context

    reports, names = analysis.study.reports, []
    for make in FIGURES:
        name = make.__name__
        png, svg = reports / "figures" / f"{name}.png", reports / "page" / "figures" / f"{name}.svg"
        if name in kept:
            names += [name] * png.is_file()
            continue
        png.unlink(missing_ok=True)
        svg.unlink(missing_ok=True)
        with rc_context(STYLE), warnings.catch_warnings():
            # Captions of any script: what the font lacks is drawn as a box.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            if (figure := make(analysis)) is None:
                continue
            with whole(png) as file:
                file.write_bytes(_png(figure))
            with whole(svg) as file:  # a date and a version would make equal figures differ
                figure.savefig(file, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
        names.append(name)
    return names


def _png(figure) -> bytes:
    """A figure as a PNG with a palette, a third as large as one without."""
    from PIL import Image

    rendered, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(rendered, format="png", dpi=DPI)
    # Charts have few colors, which must stay as they are in every figure; galleries have many, in smooth transitions.
    gallery = any(ax.images for ax in figure.axes)
    colors, method = (256, Image.Quantize.MEDIANCUT) if gallery else (128, Image.Quantize.MAXCOVERAGE)
    image = Image.open(rendered).convert("RGB").quantize(colors, method, dither=Image.Dither.NONE)
    image.save(packed, format="PNG", optimize=True)
    return packed.getvalue()
