"""Texts of any script in figures: the installed fonts that have their letters, and a name for letters that none has."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

FONT = "DejaVu Sans"  # which comes with matplotlib
UNSEEN = ("Mn", "Me", "Cf", "Cc", "Cs")  # categories of marks, joiners and controls, which may go without a glyph


def fonts_for(texts: Sequence[str]) -> tuple[list[str], set[str]]:
    """The families that draw these texts, each for what those before it lack, and the letters that none has."""
    from matplotlib import font_manager

    lacking = {letter for text in texts for letter in text if not letter.isspace()}
    families = [FONT]
    lacking -= _letters(font_manager.findfont(FONT))
    if lacking:
        # Matplotlib's last resort has a box for every letter.
        upright = [
            font
            for font in font_manager.fontManager.ttflist
            if font.style == "normal" and not font.name.startswith("Last Resort")
        ]
        fonts = {font.name: font.fname for font in sorted(upright, key=lambda font: font.name)}
        has = {name: _letters(path) & lacking for name, path in fonts.items()}
        while lacking and (best := max(has, key=lambda name: len(has[name] & lacking))) and has[best] & lacking:
            families.append(best)
            lacking = lacking - has[best]
    return families, lacking


def _letters(path: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return {chr(code) for code in FT2Font(path).get_charmap()}
    except (OSError, RuntimeError):  # fonts of bitmaps, such as colored emoji
        return set()


def spelled(text: str, lacking: set[str]) -> str:
    """A text in which a letter without a glyph stands as `<U+8272>` instead of as a box."""

    def one(letter: str) -> str:
        if letter not in lacking:
            return letter
        return "" if unicodedata.category(letter) in UNSEEN else f"<U+{ord(letter):04X}>"

    return "".join(map(one, text))


def wrapped(text: str, width: int, lines: int) -> str:
    """At most so many lines of so many columns, of which letters of Chinese, Japanese and Korean take two."""
    found = Text(text).wrap(Console(width=width), width)
    out = [line.plain.rstrip() for line in found]
    if len(out) > lines:
        out = out[:lines]
        last = Text(out[-1])
        last.truncate(width - 2)
        out[-1] = f"{last.plain.rstrip()} …"
    return "\n".join(out)
