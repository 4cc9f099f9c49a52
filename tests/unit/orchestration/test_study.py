from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import ConfigError, DataError
from attempt_ray.orchestration.pool import run_jobs, run_pool
from attempt_ray.orchestration.study import Job, PoolEvent, PoolResult, Study


@dataclass(frozen=True)
class Step:
    step: int


@dataclass(frozen=True)
class Done:
    directory: str
    report: dict[str, Any]


def work(config: Config, *, on_progress: Callable[[Any], None] | None = None) -> Done:
    """Fail as the task's name says."""
    if on_progress is not None:
        on_progress(Step(step=1))
    match config.tasks[0]:
        case "bad-data":
            raise DataError("no rows; give some")
        case "bug":
            raise RuntimeError("a bug")
    return Done(directory=f"runs/{config.seed}", report={"seed": config.seed})


def config(name: str, seed: int = 1) -> Config:
    return Config(tasks=(name,), seed=seed)


def execute(*jobs: Job, attempts: int = 2) -> tuple[dict[str, PoolResult], list[PoolEvent]]:
    events: list[PoolEvent] = []
    cluster = ClusterConfig(attempts=attempts)
    results = run_jobs(jobs, cluster=cluster, on_event=events.append, work=work, in_process=True)
    assert [result.key for result in results] == [job.key for job in jobs]
    return {result.key: result for result in results}, events


def test_results_come_in_the_order_of_the_jobs_whatever_they_need() -> None:
    results, events = execute(
        Job(key="late", config=config("x", seed=2), needs=("early",)), Job(key="early", config=config("x"))
    )
    assert results["late"].report == {"seed": 2} and results["late"].directory == "runs/2"
    assert [event.key for event in events if event.kind == "started"] == ["early", "late"]
    assert "progress" in {event.kind for event in events}


def test_a_config_may_be_computed_from_what_others_found() -> None:
    def follow(found: Any) -> Config:
        return config("x", seed=found["first"].report["seed"] + 10)

    results, _ = execute(
        Job(key="first", config=config("x", seed=5)), Job(key="second", config=follow, needs=("first",))
    )
    assert results["second"].report == {"seed": 15}


def test_what_needs_a_failed_run_is_skipped_and_the_rest_goes_on() -> None:
    results, events = execute(
        Job(key="broken", config=config("bug")),
        Job(key="child", config=config("x"), needs=("broken",)),
        Job(key="grandchild", config=config("x"), needs=("child",)),
        Job(key="other", config=config("x")),
    )
    assert {key: result.status for key, result in results.items()} == {
        "broken": "failed",
        "child": "skipped",
        "grandchild": "skipped",
        "other": "finished",
    }
    assert results["broken"].attempts == 2
    assert results["broken"].error == "RuntimeError: a bug" and "Traceback" in results["broken"].traceback
    assert results["child"].error == "it needs 'broken', which failed"
    assert [event.kind for event in events if event.key == "broken"].count("retried") == 1


def test_an_error_of_the_users_is_not_tried_again() -> None:
    results, _ = execute(Job(key="a", config=config("bad-data")), attempts=5)
    assert results["a"].attempts == 1 and results["a"].user_error
    assert (results["a"].error_type, results["a"].error) == ("DataError", "no rows; give some")


def test_a_config_that_cannot_be_computed_fails_its_job_alone() -> None:
    def refuse(found: Any) -> Config:
        raise ConfigError("no such source; choose another")

    results, _ = execute(Job(key="a", config=refuse), Job(key="b", config=config("x")))
    assert results["a"].error == "no such source; choose another" and results["b"].status == "finished"


def test_run_pool_of_nothing_is_nothing() -> None:
    assert run_pool([], cluster=ClusterConfig()) == []


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([Job(key="a", config=config("x")), Job(key="a", config=config("x"))], "two jobs have the same key"),
        ([Job(key="a", config=config("x"), needs=("b",))], "needs 'b', which is none of the jobs"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(jobs: list[Job], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Study(jobs, print)
