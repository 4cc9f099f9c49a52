from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import ClusterError, DataError
from attempt_ray.orchestration.pool import Job, PoolEvent, PoolResult, run_jobs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
TWO = ClusterConfig(workers=2, cpus_per_worker=0.5, attempts=2)


def toy(directory: Path) -> Any:
    """Return a work whose outcome is the task's name; closures travel to the workers by value."""

    @dataclass(frozen=True)
    class Step:
        step: int

    @dataclass(frozen=True)
    class Done:
        directory: str
        report: dict[str, Any]

    def work(config: Config, *, on_progress: Callable[[Any], None] | None = None) -> Done:
        if on_progress is not None:
            on_progress(Step(step=7))
        first = directory / f"{config.seed}"
        tried = first.exists()
        first.touch()
        match config.tasks[0]:
            case "dies":
                time.sleep(0.5)  # the neighbour is in the middle of its run
                os._exit(1)
            case "fails-once":
                if not tried:
                    raise RuntimeError("once")
            case "data":
                raise DataError("no rows; give some")
            case "slow":
                time.sleep(1.5)
        import torch

        return Done(
            directory=str(Path.cwd()),
            report={"seed": config.seed, "pid": os.getpid(), "threads": torch.get_num_threads()},
        )

    return work


def job(key: str, task: str, *, seed: int, needs: tuple[str, ...] = ()) -> Job:
    return Job(key=key, config=Config(tasks=(task,), seed=seed), needs=needs)


def test_a_study_runs_on_two_workers_of_one_trainer(cluster: Path, tmp_path: Path) -> None:
    events: list[PoolEvent] = []

    def follow(results: Any) -> Config:
        return Config(tasks=("x",), seed=100 + results["a"].report["seed"])

    jobs = [
        job("a", "slow", seed=1),
        job("b", "slow", seed=2),
        job("flaky", "fails-once", seed=3),
        job("bad", "data", seed=4),
        job("orphan", "x", seed=5, needs=("bad",)),
        Job(key="late", config=follow, needs=("a",)),
    ]
    results = {
        result.key: result
        for result in run_jobs(jobs, cluster=TWO, on_event=events.append, work=toy(tmp_path))
    }
    assert list(results) == [each.key for each in jobs]
    assert {key: result.status for key, result in results.items()} == {
        "a": "finished",
        "b": "finished",
        "flaky": "finished",
        "bad": "failed",
        "orphan": "skipped",
        "late": "finished",
    }
    assert results["a"].report["pid"] != results["b"].report["pid"]
    assert results["a"].report["threads"] == 1
    assert results["a"].directory == str(Path.cwd())
    assert results["late"].report["seed"] == 101
    assert results["flaky"].attempts == 2
    assert results["bad"].user_error and results["bad"].error == "no rows; give some"
    assert {"started", "progress", "retried", "finished", "failed", "skipped"} == {
        event.kind for event in events
    }


def test_a_run_that_kills_its_worker_is_set_aside_alone(cluster: Path, tmp_path: Path) -> None:
    jobs = [job("poison", "dies", seed=1), *(job(f"{seed}", "slow", seed=seed) for seed in range(2, 5))]
    results: list[PoolResult] = run_jobs(jobs, cluster=TWO, work=toy(tmp_path))
    assert [result.status for result in results] == ["failed", "finished", "finished", "finished"]
    assert results[0].error.startswith("its worker died: ") and results[0].attempts == 2


def test_what_a_joined_cluster_can_never_give_is_refused_at_once(cluster: Path) -> None:
    with pytest.raises(
        ClusterError,
        match=r"2 workers of 0.1 CPU, 1 GPU each do not fit: there is room for 0; the largest node has 0 GPU",
    ):
        run_jobs(
            [job("a", "x", seed=1)], cluster=ClusterConfig(workers=2, gpus_per_worker=1, cpus_per_worker=0.1)
        )
