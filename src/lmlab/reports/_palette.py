"""The colors of figures: a light and a dark tone of each, after Okabe & Ito (2008), "Color Universal Design".

Neighbors differ in lightness as well as in hue, so that they stay apart for color-blind readers and in print. Every
tone has a contrast of at least 3 with the background of its theme. Figures are made with the light tones; the page
swaps each for its dark counterpart when the reader's theme is dark.
"""

from __future__ import annotations

LIGHT = ("#0b63a8", "#d9600a", "#00876a", "#b0508c", "#8f6d00", "#596270")
DARK = ("#5fb0f0", "#f28e4a", "#2fc49c", "#e79ac8", "#dcc04a", "#a9b2be")

REFERENCE_LIGHT = "#30363d"
REFERENCE_DARK = "#d5dadf"

DASHES = ("solid", "dot", "dashdot", "longdash")


def color(index: int) -> str:
    """The light tone of the series with this index; the palette repeats after its last color."""
    return LIGHT[index % len(LIGHT)]


def dash(index: int) -> str:
    """The line style of the series with this index: solid for the first round of the palette, then others."""
    return DASHES[index // len(LIGHT) % len(DASHES)]


def light_to_dark() -> dict[str, str]:
    """Each light tone with its dark counterpart."""
    return {**dict(zip(LIGHT, DARK, strict=True)), REFERENCE_LIGHT: REFERENCE_DARK}
