"""The key of a text and its tokens, so that one text's counts are never used for another."""

from __future__ import annotations

import os
from collections.abc import Hashable

from core.config.schema import DataConfig


def text_key(data: DataConfig, seed: int) -> tuple[Hashable, ...]:
    """The folder, then every setting that determines which tokens are on which side; files may change."""
    return (
        os.path.abspath(os.path.expanduser(data.dataset_dir)),
        data.tokenizer,
        data.vocab_size,
        data.encoding,
        data.strip_gutenberg,
        data.unwrap_lines,
        data.document_marks,
        data.outside_links,
        data.validation_fraction,
        seed,
    )
