"""From the text a user gives for a bank or for runs to the storage behind it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from pyarrow import ArrowException, fs

from attempt_ray.bank.durable import temporary_name
from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.remote import RemoteStorage
from attempt_ray.bank.storage import Storage
from attempt_ray.config import carries_secret
from attempt_ray.errors import BankError, ConfigError, StorageError

REACH_SECONDS = 10.0
"""Longest wait for a store to show that it can be written and read."""

_WANTED = "a directory, or a URI that pyarrow opens: file:///path, s3://bucket/path, gs://bucket/path, hdfs://host/path"


def open_storage(uri: Any, *, what: str = "bank") -> Storage:
    """Return the storage at a local path or pyarrow filesystem URI; nothing is created.

    Args:
        uri: The path or URI.
        what: What is kept there, for the error.

    Raises:
        BankError: It is neither.
        StorageError: The store has to be asked where it is, and does not answer.
    """
    if not isinstance(uri, str) or not uri.strip() or "\0" in uri:
        raise BankError(f"got {uri!a} as {what}; wanted {_WANTED}")
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return LocalStorage(Path(uri).expanduser())
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (ArrowException, ValueError, OSError, ImportError) as error:
        # pyarrow's words repeat what it was given.
        reason = "" if carries_secret(uri) else f": {' '.join(str(error).split())}"
        if isinstance(error, OSError):
            raise StorageError(
                f"cannot open {what} at its '{scheme}' URI{reason}; check that the store can be reached"
            ) from None
        raise BankError(f"cannot open {what} at its '{scheme}' URI{reason}; wanted {_WANTED}") from None
    if isinstance(filesystem, fs.LocalFileSystem):
        return LocalStorage(Path(path))
    return RemoteStorage(filesystem, path, scheme=scheme)


def open_runs(uri: str) -> Storage:
    """Return the storage of run directories, as `open_storage` does.

    Raises:
        ConfigError: It is neither a path nor a URI that pyarrow opens.
        StorageError: As `open_storage`.
    """
    try:
        return open_storage(uri, what="runs")
    except BankError as error:
        raise ConfigError(str(error)) from None


def below(place: str, name: str) -> str:
    """Return the path or URI of `name` within a place; a URI's options stay behind it."""
    if "://" not in place:
        return str(Path(place) / name)
    path, question, options = place.partition("?")
    return f"{path.rstrip('/')}/{name}{question}{options}"


def check_reachable(storage: Storage, *, seconds: float = REACH_SECONDS) -> None:
    """List the place, write a file, read it back and remove it.

    Raises:
        StorageError: The place refused, or did not answer in time.
    """
    name, content = temporary_name("reached"), b"reached"
    errors: list[Exception] = []

    def reach() -> None:
        try:
            storage.entries("")  # the one call that is one request: a store that is down says so in time
            storage.replace(name, content)
            try:
                if storage.read(name, limit=len(content)) != content:
                    raise StorageError(
                        f"{storage.place(name)} does not hold what was written; check the store"
                    )
            finally:
                storage.remove(name)
        except Exception as error:  # noqa: BLE001 - the thread that waits raises it
            errors.append(error)

    # A store that took the connection and says nothing more would hold a call for minutes.
    thread = threading.Thread(target=reach, name="reach", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise StorageError(
            f"cannot reach {storage.place()}: no answer in {seconds:.0f} s; check that the store can be reached"
        )
    if errors:
        raise errors[0]
