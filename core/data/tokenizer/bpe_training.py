"""BPE merges are learned in a separate process, which can be killed at once and returns its memory.

The library that learns them ignores signals while it works, and keeps the memory it used.
`python -P -m core.data.tokenizer.bpe_training SIZE` reads texts, each preceded by its length in four bytes,
and writes the vocabulary as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from core.data.tokenizer.tokenizer import Tokenizer
from core.data.tokenizer.vocabulary import check_vocabulary_size, distinct_words, train_bpe
from core.errors import UserError
from core.system.processes import module_command, module_environment

WAITING_SECONDS = 0.1  # between two calls of `waiting`


def train_bpe_apart(texts: Iterable[str], vocab_size: int, waiting: Callable[[], None]) -> Tokenizer:
    """Like `vocabulary.train_bpe`; an exception from `texts` or `waiting` ends the training at once."""
    check_vocabulary_size(vocab_size)
    process = subprocess.Popen(
        module_command("core.data.tokenizer.bpe_training", str(vocab_size)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=module_environment(),
        start_new_session=True,  # Ctrl-C is handled by this process
    )
    answer: list[bytes] = []
    with process:
        try:
            _send(process, texts)
            assert process.stdout is not None
            output = process.stdout
            reader = threading.Thread(target=lambda: answer.append(output.read()), daemon=True)
            reader.start()
            while reader.is_alive():
                reader.join(WAITING_SECONDS)
                waiting()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise UserError(
            f"learning a vocabulary failed (exit code {process.returncode}), perhaps because memory ran out; "
            'tokenizer = "byte" or "char" needs no learning'
        )
    return Tokenizer.from_dict(json.loads(answer[0]), "the vocabulary that was learned")


def _send(process: subprocess.Popen[bytes], texts: Iterable[str]) -> None:
    """Send the texts; a process that exits early is noticed later, by its exit code."""
    assert process.stdin is not None
    for text in distinct_words(texts):
        data = text.encode("utf-8", "replace")
        try:
            process.stdin.write(len(data).to_bytes(4, "little") + data)
        except BrokenPipeError:
            return
    try:
        process.stdin.close()
    except BrokenPipeError:
        return


def _received(source: BinaryIO) -> Iterator[str]:
    while size := source.read(4):
        yield source.read(int.from_bytes(size, "little")).decode()


if __name__ == "__main__":
    learned = train_bpe(_received(sys.stdin.buffer), int(sys.argv[1]))
    sys.stdout.write(json.dumps(learned.to_dict()))
