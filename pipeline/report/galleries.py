"""The gallery: images that the baseline and the best validated arm make of the same prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.config.cells import Cell
from pipeline.report.analysis import Analysis
from pipeline.report.letters import fonts_for, spelled, wrapped
from pipeline.report.style import DPI, empty_figure

RIGHT, WRONG = "#009E73", "#D55E00"
ROWS, COLUMNS = 10, 5  # at most, of prompts and images per prompt; half the prompts where several families are shown
TILE, GAP, LABELS = 96, 14, 330  # pixels of the PNG: about a tile's side, between tiles, for row labels
MARGIN = 24  # pixels beside the row labels
HEAD = 56  # pixels above a block, for its title


def gallery_cells(analysis: Analysis) -> list[tuple[Cell, Cell]]:
    """Per family the baseline and the best validated arm, at that arm's budget and first shared seed."""
    pairs = []
    for family in analysis.frame.family.unique():
        if (best := analysis.best(family)) is None:
            continue
        for seed in sorted(analysis.frame.seed.unique()):
            arm = Cell(family, *best.terms, best.tokens, int(seed))
            if arm in analysis.results and arm.baseline() in analysis.results:
                pairs.append((arm.baseline(), arm))
                break
    return pairs


def _tiles(path: Path, size: int) -> np.ndarray | None:
    """An image of touching square tiles as (rows, columns, size, size, 3), or None if it is not one."""
    from PIL import Image

    if not path.is_file():
        return None
    pixels = np.asarray(Image.open(path).convert("RGB"))
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    if not rows or not columns:
        return None
    pixels = pixels[: rows * size, : columns * size]
    return pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)


def _samples(folder: Path, size: int) -> dict | None:
    """Tiles, prompts and verdicts that the generate stage left."""
    tiles = _tiles(folder / "samples.png", size)
    if tiles is None or not (folder / "samples.json").is_file():
        return None
    content = json.loads((folder / "samples.json").read_text())
    return {"tiles": tiles, "prompts": content["prompts"][: len(tiles)], "correct": content["correct"]}


def _enlarge(tiles: np.ndarray) -> tuple[np.ndarray, int]:
    """Tiles (rows, columns, size, size, 3) enlarged on one canvas without smoothing, and a tile's side."""
    rows, columns, size = tiles.shape[:3]
    scale = max(1, round(TILE / size))
    side = size * scale
    canvas = np.full((rows * (side + GAP), columns * (side + GAP), 3), 255, np.uint8)
    for r, c in np.ndindex(rows, columns):
        top, left = r * (side + GAP) + GAP // 2, c * (side + GAP) + GAP // 2
        canvas[top : top + side, left : left + side] = tiles[r, c].repeat(scale, 0).repeat(scale, 1)
    return canvas, side


def _show(figure, left: int, top: int, tiles: np.ndarray, correct: list[list[bool]], labels: list[str]):
    """Show tiles pixel by pixel with their left upper corner at (left, top), framed by verdict."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Rectangle

    canvas, side = _enlarge(tiles)
    (height, width), (whole_width, whole_height) = canvas.shape[:2], figure.get_size_inches() * DPI
    box = (
        left / whole_width,
        1 - (top + height) / whole_height,
        width / whole_width,
        height / whole_height,
    )
    ax = figure.add_axes(box)
    ax.imshow(canvas, interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
    for r, verdicts in enumerate(correct):
        for c, right in enumerate(verdicts):
            corner = (c * (side + GAP) + GAP / 2 - 3, r * (side + GAP) + GAP / 2 - 3)
            line = {"edgecolor": RIGHT} if right else {"edgecolor": WRONG, "linestyle": (0, (2, 1.2))}
            ax.add_patch(Rectangle(corner, side + 6, side + 6, fill=False, linewidth=1.5, **line))
    middles = [r * (side + GAP) + (side + GAP) / 2 for r in range(len(labels))]
    # A caption may hold dollar signs, which are no mathematics, and be long.
    families, lacking = fonts_for(labels)
    letters = FontProperties(family=families, size=rcParams["ytick.labelsize"])
    renderer = figure.canvas.get_renderer()

    def width_of(text: str) -> float:
        return renderer.get_text_width_height_descent(text, letters, False)[0] * DPI / figure.dpi

    lines = [wrapped(spelled(label, lacking), width_of, LABELS - MARGIN, lines=4) for label in labels]
    ax.set_yticks(middles, lines, parse_math=False, fontfamily=families)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return ax


def samples(analysis: Analysis):
    """Baseline and validated arm beside each other: images of the same prompts, where there are any, then test images
    and their reconstructions."""
    size, blocks = analysis.params.data.image_size, []
    pairs = gallery_cells(analysis)
    limit = ROWS if len(pairs) == 1 else ROWS // 2
    for cells in pairs:
        folders = [analysis.study.output(analysis.study.graph.draws, cell) for cell in cells]
        made = [_samples(folder, size) for folder in folders]
        shared = _same_prompts(*made, limit) if all(made) else ([], [], [])
        pictures = [_tiles(folder / "reconstructions.png", size) for folder in folders]
        pictures = [] if any(p is None for p in pictures) else [p[:2, :COLUMNS] for p in pictures]
        if shared[0] or pictures:
            blocks.append((cells, shared, pictures))
    if not blocks:
        return None
    step = size * max(1, round(TILE / size)) + GAP
    width = max(tiles.shape[1] for _, (_, both, _), pictures in blocks for tiles in (*both, *pictures)) * step
    heights = [_block_height(len(prompts), bool(pictures), step) for _, (prompts, *_), pictures in blocks]
    figure = empty_figure((LABELS + 2 * width + 40) / DPI, sum(heights) / DPI)
    for index, (cells, (prompts, tiles, correct), pictures) in enumerate(blocks):
        for side, cell in enumerate(cells):
            left, top = LABELS + side * (width + 30), sum(heights[:index]) + HEAD
            name, shown = cell.arm if side else f"baseline {cell.arm}", []
            if prompts:
                shown.append(_show(figure, left, top, tiles[side], correct[side], [] if side else prompts))
                name += f": {np.mean([right for row in correct[side] for right in row]):.0%} right"
            if pictures:
                labels, top = [] if side else ["test image", "reconstructed"], top + len(prompts) * step + GAP
                shown.append(_show(figure, left, top, pictures[side], [], labels))
            shown[0].set_title(name, fontweight="bold", loc="left")
            if not side:
                where = {"xytext": ((8 - LABELS) * 72 / DPI, 6), "textcoords": "offset points"}
                text = f"{cell.family}, K={cell.tokens}, seed {cell.seed}"
                label = shown[0].annotate(text, (0, 1), xycoords="axes fraction", va="baseline", **where)
                label.set(fontweight="bold", fontsize=10.5)
    return figure


def _block_height(prompts: int, pictures: bool, step: int) -> int:
    return HEAD + prompts * step + (2 * step + GAP) * pictures + GAP


def _same_prompts(baseline: dict, treated: dict, limit: int) -> tuple[list[str], list[np.ndarray], list[list]]:
    """The prompts both have, evenly thinned to at most `limit`, with tiles and verdicts of both."""
    shared = [prompt for prompt in dict.fromkeys(baseline["prompts"]) if prompt in treated["prompts"]]
    if len(shared) > limit:
        shared = [shared[i] for i in np.linspace(0, len(shared) - 1, limit).round().astype(int)]
    tiles, correct = [], []
    for made in (baseline, treated):
        rows = [made["prompts"].index(prompt) for prompt in shared]
        tiles.append(made["tiles"][rows][:, :COLUMNS])
        correct.append([made["correct"][row][:COLUMNS] for row in rows])
    return shared, tiles, correct
