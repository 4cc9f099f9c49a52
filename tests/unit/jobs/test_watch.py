from __future__ import annotations

import io

from attempt_ray.orchestration.study import PoolEvent
from jobs.watch import Screen, clock, outcome, step_bar

REPORT = {
    "scores": {
        "rte": {
            "dev": {"n": 5, "metrics": {"accuracy": 1.0}},
            "test": {"n": 1000, "metrics": {"accuracy": 71.25}},
        }
    },
    "headline": {"rte": "accuracy"},
    "seconds": 61.2,
}


def test_a_run_that_ends_is_one_plain_line_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Screen(total=2, stream=stream) as screen:
        screen.event(PoolEvent(kind="started", key="a"))
        step = {"kind": "step", "step": 1, "steps": 9, "loss": 0.5}
        screen.event(PoolEvent(kind="progress", key="a", facts=step))
        note = {"kind": "evaluated", "message": "step 1: dev 50", "facts": {"mean": 50.0}}
        screen.event(PoolEvent(kind="progress", key="a", facts=note))
        screen.event(PoolEvent(kind="finished", key="a", facts=REPORT))
        screen.event(PoolEvent(kind="failed", key="b", facts={"error": "no rows; give some"}))
    assert stream.getvalue().splitlines() == [
        "[1/2] a: rte accuracy 71.2 (test, n=1,000) in 1:01",
        "[2/2] b: set aside: no rows; give some",
    ]


def test_an_outcome_of_many_tasks_is_their_mean() -> None:
    scores = {
        name: {"dev": {"n": 4, "metrics": {"f1": value}}}
        for name, value in zip("abcd", (1, 2, 3, 4), strict=True)
    }
    report = {"scores": scores, "headline": dict.fromkeys("abcd", "f1"), "seconds": 5}
    assert outcome(report) == "mean headline of 4 tasks 2.5 in 0:05"


def test_a_step_bar_takes_steps() -> None:
    with step_bar("x", total=3) as advance:
        advance(1, loss=2.0, tokens=5)


def test_durations_read_like_a_clock() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 3601)] == ["0:00", "1:00", "1:00:01"]
