"""The bank and runs on any other filesystem that pyarrow opens: S3, GCS, HDFS, and fsspec's (``fsspec+memory://``).

Object stores have no rename and no lock, so two rules stand in for them. The last file of a version is written last,
and a version without it does not exist. A writer claims a number before it writes: it leaves a claim in the version's
directory and lists it; if anything but its own claim is there, it withdraws and takes the next number. Where listing
shows every completed write (S3, GCS and Azure promise it), of two writers at most one finds itself alone.

Aliases have no such protection: a move that loses against a simultaneous one is reported, but one process should move
the aliases of a remote bank.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Literal

from pyarrow import ArrowException, fs

from attempt_ray.bank.durable import storage_errors
from attempt_ray.bank.storage import Entry
from attempt_ray.errors import IntegrityError

CLAIM = ".claim-"
"""Start of the names of claims."""


class RemoteStorage:
    """A directory of a pyarrow filesystem."""

    commits_whole = False

    def __init__(self, filesystem: fs.FileSystem, root: str, *, scheme: str) -> None:
        self.filesystem = filesystem
        self.root = root.rstrip("/")
        self.scheme = scheme

    def place(self, path: str = "") -> str:
        """Return the path with its scheme, without the credentials and options of the URI."""
        return f"{self.scheme}://{self._full(path).lstrip('/')}"

    def read(self, path: str, *, limit: int) -> bytes:
        """Read an object; see `Storage.read`."""
        with _refusals(f"read {self.place(path)}"):
            information = self.filesystem.get_file_info(self._full(path))
            if information.type == fs.FileType.NotFound:
                raise FileNotFoundError(self.place(path))
            if information.type != fs.FileType.File:
                raise IntegrityError(f"{self.place(path)} is no file; remove it")
            # No more than there is: a stream sets memory aside for what it is asked.
            most = limit if information.size is None else min(limit, information.size)
            with self.filesystem.open_input_stream(self._full(path)) as stream:
                data = bytes(stream.read(most + 1))
        if len(data) > limit:
            raise IntegrityError(
                f"{self.place(path)} is larger than the {limit:,} bytes it can be; restore or remove it"
            )
        return data

    def entries(self, path: str) -> list[Entry]:
        """List a directory; see `Storage.entries`."""
        with _refusals(f"list {self.place(path)}"):
            selector = fs.FileSelector(self._full(path), allow_not_found=True)
            found = self.filesystem.get_file_info(selector)
        return sorted(Entry(item.base_name, _kind(item.type), _seconds(item.mtime_ns)) for item in found)

    def stamps(self, path: str) -> dict[str, object]:
        """Tell changes by times and sizes of all objects, listed at once; see `Storage.stamps`."""
        root = self._full(path)
        with _refusals(f"list {self.place(path)}"):
            selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
            found = self.filesystem.get_file_info(selector)
        objects: dict[str, list[tuple[str, int | None, int | None]]] = {}
        for item in found:
            name, _, rest = item.path[len(root) + 1 :].partition("/")
            if rest and item.type == fs.FileType.File:
                objects.setdefault(name, []).append((rest, item.mtime_ns, item.size))
        return {name: tuple(sorted(some)) for name, some in objects.items()}

    def commit(self, path: str, files: Mapping[str, bytes]) -> None:
        """Claim the directory, then write the files in order, the last one last; see `Storage.commit`."""
        claim = f"{CLAIM}{secrets.token_hex(8)}"
        with _refusals(f"publish {self.place(path)}", needed=sum(map(len, files.values()))):
            self.filesystem.create_dir(self._full(path), recursive=True)
            written = [f"{path}/{claim}"]
            self._write(written[0], b"")
            try:
                if [entry.name for entry in self.entries(path)] != [claim]:
                    # Two that meet would meet again at the next number if they walked in step.
                    time.sleep(secrets.randbelow(50) / 1000)
                    raise FileExistsError(self.place(path))
                for name, data in files.items():
                    written.append(f"{path}/{name}")
                    self._write(written[-1], data)
            except BaseException:
                for name in reversed(written):
                    self._remove(name)
                raise
            self._remove(written[0])

    def replace(self, path: str, data: bytes) -> None:
        """Write an object; see `Storage.replace`."""
        with _refusals(f"write {self.place(path)}", needed=len(data)):
            self.filesystem.create_dir(self._full(path.rpartition("/")[0]), recursive=True)
            self._write(path, data)

    def remove(self, path: str) -> None:
        """Remove an object, or a directory with all that it holds; see `Storage.remove`."""
        with _refusals(f"remove {self.place(path)}"), suppress(FileNotFoundError):
            if self.filesystem.get_file_info(self._full(path)).type == fs.FileType.Directory:
                self.filesystem.delete_dir(self._full(path))
            else:
                self.filesystem.delete_file(self._full(path))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Do nothing: object stores have no locks."""
        yield

    def sweep(self, path: str) -> None:
        """Do nothing: what lacks its last file does not exist, and may be another writer's work."""

    def settle(self, path: str) -> None:
        """Do nothing: a completed write is durable."""

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _write(self, path: str, data: bytes) -> None:
        with self.filesystem.open_output_stream(self._full(path)) as stream:
            stream.write(data)

    def _remove(self, path: str) -> None:
        with suppress(OSError, ArrowException):
            self.filesystem.delete_file(self._full(path))


def _kind(found: fs.FileType) -> Literal["file", "directory", "other"]:
    if found == fs.FileType.File:
        return "file"
    return "directory" if found == fs.FileType.Directory else "other"


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9


@contextmanager
def _refusals(what: str, *, needed: int | None = None) -> Iterator[None]:
    """As `storage_errors`, for the errors of pyarrow's own that are no OSError too."""
    with storage_errors(what, needed=needed):
        try:
            yield
        except ArrowException as error:
            if isinstance(error, OSError):
                raise
            raise OSError(str(error)) from error
