from __future__ import annotations

from typing import Any

import pytest

from attempt_ray.errors import DataError
from attempt_ray.orchestration.trial import Reached, Scores


def plan(steps: int) -> dict[str, Any]:
    return {"kind": "plan", "facts": {"steps": steps}}


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number, "steps": 4, "loss": 1.0}


def evaluated(step: int, mean: float) -> dict[str, Any]:
    return {"kind": "evaluated", "facts": {"step": step, "mean": mean}}


def told_again(kind: str, *means: tuple[int, float]) -> dict[str, Any]:
    return {"kind": kind, "facts": {"means": [list(pair) for pair in means]}}


def report(task: str = "rte", *, seed: int = 1, dev: float | None = 50.0, steps: int = 4) -> dict[str, Any]:
    scores = {} if dev is None else {"dev": {"n": 8, "metrics": {"accuracy": dev, "f1": 0.0}}}
    return {
        "seed": seed,
        "tasks": [task],
        "headline": {task: "accuracy"},
        "scores": {task: scores},
        "steps": steps,
        "tokens": 100,
        "seconds": 1.5,
    }


def test_a_point_appears_when_all_runs_reached_an_evaluation() -> None:
    scores = Scores(["a", "b"])
    assert scores.heard("a", evaluated(2, 40.0)) == []
    assert scores.heard("a", evaluated(4, 60.0)) == []
    assert scores.heard("b", evaluated(2, 20.0)) == [Reached(step=2, value=30.0, last=False)]
    assert scores.heard("b", evaluated(4, 30.0)) == [Reached(step=4, value=45.0, last=False)]


def test_a_points_value_is_the_best_so_far_of_each_run() -> None:
    scores = Scores(["a", "b"])
    scores.heard("a", evaluated(2, 40.0))
    scores.heard("a", evaluated(4, 10.0))
    scores.heard("b", evaluated(2, 20.0))
    assert scores.heard("b", evaluated(4, 30.0)) == [Reached(step=4, value=35.0, last=False)]


def test_runs_that_evaluate_after_other_steps_are_compared_by_place() -> None:
    scores = Scores(["a", "b"])
    scores.heard("a", evaluated(3, 40.0))
    assert scores.heard("b", evaluated(6, 20.0)) == [Reached(step=4, value=30.0, last=False)]


def test_a_point_is_the_last_where_no_run_has_steps_left() -> None:
    scores = Scores(["a", "b"])
    scores.heard("a", plan(2))
    scores.heard("b", plan(4))
    assert scores.heard("a", evaluated(2, 40.0)) == []
    assert scores.heard("b", evaluated(2, 20.0)) == [Reached(step=2, value=30.0, last=False)]
    scores.ended("a", report(steps=2))
    assert scores.heard("b", evaluated(4, 50.0)) == [Reached(step=3, value=45.0, last=True)]


def test_a_run_that_stopped_early_stays_at_its_best_while_others_go_on() -> None:
    scores = Scores(["a", "b"])
    scores.heard("b", plan(6))
    scores.heard("a", evaluated(2, 40.0))
    scores.heard("b", evaluated(2, 20.0))
    scores.heard("b", evaluated(4, 30.0))
    assert scores.heard("a", {"kind": "stopped", "facts": {"step": 2}}) == []
    assert scores.ended("a", report(steps=2)) == [Reached(step=3, value=35.0, last=False)]
    assert scores.heard("b", evaluated(6, 60.0)) == [Reached(step=4, value=50.0, last=True)]


def test_what_a_resumed_run_tells_again_is_counted_once() -> None:
    scores = Scores(["a"])
    assert [point.step for point in scores.heard("a", told_again("resumed", (2, 40.0), (4, 30.0)))] == [2, 4]
    assert scores.heard("a", evaluated(4, 30.0)) == []
    assert scores.heard("a", told_again("resumed", (2, 40.0), (4, 30.0))) == []
    assert scores.heard("a", evaluated(6, 50.0)) == [Reached(step=6, value=50.0, last=False)]


def test_runs_that_had_finished_before_have_no_steps_left() -> None:
    """Else a trial that is tried again when its runs had ended would be given up where it once was not."""
    scores = Scores(["a", "b"])
    assert scores.heard("a", told_again("finished", (2, 40.0), (4, 60.0))) == []
    points = scores.heard("b", told_again("finished", (2, 20.0), (4, 30.0)))
    assert points == [Reached(step=2, value=30.0, last=True), Reached(step=4, value=45.0, last=True)]
    assert scores.ended("a", report(seed=1)) == scores.ended("b", report(seed=2)) == []


def test_steps_are_what_the_runs_last_said() -> None:
    scores = Scores(["a", "b"])
    for key, number in (("a", 1), ("a", 3), ("a", 2), ("b", 1)):
        scores.heard(key, step(number))
    assert scores.steps == 4
    scores.ended("a", report(steps=4))
    assert scores.steps == 5


def test_the_outcome_has_every_score_and_the_spread_over_seeds_of_the_mean_over_tasks() -> None:
    runs = [("rte", 1, 40.0), ("mrpc", 1, 60.0), ("rte", 2, 60.0), ("mrpc", 2, 80.0)]
    scores = Scores([f"{task}/s{seed}" for task, seed, _ in runs])
    for task, seed, dev in runs:
        assert not scores.done
        scores.ended(f"{task}/s{seed}", report(task, seed=seed, dev=dev))
    assert scores.done
    outcome = scores.outcome()
    assert outcome.scores == {"rte/s1": 40.0, "mrpc/s1": 60.0, "rte/s2": 60.0, "mrpc/s2": 80.0}
    assert outcome.value == 60.0
    assert outcome.spread == pytest.approx(200**0.5)  # of 50 and 70
    assert (outcome.steps, outcome.tokens, outcome.seconds) == (16, 400, 6.0)


def test_one_seed_has_no_spread() -> None:
    scores = Scores(["a"])
    scores.ended("a", report())
    assert scores.outcome().spread is None


def test_a_trial_without_dev_scores_is_refused() -> None:
    scores = Scores(["a"])
    scores.ended("a", report(dev=None))
    with pytest.raises(DataError, match="reported no dev score; give their tasks dev rows"):
        scores.outcome()


def test_a_trial_that_was_given_up_has_the_outcome_of_the_runs_that_ended() -> None:
    scores = Scores(["a", "b"])
    assert scores.outcome().scores == {}
    scores.heard("b", step(3))
    scores.ended("a", report(dev=40.0, steps=4))
    outcome = scores.outcome()
    assert outcome.scores == {"rte/s1": 40.0}
    assert (outcome.steps, outcome.tokens) == (7, 100)
