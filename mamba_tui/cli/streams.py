"""Standard streams in any state: closed, not in UTF-8, or with a reader that goes away."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

# An error message that repeats a megabyte of somebody's file helps nobody.
LONGEST_LINE = 2000
MOST_LINES = 40


def prepare_streams() -> None:
    """Make standard input, output and error usable in any state.

    A closed stream becomes the null device, so that no file opened later gets its number. Characters that the
    encoding lacks are written as question marks, and file names that aren't Unicode as their bytes, instead
    of ending the program.
    """
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    codecs.register_error("mamba-tui", _replaced)
    # Only the process's own streams: replacements belong to the caller.
    for stream, own in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        if stream is own and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mamba-tui")
    if sys.stdin is sys.__stdin__ and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    code = ord(error.object[error.start])
    escaped = 0xDC80 <= code <= 0xDCFF
    return (bytes([code - 0xDC00]) if escaped else "?"), error.start + 1


def say_error(message: str) -> None:
    """Print an error message on standard error: safe on a terminal, exact elsewhere, of limited length."""
    with contextlib.suppress(OSError, ValueError):  # nobody is listening any more
        print(_bounded(message, safe=sys.stderr.isatty()), file=sys.stderr, flush=True)


def say_note(message: str) -> None:
    """Print a remark on standard error that is no error."""
    say_error(f"mamba-tui: note: {message}")


def _bounded(message: str, *, safe: bool) -> str:
    lines = message.split("\n")
    if len(lines) > MOST_LINES:
        lines[MOST_LINES:] = [f"... and {len(lines) - MOST_LINES:,} more lines"]
    text = "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}... ({len(line):,} characters)"
        for line in lines
    )
    if not safe:
        return text
    from mamba_tui.widgets.safe_text import visible

    return visible(text, lines=True)


def leave_quietly() -> None:
    """After a broken pipe: write nothing more, and keep Python from complaining at exit."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
