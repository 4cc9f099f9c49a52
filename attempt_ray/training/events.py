"""The history of a run as a TensorBoard event file, line for line what metrics.jsonl holds."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from attempt_ray.bank.durable import storage_errors, write_durably

_NAME = "events.out.tfevents"
_NOT_SCALARS = ("step", "seconds")


class EventFile:
    """An event file in a run's directory; TensorBoard shows one run for each such directory.

    It is written anew with every start, from the lines that are left of the history: a resumed run has no step twice,
    and one that is asked for events later has them from its first step on. Writing is synchronous, so that a full disk
    is met here and not in a thread.

    Args:
        directory: Directory of the run.
        lines: Lines of the history so far, in order.

    Raises:
        StorageError: The disk refused.
    """

    def __init__(self, directory: Path, *, lines: Iterable[Mapping[str, Any]] = ()) -> None:
        now = time.time()
        self._path = directory / f"{_NAME}.{int(now):010d}.{socket.gethostname()}.{os.getpid()}"
        known = list(lines)
        seconds = [float(line.get("seconds", 0.0)) for line in known]
        began, elapsed = now - max(seconds, default=0.0), 0.0
        # The session's start makes a TensorBoard that has read an earlier file forget its steps.
        records = [
            Event(wall_time=began, file_version="brain.Event:2"),
            Event(wall_time=began, step=0, session_log=SessionLog(status=SessionLog.START)),
        ]
        for line, own in zip(known, seconds, strict=True):
            elapsed = max(elapsed, own)  # a line of dev scores tells no time
            records.append(_event(line, wall_time=began + elapsed))
        with storage_errors(f"write {self._path}", where=directory):
            write_durably(self._path, b"".join(map(_framed, records)))
            for earlier in directory.glob(f"{_NAME}.*"):
                if earlier != self._path:
                    earlier.unlink(missing_ok=True)
            self._file = self._path.open("ab")

    def add(self, line: Mapping[str, Any]) -> None:
        """Append the numbers of a line.

        Raises:
            StorageError: The disk refused.
        """
        with storage_errors(f"write {self._path}", where=self._path.parent):
            self._file.write(_framed(_event(line, wall_time=time.time())))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _event(line: Mapping[str, Any], *, wall_time: float) -> Any:
    values = [
        Summary.Value(tag=name, simple_value=float(value))
        for name, value in line.items()
        if name not in _NOT_SCALARS and isinstance(value, int | float)
    ]
    return Event(wall_time=wall_time, step=line["step"], summary=Summary(value=values))


def _framed(event: Any) -> bytes:
    """Return a record as TFRecord frames it: length, its checksum, the bytes, theirs."""
    data: bytes = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
