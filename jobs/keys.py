"""What `attempt keys` prints: API keys, and the text of a new one, once."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from jobs.edge import tell
from serve_app.access import Role
from serve_app.keys import Key, KeyFile


def add_key(path: Path, name: str, *, role: Role, days: float | None, as_json: bool) -> None:
    """Make a key and print its text.

    Raises:
        ConfigError: The name or the days cannot be used, or the file is refused.
        StorageError: The disk refused.
    """
    _show(*KeyFile(path).add(name, role=role, days=days), as_json=as_json)


def rotate_key(path: Path, key_id: str, *, overlap_hours: float, as_json: bool) -> None:
    """Make a key that follows another, and print its text.

    Raises:
        ConfigError: There is no such key, it has expired, the hours cannot be used, or the file is refused.
        StorageError: The disk refused.
    """
    _show(*KeyFile(path).rotate(key_id, overlap_hours=overlap_hours), as_json=as_json)
    tell(f"key {key_id} is good for {overlap_hours:g} more hours at most")


def key_rows(path: Path) -> list[list[str]]:
    """Return a row for each key: id, name, role, when it was made and when it expires, and whether it is good.

    Raises:
        ConfigError: The file is refused.
        StorageError: The disk refused.
    """
    now = datetime.now(UTC)
    return [
        [
            key.id,
            key.name,
            key.role,
            key.created.isoformat(),
            _end(key),
            "expired" if key.expired(now) else "good",
        ]
        for key in KeyFile(path).list()
    ]


def _show(key: Key, text: str, *, as_json: bool) -> None:
    facts = {"id": key.id, "name": key.name, "role": key.role, "expires": _end(key), "key": text}
    sys.stdout.write((json.dumps(facts) if as_json else text) + "\n")
    tell(f"key {key.id} of {key.name}, role {key.role}, expires: {_end(key)}; it is not shown again")


def _end(key: Key) -> str:
    return "never" if key.expires is None else key.expires.isoformat()
