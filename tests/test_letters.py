"""Texts of any script in figures."""

from unicodedata import east_asian_width

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.report.galleries import LABELS, _show
from pipeline.report.letters import FONT, fonts_for, spelled, wrapped
from pipeline.report.style import DPI, empty_figure


def font(path, name: str, letters: str) -> None:
    """A font file in which each of these letters is a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"u{ord(letter):X}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, letters), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Beside matplotlib's own fonts, two that share one letter, and a file that is none."""
    own = [one for one in font_manager.fontManager.ttflist if one.name.startswith(("DejaVu", "Last Resort"))]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    for name, letters in (("Three", "色猫犬"), ("Two", "犬🙂")):
        font(tmp_path / f"{name}.ttf", name, letters)
        font_manager.fontManager.addfont(tmp_path / f"{name}.ttf")
    (tmp_path / "Three.ttf").rename(tmp_path / "kept.ttf")
    own.append(font_manager.FontEntry(fname=str(tmp_path / "Three.ttf"), name="Broken", style="normal"))
    (tmp_path / "Three.ttf").write_bytes(b"no font")
    entry = next(one for one in font_manager.fontManager.ttflist if one.name == "Three")
    font_manager.fontManager.ttflist.remove(entry)
    font_manager.fontManager.addfont(tmp_path / "kept.ttf")


def test_each_font_draws_what_those_before_it_lack(installed):
    assert fonts_for(["a red square", "größe", "قطة"]) == ([FONT], set())
    assert fonts_for(["猫 is a cat"]) == ([FONT, "Three"], set())
    assert fonts_for(["色犬", "🙂"]) == ([FONT, "Three", "Two"], set())
    assert fonts_for(["🙂"]) == ([FONT, "Two"], set())
    assert fonts_for(["色鳥"]) == ([FONT, "Three"], {"鳥"})


def test_a_letter_without_a_glyph_is_spelled_and_its_marks_go():
    assert spelled("色 is color", {"色"}) == "<U+8272> is color"
    assert spelled("a 👩\u200d🎨\ufe0f", {"👩", "🎨", "\u200d", "\ufe0f"}) == "a <U+1F469><U+1F3A8>"
    assert spelled("é", set()) == "é"


def ink(text: str, families: list[str]) -> int:
    figure = Figure(figsize=(2, 1), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.1, 0.3, text, fontfamily=families, fontsize=30)
    canvas.draw()
    return int((np.asarray(canvas.buffer_rgba())[..., 0] < 128).sum())


def test_the_glyph_itself_is_drawn(installed):
    side = 30 * 100 / 72  # the square of one em, filled, while matplotlib's box is hollow
    families, lacking = fonts_for(["色"])
    assert not lacking
    assert ink("色", families) == pytest.approx(side**2, rel=0.05)


def width_of(text: str) -> int:
    """In columns: two for a letter of Chinese, Japanese or Korean."""
    return sum(2 if east_asian_width(letter) == "W" else 1 for letter in text)


def test_lines_are_broken_between_words_and_within_long_ones():
    assert wrapped("a red square left of a blue circle", width_of, 20, 4) == "a red square left of\na blue circle"
    assert wrapped("色" * 20, width_of, 32, 4) == "色" * 16 + "\n" + "色" * 4
    assert wrapped("a " + "<U+8272>" * 3, width_of, 20, 4) == "a\n<U+8272><U+8272>\n<U+8272>"
    assert wrapped("one two three four five six", width_of, 9, 2) == "one two\nthree …"
    assert wrapped("one two three four", width_of, 100, 2) == "one two three four"
    assert wrapped("", width_of, 9, 2) == ""


def test_labels_of_any_script_stay_in_the_picture():
    figure = empty_figure(900 / DPI, 700 / DPI)
    tiles = np.zeros((5, 1, 32, 32, 3), np.uint8)
    labels = ["\ue000" * 30, "色" * 40, "WWWW " * 20, "a red square left of a blue circle " * 3, "قطة حمراء"]
    shown = _show(figure, LABELS, 20, tiles, [[True]] * 5, labels)
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in shown.get_yticklabels()]
    assert len(boxes) == 5
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= LABELS * figure.dpi / DPI
    assert max(box.height for box in boxes) <= 110 * figure.dpi / DPI  # of a row
