"""The table of all keys. Bindings, the key bar, the help screen and docs/keys.md are generated from it.

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
    """One action: its keys, its short name in the key bar, and its help.

    `bar` orders the key bar (smaller numbers come first); 0 leaves it out. `priority` keys also work while
    text is being edited.
    """

    keys: str
    action: str
    label: str
    help: str
    bar: int = 0
    priority: bool = False


@dataclass(frozen=True)
class Context:
    """A part of the console with its own keys.

    `title` is its heading in the help, `tab` the tab it belongs to ("" for every tab), and `widget` the
    selector of the widget that has its keys. A context without a widget is shared, and the palette leaves it
    out.
    """

    title: str
    tab: str = ""
    widget: str = ""


CONTEXTS: dict[str, Context] = {
    "app": Context("Everywhere", widget="Screen"),
    "config": Context("Configure", "configure", "ConfigPane"),
    "layers": Context("Configure: layers", "configure", "LayerTable"),
    "settings": Context("Configure: settings", "configure", "SettingsList"),
    "train": Context("Train", "train", "TrainPane"),
    "charts": Context("Train: all charts", "train", "#charts-view"),
    "chart": Context("Train: one chart", "train", "#loss"),
    "samples": Context("Train: samples", "train", "#samples-view"),
    "log": Context("Train: log", "train", "#log-view"),
    "details": Context("Train: details", "train", "#details-view"),
    "checkpoints": Context("Checkpoints", "checkpoints", "CheckpointsPane"),
    "generate": Context("Generate", "generate", "GeneratePane"),
    "prompt": Context("Generate: prompt", "generate", "PromptEditor"),
    "knobs": Context("Generate: sampling settings", "generate", "Knobs"),
    "tokens": Context("Generate: text", "generate", "#text-0"),
    "data": Context("Data", "data", "DataPane"),
    "text": Context("Data: text", "data", "#data-text"),
    "inspect": Context("Layers", "inspect", "LayersPane"),
    "inspected": Context("Layers: text", "inspect", "#layers-text"),
    "picture": Context("Layers: view", "inspect", "Picture"),
    "runs": Context("Runs", "runs", "RunsPane"),
    "run_table": Context("Runs: table", "runs", "RunTable"),
    "run_rows": Context("Choose a run: the selected run"),
    "run_picker": Context("Choose a run"),
    "table": Context("Lists"),
}

# In a text that is only read.
TOKEN_CURSOR = (
    Key("left,h", "move(-1)", "Previous", "previous token"),
    Key("right,l", "move(1)", "Next", "next token"),
    Key("up,k", "move_line(-1)", "Up", "a line up"),
    Key("down,j", "move_line(1)", "Down", "a line down"),
    Key("home", "edge(-1)", "First", "first token"),
    Key("end", "edge(1)", "Last", "last token"),
)

TABLE: dict[str, tuple[Key, ...]] = {
    "app": (
        Key("f1", "help", "Help", "show the keys of this tab", 90, priority=True),
        Key("question_mark", "help", "Help", "show the keys of this tab, where no text is being typed"),
        Key("f2", "tab('configure')", "Configure", "go to Configure", priority=True),
        Key("f3", "tab('train')", "Train", "go to Train", priority=True),
        Key("f4", "tab('checkpoints')", "Checkpoints", "go to Checkpoints", priority=True),
        Key("f5", "tab('generate')", "Generate", "go to Generate", priority=True),
        Key("f6", "tab('data')", "Data", "go to Data", priority=True),
        Key("f7", "tab('runs')", "Runs", "go to Runs", priority=True),
        Key("f8", "tab('inspect')", "Layers", "go to Layers", priority=True),
        Key("ctrl+pagedown", "next_tab(1)", "Next tab", "next tab", priority=True),
        Key("ctrl+pageup", "next_tab(-1)", "Previous tab", "previous tab", priority=True),
        Key("ctrl+r", "start", "Start", "start training with this configuration", 40, priority=True),
        Key("ctrl+p", "command_palette", "Commands", "search all commands", 89, priority=True),
        Key("ctrl+t", "next_theme", "Theme", "next color theme", priority=True),
        Key("f12", "screenshot_file", "Screenshot", "save a screenshot (SVG)", priority=True),
        Key("ctrl+q", "leave", "Quit", "quit, after asking about a run that is training", 91, priority=True),
        Key("tab", "app.focus_next", "Next part", "go to the next part of the screen"),
        Key("shift+tab", "app.focus_previous", "Previous part", "go to the previous part of the screen"),
    ),
    "config": (
        Key("ctrl+z", "undo", "Undo", "undo the last change", 30),
        Key("ctrl+y,ctrl+shift+z", "redo", "Redo", "redo the change that was undone"),
        Key("ctrl+s", "save", "Save", "save the configuration to a file", 31),
        Key("ctrl+o", "load", "Load", "load a .json or .toml configuration", 32),
        Key("ctrl+e", "preset", "Preset", "replace the configuration with a preset", 33),
        Key("ctrl+d", "compare", "Compare", "compare with a file, a run or a preset", 34),
        Key("ctrl+n", "name_run", "Name run", "name the run that Start creates", 35),
        Key("ctrl+w", "sweep", "Sweep...", "train many variants: which values of which settings", 36),
        Key("ctrl+k", "start_after", "Start after...", "start when another run ends", 37),
        Key("slash", "filter", "Find", "find a setting", 38),
    ),
    "layers": (
        Key("up,k", "move_cursor(-1)", "Up", "previous layer"),
        Key("down,j", "move_cursor(1)", "Down", "next layer"),
        Key("left,h", "move_column(-1)", "Left", "previous column"),
        Key("right,l", "move_column(1)", "Right", "next column"),
        Key("enter", "edit", "Edit", "edit the value, or choose the next type; typing a digit edits too", 2),
        Key("space", "cycle(1)", "Next value", "next type, next width, or next head count that fits", 3),
        Key("plus,equals_sign", "nudge(1)", "Increase", "wider by 16, or the next head count that fits"),
        Key("minus", "nudge(-1)", "Decrease", "narrower by 16, or the previous head count that fits"),
        Key("a,insert", "add", "Add", "add a layer after this one", 4),
        Key("d,delete", "remove", "Delete", "delete the layer", 5),
        Key("c", "duplicate", "Copy", "duplicate the layer", 6),
        Key("alt+up,K,shift+up", "shift(-1)", "Move up", "move the layer up"),
        Key("alt+down,J,shift+down", "shift(1)", "Move down", "move the layer down"),
        Key("m", "mirror", "Mirror", "make the second half a mirror image of the first", 7),
        Key("r", "ramp", "Ramp", "set widths from first to last in even or geometric steps", 8),
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
        Key("backspace,delete", "default", "Default", "reset to the default", 4),
    ),
    "train": (
        Key("p", "pause", "Pause", "pause training, or continue", 10),
        Key("x", "stop", "Stop", "save a checkpoint and stop the run", 11),
        Key("F", "finish", "Finish", "end the run well: cool the learning rate down, evaluate, save", 17),
        Key("c", "command('save')", "Checkpoint", "save a checkpoint now", 12),
        Key("e", "command('evaluate')", "Evaluate", "evaluate now", 13),
        Key("g", "sample", "Sample", "generate a sample now", 14),
        Key("R", "resume", "Resume", "resume a run that has ended from its last checkpoint", 15),
        Key("a", "runs", "Runs", "list all runs, and follow or overlay others", 16),
        Key("1", "view('charts')", "Charts", "show the charts"),
        Key("2", "view('samples')", "Samples", "show the samples"),
        Key("3", "view('log')", "Log", "show the log"),
        Key("4", "view('details')", "Details", "show what the run reads, and its configuration"),
        Key("v", "next_view", "Next view", "next view: charts, samples, log, details"),
    ),
    "charts": (
        Key("m,enter", "maximize", "Maximize", "show one chart alone, or all charts", 18),
        Key("n", "next_chart(1)", "Next chart", "next chart", 19),
        Key("N", "next_chart(-1)", "Previous chart", "previous chart"),
        Key("s", "smooth(1)", "Smooth", "more smoothing", 22),
        Key("S", "smooth(-1)", "Less smooth", "less smoothing"),
        Key("t", "axis", "X axis", "x axis: steps, tokens, time since the start, time of day", 23),
        Key("w", "overlay", "Overlay", "choose other runs to draw behind this one", 24),
        Key("B", "unit", "Bits/byte", "show loss in nats per token or in bits per byte"),
        Key("W", "write_file", "Write file", "write the curves to a .csv file"),
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
        Key("left", "left_right(-1)", "Left", "move the crosshair or the view left"),
        Key("right", "left_right(1)", "Right", "move the crosshair or the view right"),
        Key("shift+left", "pan(-1)", "Pan left", "move the view left"),
        Key("shift+right", "pan(1)", "Pan right", "move the view right"),
        Key("space", "crosshair", "Crosshair", "crosshair with values on or off", 21),
        Key("l", "log_y", "Log axis", "logarithmic or linear y axis", 25),
        Key("o", "outliers", "Outliers", "ignore outliers on the y axis, or include them"),
        Key("f", "follow", "Follow", "keep the newest point in view, or stop"),
        Key("0,home", "reset", "Reset", "reset zoom and crosshair", 26),
    ),
    "samples": (
        Key("left", "older", "Older", "older samples", 20),
        Key("right", "newer", "Newer", "newer samples", 21),
        Key("up", "scroll_by(-1)", "Up", "a line up"),
        Key("down", "scroll_by(1)", "Down", "a line down"),
        Key("pageup", "scroll_by(-10)", "Page up", "ten lines up"),
        Key("pagedown", "scroll_by(10)", "Page down", "ten lines down"),
    ),
    "log": (
        Key("up", "scroll_up", "Up", "a line up"),
        Key("down", "scroll_down", "Down", "a line down"),
        Key("pageup", "page_up", "Page up", "a page up"),
        Key("pagedown", "page_down", "Page down", "a page down"),
        Key("home", "scroll_home", "First", "first line", 20),
        Key("end", "scroll_end", "Last", "last line, and follow", 21),
    ),
    "details": (
        Key("up", "scroll_up", "Up", "a line up"),
        Key("down", "scroll_down", "Down", "a line down"),
        Key("pageup", "page_up", "Page up", "a page up", 20),
        Key("pagedown", "page_down", "Page down", "a page down", 21),
    ),
    "run_rows": (Key("enter", "select", "Follow", "follow the run in Train", 1),),
    "runs": (
        Key("space", "mark", "Mark", "mark the run, or unmark it", 10),
        Key("ctrl+d", "differences", "Compare", "show only the settings that differ, or all columns", 11),
        Key("c", "curves", "Curves", "draw the marked runs together in Train", 12),
        Key("slash", "filter", "Filter", "filter the runs: lr>1e-3 mamba2 -failed", 13),
        Key("s", "sort", "Sort", "sort by the next column", 14),
        Key("S", "sort_reverse", "Reverse", "reverse the order"),
        Key("v", "columns", "Columns", "choose the columns", 15),
        Key("I", "effects", "What mattered", "which setting mattered: its effect on the best loss", 16),
        Key("m", "maximize", "Details", "show the details alone, to scroll through", 16),
        Key("g", "generate", "Generate", "load its best checkpoint into Generate", 17),
        Key("E", "note", "Note", "write a note on the run", 18),
        Key("T", "tags", "Tags", "tag the marked runs, or this one", 19),
        Key("ctrl+n", "rename", "Rename", "rename the run", 20),
        Key("ctrl+e", "use_configuration", "Use settings", "use this run's configuration in Configure", 21),
        Key("y", "copy_path", "Copy path", "copy the path of its folder (over SSH too)", 22),
        Key("R", "resume", "Resume", "resume the run from its last checkpoint", 23),
        Key("d,delete", "delete", "Delete", "delete the marked runs, or this one, after asking", 24),
        Key("ctrl+z,u", "undelete", "Undo", "undelete the last one deleted", 25),
        Key("Q", "sweeps", "Sweeps...", "show a sweep's runs, resume or stop it", 26),
        Key("escape", "leave", "Clear", "end the filter, then the marks"),
    ),
    "run_table": (
        Key("enter", "select", "Follow", "follow the run in Train", 1),
        Key("left,h", "scroll_columns(-1)", "Columns left", "columns further left"),
        Key("right,l", "scroll_columns(1)", "Columns right", "columns further right"),
    ),
    "run_picker": (
        Key("space", "overlay", "Overlay", "draw the run's curve behind the followed one, or stop", 2),
        Key("slash", "filter", "Find", "show only runs whose name contains some text", 3),
        Key("escape", "leave", "Close", "close the list", 4),
    ),
    "checkpoints": (
        Key("g,enter", "generate(0)", "Generate", "load the checkpoint into Generate", 10),
        Key("G", "generate(1)", "Second", "load it as the second checkpoint in Generate"),
        Key("space", "mark", "Mark", "mark it for comparison; two can be marked", 11),
        Key("ctrl+d", "compare", "Compare", "compare the two marked, or the marked and the selected one", 12),
        Key("R", "resume", "Resume", "resume its run from the newest checkpoint", 13),
        Key("b", "branch", "Branch", "start a new run from this checkpoint", 14),
        Key("P", "pin", "Pin", "pin it to the top of the list", 15),
        Key("s", "sort", "Sort", "sort by the next column", 16),
        Key("S", "sort_reverse", "Reverse", "reverse the order"),
        Key("slash", "filter", "Find", "show only runs whose name contains some text", 17),
        Key("W", "export", "Write file", "export the weights as a .safetensors file", 18),
        Key("h", "verify", "Verify", "verify the file against its hash"),
        Key("d,delete", "delete", "Delete", "delete the checkpoint, after asking", 19),
        Key("ctrl+z,u", "undelete", "Undo", "undelete the last one deleted", 20),
    ),
    "generate": (
        Key("ctrl+g", "generate", "Generate", "generate from the prompt", priority=True),
        Key("escape", "halt", "Stop", "stop generating", 3),
        Key("ctrl+n", "continue_text", "Continue", "continue after the last token", 4, priority=True),
        Key("ctrl+b", "regenerate", "Retry", "generate again with the next seed", 5, priority=True),
        Key("ctrl+l", "choose", "Checkpoint", "choose the checkpoint", 6, priority=True),
        Key(
            "f9",
            "beside",
            "Two",
            "show a second checkpoint beside the first, with the same prompt and seed",
            7,
            priority=True,
        ),
        Key("f10", "surprise", "Surprise", "color each token by how unlikely it was", 8, priority=True),
        Key(
            "ctrl+o",
            "library",
            "Load",
            "load a prompt from the library, or keep this one in it",
            9,
            priority=True,
        ),
        Key("alt+left", "variant(-1)", "Earlier text", "show the text before this one", 10, priority=True),
        Key("alt+right", "variant(1)", "Later text", "show the text after this one", priority=True),
        Key("ctrl+s", "write_file", "Save", "save the text to a file", 9, priority=True),
    ),
    "knobs": (
        Key("left,h", "choose(-1)", "Previous", "previous setting"),
        Key("right,l", "choose(1)", "Next", "next setting"),
        Key("up,plus,equals_sign", "nudge(1)", "Increase", "a little more", 10),
        Key("down,minus", "nudge(-1)", "Decrease", "a little less", 11),
        Key("enter", "edit", "Edit", "type a value; typing a digit does too", 12),
        Key("backspace,delete", "default", "Default", "reset to the default"),
    ),
    "tokens": (
        Key("left,h", "move(-1)", "Previous", "previous token"),
        Key("right,l", "move(1)", "Next", "next token"),
        Key("up,k", "move_line(-1)", "Up", "a line up"),
        Key("down,j", "move_line(1)", "Down", "a line down"),
        Key("home", "edge(-1)", "First", "first token"),
        Key("end", "edge(1)", "Last", "last token, and follow"),
        Key("enter", "alternatives", "Alternatives", "choose another token here and continue from it", 12),
        Key("b", "branch", "Branch", "continue from this token with another seed", 13),
        Key("y", "copy", "Copy", "copy the text (over SSH too)", 15),
    ),
    "prompt": (
        Key("enter", "submit", "Generate", "generate from the prompt", 2),
        Key("ctrl+j,shift+enter,alt+enter", "newline", "New line", "insert a line break"),
        Key("alt+up,ctrl+up", "history(-1)", "Earlier", "earlier prompt (also up, on the first line)"),
        Key("alt+down,ctrl+down", "history(1)", "Later", "later prompt (also down, on the last line)"),
    ),
    "data": (
        Key("r", "prepare", "Refresh", "read the folder again and tokenize the text", 10),
        Key("escape", "cancel", "Cancel", "stop tokenizing; finished files are kept", 11),
        Key("greater_than_sign,full_stop", "turn(1)", "Next page", "next page of the text", 12),
        Key("less_than_sign,comma", "turn(-1)", "Previous page", "previous page of the text", 13),
        Key("s", "similar", "Find similar", "find the passages nearest to the words at the cursor", 14),
        Key("i", "sample", "Insert sample", "write the built-in sample text to an empty dataset folder", 15),
    ),
    "text": TOKEN_CURSOR,
    "inspect": (
        Key("1", "view('lens')", "Lens", "show what each layer would say next"),
        Key(
            "2",
            "view('attention')",
            "Attention",
            "show where a layer looks, attention or Mamba, as a heat map",
        ),
        Key("3", "view('memory')", "Memory", "show how long a layer remembers"),
        Key("4", "view('layers')", "Layers", "show how much each layer adds, dead units, directions used"),
        Key("v", "next_view", "Next view", "next view: lens, attention, memory, layers", 10),
        Key("m", "layer(1)", "Layer", "next layer", 11),
        Key("M", "layer(-1)", "Earlier layer", "previous layer"),
        Key("n", "group(1)", "Head", "next head or channel; the first picture is the mean of all", 12),
        Key("N", "group(-1)", "Earlier head", "previous head or channel"),
        Key("t", "type_text", "Text", "type or paste a text to look at", 13),
        Key("o", "open_file", "File", "read the beginning of a text file", 14),
        Key("d", "validation_text", "Validation", "read the run's last validation text", 15),
        Key("ctrl+l", "choose", "Checkpoint", "choose the checkpoint", 16, priority=True),
    ),
    "inspected": TOKEN_CURSOR,
    "picture": (
        Key("up,k", "look_at_layer(-1)", "Layer up", "previous layer"),
        Key("down,j", "look_at_layer(1)", "Layer down", "next layer"),
        Key("left,h", "look_at_group(-1)", "Head before", "previous head or channel"),
        Key("right,l", "look_at_group(1)", "Head after", "next head or channel"),
    ),
    "table": (
        Key("up,k", "move_cursor(-1)", "Up", "up"),
        Key("down,j", "move_cursor(1)", "Down", "down"),
        Key("pageup", "page(-1)", "Page up", "a page up"),
        Key("pagedown", "page(1)", "Page down", "a page down"),
        Key("home", "edge(-1)", "First", "first row"),
        Key("end", "edge(1)", "Last", "last row"),
        Key("enter", "select", "Select", "select the row"),
    ),
}

_NAMES = {
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "slash": "/",
    "question_mark": "?",
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
    """A key as it is labeled on a keyboard: `ctrl+pagedown` becomes `Ctrl+PgDn`."""
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
    """The actions in the key bar: (action, first key) -> rank."""
    return {
        (key.action, key.keys.split(",")[0]): key.bar for table in TABLE.values() for key in table if key.bar
    }


def sections(tab: str = "") -> Iterable[tuple[str, list[tuple[str, str]]]]:
    """Title and (keys, help) rows of every context, those of `tab` first, for help and docs."""
    first = [name for name, context in CONTEXTS.items() if tab and context.tab == tab]
    for name in dict.fromkeys([*first, *CONTEXTS]):
        names = [", ".join(map(key_name, key.keys.split(","))) for key in TABLE[name]]
        yield CONTEXTS[name].title, list(zip(names, [key.help for key in TABLE[name]]))


def markdown() -> str:
    """The text of docs/keys.md."""
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
