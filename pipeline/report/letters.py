"""Texts of any script in figures: the installed fonts that have their letters, and a name for letters that none has."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

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


def wrapped(text: str, width_of: Callable[[str], float], width: float, lines: int) -> str:
    """At most so many lines of at most this width, as `width_of` measures them, broken between words, and within a
    word that is longer than a line."""
    found: list[str] = []
    for word in text.split():
        longer = f"{found[-1]} {word}" if found else word
        if found and width_of(longer) <= width:
            found[-1] = longer
        elif width_of(word) <= width:
            found.append(word)
        else:
            found.append("")
            for letter in re.findall(r"<U\+[0-9A-F]+>|.", word):
                if width_of(found[-1] + letter) > width:
                    found.append("")
                found[-1] += letter
    if len(found) > lines:
        found = found[:lines]
        last = re.findall(r"<U\+[0-9A-F]+>|.", found[-1])
        while last and width_of("".join(last) + " …") > width:
            last.pop()
        found[-1] = "".join(last).rstrip() + " …"
    return "\n".join(found)
