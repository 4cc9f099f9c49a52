"""The bank on a local disk or mount: atomic, durable, and deaf to symbolic links below its root."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from attempt_ray.bank.durable import (
    commit_directory,
    lock_within,
    remove_temporaries,
    storage_errors,
    sync_directory,
    temporary_name,
    write_durably,
    write_new,
)
from attempt_ray.bank.storage import Entry
from attempt_ray.errors import IntegrityError, StorageError

LOCK = ".lock"
"""File in the root whose flock keeps writers apart."""
LOCK_SECONDS = 60.0
"""Longest wait for another writer; one publication takes milliseconds."""
_SETTLED_NS = 1_000_000_000
"""Two changes that follow each other faster than a filesystem's clock ticks leave one time of modification."""

_NOT_PLAIN = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR})


class LocalStorage:
    """A directory of this machine."""

    commits_whole = True

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def place(self, path: str = "") -> str:
        """Return the absolute path."""
        return str(self.root / path)

    def read(self, path: str, *, limit: int) -> bytes:
        """Read a plain file; see `Storage.read`."""
        directory, _, name = path.rpartition("/")
        with storage_errors(f"read {self.place(path)}"), self._opened(directory) as parent:
            descriptor = self._open(name, os.O_RDONLY | os.O_NONBLOCK, parent=parent, path=path)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise IntegrityError(_not_plain(self.place(path)))
                with os.fdopen(descriptor, "rb", closefd=False) as file:
                    data = file.read(limit + 1)
            finally:
                os.close(descriptor)
        if len(data) > limit:
            raise IntegrityError(
                f"{self.place(path)} is larger than the {limit:,} bytes it can be; restore or remove it"
            )
        return data

    def entries(self, path: str) -> list[Entry]:
        """List a directory; see `Storage.entries`."""
        try:
            with (
                storage_errors(f"list {self.place(path)}"),
                self._opened(path) as descriptor,
                os.scandir(descriptor) as found,
            ):
                return sorted(_entry(item) for item in found)
        except FileNotFoundError:
            return []

    def stamps(self, path: str) -> dict[str, object]:
        """Tell changes by the time of modification; see `Storage.stamps`."""
        settled = time.time_ns() - _SETTLED_NS
        try:
            with (
                storage_errors(f"list {self.place(path)}"),
                self._opened(path) as descriptor,
                os.scandir(descriptor) as found,
            ):
                states = {
                    item.name: item.stat(follow_symlinks=False)
                    for item in found
                    if item.is_dir(follow_symlinks=False)
                }
        except FileNotFoundError:
            return {}
        return {
            name: (state.st_ino, state.st_mtime_ns) if state.st_mtime_ns < settled else None
            for name, state in states.items()
        }

    def commit(self, path: str, files: Mapping[str, bytes]) -> None:
        """Commit by temporary directory, fsync and rename; see `Storage.commit`."""
        final = self.root / path
        needed = sum(map(len, files.values()))
        temporary = final.with_name(temporary_name(final.name))
        with (
            storage_errors(f"publish {final}", where=self.root, needed=needed),
            self._made(path.rpartition("/")[0]),
        ):
            try:
                temporary.mkdir()
                for name, data in files.items():
                    write_new(temporary / name, data)
                commit_directory(temporary, final)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def replace(self, path: str, data: bytes) -> None:
        """Replace a file durably; see `Storage.replace`."""
        with (
            storage_errors(f"write {self.place(path)}", where=self.root, needed=len(data)),
            self._made(path.rpartition("/")[0]),
        ):
            write_durably(self.root / path, data)

    def remove(self, path: str) -> None:
        """Remove durably what is at a path; see `Storage.remove`."""
        parent, _, name = path.rpartition("/")
        with storage_errors(f"remove {self.place(path)}"):
            directory = self.root.joinpath(*parent.split("/"))
            self._inside(parent)
            if not os.path.lexists(directory / name):
                return
            if (directory / name).is_dir() and not (directory / name).is_symlink():
                shutil.rmtree(directory / name)
            else:
                (directory / name).unlink()
            sync_directory(directory)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the root's lock file; the system releases it when the process ends, however it ends.

        Raises:
            StorageError: Another writer held it for `LOCK_SECONDS`.
        """
        place = self.root / LOCK
        with storage_errors(f"lock {place}", where=self.root), self._made(""):
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            if not lock_within(descriptor, LOCK_SECONDS):
                raise StorageError(
                    f"cannot lock {place}: another process holds it for {LOCK_SECONDS:.0f} s; see which with"
                    f" 'fuser {place}', wait for it or end it"
                )
            yield
        finally:
            os.close(descriptor)

    def sweep(self, path: str) -> None:
        """Remove temporaries; see `Storage.sweep`."""
        with storage_errors(f"clean {self.place(path)}"):
            remove_temporaries(self._inside(path)[-1])

    def settle(self, path: str) -> None:
        """Sync a directory; see `Storage.settle`."""
        with storage_errors(f"sync {self.place(path)}"):
            sync_directory(self._inside(path)[-1])

    @contextmanager
    def _opened(self, path: str) -> Iterator[int]:
        """Open a directory below the root one name at a time, so that no link is followed."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in path.split("/") if path else []:
                inner = self._open(name, os.O_RDONLY | os.O_DIRECTORY, parent=descriptor, path=path)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    def _open(self, name: str, flags: int, *, parent: int, path: str) -> int:
        try:
            return os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)
        except OSError as error:
            if error.errno in _NOT_PLAIN:
                raise IntegrityError(_not_plain(self.place(path))) from None
            raise

    @contextmanager
    def _made(self, path: str) -> Iterator[None]:
        """Create what is missing of the root and a directory below it; take that back where the block fails."""
        made: list[Path] = []
        try:
            for directory in [*reversed(self.root.parents), self.root, *self._inside(path)]:
                if directory.exists():
                    continue
                try:
                    directory.mkdir(exist_ok=True)
                except FileExistsError:
                    raise IntegrityError(_not_plain(str(directory))) from None
                made.append(directory)
                sync_directory(directory.parent)
            yield
        except BaseException:
            for directory in reversed(made):
                with suppress(OSError):
                    directory.rmdir()
            raise

    def _inside(self, path: str) -> list[Path]:
        """Return the directories from the root, not counted, down to `path`, none of them a link."""
        names = path.split("/") if path else []
        directories = [self.root.joinpath(*names[: count + 1]) for count in range(len(names))]
        for directory in directories:
            if os.path.lexists(directory) and (directory.is_symlink() or not directory.is_dir()):
                raise IntegrityError(_not_plain(str(directory)))
        return directories


def _entry(item: os.DirEntry[str]) -> Entry:
    if item.is_file(follow_symlinks=False):
        return Entry(item.name, "file")
    return Entry(item.name, "directory" if item.is_dir(follow_symlinks=False) else "other")


def _not_plain(place: str) -> str:
    return f"{place} is, or lies behind, something other than a plain file or directory (a link?); remove it"
