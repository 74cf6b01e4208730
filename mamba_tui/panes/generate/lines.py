"""The lines below the text: what is under the cursor, and the legend of the surprise view."""

from __future__ import annotations

from textual.content import Content

from mamba_tui.widgets.knobs import Knobs
from mamba_tui.widgets.safe_text import clip, visible
from mamba_tui.widgets.token_view import SHADES, TokenView


def token_line(view: TokenView, width: int) -> Content:
    """The token under the cursor, its probability and likely alternatives."""
    token = view.current
    if token is None or token.probability is None:
        return Content.styled(
            "Tab goes to the text: arrows choose a token, Enter shows others for it.", "$muted"
        )
    parts: list[Content | str | tuple[str, str]] = [
        (repr(visible(clip(token.text, 20))), "bold"),
        f" {token.probability:.1%}   ",
    ]
    room = max(20, width) - 34
    for text, probability in token.alternatives:
        shown = f"{visible(clip(text, 12))!r} {probability:.0%}  "
        if len(shown) > room:
            break
        room -= len(shown)
        parts.append((shown, "$accent" if text == token.text else "$muted"))
    return Content.assemble(*parts)


def knob_line(knobs: Knobs) -> Content:
    """A description of the selected setting."""
    return Content.styled(visible(knobs.knob.help), "$muted")


def legend(view: TokenView) -> Content:
    """The meaning of each shade of the surprise view, and the text's mean surprise."""
    parts: list[Content | tuple[str, str]] = [("surprise in bits ", "$muted")]
    bounds = [f"<{SHADES[0]:g}", *(f"{limit:g}+" for limit in SHADES)]
    for text, style in zip(bounds, view.shades()):
        assert style.color is not None
        assert style.bgcolor is not None
        colors = f"{style.color.get_truecolor().hex} on {style.bgcolor.get_truecolor().hex}"
        parts.append((f" {text} ", colors))
    mean = view.mean_bits
    parts.append(("  mean " + (f"{mean:.2f} bits/token" if mean is not None else "-"), ""))
    return Content.assemble(*parts)
