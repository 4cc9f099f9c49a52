"""A run on an object store: worked on in a scratch directory of this machine, and mirrored.

When a run starts, what the store holds of it is fetched. Each time the run has written something that it must not
lose, the store gets what has changed: history, kept states and answers first, then the checkpoint with its manifest last, the
report last of all; then what is no longer needed is removed. A checkpoint without its manifest does not exist. So at
any moment the store holds all that another machine needs to go on, bit for bit.

The scratch directory belongs to the process that holds the run and is emptied when it leaves. The store is the truth:
what an earlier process of this machine could not bring there is thrown away.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.places import open_runs
from attempt_ray.bank.storage import Storage
from attempt_ray.config import Config
from attempt_ray.errors import AttemptError, ConfigError
from attempt_ray.training.checkpoint import FILES, MANIFEST, checkpoints
from attempt_ray.training.directory import (
    BEST,
    CONFIG,
    EXAMPLES,
    LEASE,
    METRICS,
    REPORT,
    STATE,
    RunDirectory,
    read_report,
)
from attempt_ray.training.lease import Lease, this_process

_MOST_BYTES = 2**40
"""No file of a run is larger."""
_STEP = re.compile(r"step-\d{8,}")

Stamp = tuple[int, int, int]


def open_run(config: Config, name: str) -> RunDirectory:
    """Return the directory of a run by its name, below `config.runs`; nothing is created.

    Raises:
        ConfigError: `config.runs` is neither a path nor a URI that pyarrow opens.
        StorageError: The store cannot be reached.
    """
    if "://" not in config.runs:
        return RunDirectory(Path(config.runs).expanduser() / name)
    storage = open_runs(config.runs)
    if isinstance(storage, LocalStorage):
        return RunDirectory(storage.root / name)
    place = hashlib.sha256(config.runs.encode()).hexdigest()[:12]
    scratch = Path(config.data.cache_dir).expanduser() / "runs" / place / name
    return MirroredRun(scratch, storage, name)


class MirroredRun(RunDirectory):
    """A run on an object store; `path` is its scratch directory."""

    def __init__(self, path: Path, storage: Storage, name: str) -> None:
        super().__init__(path)
        self._storage = storage
        self._name = name
        self._lease: Lease | None = None
        self._stamps: dict[str, Stamp] = {}
        self._stored: set[str] = set()

    @property
    def place(self) -> str:
        """The run's URI, without options."""
        return self._storage.place(self._name)

    @contextmanager
    def leased(self, config: Config) -> Iterator[None]:
        """Hold the run on the store and its scratch directory, and fetch what the store holds; see `RunDirectory.leased`."""
        with self._held() as lease:
            try:
                self._clear()
                self._fetch()
                self._lease = lease
                self._describe(config)
                self.keep()
                yield
            finally:
                self._lease = None
                self._clear()

    def report(self) -> dict[str, Any] | None:
        """Return the report of a finished run; see `RunDirectory.report`.

        What a process that was killed after its report left beside it is removed.
        """
        if self._lease is not None:
            return super().report()
        try:
            report = read_report(self._storage.read(f"{self._name}/{REPORT}", limit=_MOST_BYTES))
        except FileNotFoundError:
            return None
        if report is not None and (self._checkpoints() or self._storage.entries(f"{self._name}/{LEASE}")):
            # Where another process holds it, that one is about to remove its checkpoints itself.
            with suppress(ConfigError), self._held():
                for name in self._checkpoints():
                    self._drop(name)
        return report

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace the report; see `RunDirectory.write_report`."""
        if self._lease is not None:
            super().write_report(report)
        else:
            self._storage.replace(f"{self._name}/{REPORT}", self._encoded(report))

    def note_end(self, error: Exception) -> None:
        """Write what ended the run before its time; see `RunDirectory.note_end`."""
        super().note_end(error)
        with suppress(AttemptError):
            self.keep()

    def keep(self) -> None:
        """Bring what has changed to the store, and remove from it what is gone; see `RunDirectory.keep`.

        Raises:
            ConfigError: Another process took the run over.
            StorageError: The store refused.
        """
        if self._lease is None:
            return
        for name in (CONFIG, STATE, METRICS, BEST, EXAMPLES):
            self._put(name)
        here = checkpoints(self.checkpoints)
        for path in reversed(here):
            if path.name not in self._stored:
                self._commit(path)
        self._put(REPORT)
        for name in sorted(self._stored - {path.name for path in here}):
            self._lease.check()
            self._drop(name)
            self._stored.remove(name)

    @contextmanager
    def _held(self) -> Iterator[Lease]:
        """Hold the scratch directory, then the run on the store."""
        with self._locked() as lock:
            lease = Lease(self._storage, f"{self._name}/{LEASE}", run=self.place, holder=this_process(lock))
            with lease.held():
                yield lease

    def _checkpoints(self) -> list[str]:
        """Return the names of what the store holds of checkpoints."""
        return [entry.name for entry in self._storage.entries(f"{self._name}/checkpoints")]

    def _read_best(self) -> bytes:
        if self._lease is not None:
            return super()._read_best()
        return self._storage.read(f"{self._name}/{BEST}", limit=_MOST_BYTES)

    def _put(self, name: str) -> None:
        stamp = _stamp(self.path / name)
        if stamp is None or self._stamps.get(name) == stamp or self._lease is None:
            return
        self._lease.check()
        self._storage.replace(f"{self._name}/{name}", (self.path / name).read_bytes())
        self._stamps[name] = stamp

    def _commit(self, path: Path) -> None:
        if self._lease is not None:
            self._lease.check()
        files = {name: (path / name).read_bytes() for name in FILES}
        try:
            self._storage.commit(f"{self._name}/checkpoints/{path.name}", files)
        except FileExistsError:
            raise ConfigError(
                f"run {self.place} has a {path.name} of another process; end that one, and run the same command again"
            ) from None
        self._stored.add(path.name)

    def _drop(self, name: str) -> None:
        """Remove a checkpoint from the store: first what makes it one."""
        self._storage.remove(f"{self._name}/checkpoints/{name}/{MANIFEST}")
        self._storage.remove(f"{self._name}/checkpoints/{name}")

    def _fetch(self) -> None:
        """Bring what the store holds here; what is no whole checkpoint is removed from it.

        Digests are checked by who reads: a damaged checkpoint is then told of, and gives way to the one before.
        """
        local, there = LocalStorage(self.path), {entry.name for entry in self._storage.entries(self._name)}
        for name in (CONFIG, STATE, METRICS, BEST, EXAMPLES, REPORT):
            if name in there:
                local.replace(name, self._storage.read(f"{self._name}/{name}", limit=_MOST_BYTES))
                self._stamps[name] = _stamp(self.path / name) or (0, 0, 0)
        for step in self._checkpoints():
            path = f"checkpoints/{step}"
            found = {inner.name for inner in self._storage.entries(f"{self._name}/{path}")}
            if MANIFEST not in found or not _STEP.fullmatch(step):
                self._storage.remove(f"{self._name}/{path}")
                continue
            files = {
                name: self._storage.read(f"{self._name}/{path}/{name}", limit=_MOST_BYTES)
                for name in FILES
                if name in found
            }
            local.commit(path, files)
            self._stored.add(step)

    def _clear(self) -> None:
        """Empty the scratch directory, all but the lock that keeps others of this machine out of it."""
        self._stamps, self._stored = {}, set()
        for path in self.path.iterdir():
            if path.name == LEASE:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _stamp(path: Path) -> Stamp | None:
    """Return what tells a file from what it was before, or None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
