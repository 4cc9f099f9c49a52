"""Execute the run of every line of stdin in a child process that may kill itself before its n-th change of the store.

A line is `{"config": {...}, "die_before": n or null}`; the answer is `end <exit code> <changes of the store>`. Renewals
of leases do not count. Leases are stale after a moment, so that a test need not wait for long.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from attempt_ray.bank.remote import RemoteStorage
from attempt_ray.config import parse
from attempt_ray.training import lease
from attempt_ray.training.run import execute

lease.STALE_SECONDS, lease.RENEW_SECONDS, lease.LOOK_SECONDS = 1.5, 0.3, 0.2


def count_changes(die_before: int | None) -> list[str]:
    """Note each change of a store, or die."""
    changes: list[str] = []

    def counted(name: str) -> None:
        change = getattr(RemoteStorage, name)

        def method(self: RemoteStorage, path: str, *content: bytes) -> None:
            if "/.lease/" not in path:
                if len(changes) == die_before:
                    os.kill(os.getpid(), signal.SIGKILL)
                changes.append(path)
            change(self, path, *content)

        setattr(RemoteStorage, name, method)

    for name in ("_write", "_remove", "remove"):
        counted(name)
    return changes


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            changes = count_changes(order["die_before"])
            execute(parse([order["config"]]))
            os.write(writing, str(len(changes)).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            count = pipe.read() or "0"
        _, status = os.waitpid(child, 0)
        os.write(1, f"end {os.waitstatus_to_exitcode(status)} {count}\n".encode())


if __name__ == "__main__":
    main()
