"""Color themes, and the series colors that go with them.

Series and layer types use the Okabe-Ito palette, which people with any common color blindness can tell apart
(https://jfly.uni-koeln.de/color/); on light backgrounds, its darker relatives.
"""

from __future__ import annotations

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

# Order: training, validation, then overlays and further series.
DARK_SERIES = ("#56b4e9", "#e69f00", "#2fbf8f", "#cc79a7", "#f0e442", "#d5703b", "#9aa7ff", "#b0b0b0")
LIGHT_SERIES = ("#0060a0", "#a85a00", "#007a57", "#9c3f74", "#7a6a00", "#b03a00", "#4a4fc4", "#606060")
CONTRAST_SERIES = ("#66ccff", "#ffb000", "#00ff9c", "#ff8ad8", "#ffff00", "#ff7a3d", "#b3b9ff", "#ffffff")


def _variables(series: tuple[str, ...], faint: str, muted: str) -> dict[str, str]:
    return {
        **{f"series-{index}": color for index, color in enumerate(series)},
        "series-faint": faint,
        # Textual's own color is a blend with the background, which only style sheets understand.
        "text-muted": muted,
        "muted": muted,
        "layer-mamba": series[0],
        "layer-standard": series[1],
        "layer-mamba2": series[2],
    }


THEMES = (
    Theme(
        name="mamba-dark",
        primary="#3b82b8",
        secondary="#5b6b7b",
        accent="#f2b134",
        warning="#e6a23c",
        error="#e5534b",
        success="#57ab5a",
        foreground="#d7dde4",
        background="#0f1419",
        surface="#161c23",
        panel="#26303a",
        dark=True,
        variables=_variables(DARK_SERIES, "#36566e", "#8b98a5"),
    ),
    Theme(
        name="mamba-light",
        primary="#2f6f9f",
        secondary="#7a8794",
        accent="#9a5b00",
        warning="#9a6700",
        error="#b3261e",
        success="#1f7a3a",
        foreground="#1d242b",
        background="#fbfaf7",
        surface="#f1efe9",
        panel="#dcd9d0",
        dark=False,
        variables=_variables(LIGHT_SERIES, "#a9c3d6", "#5c6670"),
    ),
    Theme(
        name="mamba-contrast",
        primary="#4fa3ff",
        secondary="#ffffff",
        accent="#ffd500",
        warning="#ffd500",
        error="#ff6b6b",
        success="#5dff8f",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#3a3a3a",
        dark=True,
        text_alpha=1.0,
        variables=_variables(CONTRAST_SERIES, "#2f6a90", "#d0d0d0"),
    ),
)
DEFAULT = THEMES[0].name
NAMES = tuple(theme.name for theme in THEMES)


def fallback_variables(dark: bool) -> dict[str, str]:
    """Series colors for Textual's own themes, which don't define them."""
    theme = THEMES[0] if dark else THEMES[1]
    return dict(theme.variables)


def shaded(background: Color, *texts: Color) -> Style:
    """A background, with the most readable of these colors for text on it."""
    legible = max(texts, key=lambda color: contrast(color, background))
    return Style(color=legible.rich_color, bgcolor=background.rich_color)


def contrast(first: Color, second: Color) -> float:
    """WCAG 2's contrast of two colors, 1 to 21."""
    light = sorted(_luminance(color) for color in (first, second))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(color: Color) -> float:
    parts = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color.normalized
    )
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts))
