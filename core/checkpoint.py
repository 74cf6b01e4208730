"""Checkpoints: saved completely or not at all, verified before use, and unable to run code.

The file is `torch.save`'s, read with `weights_only=True`. Order of a save: temporary file, fsync, rename,
manifest, directory fsync; whatever interrupts it, older checkpoints are untouched.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from core.checkpoint_file import check_archive, check_tensors, check_values
from core.config.estimates import parameters
from core.config.schema import ModelConfig, RunConfig, build_frozen
from core.config.setting import ConfigError
from core.data.tokenizer.tokenizer import MAX_VOCABULARY, Tokenizer
from core.errors import UserError
from core.model import GPT
from core.ops.self_check import check_kernels
from core.runs.checkpoints import MANIFEST, CheckpointInfo, held, read_manifest, verify, write_manifest
from core.system.files import delete, replacing, write_atomic

FORMAT = 2
Payload = dict[str, Any]
# What every checkpoint has, and what else is needed to resume training from one.
REQUIRED = {"format": int, "step": int, "config": dict, "vocab_size": int, "tokenizer": dict, "model": dict}
RESUMABLE = {
    "optimizer": dict,
    "loader": dict,
    "model_state": dict,
    "rng": dict,
    "losses": dict,
    "progress": dict,
}


class _Hashed:
    """A file that is hashed while it is written, and that remembers why a write failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        size = memoryview(data).nbytes
        self.bytes += size
        return size

    def flush(self) -> None:
        self._file.flush()


def to_host(value: Any) -> Any:
    """A copy of nested containers with every tensor copied to host memory, so that training can continue.

    Tensors that share memory (a head tied to the embedding) share it in the copy too.
    """
    copies: dict[tuple[object, ...], torch.Tensor] = {}

    def copy(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            key = (item.data_ptr(), item.dtype, tuple(item.shape), item.stride(), item.device)
            if key not in copies:
                copies[key] = item.detach().to("cpu", copy=True)
            return copies[key]
        if isinstance(item, dict):
            return {name: copy(entry) for name, entry in item.items()}
        return type(item)(map(copy, item)) if isinstance(item, (list, tuple)) else item

    return copy(value)


def payload_bytes(value: Any) -> int:
    """The size of a payload's tensors in bytes."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(payload_bytes, value.values()))
    return sum(map(payload_bytes, value)) if isinstance(value, (list, tuple)) else 0


def save(path: Path, payload: Payload, manifest: CheckpointInfo) -> CheckpointInfo:
    """Write a checkpoint and then its manifest, whose values include `losses` and `step`.

    Returns the manifest. Raises OSError (ENOSPC if the disk is full, before anything is written if that can
    be foreseen); older checkpoints are then unchanged.
    """
    needed = payload_bytes(payload) + (1 << 16)
    if shutil.disk_usage(path.parent).free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed", str(path))
    with replacing(path) as file:
        hashed = _Hashed(file)
        try:
            torch.save(payload, hashed)  # type: ignore[arg-type]
        except (RuntimeError, OSError) as error:
            raise hashed.error or error from error
        file.flush()
        os.fsync(file.fileno())
        # Never a new file beside an old manifest: in between there is simply no checkpoint.
        delete(path.with_suffix(".json"), missing_ok=True)
    info = dataclasses.replace(
        manifest, path=path, bytes=hashed.bytes, sha256=hashed.digest.hexdigest(), time=time.time()
    )
    write_manifest(info)
    return info


def has_manifest(path: Path) -> bool:
    """Whether a checkpoint has a manifest, so that its content can be compared with a hash."""
    manifest = path.with_suffix(".json")
    return MANIFEST.fullmatch(manifest.name) is not None and manifest.exists()


def load(path: Path, map_location: torch.device | str = "cpu", *, unverified: bool = False) -> Payload:
    """Read a checkpoint after comparing it with its manifest.

    With `unverified`, a checkpoint without a manifest is read too, such as a file that was copied alone.

    Raises UserError if it is missing, truncated, changed, not a checkpoint, or contains code instead of
    weights (which is then not run).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a checkpoint_step_<N>.pt")
    try:
        with held(path):  # from here on the run's trainer doesn't delete it
            if has_manifest(path) or not unverified:
                _check(path)
            payload = _unpickle(path, map_location)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); choose another checkpoint") from None
    check_keys(payload, REQUIRED, path)
    check_tensors(payload["model"], path)
    check_tensors(payload[judged_weights(payload)], path)
    _rename_loader_rows(payload)
    if payload["format"] == 1:
        _rename_format_1(payload)
    elif payload["format"] != FORMAT:
        raise UserError(
            f"{path} is a checkpoint of format {payload['format']}; this version reads formats 1 to {FORMAT}"
        )
    return payload


# Format 1's names of parameters and layer states, and the current names.
_FORMAT_1_NAMES = {"feed": "mlp", "feed_norm": "mlp_norm", "tail": "conv_state", "hidden": "ssm_state"}


def _rename_format_1(payload: Payload) -> None:
    """Give every tensor of a checkpoint of format 1 its current name."""
    for part in ("model", "optimizer", "model_state"):
        if isinstance(payload.get(part), dict):
            payload[part] = {
                ".".join(_FORMAT_1_NAMES.get(word, word) for word in name.split(".")): value
                for name, value in payload[part].items()
            }
    payload["format"] = FORMAT


def _rename_loader_rows(payload: Payload) -> None:
    """For a while, batch rows were called lanes in the loader's state."""
    loader = payload.get("loader")
    if isinstance(loader, dict) and "lanes" in loader:
        loader["rows"] = loader.pop("lanes")


def check_keys(payload: Any, required: Mapping[str, type], path: Path) -> None:
    """Raise UserError unless the payload has these keys with values of these types."""
    values = payload if isinstance(payload, dict) else {}
    missing = [key for key, kind in required.items() if not isinstance(values.get(key), kind)]
    if missing:
        raise UserError(f"{path} is not a complete checkpoint of mamba-tui: it has no {', '.join(missing)}")


def _check(path: Path) -> None:
    """Raise UserError unless the file matches its manifest."""
    step = path.stem.rpartition("_")[2]
    info = read_manifest(path.with_suffix(".json"), int(step)) if step.isdecimal() else None
    if info is None:
        raise UserError(
            f"{path} is not a checkpoint: it has no manifest {path.stem}.json beside it "
            "(a save that did not finish, or a file from elsewhere)"
        )
    problem = verify(info)
    if problem:
        raise UserError(f"{path} is damaged: {problem}; use another checkpoint of the run")


def _unpickle(path: Path, map_location: torch.device | str) -> Any:
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            payload = torch.load(path, map_location=map_location, weights_only=True)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # torch.load fails in many ways on bytes that are no checkpoint
        raise UserError(f"{path} is not a checkpoint: it cannot be read as weights") from None
    check_values(payload, path)
    return payload


def config_of(payload: Payload, path: Path) -> RunConfig:
    """The configuration that a checkpoint was made with. Raises UserError if it isn't valid here."""
    try:
        return build_frozen(payload["config"], str(path))
    except ConfigError as error:
        raise UserError(f"{path} comes from another version of mamba-tui:\n{error}") from None


def judged_weights(payload: Payload) -> str:
    """The part of a checkpoint with the weights that were evaluated: the averaged ones if there are any."""
    return "averaged" if isinstance(payload.get("averaged"), dict) else "model"


def load_weights(model: GPT, payload: Payload, path: Path, part: str = "model") -> None:
    """Load a part of a checkpoint into a model: its weights as trained, or `judged_weights(payload)`.

    Raises UserError that says what doesn't fit.
    """
    weights = payload[part]
    _check_shapes(model, weights, path)
    model.load_state_dict(weights)


def check_fits(
    config: ModelConfig, vocab_size: int, payload: Payload, path: Path, part: str = "model"
) -> None:
    """Raise UserError unless a checkpoint's weights fit a model, before memory is allocated for one."""
    if not 0 < vocab_size <= MAX_VOCABULARY + 1:
        raise UserError(f"{path} is not a checkpoint: its vocab_size is {vocab_size:,}")
    # Counted, not built: torch's meta device would give each shape, but it loads a thousand modules.
    needed = parameters(config, vocab_size)
    stored = sum(tensor.numel() for tensor in payload[part].values())
    if needed > stored:
        raise UserError(
            f"{path} comes from another model: it has {stored:,} numbers, and this one needs {needed:,}"
        )


def _check_shapes(model: GPT, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    differing = [
        f"{name} is {_shape(weights.get(name))} there and {_shape(own.get(name))} here"
        for name in [*own, *(name for name in weights if name not in own)]
        if _shape(weights.get(name)) != _shape(own.get(name))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(f"{path} comes from another model: " + "; ".join(differing[:3]) + more)


def _shape(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else "x".join(map(str, tensor.shape)) or "a number"


def load_model(path: Path, device: torch.device | str = "cpu") -> tuple[GPT, Tokenizer, Payload]:
    """A model ready to generate, its tokenizer, and the checkpoint they come from. Raises UserError.

    The checkpoint may lack its manifest (`has_manifest`); then its content wasn't compared with a hash.
    """
    path = Path(path)
    payload = load(path, "cpu", unverified=True)
    model_config: ModelConfig = config_of(payload, path).model
    tokenizer = Tokenizer.from_dict(payload["tokenizer"], str(path))
    if tokenizer.vocab_size != payload["vocab_size"]:
        raise UserError(
            f"{path} holds a tokenizer of {tokenizer.vocab_size:,} tokens and a model of "
            f"{payload['vocab_size']:,}: they do not belong together"
        )
    check_fits(model_config, payload["vocab_size"], payload, path, judged_weights(payload))
    check_kernels(device, model_config.attention_type)
    model = GPT(model_config, payload["vocab_size"])
    load_weights(model, payload, path, judged_weights(payload))
    return model.to(device).eval(), tokenizer, payload


def model_fingerprint(model: GPT) -> bytes:
    """16 bytes that identify a model's shape and all its weights."""
    shape = dataclasses.asdict(model.config) | {"vocabulary": model.vocab_size}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()[:16]


def export_weights(path: Path, out: Path) -> int:
    """Write a checkpoint's weights, as evaluated, as a safetensors file. Returns its size in bytes.

    A tied head is written once, as the embedding. Raises UserError as `load` does, and OSError if writing
    fails.
    """
    from safetensors.torch import save as as_safetensors

    payload = load(path)
    weights: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, ...]] = set()
    for name, tensor in payload[judged_weights(payload)].items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), *tensor.shape)
        if place not in seen:
            seen.add(place)
            weights[name] = tensor.contiguous()
    about = {
        "format": "pt",
        "step": str(payload["step"]),
        "vocab_size": str(payload["vocab_size"]),
        "config": json.dumps(payload["config"]),
    }
    data = as_safetensors(weights, about)
    write_atomic(out, data, private=False)
    return len(data)
