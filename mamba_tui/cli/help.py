"""What `--help` shows besides options: the commands in groups, and examples for each command."""

from __future__ import annotations

from collections.abc import Mapping

# Commands by purpose; a command that is missing here is listed under "Other".
GROUPS = {
    "Train": ("launch", "train", "sweep", "attach"),
    "Runs": ("runs", "stop", "pause", "resume", "finish", "save", "logs"),
    "Use a model": ("generate", "eval", "inspect", "embed", "similar", "compress", "decompress"),
    "Text": ("data",),
    "Speed": ("bench",),
    "Shell": ("completion",),
}

EXAMPLES = {
    "launch": {
        "mamba-tui launch": "the console",
        "mamba-tui launch --preset book --dataset ~/books": "the console with your own text",
        "mamba-tui launch --detach": "start training and return at once",
    },
    "train": {
        "mamba-tui train --preset book --dataset ~/books --plan": "how large and how long; starts nothing",
        "mamba-tui train --dataset ~/books --max-iters 300": "a short run",
        "mamba-tui train --set n_embd=[64,48,64] --set dropout=0.1": "another shape",
        "mamba-tui train --resume --max-iters 10000": "continue the newest run, to step 10,000",
        "mamba-tui train --sweep learning_rate=1e-3,2e-3 --sweep dropout=0,0.2 --prune": "four variants",
        "mamba-tui train --sweep learning_rate=1e-4..1e-2 --random 8 --detach": "eight, in the background",
        "mamba-tui train --after run-003 --detach": "start when run-003 has ended",
    },
    "sweep": {
        "mamba-tui sweep sweep-001": "its variants, and which setting mattered",
        "mamba-tui sweep sweep-001 --resume --detach": "continue after a reboot",
    },
    "runs": {
        "mamba-tui runs --sort best": "the best first",
        "mamba-tui runs --filter 'lr>1e-3 mamba2' --columns name,best,dropout": "some runs, other columns",
        "mamba-tui runs --filter tags=sweep-001 --differences": "only the settings that differ",
        "mamba-tui runs tag run-003 baseline": "a tag; runs note RUN TEXT is for more words",
        "mamba-tui runs delete run-002": "delete; runs undelete run-002 brings it back",
    },
    "attach": {
        "mamba-tui attach run-001": "watch a run in the console",
        "mamba-tui attach run-001 --no-ui": "watch it as plain text",
    },
    "logs": {"mamba-tui logs run-001 --lines 200": "the last 200 lines"},
    "generate": {
        "mamba-tui generate": "write together, turn by turn",
        'mamba-tui generate --prompt "She " --temperature 0.8 --seed 7': "one text",
        "mamba-tui generate --newest --prompt-file start.txt": "the newest checkpoint",
    },
    "eval": {
        "mamba-tui eval --text new-book.txt": "the newest run's best checkpoint on a text",
        "mamba-tui eval --run run-003 --text ~/validation --json": "figures for another program",
    },
    "inspect": {
        "mamba-tui inspect": "the newest run's best checkpoint on its last validation text",
        "mamba-tui inspect --text novel.txt --token 99": "what each layer says after token 99",
        "mamba-tui inspect --run run-003 --layer 2 --json": "layer 2 in full, for another program",
    },
    "embed": {
        "mamba-tui embed --text ~/books --per paragraph --out features.npz": "one row per paragraph",
        "mamba-tui embed --text novel.txt --per '200 words' --layer 0 --out novel.npz": "another layer",
    },
    "similar": {
        'mamba-tui similar "a ship in a storm at night" --text ~/books': "the ten nearest passages",
        "mamba-tui similar - --text ~/books -n 50 --json < page.txt": "for another program",
    },
    "compress": {
        "mamba-tui compress novel.txt": "the newest run's best checkpoint makes novel.txt.mtz",
        "mamba-tui compress novel.txt --compare": "compared with gzip, xz and PPMd",
        "mamba-tui compress novel.txt --run run-003 --streams 4 -o small.mtz": "slower, a little smaller",
    },
    "decompress": {"mamba-tui decompress novel.txt.mtz --run run-003": "novel.txt again"},
    "data": {
        "mamba-tui data info --dataset ~/books": "how every file was used",
        "mamba-tui data sample --tokens 50": "50 tokens as the model sees them",
    },
    "completion": {
        "mamba-tui completion bash > ~/.local/share/bash-completion/completions/mamba-tui": "for bash",
    },
    "bench": {"mamba-tui bench --preset book --seconds 30": "the default model on this machine"},
}

EXIT_CODES = """exit codes:
  0 done   1 failure   2 bad input (one sentence says what)   130 interrupted after saving"""


def overview(summaries: Mapping[str, str]) -> str:
    """The commands in groups, from command -> one-line summary."""
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "Other": tuple(name for name in summaries if name not in grouped)}
    width = max(map(len, summaries))
    lines = []
    for title, names in groups.items():
        known = [name for name in names if name in summaries]
        if known:
            lines += ["", f"{title}:", *(f"  {name:<{width}}  {summaries[name]}" for name in known)]
    return "\n".join(lines)


def examples(command: str) -> str:
    """The examples of a command, one per line with a description; "" if it has none."""
    if command not in EXAMPLES:
        return ""
    lines = EXAMPLES[command]
    return "\n".join(["examples:", *(f"  {line}\n      {meaning}" for line, meaning in lines.items())])
