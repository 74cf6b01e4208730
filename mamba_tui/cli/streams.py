"""Standard streams as they come: closed, in another encoding than UTF-8, or with a reader that goes away."""

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
    """Make standard input, output and error usable, whatever they are.

    A closed one becomes the null device, so that no file opened later takes its number. What the
    encoding cannot express is written as a question mark, and a file name that is not Unicode as
    the bytes it has, instead of ending the program.
    """
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    codecs.register_error("mamba-tui", _replaced)
    # Only the process's own: what a caller has put in their place is the caller's.
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
    """One error message on standard error: safe on a terminal, exact elsewhere, never endless."""
    with contextlib.suppress(OSError, ValueError):  # nobody is left to be told
        print(_bounded(message, safe=sys.stderr.isatty()), file=sys.stderr, flush=True)


def say_note(message: str) -> None:
    """A remark on standard error, which is no error."""
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
    """After a broken pipe: nothing more is written, and Python does not complain at its exit either."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
