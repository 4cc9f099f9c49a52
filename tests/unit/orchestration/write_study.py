"""Write trials to studies in child processes, telling each trial once its storage has acknowledged it.

A forked child of a process that has imported everything starts in milliseconds, so many can be killed in a test. Lines of
stdin: `start PLACE TRIALS` forks a writer, `wait` waits until one of them has ended.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import optuna
import psycopg  # noqa: F401 - the children find it imported

from attempt_ray.orchestration.study_storage import open_study_storage


def write(place: str, trials: int) -> None:
    sampler = optuna.samplers.RandomSampler(seed=os.getpid())
    storage = open_study_storage(place)
    study = optuna.create_study(study_name="search", storage=storage, load_if_exists=True, sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        value = trial.suggest_float("x", 0, 1)
        trial.report(value / 2, step=1)
        trial.set_user_attr("pid", os.getpid())
        study.tell(trial, value)
        os.write(1, f"told {os.getpid()} {trial.number} {value!r}\n".encode())


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:  # which imports the rest
        open_study_storage(str(Path(directory, "study.db")))
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "wait":
            _, status = os.wait()
            os.write(1, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
        elif os.fork() == 0:
            os.write(1, f"started {os.getpid()}\n".encode())
            write(arguments[0], int(arguments[1]))
            os._exit(0)


if __name__ == "__main__":
    main()
