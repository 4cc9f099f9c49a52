"""Begin the study of stdin in a child for each argument, killed after so many seconds; tell where it then stands."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch

from attempt_ray.config import parse
from jobs.run_study import run_study
from jobs.study_state import standing, study_directory


def main() -> None:
    torch.set_num_threads(1)
    config = parse([json.load(sys.stdin)])
    directory = study_directory(config, config.study.name or "")
    for seconds in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            run_study(config, placement="here")
            os._exit(0)
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found = standing(directory).as_dict() if directory.exists() else None
        sys.stdout.write(json.dumps({"end": os.waitstatus_to_exitcode(status), "stands": found}) + "\n")
        sys.stdout.flush()  # or the next child would write it again


if __name__ == "__main__":
    main()
