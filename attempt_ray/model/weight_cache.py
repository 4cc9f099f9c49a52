"""Frozen weights on disk in the type they are computed with: processes of one machine map the same pages.

A checkpoint is read, hashed in float32 and cast once; what comes of it is kept beside its digest. Whoever loads it again
checks that digest and maps the file instead of reading, hashing and casting, and shares its memory with all who do.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from attempt_ray.bank.durable import commit_directory, temporary_name
from attempt_ray.errors import StorageError

_log = logging.getLogger(__name__)
_WEIGHTS, _RECORD = "weights.safetensors", "record.json"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is known of kept weights."""

    weights_sha256: str
    """`weights_sha256` of the checkpoint in float32, which names the backbone."""
    file_sha256: str
    """SHA-256 of the kept file."""


class WeightCache:
    """The kept weights of one checkpoint in one type."""

    def __init__(self, root: Path, *, place: str, revision: str | None, dtype: torch.dtype) -> None:
        """Look nowhere yet.

        Args:
            root: Directory of all kept weights.
            place: Directory or hub id of the checkpoint.
            revision: Commit of a hub id.
            dtype: Type of the weights.
        """
        facts = [place, revision, str(dtype), *_files(Path(place))]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self._directory = root.expanduser() / digest
        # A hub id without a commit may mean other weights tomorrow.
        self.usable = revision is not None or Path(place).is_dir()

    def fill(self, model: nn.Module) -> Kept | None:
        """Give a model on the meta device the kept weights, mapped; None where there are none, or they are damaged."""
        try:
            record = Kept(**json.loads((self._directory / _RECORD).read_text()))
            path = self._directory / _WEIGHTS
            if _sha256(path) != record.file_sha256:
                _log.warning("%s does not hold what was written; the checkpoint is read instead", path)
                return None
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, ValueError, TypeError, SafetensorError):
            return None
        model.load_state_dict(tensors, strict=False, assign=True)
        tie = getattr(model, "tie_weights", None)
        if tie is not None:
            tie()
        whole = not any(weight.is_meta for weight in _weights(model))
        return record if whole else None

    def keep(self, model: nn.Module, *, weights_sha256: str) -> None:
        """Keep a model's weights; where the disk refuses, the next process reads the checkpoint again."""
        temporary = self._directory.with_name(temporary_name(self._directory.name))
        try:
            temporary.mkdir(parents=True)
            path = temporary / _WEIGHTS
            tensors: dict[str, Tensor] = {
                name: weight.detach().contiguous() for name, weight in model.named_parameters()
            }
            save_file(tensors, path)
            record = Kept(weights_sha256=weights_sha256, file_sha256=_sha256(path))
            (temporary / _RECORD).write_text(json.dumps(asdict(record)))
            if self._directory.exists():
                shutil.rmtree(self._directory)
            commit_directory(temporary, self._directory)
        except FileExistsError:
            pass  # another process was faster
        except (OSError, StorageError) as error:
            _log.warning("weights are not kept in %s: %s", self._directory, error)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _files(place: Path) -> list[tuple[str, int, int]]:
    """Return what tells one state of a local checkpoint from another."""
    if not place.is_dir():
        return []
    found = [path for path in sorted(place.iterdir()) if path.suffix in (".json", ".safetensors")]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def _weights(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
