"""Color themes, and the series colors that go with them.

Series and layer types use the Okabe-Ito palette, which people with any common color blindness can tell apart
(https://jfly.uni-koeln.de/color/); on light backgrounds, its darker relatives.
"""

from __future__ import annotations

from rich.style import Style
from textual.color import Color
from textual.theme import Theme

# Order: training, validation, then overlays and further series.
DARK_SERIES = ("#56b4e9", "#e69f00", "#2fbf8f", "#d884b4", "#f0e442", "#e0875a", "#9aa7ff", "#b0b0b0")
LIGHT_SERIES = ("#0060a0", "#8f4a00", "#006b4c", "#94396c", "#6a5c00", "#a03400", "#4a4fc4", "#585858")
CONTRAST_SERIES = ("#66ccff", "#ffb000", "#00ff9c", "#ff8ad8", "#ffff00", "#ff8c55", "#b3b9ff", "#ffffff")


def _variables(series: tuple[str, ...], faint: str, muted: str, line: str, selection: str) -> dict[str, str]:
    return {
        **{f"series-{index}": color for index, color in enumerate(series)},
        "series-faint": faint,
        # Between parts of the screen, and of a chart's grid.
        "line": line,
        # Behind the selected row, on which every color of text must still be legible.
        "selection": selection,
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
        primary="#4b8fc4",
        secondary="#5b6b7b",
        accent="#f2b134",
        warning="#e6a23c",
        error="#f07068",
        success="#62b866",
        foreground="#d7dde4",
        background="#0f1419",
        surface="#161c23",
        panel="#26303a",
        dark=True,
        variables=_variables(DARK_SERIES, "#456f8c", "#93a0ad", "#64727f", "#223445"),
    ),
    Theme(
        name="mamba-light",
        primary="#286490",
        secondary="#7a8794",
        accent="#8a5200",
        warning="#855600",
        error="#a3221b",
        success="#1a6b33",
        foreground="#1d242b",
        background="#fbfaf7",
        surface="#f1efe9",
        panel="#e4e1d9",
        dark=False,
        variables=_variables(LIGHT_SERIES, "#6f8ba2", "#55606a", "#858172", "#dfe7ee"),
    ),
    Theme(
        name="mamba-contrast",
        primary="#62adff",
        secondary="#ffffff",
        accent="#ffd500",
        warning="#ffd500",
        error="#ff8080",
        success="#5dff8f",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#3a3a3a",
        dark=True,
        text_alpha=1.0,
        variables=_variables(CONTRAST_SERIES, "#3b7ba6", "#d0d0d0", "#808080", "#16324d"),
    ),
)
DEFAULT = THEMES[0].name
NAMES = tuple(theme.name for theme in THEMES)


TEXT_CONTRAST = 4.5
"""What WCAG 2.1 asks for text (1.4.3)."""


def fallback_variables(dark: bool) -> dict[str, str]:
    """Series colors for Textual's own themes, which don't define them."""
    theme = THEMES[0] if dark else THEMES[1]
    return dict(theme.variables)


def shaded(background: Color, *texts: Color) -> Style:
    """A background with the most legible of these text colors, moved away from it until it can be read."""
    text = max(texts, key=lambda color: contrast(color, background))
    away = Color.parse("#ffffff" if _luminance(text) < _luminance(background) else "#000000")
    while contrast(text, background) < TEXT_CONTRAST and contrast(away, background) > 1.01:
        background = background.blend(away, 0.08)
    return Style(color=text.rich_color, bgcolor=background.rich_color)


def contrast(first: Color, second: Color) -> float:
    """WCAG 2's contrast of two colors, 1 to 21."""
    light = sorted(_luminance(color) for color in (first, second))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(color: Color) -> float:
    parts = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color.normalized
    )
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts))
