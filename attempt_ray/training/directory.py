"""The directory of a run: who writes to it, its history and its report.

<runs>/<job>-<method>-<tasks>-s<seed>-<digest>/
    config.json, state.json, metrics.jsonl, checkpoints/, best.safetensors, examples.jsonl, report.json
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from attempt_ray.bank.durable import remove_temporaries, storage_errors, write_durably
from attempt_ray.config import Config, joined
from attempt_ray.errors import ConfigError, DroppedError, IntegrityError, StoppedError

if TYPE_CHECKING:
    from attempt_ray.training.events import EventFile

LEASE_SECONDS = 5.0
"""Longest wait for another process to leave the run; a killed one may take a moment to be gone."""

LEASE, CONFIG, STATE, METRICS, BEST, EXAMPLES, REPORT = (
    ".lease",
    "config.json",
    "state.json",
    "metrics.jsonl",
    "best.safetensors",
    "examples.jsonl",
    "report.json",
)


def run_name(config: Config, digest: str) -> str:
    """Return the name of a run's directory."""
    return f"{config.job}-{config.method}-{joined(config.tasks)}-s{config.seed}-{digest}"


class RunDirectory:
    """Where a run keeps what it must not lose.

    Attributes:
        path: The directory.
        checkpoints: Its directory of checkpoints.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics = path / METRICS
        self._report = path / REPORT
        self._best = path / BEST
        self._state = path / STATE

    @property
    def place(self) -> Path | str:
        """What people call the directory."""
        return self.path

    @contextmanager
    def leased(self, config: Config) -> Iterator[None]:
        """Hold the run for this process, its directory made and its config written; the kernel frees a dead holder's.

        The lock is flock's. On NFS that is enough: Linux turns it into a lock at the server (since 2.6.12), which keeps
        the other nodes out too and falls with the node that held it, at once when its process ends and with NFSv4's own
        lease (90 s by default) when the node dies. A mount with `nolock` or `local_lock` keeps locks to one node;
        `orchestration.cluster.check_shared` refuses it.

        Raises:
            ConfigError: Another process holds it.
            StorageError: The disk refused.
        """
        with self._locked():
            self._describe(config)
            yield

    def keep(self) -> None:
        """Let whatever was written so far outlast this machine, where the run is kept elsewhere; here, it is kept already.

        Raises:
            StorageError: The store refused.
        """

    def note_plan(self, *, steps: int) -> None:
        """Write how many steps the run will take, for those who watch it; an earlier end is forgotten.

        Raises:
            StorageError: The disk refused.
        """
        write_durably(self._state, json.dumps({"schema": 1, "steps": steps}).encode())

    def note_end(self, error: Exception) -> None:
        """Write, for those who look at the run later, what ended it before its time, if the disk lets us."""
        try:
            state = json.loads(self._state.read_bytes())
        except (OSError, ValueError):
            state = {"schema": 1}
        described = " ".join(str(error).split()) or type(error).__name__
        state["ended"] = {
            "how": "stopped" if isinstance(error, StoppedError | DroppedError) else "failed",
            "error": f"{type(error).__name__}: {described}",
        }
        with suppress(OSError):
            write_durably(self._state, json.dumps(state).encode())

    def report(self) -> dict[str, Any] | None:
        """Return the report of a finished run; None before, or where the file is no report."""
        try:
            return read_report(self._report.read_bytes())
        except FileNotFoundError:
            return None

    def write_report(self, report: Mapping[str, Any]) -> None:
        """Replace the report, durably; from here on the run is finished.

        Raises:
            StorageError: The disk refused.
        """
        write_durably(self._report, self._encoded(report))
        self.keep()

    def write_examples(self, lines: bytes) -> str:
        """Replace the answers row by row, durably; return the SHA-256 of their file, for the report that follows.

        Raises:
            StorageError: The disk refused.
        """
        write_durably(self.path / EXAMPLES, lines)
        return hashlib.sha256(lines).hexdigest()

    def write_best(self, tensors: Mapping[str, Tensor]) -> str:
        """Replace the kept states, durably; return the SHA-256 of their file.

        Raises:
            StorageError: The disk refused.
        """
        data = safetensors.save(dict(tensors))
        write_durably(self._best, data)
        self.keep()
        return hashlib.sha256(data).hexdigest()

    def read_best(self, expected: str) -> dict[str, Tensor]:
        """Return the kept states.

        Raises:
            IntegrityError: Their file is missing or does not hold what was written.
        """
        file, fix = f"{self.place}/{BEST}", f"restore it, or remove {self.place} and run again"
        try:
            data = self._read_best()
        except FileNotFoundError:
            raise IntegrityError(f"{file}: expected a file, found none; {fix}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise IntegrityError(f"{file}: expected sha256 {expected}, found {found}; {fix}")
        try:
            return safetensors.load(data)
        except SafetensorError as error:
            raise IntegrityError(f"{file}: expected safetensors, found {error}; {fix}") from None

    def history(self, *, through: int, tensorboard: bool = False) -> History:
        """Open the history for appending, cut back to what was known after `through` steps.

        Args:
            through: Step of the last line that stays.
            tensorboard: Write an event file too.

        Raises:
            StorageError: The disk refused.
        """
        return History(self._metrics, through=through, tensorboard=tensorboard)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock of the directory, which is made; yield the lock's descriptor."""
        with storage_errors(f"write {self.path}", where=self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lease = (self.path / LEASE).open("a+b")
        with lease:
            self._lock(lease.fileno())
            with storage_errors(f"write {self.path}", where=self.path):
                lease.truncate(0)
                lease.write(f"{os.getpid()}\n".encode())
                lease.flush()
                remove_temporaries(self.path)
            yield lease.fileno()

    def _describe(self, config: Config) -> None:
        """Write the config, unless it is there."""
        described = json.dumps(config.model_dump(mode="json"), indent=1, sort_keys=True).encode()
        if not (self.path / CONFIG).exists():
            write_durably(self.path / CONFIG, described)

    def _read_best(self) -> bytes:
        return self._best.read_bytes()

    @staticmethod
    def _encoded(report: Mapping[str, Any]) -> bytes:
        return json.dumps(report, indent=1, allow_nan=False).encode()

    def _lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LEASE_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                holder = (self.path / LEASE).read_text().strip() or "unknown"
                raise ConfigError(
                    f"run {self.place} is being executed by process {holder}; wait for it, or set runs to another directory"
                ) from None
            else:
                return


def read_report(data: bytes) -> dict[str, Any] | None:
    """Return the content of a report, or None where the bytes are none."""
    try:
        report = json.loads(data)
    except ValueError:
        return None
    return report if isinstance(report, dict) and report.get("schema") == 1 else None


class History:
    """metrics.jsonl: one JSON object per line, each with its `step`; on wish an event file that holds the same."""

    def __init__(self, path: Path, *, through: int, tensorboard: bool = False) -> None:
        self._path = path
        self._events: EventFile | None = None
        with storage_errors(f"write {path}", where=path.parent):
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            kept = [line for line in lines if _step_of(line) <= through]
            if kept != lines or not path.exists():
                write_durably(path, b"".join(kept))
            self._file = path.open("ab")
        if tensorboard:
            from attempt_ray.training.events import EventFile

            self._events = EventFile(path.parent, lines=map(json.loads, kept))

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is durable after `sync`.

        Raises:
            StorageError: The disk refused.
        """
        data = json.dumps(line).encode() + b"\n"
        with storage_errors(f"write {self._path}", where=self._path.parent, needed=len(data)):
            self._file.write(data)
            self._file.flush()
        if self._events is not None:
            self._events.add(line)

    def sync(self) -> None:
        """Make every line durable.

        Raises:
            StorageError: The disk refused.
        """
        with storage_errors(f"write {self._path}", where=self._path.parent):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close what is open."""
        # What a full disk refused is tried again here, and was told already.
        with suppress(OSError):
            self._file.close()
        if self._events is not None:
            self._events.close()


def _step_of(line: bytes) -> float:
    """Return the step of a line; infinity for one that a crash tore."""
    try:
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else float("inf")
    except (ValueError, KeyError, TypeError):
        return float("inf")
