"""Who writes to a run on an object store, which has no locks.

    <run>/.lease/<token>    one object a process that holds the run, or asks for it

A process writes its object and lists the others: it holds the run if it is alone, else it takes its own back. Where
listing shows every completed write (S3, GCS and Azure promise it), of two at most one finds itself alone. The holder
writes its object again every few seconds; one that was not written for `STALE_SECONDS`, by the store's own clock, is
a dead holder's. A holder that had been cut off for so long finds its object gone and stops. Should it write once more
before it does, no harm comes of it: each checkpoint is an object of its own step that is never replaced, and equal
runs compute equal bytes.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from attempt_ray.bank.storage import Entry, Storage
from attempt_ray.errors import ConfigError, IntegrityError, StorageError

STALE_SECONDS = 30.0
"""Age at which an object of a lease is a dead process's, by the store's clock."""
RENEW_SECONDS = 5.0
"""Time between two renewals: several may fail before the lease is stale."""
LOOK_SECONDS = 1.0
"""Time between two looks at a run that another process holds."""
CLOCK_SECONDS = 1.0
"""Step of a store's clock: S3 tells when an object was written in whole seconds."""

_LIMIT = 4096
_UNKNOWN = "another process"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds a run, as others read of it."""

    name: str
    """What people call it."""
    lock: str
    """Lock that the system frees when the process ends: who has it knows that a holder which had it is gone."""


def this_process(lock: int) -> Holder:
    """Return this process, which has a lock on the file behind the descriptor `lock`."""
    status = os.fstat(lock)
    boot = ""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123 - not a path of ours
        boot = file.read().strip()
    return Holder(
        name=f"process {os.getpid()} on {socket.gethostname()}",
        lock=f"{boot}:{status.st_dev}:{status.st_ino}" if boot else "",
    )


class Lease:
    """A run held by this process; a thread renews it."""

    def __init__(self, storage: Storage, directory: str, *, run: str, holder: Holder) -> None:
        self._storage = storage
        self._directory = directory
        self._run = run
        self._content = json.dumps({"holder": holder.name, "lock": holder.lock}).encode()
        self._holder = holder
        self._token = ""
        self._renewed = time.monotonic()
        self._taken_by: str | None = None
        self._turn = threading.Lock()
        self._over = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the run for the time of the block.

        Raises:
            ConfigError: Another process holds it.
            StorageError: The store refused.
        """
        self._acquire()
        thread = threading.Thread(target=self._renew_on_and_on, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            with self._turn, suppress(StorageError):
                self._storage.remove(self._own)

    def check(self) -> None:
        """Return if the run is still this process's.

        Raises:
            ConfigError: Another process took it over.
            StorageError: The store refused.
        """
        if time.monotonic() - self._renewed > STALE_SECONDS / 2:
            self.renew()
        if self._taken_by is not None:
            raise ConfigError(
                f"run {self._run} was taken over by {self._taken_by}, since this process had not written to the store for "
                f"{STALE_SECONDS:.0f} s; wait for that one"
            )

    def renew(self) -> None:
        """Write the object again, or note that the run was taken over.

        Raises:
            StorageError: The store refused.
        """
        with self._turn:
            if self._over.is_set() or self._taken_by is not None:
                return
            began = time.monotonic()
            silent = began - self._renewed > STALE_SECONDS / 2
            own, others = self._look()
            if own is None or (silent and others):
                self._give_up(others)
                return
            self._storage.replace(self._own, self._content)
            # Who took over in between has listed the store before it could see this.
            if silent and (others := self._look()[1]):
                self._give_up(others)
                return
            self._renewed = began

    @property
    def _own(self) -> str:
        return f"{self._directory}/{self._token}"

    def _renew_on_and_on(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with suppress(OSError):  # the store may answer the next time
                self.renew()

    def _give_up(self, others: list[Entry]) -> None:
        self._taken_by = self._name_of(others[0]) if others else _UNKNOWN
        with suppress(StorageError):
            self._storage.remove(self._own)

    def _acquire(self) -> None:
        """Write a claim until it stands alone, or until who holds the run has shown that it lives."""
        began = time.monotonic()
        first: dict[str, float | None] = {}
        holders: dict[str, Holder] = {}
        while True:
            self._token, written = secrets.token_hex(8), time.monotonic()
            self._storage.replace(self._own, self._content)
            try:
                own, others = self._look()
                live = [entry for entry in others if not self._is_dead(entry, own, holders)]
                if own is not None and not live:
                    for entry in others:
                        self._storage.remove(f"{self._directory}/{entry.name}")
                    self._renewed = written
                    return
            except BaseException:
                with suppress(StorageError):
                    self._storage.remove(self._own)
                raise
            self._storage.remove(self._own)
            for entry in live:
                renewed = first.setdefault(entry.name, entry.modified) != entry.modified
                if renewed or time.monotonic() - began > STALE_SECONDS + CLOCK_SECONDS + RENEW_SECONDS:
                    raise ConfigError(
                        f"run {self._run} is being executed by {self._name_of(entry)}; wait for it, or set runs to "
                        f"another place (where that process is known to be gone, remove "
                        f"{self._storage.place(f'{self._directory}/{entry.name}')})"
                    )
            # Two that meet would meet again if they walked in step.
            time.sleep(LOOK_SECONDS * (0.5 + secrets.randbelow(1000) / 1000))

    def _look(self) -> tuple[Entry | None, list[Entry]]:
        """Return the own object, and those of others."""
        found = [entry for entry in self._storage.entries(self._directory) if entry.kind == "file"]
        own = next((entry for entry in found if entry.name == self._token), None)
        return own, [entry for entry in found if entry is not own]

    def _is_dead(self, entry: Entry, own: Entry | None, holders: dict[str, Holder]) -> bool:
        now = None if own is None else own.modified
        if now is not None and entry.modified is not None and now - entry.modified > STALE_SECONDS:
            return True
        if entry.name not in holders and (found := self._describe(entry.name)) is not None:
            holders[entry.name] = found
        holder = holders.get(entry.name)
        return holder is not None and bool(holder.lock) and holder.lock == self._holder.lock

    def _name_of(self, entry: Entry) -> str:
        holder = self._describe(entry.name)
        return _UNKNOWN if holder is None else holder.name

    def _describe(self, token: str) -> Holder | None:
        """Return who wrote an object of the lease; None where it is gone or cannot be read."""
        try:
            content = json.loads(self._storage.read(f"{self._directory}/{token}", limit=_LIMIT))
            return Holder(name=str(content["holder"]), lock=str(content["lock"]))
        except (FileNotFoundError, StorageError, IntegrityError, ValueError, KeyError, TypeError):
            return None  # a claim that is taken back while it is read has S3 answer in many ways
