"""Read everything in a bank and tell what is wrong; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from attempt_ray.bank.aliases import ALIASES, read_aliases
from attempt_ray.bank.durable import is_temporary
from attempt_ray.bank.local import LOCK
from attempt_ray.bank.names import KINDS, Kind, Version, is_name, number_of
from attempt_ray.bank.remote import CLAIM
from attempt_ray.bank.storage import Entry, Storage
from attempt_ray.bank.versions import (
    FILES,
    MANIFEST,
    RECORD,
    TENSORS,
    numbers,
    read_manifest_of,
    read_tensors,
)
from attempt_ray.errors import IntegrityError, StorageError

Fault = Literal["missing", "damaged", "extra", "link", "unfinished", "stale alias", "unreadable"]


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong."""

    path: str
    """Where, below the root."""
    fault: Fault
    """What, in a word."""
    detail: str
    """What was expected and found, and what to do."""

    def __str__(self) -> str:
        return f"{self.path}: {self.fault}: {self.detail}"


def check_bank(storage: Storage) -> list[Problem]:
    """Return every problem of a bank, sorted by path."""
    problems: list[Problem] = []
    for entry in _entries(storage, "", problems):
        if entry.kind == "directory" and entry.name in KINDS:
            problems += _check_kind(storage, entry.name)
        elif (entry.name, entry.kind) != (LOCK, "file"):
            problems += _stray(storage, "", entry)
    return sorted(problems)


def check_version(storage: Storage, version: Version) -> list[Problem]:
    """Return every problem of one version."""
    problems: list[Problem] = []
    entries = _entries(storage, version.directory, problems)
    plain = {entry.name for entry in entries if entry.kind == "file"}
    for entry in entries:
        if entry.name not in FILES or entry.kind != "file":
            problems += _stray(storage, version.directory, entry)
    if MANIFEST not in plain and not storage.commits_whole:
        detail = (
            f"no {MANIFEST}: a publication under way, or one that was killed; in the latter case remove it"
        )
        return [*problems, Problem(version.directory, "unfinished", detail)]
    for name in FILES:
        if name not in {entry.name for entry in entries}:
            detail = "expected a file, found none; restore it or publish the version anew"
            problems.append(Problem(f"{version.directory}/{name}", "missing", detail))
    with _reported(version.directory, problems):
        if {MANIFEST, RECORD} <= plain:
            manifest, _ = read_manifest_of(storage, version)
            if TENSORS in plain:
                read_tensors(storage, version.directory, manifest)
    return sorted(problems)


def _check_kind(storage: Storage, kind: Kind) -> list[Problem]:
    problems: list[Problem] = []
    for entry in _entries(storage, kind, problems):
        if entry.kind == "directory" and is_name(entry.name):
            problems += _check_prompt(storage, kind, entry.name)
        else:
            problems += _stray(storage, kind, entry)
    return problems


def _check_prompt(storage: Storage, kind: Kind, name: str) -> list[Problem]:
    problems: list[Problem] = []
    path = f"{kind}/{name}"
    removed: tuple[int, ...] = ()
    with suppress(IntegrityError, StorageError):  # reported below
        removed = read_aliases(storage, kind, name).removed
    for entry in _entries(storage, path, problems):
        number = number_of(entry.name)
        if entry.kind == "directory" and number in removed:
            detail = "its removal was cut short; remove the version again"
            problems.append(Problem(f"{path}/{entry.name}", "unfinished", detail))
        elif entry.kind == "directory" and number is not None:
            problems += check_version(storage, Version(kind, name, number))
        elif (entry.name, entry.kind) != (ALIASES, "file"):
            problems += _stray(storage, path, entry)
    with _reported(f"{path}/{ALIASES}", problems):
        there = numbers(storage, kind, name)
        for alias, number in read_aliases(storage, kind, name).current.items():
            if number not in there:
                detail = f"'{alias}' points to v{number}, which is not there; point it to another version"
                problems.append(Problem(f"{path}/{ALIASES}", "stale alias", detail))
    return problems


def _entries(storage: Storage, path: str, problems: list[Problem]) -> list[Entry]:
    with _reported(path, problems):
        return storage.entries(path)
    return []


def _stray(storage: Storage, path: str, entry: Entry) -> list[Problem]:
    place = f"{path}/{entry.name}" if path else entry.name
    if entry.kind == "other":
        return [Problem(place, "link", "a link or device, which is never followed; remove it")]
    if not (is_temporary(entry.name) or entry.name.startswith(CLAIM)):
        return [Problem(place, "extra", "not written by the bank; move it elsewhere")]
    # A writer at work has such names too: under the lock there is none.
    with suppress(StorageError), storage.lock():
        if entry not in storage.entries(path):
            return []
    return [
        Problem(place, "unfinished", "left by a writer that was killed; the next publication here removes it")
    ]


@contextmanager
def _reported(path: str, problems: list[Problem]) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        problems.append(Problem(path, "damaged", str(error)))
    except StorageError as error:
        problems.append(Problem(path, "unreadable", str(error)))
