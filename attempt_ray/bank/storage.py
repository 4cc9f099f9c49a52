"""What the bank and runs need of a place to keep files: few operations, under rules that every place obeys.

Paths are relative, with ``/``, and made of names from `attempt_ray.bank.names`; ``""`` is the root.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, order=True)
class Entry:
    """A name in a directory; `other` is a symbolic link, device or the like, which is never followed."""

    name: str
    kind: Literal["file", "directory", "other"]
    modified: float | None = field(default=None, compare=False)
    """When an object was written, in seconds since the epoch by the store's clock; None where that is not told."""


class Storage(Protocol):
    """A place to keep files. All its methods raise StorageError where the disk or store refuses."""

    commits_whole: bool
    """Whether a directory appears with all its files; else it counts once its last file is there."""

    def place(self, path: str = "") -> str:
        """Return what people call `path`: no credentials in it."""

    def read(self, path: str, *, limit: int) -> bytes:
        """Return a file's content.

        Raises:
            FileNotFoundError: There is none.
            IntegrityError: It is larger than `limit` bytes, no plain file, or behind a symbolic link.
        """

    def entries(self, path: str) -> list[Entry]:
        """Return what a directory holds, sorted; nothing where there is none."""

    def stamps(self, path: str) -> dict[str, object]:
        """Return, for every directory in a directory, what differs once an entry in it has come, gone or been replaced.

        None stands where that cannot be told yet: such a directory counts as changed.
        """

    def commit(self, path: str, files: Mapping[str, bytes]) -> None:
        """Make a directory with `files`, written in their order, appear as one.

        Raises:
            FileExistsError: `path` is taken or claimed by another writer; it was not changed.
        """

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, replacing it wholly."""

    def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that it holds; one that is not there is as good."""

    def lock(self) -> AbstractContextManager[None]:
        """Keep other writers out, where the place can."""

    def sweep(self, path: str) -> None:
        """Remove from a directory what killed writers left; call it under the lock."""

    def settle(self, path: str) -> None:
        """Make the names in a directory durable, which the writer of the latest may have been killed before."""
