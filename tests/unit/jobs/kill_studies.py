"""Begin the study of stdin in a child for each argument, killed after so many events; tell where it then stands."""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from attempt_ray.config import Config, parse
from attempt_ray.orchestration.study import PoolEvent
from jobs import run_study as module
from jobs.study_state import standing, study_directory


def begin(config: Config, events: int) -> None:
    left = iter(range(events - 1, -1, -1))
    plain = module._Board.event

    def event(board: module._Board, event: PoolEvent) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(board, event)

    module._Board.event = event  # type: ignore[method-assign]
    module.run_study(config, placement="here")


def main() -> None:
    torch.set_num_threads(1)
    config = parse([json.load(sys.stdin)])
    for events in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            begin(config, int(events))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = standing(study_directory(config, config.study.name or "")).as_dict()
        sys.stdout.write(json.dumps({"end": os.waitstatus_to_exitcode(status), **found}) + "\n")
        sys.stdout.flush()  # or the next child would write it again


if __name__ == "__main__":
    main()
