"""Which state of a run is kept, and when to stop: decided on dev scores, each task by its own headline metric.

Asai et al. (2022) leave open whether the tasks of a group share one checkpoint. Here they do by
default, chosen by the mean of their scores; the authors' code looks at the first task alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from torch import Tensor

from attempt_ray.training.evaluation import Evaluation

SHARED = "shared"
"""Name of the one state that all tasks share, under `mean` and `last`."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """A state that was chosen, and why."""

    step: int
    """Optimizer steps it had taken."""
    score: float | None
    """Dev score it was chosen by: a mean over tasks, or one task's; None where it is the only one."""
    state: State
    """All tensors that train."""


@dataclass
class Selection:
    """The best state so far and the evaluations since."""

    rule: Literal["mean", "per_task", "last"]
    """`mean` of the tasks' headline metrics, each task's own (`per_task`), or simply the `last` state."""
    tasks: tuple[str, ...]
    """Tasks of the run."""
    patience: int | None = None
    """Evaluations without a better score before training stops; None never stops."""
    kept: dict[str, Kept] = field(default_factory=dict)
    """Chosen states, by task under `per_task`, else the one that is `SHARED`."""
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Dev count and metrics of each task in the state that is kept for it."""
    best_mean: float | None = None
    """Best mean dev score so far, by which patience counts."""
    stale: int = 0
    """Evaluations since then."""
    means: list[tuple[int, float]] = field(default_factory=list)
    """Step and mean dev score of every evaluation."""

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.stale >= self.patience

    @property
    def best_step(self) -> int:
        """Optimizer steps of the state that is kept; of the latest one where tasks differ."""
        return max((kept.step for kept in self.kept.values()), default=0)

    def update(self, step: int, evaluations: Mapping[str, Evaluation], state: State) -> bool:
        """Take the evaluations after `step` steps into account; return whether the mean is a new best.

        Equal scores keep the earlier state.

        Args:
            step: Optimizer steps taken.
            evaluations: Dev evaluation of every task.
            state: All tensors that train, as they are now; kept by reference.
        """
        mean = fmean(evaluations[task].headline for task in self.tasks)
        self.means.append((step, mean))
        improved = self.best_mean is None or mean > self.best_mean
        if improved:
            self.best_mean = mean
        self.stale = 0 if improved else self.stale + 1
        if self.rule == "per_task":
            for task in self.tasks:
                kept, score = self.kept.get(task), evaluations[task].headline
                if kept is None or kept.score is None or score > kept.score:
                    self.kept[task] = Kept(step, score, state)
                    self.records[task] = evaluations[task].record()
        elif improved or self.rule == "last":
            self.kept[SHARED] = Kept(step, mean, state)
            self.records = {task: evaluations[task].record() for task in self.tasks}
        return improved

    def state_for(self, task: str) -> State:
        """Return the state that is kept for a task."""
        return self.kept[task if self.rule == "per_task" else SHARED].state

    def facts(self) -> dict[str, Any]:
        """Return everything but the tensors, ready for JSON."""
        return {
            "kept": {name: [kept.step, kept.score] for name, kept in self.kept.items()},
            "records": self.records,
            "best_mean": self.best_mean,
            "stale": self.stale,
            "means": [list(scored) for scored in self.means],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the kept states, each state once, named `<step>/<tensor>`."""
        return {
            f"{kept.step}/{key}": tensor for kept in self.kept.values() for key, tensor in kept.state.items()
        }

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what `facts` and `tensors` of another selection returned."""
        states: dict[int, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            step, _, key = path.partition("/")
            states.setdefault(int(step), {})[key] = tensor
        self.kept = {name: Kept(step, score, states[step]) for name, (step, score) in facts["kept"].items()}
        self.records = dict(facts["records"])
        self.best_mean = facts["best_mean"]
        self.stale = facts["stale"]
        self.means = [(step, mean) for step, mean in facts.get("means", ())]
