"""The one table of keys. Bindings, the key bar, the help screen and docs/keys.md are made from it.

`python -m mamba_tui.keys` prints docs/keys.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.binding import BindingType


@dataclass(frozen=True)
class Key:
    """One action: the keys that do it, its short name in the key bar, and its help.

    `bar` orders the key bar (smaller is further left); 0 keeps it out. `priority` keys work while a
    text is being edited.
    """

    keys: str
    action: str
    label: str
    help: str
    bar: int = 0
    priority: bool = False


CONTEXTS: dict[str, str] = {
    "app": "Everywhere",
    "config": "Configure",
    "layers": "Configure: layers",
    "settings": "Configure: settings",
    "train": "Train",
    "chart": "Charts",
    "run_rows": "Runs list: the run under the cursor",
    "runs": "Runs list",
    "checkpoints": "Checkpoints",
    "generate": "Generate",
    "tokens": "Generate: the text",
    "prompt": "Generate: the prompt",
    "knobs": "Generate: the knobs",
    "data": "Data",
    "text": "Data: the text",
    "table": "Lists",
}

TABLE: dict[str, tuple[Key, ...]] = {
    "app": (
        Key("f1", "help", "Help", "this help", 90, priority=True),
        Key("f2", "tab('configure')", "Configure", "design the model and the training", priority=True),
        Key("f3", "tab('train')", "Train", "watch and steer a run", priority=True),
        Key("f4", "tab('checkpoints')", "Checkpoints", "what runs have kept", priority=True),
        Key("f5", "tab('generate')", "Generate", "let a checkpoint write", priority=True),
        Key("f6", "tab('data')", "Data", "the text that is learned", priority=True),
        Key("ctrl+pagedown", "next_tab(1)", "Next tab", "next tab", priority=True),
        Key("ctrl+pageup", "next_tab(-1)", "Previous tab", "previous tab", priority=True),
        Key("ctrl+r", "start", "Start", "start training with the configuration on screen", 40, priority=True),
        Key("ctrl+p", "command_palette", "Commands", "search all commands", priority=True),
        Key("ctrl+t", "next_theme", "Theme", "next colour theme", priority=True),
        Key("f12", "screenshot_file", "Picture", "write a picture of the screen (SVG)", priority=True),
        Key(
            "ctrl+q", "leave", "Quit", "quit; asks what happens to a run that is training", 91, priority=True
        ),
        Key("tab", "app.focus_next", "Next part", "go to the next part of the screen"),
        Key("shift+tab", "app.focus_previous", "Previous part", "go to the previous part of the screen"),
    ),
    "config": (
        Key("ctrl+z", "undo", "Undo", "take the last change back", 30),
        Key("ctrl+y,ctrl+shift+z", "redo", "Redo", "make the change again"),
        Key("ctrl+s", "save", "Save", "save the configuration to its file", 31),
        Key("ctrl+o", "load", "Load", "load a .json or .toml configuration", 32),
        Key("f7,ctrl+e", "preset", "Preset", "replace the configuration by a preset", 33),
        Key("f8,ctrl+d", "compare", "Compare", "differences to the file, a run or a preset", 34),
        Key("ctrl+n", "name_run", "Run name", "name the run that Start begins"),
        Key("slash", "filter", "Find", "find a setting", 36),
    ),
    "layers": (
        Key("up,k", "move_cursor(-1)", "Up", "previous layer"),
        Key("down,j", "move_cursor(1)", "Down", "next layer"),
        Key("left,h", "move_column(-1)", "Left", "previous column"),
        Key("right,l", "move_column(1)", "Right", "next column"),
        Key("enter", "edit", "Edit", "edit the value, or take the next type; typing a digit edits too", 2),
        Key("space", "cycle(1)", "Next value", "next type, next width or next head count that fits", 3),
        Key("plus,equals_sign", "nudge(1)", "More", "wider by 16, or the next head count that fits"),
        Key("minus", "nudge(-1)", "Less", "narrower by 16, or the previous head count that fits"),
        Key("a,insert", "add", "Add", "add a layer after this one", 4),
        Key("d,delete", "remove", "Delete", "remove the layer", 5),
        Key("c", "duplicate", "Copy", "duplicate the layer", 6),
        Key("alt+up,K,shift+up", "shift(-1)", "Move up", "move the layer up"),
        Key("alt+down,J,shift+down", "shift(1)", "Move down", "move the layer down"),
        Key("m", "mirror", "Mirror", "make the second half the mirror image of the first", 7),
        Key("r", "ramp", "Ramp", "widths from first to last in even or geometric steps", 8),
        Key("v", "paste_list", "List", "type or paste a list of widths, heads or types", 9),
    ),
    "settings": (
        Key("up,k", "move_cursor(-1)", "Up", "previous setting"),
        Key("down,j", "move_cursor(1)", "Down", "next setting"),
        Key("pageup", "page(-1)", "Page up", "a page up"),
        Key("pagedown", "page(1)", "Page down", "a page down"),
        Key("home", "edge(-1)", "First", "first setting"),
        Key("end", "edge(1)", "Last", "last setting"),
        Key("enter", "edit", "Edit", "edit the value; typing edits too", 2),
        Key("space,right", "cycle(1)", "Next value", "next choice, or switch on and off", 3),
        Key("left", "cycle(-1)", "Previous value", "previous choice"),
        Key("backspace,delete", "default", "Default", "back to the default", 4),
    ),
    "train": (
        Key("p", "pause", "Pause/go on", "pause the run, or go on", 10),
        Key("x", "stop", "Stop", "save a checkpoint, then end the run", 11),
        Key("c", "command('save')", "Checkpoint", "save a checkpoint now", 12),
        Key("e", "command('evaluate')", "Evaluate", "evaluate now", 13),
        Key("g", "sample", "Sample", "write a sample now", 14),
        Key("R", "resume", "Resume", "start an ended run again where it was saved", 15),
        Key("a", "runs", "Runs", "list all runs and follow another one", 16),
        Key("v", "next_view", "View", "next view: charts, samples, log", 17),
        Key("m,enter", "maximise", "One/all", "show one chart alone, or all", 18),
        Key("n", "next_chart(1)", "Next chart", "next chart", 19),
        Key("N", "next_chart(-1)", "Previous chart", "previous chart"),
        Key("s", "smooth(1)", "Smoother", "more smoothing", 22),
        Key("S", "smooth(-1)", "Rougher", "less smoothing"),
        Key("t", "axis", "X axis", "x axis: steps, tokens, time since the start, time of day", 23),
        Key("w", "overlay", "Overlay", "draw other runs behind this one", 24),
        Key("u", "unit", "Unit", "loss per token (nats) or bits per byte"),
        Key("W", "write_file", "Write", "write the curves to a .csv file"),
    ),
    "chart": (
        Key(
            "plus,equals_sign,up",
            "zoom(1)",
            "Zoom in",
            "zoom in around the crosshair or the newest point",
            20,
        ),
        Key("minus,down", "zoom(-1)", "Zoom out", "zoom out"),
        Key("left", "left_right(-1)", "Left", "move the crosshair, or the view, to the left"),
        Key("right", "left_right(1)", "Right", "move the crosshair, or the view, to the right"),
        Key("shift+left", "pan(-1)", "Pan left", "move the view to the left"),
        Key("shift+right", "pan(1)", "Pan right", "move the view to the right"),
        Key("space", "crosshair", "Crosshair", "crosshair with values on and off", 21),
        Key("l", "log_y", "Log", "logarithmic or linear y axis", 25),
        Key("o", "outliers", "Outliers", "let outliers out of the y axis or back in"),
        Key("f", "follow", "Follow", "keep the newest point in view, or stop"),
        Key("0,home", "reset", "Reset", "show everything again", 26),
    ),
    "run_rows": (Key("enter", "select", "Follow", "follow the run", 1),),
    "runs": (
        Key("space", "overlay", "Draw behind", "draw the run's curve behind the followed one, or no more", 2),
        Key("slash", "filter", "Filter", "show only runs whose name contains a text", 3),
        Key("escape", "leave", "Close", "close the list", 4),
    ),
    "checkpoints": (
        Key("g,enter", "generate(0)", "Generate", "load it into Generate", 10),
        Key("G", "generate(1)", "Beside", "load it as the second checkpoint of Generate"),
        Key("space", "mark", "Mark", "mark for comparing; two can be marked", 11),
        Key("c", "compare", "Compare", "compare the two marked, or the marked and the current one", 12),
        Key("r", "resume", "Resume", "resume its run from its newest checkpoint", 13),
        Key("b", "branch", "Branch", "begin a new run from this checkpoint", 14),
        Key("p", "pin", "Pin", "keep it at the top of the list", 15),
        Key("s", "sort", "Sort", "sort by the next column", 16),
        Key("S", "sort_reverse", "Reverse", "reverse the order"),
        Key("slash", "filter", "Filter", "show only runs whose name contains a text", 17),
        Key("x", "export", "Export", "export the weights as .safetensors", 18),
        Key("h", "verify", "Verify", "check the file against its hash"),
        Key("d,delete", "delete", "Delete", "delete it, after a question", 19),
        Key("u,ctrl+z", "undelete", "Undo", "bring the last deleted one back"),
    ),
    "generate": (
        Key("ctrl+g", "generate", "Write", "write from the prompt", priority=True),
        Key("escape", "halt", "Stop", "stop writing at once", 3),
        Key("ctrl+n", "continue_text", "Go on", "go on after the last word", 4, priority=True),
        Key("ctrl+b", "regenerate", "Again", "write it again with the next seed", 5, priority=True),
        Key("ctrl+l", "choose", "Checkpoint", "choose the checkpoint", 6, priority=True),
        Key(
            "f7",
            "beside",
            "Two",
            "a second checkpoint beside the first, same prompt and seed",
            7,
            priority=True,
        ),
        Key("f8", "surprise", "Surprise", "shade each token by how unlikely it was", 8, priority=True),
        Key("f9", "write_file", "To file", "write the text to a file", 9, priority=True),
    ),
    "knobs": (
        Key("left,h", "choose(-1)", "Previous", "previous knob"),
        Key("right,l", "choose(1)", "Next", "next knob"),
        Key("up,plus,equals_sign", "nudge(1)", "More", "a little more", 10),
        Key("down,minus", "nudge(-1)", "Less", "a little less", 11),
        Key("enter", "edit", "Edit", "type a value; typing a digit does too", 12),
        Key("backspace,delete", "default", "Default", "back to the default"),
    ),
    "tokens": (
        Key("left,h", "move(-1)", "Previous", "previous token"),
        Key("right,l", "move(1)", "Next", "next token"),
        Key("up,k", "move_line(-1)", "Up", "line above"),
        Key("down,j", "move_line(1)", "Down", "line below"),
        Key("home", "edge(-1)", "First", "first token"),
        Key("end", "edge(1)", "Last", "last token, and follow"),
        Key("enter", "alternatives", "Alternatives", "choose another token here and branch", 12),
        Key("b", "branch", "Branch", "write on from this token with another seed", 13),
        Key("y", "copy", "Copy", "copy the text (also over SSH)", 15),
    ),
    "prompt": (
        Key("enter", "submit", "Write", "write from the prompt", 2),
        Key("ctrl+j,shift+enter,alt+enter", "newline", "New line", "a new line in the prompt"),
        Key("alt+up,ctrl+up", "history(-1)", "Earlier", "earlier prompt (up on the first line does too)"),
        Key("alt+down,ctrl+down", "history(1)", "Later", "later prompt (down on the last line does too)"),
    ),
    "data": (
        Key("p", "prepare", "Prepare", "turn the text into tokens, or look at the folder again", 10),
        Key("escape", "cancel", "Cancel", "stop preparing; what is finished stays", 11),
        Key("greater_than_sign,full_stop", "turn(1)", "Read on", "the next stretch of the text", 12),
        Key("less_than_sign,comma", "turn(-1)", "Back", "the previous stretch of the text", 13),
        Key("s", "sample", "Sample text", "write the built-in sample into an empty dataset folder", 14),
    ),
    "text": (
        Key("left,h", "move(-1)", "Previous", "previous token"),
        Key("right,l", "move(1)", "Next", "next token"),
        Key("up,k", "move_line(-1)", "Up", "line above"),
        Key("down,j", "move_line(1)", "Down", "line below"),
        Key("home", "edge(-1)", "First", "first token"),
        Key("end", "edge(1)", "Last", "last token"),
    ),
    "table": (
        Key("up,k", "move_cursor(-1)", "Up", "up"),
        Key("down,j", "move_cursor(1)", "Down", "down"),
        Key("pageup", "page(-1)", "Page up", "a page up"),
        Key("pagedown", "page(1)", "Page down", "a page down"),
        Key("home", "edge(-1)", "First", "first row"),
        Key("end", "edge(1)", "Last", "last row"),
        Key("enter", "select", "Choose", "choose the row"),
    ),
}

_NAMES = {
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "slash": "/",
    "greater_than_sign": ">",
    "less_than_sign": "<",
    "full_stop": ".",
    "comma": ",",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "space": "Space",
    "enter": "Enter",
    "escape": "Esc",
    "delete": "Del",
    "insert": "Ins",
    "backspace": "Backspace",
    "home": "Home",
    "end": "End",
    "tab": "Tab",
}


def key_name(key: str) -> str:
    """`ctrl+pagedown` as it stands on a keyboard: `Ctrl+PgDn`."""
    *modifiers, last = key.split("+")
    function_key = last.startswith("f") and last[1:].isdigit()
    if function_key or (modifiers and len(last) == 1):
        name = last.upper()
    else:
        name = _NAMES.get(last, last)
    return "+".join([*(modifier.capitalize() for modifier in modifiers), name])


def bindings(context: str) -> list[BindingType]:
    """Textual's bindings of one context."""
    from textual.binding import Binding

    return [
        Binding(
            name,
            key.action,
            key.label,
            show=key.bar > 0 and index == 0,
            key_display=key_name(name),
            priority=key.priority,
            tooltip=key.help,
        )
        for key in TABLE[context]
        for index, name in enumerate(key.keys.split(","))
    ]


def bar_order() -> dict[tuple[str, str], int]:
    """For the key bar: (action, first key) -> place, of the keys shown there."""
    return {
        (key.action, key.keys.split(",")[0]): key.bar for table in TABLE.values() for key in table if key.bar
    }


def sections() -> Iterable[tuple[str, list[tuple[str, str]]]]:
    """Title and (keys, help) rows of every context that has keys, for help and docs."""
    for context, title in CONTEXTS.items():
        rows = [
            (", ".join(key_name(name) for name in key.keys.split(",")), key.help) for key in TABLE[context]
        ]
        if rows:
            yield title, rows


def markdown() -> str:
    """docs/keys.md."""
    parts = [
        "# Keys",
        "",
        "Made by `python -m mamba_tui.keys > docs/keys.md`; a test keeps it current.",
    ]
    for title, rows in sections():
        parts += ["", f"## {title}", "", "| Keys | What they do |", "| --- | --- |"]
        parts += [f"| {names.replace('|', chr(92) + '|')} | {text} |" for names, text in rows]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
