"""One version as three files, and the checks that stand between those files and anybody who reads them.

``tensors.safetensors`` holds the numbers, ``manifest.json`` the facts and the digest of the tensors, and
``manifest.sha256`` the digest of the manifest, in the form that ``sha256sum -c`` reads. The manifest is written last.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from attempt_ray.bank.manifest import MAX_VALUES, Arrays, Manifest, TensorRecord, check_tensors
from attempt_ray.bank.names import Kind, Version, is_name, number_of
from attempt_ray.bank.storage import Storage
from attempt_ray.errors import BankError, IntegrityError

MANIFEST = "manifest.json"
RECORD = "manifest.sha256"
TENSORS = "tensors.safetensors"
FILES = (TENSORS, RECORD, MANIFEST)
"""Every file of a version, in the order they are written."""

MAX_MANIFEST_BYTES = 2**20
_MAX_HEADER_BYTES = 2**16
_FIX = "nothing was loaded or changed; restore the file, import an export, or publish the version anew"


@dataclass(frozen=True)
class Loaded:
    """A version with its content."""

    version: Version
    manifest: Manifest
    tensors: dict[str, np.ndarray[Any, Any]]
    """Writable copies."""

    @property
    def sha256(self) -> str:
        """Digest of the tensors' file: equal content, equal digest."""
        return self.manifest.files[TENSORS]


def encode_tensors(tensors: Arrays) -> tuple[bytes, dict[str, TensorRecord]]:
    """Return the content of ``tensors.safetensors`` (equal tensors give equal bytes) and what it holds."""
    data: bytes = safetensors.save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})
    records = {name: TensorRecord(shape=array.shape, dtype="float32") for name, array in tensors.items()}
    return data, records


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of ``manifest.json``.

    Raises:
        BankError: It holds what JSON cannot, or too much of it.
    """
    data = manifest.to_json()
    if len(data) > MAX_MANIFEST_BYTES:
        raise BankError(
            f"the manifest is {len(data):,} bytes, at most {MAX_MANIFEST_BYTES:,}; shorten the recipe"
        )
    return data


def assemble(*, tensors: bytes, manifest: bytes) -> dict[str, bytes]:
    """Return the files of a version, in the order they are to be written."""
    return {TENSORS: tensors, RECORD: _record(sha256(manifest)), MANIFEST: manifest}


def names(storage: Storage, kind: Kind) -> list[str]:
    """Return the names of a kind that the bank has directories for, sorted."""
    return [
        entry.name for entry in storage.entries(kind) if entry.kind == "directory" and is_name(entry.name)
    ]


def numbers(storage: Storage, kind: Kind, name: str) -> list[int]:
    """Return the numbers of the versions of a prompt, rising."""
    return [
        number
        for number in taken_numbers(storage, kind, name)
        if storage.commits_whole or _has_manifest(storage, Version(kind, name, number))
    ]


def taken_numbers(storage: Storage, kind: Kind, name: str) -> list[int]:
    """Return the numbers of a prompt that are in use, those of unfinished versions too, rising."""
    found = [
        number_of(entry.name) for entry in storage.entries(f"{kind}/{name}") if entry.kind == "directory"
    ]
    return sorted(number for number in found if number is not None)


def read_manifest(storage: Storage, directory: str) -> tuple[Manifest, bytes]:
    """Return the manifest in `directory` and the bytes it came in.

    Raises:
        IntegrityError: A file is missing, was changed, or is no manifest.
        StorageError: The store refused.
    """
    record = _read(storage, f"{directory}/{RECORD}", limit=256)
    data = _read(storage, f"{directory}/{MANIFEST}", limit=MAX_MANIFEST_BYTES)
    place, found = storage.place(f"{directory}/{MANIFEST}"), sha256(data)
    if record != _record(found):
        # A damaged record may hold anything: show it as ASCII.
        expected = ascii(record[:64].decode("ascii", "replace"))[1:-1]
        raise IntegrityError(
            f"{place} does not match {RECORD}: expected sha256 {expected}, found {found}; {_FIX}"
        )
    try:
        manifest = Manifest.from_json(data)
    except BankError as error:
        raise IntegrityError(f"{place}: {error}; {_FIX}") from None
    if set(manifest.files) != {TENSORS}:
        raise IntegrityError(f"{place}: wanted the digest of {TENSORS}, got {sorted(manifest.files)}; {_FIX}")
    return manifest, data


def read_manifest_of(storage: Storage, version: Version) -> tuple[Manifest, bytes]:
    """Return the manifest of `version` and the bytes it came in.

    Raises:
        IntegrityError: As `read_manifest`, or the manifest is that of another version.
        StorageError: The store refused.
    """
    manifest, data = read_manifest(storage, version.directory)
    if manifest.reference != version.reference:
        place = storage.place(f"{version.directory}/{MANIFEST}")
        raise IntegrityError(f"{place}: expected {version.reference}, found {manifest.reference}; {_FIX}")
    return manifest, data


def read_tensors(
    storage: Storage, directory: str, manifest: Manifest
) -> tuple[dict[str, np.ndarray[Any, Any]], bytes]:
    """Return the tensors that `manifest` describes, checked, and the bytes they came in.

    Raises:
        IntegrityError: The file is missing, was changed, or does not hold what the manifest says.
        StorageError: The store refused.
    """
    place = storage.place(f"{directory}/{TENSORS}")
    values = sum(math.prod(record.shape) for record in manifest.tensors.values())
    if values > MAX_VALUES:
        raise IntegrityError(
            f"{place}: its manifest tells of {values:,} numbers, at most {MAX_VALUES:,}; {_FIX}"
        )
    data = _read(storage, f"{directory}/{TENSORS}", limit=4 * values + _MAX_HEADER_BYTES)
    expected, found = manifest.files[TENSORS], sha256(data)
    if expected != found:
        raise IntegrityError(f"{place}: expected sha256 {expected}, found {found}; {_FIX}")
    try:
        tensors = {name: np.array(array) for name, array in safetensors.load(data).items()}
        check_tensors(manifest.kind, tensors, width=manifest.backbone.width)
    except (SafetensorError, BankError, KeyError, ValueError, TypeError) as error:
        raise IntegrityError(f"{place}: {error}; {_FIX}") from None
    if {name: array.shape for name, array in tensors.items()} != {
        name: record.shape for name, record in manifest.tensors.items()
    }:
        raise IntegrityError(f"{place}: its shapes are not those of {MANIFEST}; {_FIX}")
    return tensors, data


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _has_manifest(storage: Storage, version: Version) -> bool:
    return any(entry.name == MANIFEST for entry in storage.entries(version.directory))


def _record(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode()


def _read(storage: Storage, path: str, *, limit: int) -> bytes:
    try:
        return storage.read(path, limit=limit)
    except FileNotFoundError:
        raise IntegrityError(f"{storage.place(path)}: expected a file, found none; {_FIX}") from None
