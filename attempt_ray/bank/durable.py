"""Durable local writing: after a crash a path holds the old content or the new, never a mixture.

The recipe is the one of SQLite and etcd: write to a temporary name on the same disk, fsync it, rename it, fsync the
directory that holds the name. Temporary names start with a dot and carry `TEMPORARY`; nothing reads them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from attempt_ray.errors import AttemptError, StorageError

TEMPORARY = ".tmp-"
"""Part of every temporary name; what follows it is the writer's process id and a random token."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FIXES = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some of your quota or choose another disk",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another disk",
    errno.EROFS: "mount it writable or choose another directory",
    errno.EACCES: "give this user the right to write there or choose another directory",
    errno.EPERM: "give this user the right to write there or choose another directory",
    errno.EIO: "the device fails: check it (dmesg), then choose another disk",
    errno.ESTALE: "the network mount went away: mount it again",
    errno.ETIMEDOUT: "check that the store can be reached",
    errno.ENOTCONN: "the network mount went away: mount it again",
    errno.ENOTDIR: "a part of the path is a file: choose another directory",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "the machine has too many open files: close some",
}


def temporary_name(name: str) -> str:
    """Return a hidden name for an unfinished `name`, unlike that of any other writer."""
    return f".{name}{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"


def is_temporary(name: str) -> bool:
    """Return whether `name` is one that `temporary_name` gave."""
    return name.startswith(".") and TEMPORARY in name


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the file `path` by `data`, wholly or not at all; its directory must exist.

    Args:
        path: The file.
        data: Its new content.
        mode: Its permissions, from the first byte on, less those of the umask.

    Raises:
        StorageError: The disk refused; the old content is untouched and no temporary file is left.
    """
    temporary = path.with_name(temporary_name(path.name))
    with storage_errors(f"write {path}", where=path.parent, needed=len(data)):
        try:
            write_new(temporary, data, mode=mode)
            _sync(temporary, os.O_RDONLY)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that must not exist yet; it is not durable until it is synced."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def commit_directory(temporary: Path, final: Path) -> None:
    """Make the finished directory `temporary` appear as `final`, durably and in one step.

    Both must be on one disk. Every file and directory below `temporary` is fsynced first.

    Raises:
        FileExistsError: `final` exists; nothing was changed.
        StorageError: The disk refused.
    """
    needed = sum(path.lstat().st_size for path in temporary.rglob("*") if path.is_file())
    with storage_errors(f"commit {final}", where=final.parent, needed=needed):
        for directory, _, files in os.walk(temporary, topdown=False):
            for name in files:
                _sync(Path(directory, name), os.O_RDONLY | os.O_NOFOLLOW)
            sync_directory(Path(directory))
        if os.path.lexists(final):
            _refuse(final)
        try:
            temporary.rename(final)
        except OSError as error:
            # Another process can take the name after the check: rename then refuses a directory that holds files.
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and os.path.lexists(final):
                _refuse(final)
            raise
        sync_directory(final.parent)


def remove_temporaries(directory: Path) -> None:
    """Remove what writers that were killed left in `directory`; the caller is its only writer now."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if not is_temporary(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Make the names inside a directory durable."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def lock_within(descriptor: int, seconds: float) -> bool:
    """Lock an open file or directory for this process; return whether it came free in time.

    The system releases the lock with the descriptor, however the process ends.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        else:
            return True


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def storage_errors(what: str, *, where: Path | None = None, needed: int | None = None) -> Iterator[None]:
    """Turn the refusal of a disk or store inside the block into a StorageError that names the fix.

    A file that is missing or in the way is no refusal: FileNotFoundError and FileExistsError pass unchanged.

    Args:
        what: What was tried, as a verb phrase: "write runs/a/report.json".
        where: A path on the disk concerned, to tell how much of it is free.
        needed: Bytes that were to be written.

    Raises:
        StorageError: The disk or store refused (full, read-only, no right, failing, unreachable).
    """
    try:
        yield
    except (AttemptError, FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        if error.errno is not None and error.errno not in _FIXES:
            raise
        raise StorageError(_describe(error, what=what, where=where, needed=needed)) from error


def _describe(error: OSError, *, what: str, where: Path | None, needed: int | None) -> str:
    if error.errno is None:  # object stores answer in words
        reason, fix = " ".join(str(error).split()), "check that the store can be reached and its credentials"
    else:
        reason, fix = os.strerror(error.errno), _FIXES[error.errno]
    if error.errno in _FULL:
        free = None if where is None else _free_bytes(where)
        sizes = [f"{needed:,} bytes needed"] if needed is not None else []
        sizes += [f"{free:,} bytes free"] if free is not None else []
        reason += f" ({', '.join(sizes)})" if sizes else ""
    return f"cannot {what}: {reason}; {fix}"


def _free_bytes(where: Path) -> int | None:
    for path in (where, *where.absolute().parents):
        try:
            return shutil.disk_usage(path).free
        except OSError:
            continue
    return None


def _refuse(final: Path) -> NoReturn:
    raise FileExistsError(errno.EEXIST, "committed directories are never replaced", str(final))


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
