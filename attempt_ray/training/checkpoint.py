"""Checkpoints of a run: directories that appear whole or not at all, and are checked before they are used.

    <run>/checkpoints/step-00000100/{state.safetensors, best.safetensors, manifest.json}

The manifest holds the SHA-256 of both files and of itself. A checkpoint that does not hold what was written is set
aside for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor
from torch.optim import Optimizer

from attempt_ray.bank.durable import (
    commit_directory,
    is_temporary,
    remove_temporaries,
    storage_errors,
    temporary_name,
    write_new,
)
from attempt_ray.errors import IntegrityError, NonFiniteError

KEEP = 2
"""Checkpoints that stay: the newest, and one to fall back on."""

_SCHEMA = 1
_STATE, _BEST, MANIFEST = "state.safetensors", "best.safetensors", "manifest.json"
FILES = (_STATE, _BEST, MANIFEST)
"""Every file of a checkpoint, in the order they are written."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped.

    Dropout, data order and learning rates are functions of the step, so there is no generator to keep.
    """

    step: int
    """Optimizer steps taken."""
    trainable: Mapping[str, Tensor]
    """All tensors that train."""
    optimizer: Mapping[str, Tensor]
    """Moments and step counts, as `optimizer_tensors` names them."""
    best: Mapping[str, Tensor]
    """States kept by the selection."""
    facts: Mapping[str, Any]
    """Selection, token count and seconds, as plain JSON."""


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Commit a checkpoint under `directory` and drop all but the newest `KEEP`; return where it is.

    One that is there already for the same step is left as it is.

    Raises:
        NonFiniteError: A tensor that trains holds NaN or infinity; nothing was written.
        StorageError: The disk refused; the checkpoints that were there still are.
    """
    bad = [name for name, tensor in checkpoint.trainable.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise NonFiniteError(
            f"tensor '{bad[0]}' holds NaN or infinity after step {checkpoint.step}, wanted finite values; no checkpoint "
            "was written; lower the learning rates"
        )
    final = directory / f"step-{checkpoint.step:08d}"
    state = {f"trainable/{name}": tensor for name, tensor in checkpoint.trainable.items()}
    state |= {f"optimizer/{name}": tensor for name, tensor in checkpoint.optimizer.items()}
    files = {_STATE: safetensors.save(dict(state)), _BEST: safetensors.save(dict(checkpoint.best))}
    manifest = {
        "schema": _SCHEMA,
        "step": checkpoint.step,
        "facts": checkpoint.facts,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    files[MANIFEST] = _sealed(manifest)
    needed = sum(map(len, files.values()))
    with storage_errors(f"write {final}", where=directory, needed=needed):
        directory.mkdir(parents=True, exist_ok=True)
        if final.exists():
            return final
        temporary = directory / temporary_name(final.name)
        try:
            temporary.mkdir()
            for name, data in files.items():
                write_new(temporary / name, data)
            commit_directory(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in checkpoints(directory)[KEEP:]:
            _remove(old)
    return final


def load_checkpoint(directory: Path, *, on_damage: Callable[[str], None] | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint under `directory`, or None where there is none.

    What killed writers left behind is removed, and so is every damaged checkpoint, after `on_damage` was told of it.

    Args:
        directory: Directory of the checkpoints, which no other process writes to.
        on_damage: Called with one line that names the file, what it should hold and what it holds.

    Raises:
        StorageError: The disk refused.
    """
    with storage_errors(f"read {directory}", where=directory):
        remove_temporaries(directory)
        for path in checkpoints(directory):
            try:
                return read_checkpoint(path)
            except IntegrityError as error:
                if on_damage is not None:
                    on_damage(f"{error}; it was removed, and the run goes on from the one before it")
                _remove(path)
    return None


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints under `directory`, newest first."""
    if not directory.is_dir():
        return []
    found = (path for path in directory.glob("step-*") if path.is_dir() and not is_temporary(path.name))
    return sorted(found, reverse=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint, every digest checked on the very bytes that are used.

    Raises:
        IntegrityError: A file is missing or does not hold what was written.
    """
    manifest = _unsealed(path / MANIFEST)
    tensors: dict[str, dict[str, Tensor]] = {}
    for name in (_STATE, _BEST):
        data, expected = _read(path / name), manifest["files"][name]
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise IntegrityError(f"{path / name}: expected sha256 {expected}, found {found}")
        try:
            tensors[name] = safetensors.load(data)
        except SafetensorError as error:
            raise IntegrityError(f"{path / name}: expected safetensors, found {error}") from None
    groups: dict[str, dict[str, Tensor]] = {"trainable": {}, "optimizer": {}}
    for key, tensor in tensors[_STATE].items():
        group, _, name = key.partition("/")
        groups[group][name] = tensor
    return Checkpoint(step=manifest["step"], best=tensors[_BEST], facts=manifest["facts"], **groups)


def remove_checkpoints(directory: Path) -> None:
    """Remove all checkpoints of a run that has finished.

    Raises:
        StorageError: The disk refused.
    """
    with storage_errors(f"remove {directory}", where=directory):
        for path in checkpoints(directory):
            _remove(path)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return copies on the CPU of the optimizer's state, named `<parameter number>/<what>`."""
    return {
        f"{number}/{name}": value.detach().to("cpu", copy=True).contiguous()
        for number, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set the state of an optimizer over the same parameters to what `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        number, _, name = path.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _remove(path: Path) -> None:
    """Remove a checkpoint such that a crash half way leaves no part of it under its name."""
    doomed = path.with_name(temporary_name(path.name))
    path.rename(doomed)
    shutil.rmtree(doomed)


def _sealed(content: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(_encoded(content)).hexdigest()
    return _encoded({**content, "sha256": digest})


def _unsealed(path: Path) -> dict[str, Any]:
    data = _read(path)
    try:
        content: dict[str, Any] = json.loads(data)
        expected = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise IntegrityError(f"{path}: expected a checkpoint's manifest, found other bytes") from None
    found = hashlib.sha256(_encoded(content)).hexdigest()
    # Equal bytes too: JSON has many spellings, and a flipped byte may be one of them.
    if found != expected or _sealed(content) != data:
        raise IntegrityError(f"{path}: expected sha256 {ascii(expected)[1:65]}, found {found}")
    return content


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise IntegrityError(f"{path}: expected a file, found none") from None
