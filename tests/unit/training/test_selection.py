from __future__ import annotations

import torch

from attempt_ray.training.evaluation import Evaluation
from attempt_ray.training.selection import SHARED, Selection


def scored(value: float, metric: str = "accuracy") -> Evaluation:
    return Evaluation(
        scores={metric: value, "other": 100 - value},
        headline=value,
        n=5,
        predictions=(),
        constant=False,
        attention=None,
    )


def state(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([value])}


def run(selection: Selection, history: list[tuple[float, float]]) -> Selection:
    for step, (first, second) in enumerate(history, start=1):
        selection.update(step, {"a": scored(first), "b": scored(second, "pearson")}, state(step))
    return selection


HISTORY = [(50.0, 10.0), (40.0, 60.0), (90.0, 5.0), (10.0, 61.0)]


def test_mean_of_the_tasks_own_headline_metrics_decides():
    # Means: 30, 50, 47.5, 35.5. The loss takes no part.
    selection = run(Selection(rule="mean", tasks=("a", "b")), HISTORY)
    assert selection.best_step == 2
    assert selection.kept[SHARED].score == 50.0
    assert selection.state_for("b") == state(2)
    assert selection.records["a"] == {"n": 5, "metrics": {"accuracy": 40.0, "other": 60.0}}


def test_per_task_keeps_each_tasks_own_best():
    selection = run(Selection(rule="per_task", tasks=("a", "b")), HISTORY)
    assert selection.state_for("a") == state(3)
    assert selection.state_for("b") == state(4)
    assert selection.records["b"]["metrics"]["pearson"] == 61.0


def test_last_keeps_the_last():
    selection = run(Selection(rule="last", tasks=("a", "b")), HISTORY)
    assert selection.state_for("a") == state(4)


def test_equal_scores_keep_the_earlier_state():
    selection = run(Selection(rule="mean", tasks=("a", "b")), [(50.0, 50.0), (50.0, 50.0)])
    assert selection.best_step == 1


def test_patience_counts_evaluations_without_a_better_mean():
    selection = Selection(rule="mean", tasks=("a", "b"), patience=2)
    assert not run(selection, HISTORY[:3]).stopped
    assert run(selection, HISTORY[3:]).stopped


def test_round_trip_keeps_states_scores_and_counters():
    selection = run(Selection(rule="per_task", tasks=("a", "b"), patience=2), HISTORY)
    other = Selection(rule="per_task", tasks=("a", "b"), patience=2)
    other.restore(selection.facts(), selection.tensors())
    assert other == selection


def test_a_state_kept_for_two_tasks_is_stored_once():
    selection = run(Selection(rule="per_task", tasks=("a", "b")), HISTORY[:1])
    assert list(selection.tensors()) == ["1/x"]
