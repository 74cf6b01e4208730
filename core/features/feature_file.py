"""Features in a file, written as they are computed: .npz, .npy, or .parquet if pyarrow is installed.

.npz      features (N, C), document (N,) as an index into documents, start, end, tokens (N,)
.npy      features (N, C) alone
.parquet  one row per passage: document, start, end, tokens, features
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.errors import UserError
from core.features.embed import Rows
from core.system.files import replacing

SUFFIXES = (".npz", ".npy", ".parquet")
TYPES = ("float32", "float16")
_COPIED = 1 << 20


def check_target(path: Path, dtype: str) -> None:
    """Raise UserError unless features of this type can be written to such a file here."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out is {path}; accepted: a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"--out is {path}, which needs pyarrow (pip install pyarrow); accepted without: .npz")
    if dtype not in TYPES:
        raise UserError(f"--dtype is {dtype}; accepted: {', '.join(TYPES)}")


def write_features(path: Path, rows: Iterator[Rows], width: int, dtype: str = "float32") -> int:
    """Write all rows.

    Returns their number. The file appears when it is complete. Raises as `check_target`.
    """
    check_target(path, dtype)
    with replacing(path, private=False) as out:
        if path.suffix == ".parquet":
            return _write_parquet(out, rows, width, dtype)
        # The number of rows precedes them in the file, but is known only at the end.
        with tempfile.TemporaryFile(dir=path.parent) as spool:
            about: dict[str, list[Any]] = {"document": [], "start": [], "end": [], "tokens": []}
            names: list[str] = []
            for part in rows:
                spool.write(np.ascontiguousarray(part.features, dtype).tobytes())
                names += [part.name] if names[-1:] != [part.name] else []
                about["document"].append(np.full(len(part.start), len(names) - 1, np.int32))
                for key in ("start", "end", "tokens"):
                    about[key].append(getattr(part, key))
            count = sum(map(len, about["start"]))
            spool.seek(0)
            if path.suffix == ".npy":
                _write_matrix(out, spool, (count, width), dtype)
                return count
            with zipfile.ZipFile(out, "w", allowZip64=True) as archive:
                with archive.open("features.npy", "w", force_zip64=True) as member:
                    _write_matrix(member, spool, (count, width), dtype)
                arrays = {
                    key: np.concatenate(parts or [np.empty(0, np.int64)]) for key, parts in about.items()
                }
                for key, array in {**arrays, "documents": np.array(names, np.str_)}.items():
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            return count


def _write_matrix(out: IO[bytes], spool: IO[bytes], shape: tuple[int, int], dtype: str) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    while block := spool.read(_COPIED):
        out.write(block)


def _write_parquet(out: IO[bytes], rows: Iterator[Rows], width: int, dtype: str) -> int:
    arrow, parquet = map(importlib.import_module, ("pyarrow", "pyarrow.parquet"))
    kind = arrow.list_(arrow.from_numpy_dtype(np.dtype(dtype)), width)
    fields = {
        "document": arrow.string(),
        "start": arrow.int64(),
        "end": arrow.int64(),
        "tokens": arrow.int64(),
    }
    schema = arrow.schema([*fields.items(), ("features", kind)])
    count = 0
    with parquet.ParquetWriter(out, schema) as writer:
        for part in rows:
            count += len(part.start)
            flat = arrow.array(np.ascontiguousarray(part.features, dtype).ravel())
            columns = [
                arrow.array([part.name] * len(part.start)),
                *map(arrow.array, (part.start, part.end, part.tokens)),
                arrow.FixedSizeListArray.from_arrays(flat, width),
            ]
            writer.write_table(arrow.table(columns, schema=schema))
    return count
