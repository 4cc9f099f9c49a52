"""API keys: made and kept in a file that holds their digests alone, and looked up for every request.

A key is ``atk_<id>_<secret>``: 12 hex digits by which it is found, listed and logged, and 256 random bits. Its text is
shown once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from attempt_ray.bank.durable import lock_within, storage_errors, write_durably
from attempt_ray.errors import AttemptError, ConfigError, StorageError
from serve_app.access import Caller, Role

LOOK_SECONDS = 0.5
"""Least time between two looks at whether the file of keys has changed."""
_LOCK_SECONDS = 10.0
"""Longest wait for another process that changes the file."""
_PRIVATE = 0o600
_KEY = re.compile(r"atk_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_NOBODY = hashlib.sha256(secrets.token_bytes()).hexdigest()
"""Digest that an unknown id is compared with, so that it takes as long as a known one."""

_log = logging.getLogger(__name__)


class Key(BaseModel):
    """A key as the file has it: everything but its text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    """Part of the key's text by which it is found; no secret."""
    name: Annotated[str, StringConstraints(pattern=_NAME_PATTERN)]
    """Who has it."""
    role: Role
    """What it may do."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of its text."""
    created: AwareDatetime
    """When it was made."""
    expires: AwareDatetime | None = None
    """From when it is refused; None is never."""

    def expired(self, now: datetime) -> bool:
        """Return whether it is refused at a time."""
        return self.expires is not None and self.expires <= now


class _Page(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[Key, ...]

    @model_validator(mode="after")
    def _unlike(self) -> _Page:
        if len({key.id for key in self.keys}) < len(self.keys):
            raise ValueError("two keys have the same id")
        return self


class KeyFile:
    """The file of keys, to be changed; several processes may do so at once.

    Args:
        path: The file. It is made by the first `add`, for this user alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def list(self) -> tuple[Key, ...]:
        """Return every key, oldest first.

        Raises:
            ConfigError: There is no such file, others may read it, or it is no file of keys.
            StorageError: The disk refused.
        """
        return _read(self._path)

    def add(self, name: str, *, role: Role = "infer", days: float | None = None) -> tuple[Key, str]:
        """Make a key and return it with its text, which nobody can ask for again.

        Args:
            name: Who has it.
            role: What it may do.
            days: How long it is good for; None is for ever.

        Raises:
            ConfigError: The name or the days cannot be used, or the file is refused (see `list`).
            StorageError: The disk refused.
        """
        if not re.fullmatch(_NAME_PATTERN, name):
            raise ConfigError(
                f"a key got the name {name!r}; wanted 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit"
            )
        made, text = _make(name, role, None if days is None else _after(days, "days"))
        with self._changing() as keys:
            _write(self._path, [*keys, made])
        return made, text

    def revoke(self, key_id: str) -> Key:
        """Remove a key and return it; whoever follows the file refuses it within `LOOK_SECONDS`.

        Raises:
            ConfigError: There is no such key, or the file is refused (see `list`).
            StorageError: The disk refused.
        """
        with self._changing() as keys:
            key = _find(keys, key_id)
            _write(self._path, [other for other in keys if other is not key])
        return key

    def rotate(self, key_id: str, *, overlap_hours: float = 24.0) -> tuple[Key, str]:
        """Make a key of the same name, role and life as another, which from then on expires.

        Args:
            key_id: The old key.
            overlap_hours: How long both are good; an earlier end of the old one stays.

        Raises:
            ConfigError: There is no such key, it has expired, the hours cannot be used, or the file is refused.
            StorageError: The disk refused.
        """
        end = _after(overlap_hours, "hours")
        with self._changing() as keys:
            old = _find(keys, key_id)
            if old.expired(_now()):
                raise ConfigError(f"key {old.id} has expired; make a new one: attempt keys add {old.name}")
            life = None if old.expires is None else old.expires - old.created
            made, text = _make(old.name, old.role, None if life is None else _now() + life)
            ending = old.model_copy(update={"expires": end if old.expires is None else min(old.expires, end)})
            _write(self._path, [*(ending if key is old else key for key in keys), made])
        return made, text

    @contextmanager
    def _changing(self) -> Iterator[tuple[Key, ...]]:
        """Hold the lock of the file's directory, and give the keys as they are; none where there is no file yet."""
        directory = self._path.parent
        with storage_errors(f"lock {directory}"):
            try:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                raise ConfigError(f"there is no directory {directory} for the keys; make it first") from None
        try:
            if not lock_within(descriptor, _LOCK_SECONDS):
                raise StorageError(
                    f"cannot lock {directory}: another process holds it for {_LOCK_SECONDS:.0f} s; see which with "
                    f"'fuser {directory}', wait for it or end it"
                )
            yield _read(self._path) if os.path.lexists(self._path) else ()
        finally:
            os.close(descriptor)


class KeyRing:
    """The keys of a file, as it is now: every `LOOK_SECONDS` at most, a call looks whether it has changed.

    A file that can no longer be read, or is none of keys any more, leaves the keys as they were, and `problem` tells why.

    Args:
        path: The file.

    Raises:
        ConfigError: There is no such file, others may read it, or it is no file of keys.
        StorageError: The disk refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _signature(path)
        self._keys = {key.id: key for key in _read(path)}
        self._problem: str | None = None
        self._looked = time.monotonic()

    @property
    def problem(self) -> str | None:
        """Why the file cannot be followed at present; None while it can."""
        self._follow()
        return self._problem

    def authenticate(self, text: str) -> Caller | None:
        """Return who has the key of this text, or None where there is no such key or it has expired."""
        self._follow()
        matched = _KEY.fullmatch(text)
        key = self._keys.get(matched[1]) if matched else None
        same = hmac.compare_digest(_digest(text), key.sha256 if key else _NOBODY)
        if key is None or not same or key.expired(_now()):
            return None
        return Caller(key.id, key.role)

    def _follow(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        seen = _signature(self._path)
        if seen == self._seen and self._problem is None:
            return
        try:
            self._keys = {key.id: key for key in _read(self._path)}
        except (AttemptError, OSError) as error:
            if self._problem != str(error):
                _log.warning("the keys stay as they were: %s", error)
            self._problem = str(error)
        else:
            _log.info("%d keys read from %s", len(self._keys), self._path)
            self._problem = None
            self._seen = seen


def _make(name: str, role: Role, expires: datetime | None) -> tuple[Key, str]:
    key_id = secrets.token_hex(6)
    text = f"atk_{key_id}_{secrets.token_urlsafe(32)}"
    return Key(id=key_id, name=name, role=role, sha256=_digest(text), created=_now(), expires=expires), text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _find(keys: tuple[Key, ...], key_id: str) -> Key:
    for key in keys:
        if key.id == key_id:
            return key
    hint = (
        "give the 12 digits of its id, not its text"
        if key_id.startswith("atk_")
        else "see: attempt keys list"
    )
    raise ConfigError(f"no key of this id; {hint}")


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _after(number: float, unit: Literal["days", "hours"]) -> datetime:
    """Return the time after so many days or hours from now."""
    try:
        if number < 0 or (number == 0 and unit == "days"):
            raise ValueError
        return _now() + timedelta(**{unit: number})
    except (OverflowError, ValueError):
        least = "more than 0" if unit == "days" else "0 or more"
        raise ConfigError(
            f"a key got {number:g} {unit}; wanted {least}, ending before the year 10000"
        ) from None


def _write(path: Path, keys: list[Key]) -> None:
    data = _Page(keys=tuple(keys)).model_dump_json(indent=1).encode() + b"\n"
    write_durably(path, data, mode=_PRIVATE)


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever the file does; None where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path) -> tuple[Key, ...]:
    with storage_errors(f"read {path}"):
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & 0o077:
                    raise ConfigError(
                        f"{path} may be read or changed by others (mode {mode:04o}); make it yours alone: chmod 600 {path}"
                    )
                data = file.read()
        except FileNotFoundError:
            raise ConfigError(
                f"there is no file of keys {path}; make it: attempt keys add NAME --role infer --file {path}"
            ) from None
        except IsADirectoryError:
            raise ConfigError(f"{path} is a directory; give the file of keys") from None
    try:
        return _Page.model_validate_json(data).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{path} is no file of keys: {place + ': ' if place else ''}{first['msg']}; bring back its last good copy, or "
            "remove it and make new keys: attempt keys add NAME"
        ) from None
