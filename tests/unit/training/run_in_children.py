"""Execute the run config of every line of stdin in a child process of its own, telling its id, steps and end.

A forked child of a process that has imported everything starts in milliseconds, so many can be killed in a test.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from attempt_ray.config import parse
from attempt_ray.training.run import Event, execute


def tell(progress: object) -> None:
    text = progress.kind if isinstance(progress, Event) else "step"
    os.write(1, f"{text}\n".encode())


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.write(1, f"pid {os.getpid()}\n".encode())
            execute(parse([json.loads(line)]), on_progress=tell)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.write(1, f"end {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
