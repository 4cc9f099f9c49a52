"""The optimizer, its schedule and its budget.

Source: Asai et al. (2022), section 3.3 (two learning rates) and appendix (Adam, linear decay, 500 warm-up steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from attempt_ray.config import Config, TrainingConfig
from attempt_ray.model.methods import Method
from attempt_ray.tasks.spec import Task

BETAS = (0.9, 0.999)
"""Adam's decay rates of both moments (authors' code: the defaults of Hugging Face's AdamW)."""
EPS = 1e-8
"""Added to Adam's denominator (authors' code)."""

SMALL_ROWS = 10_000
"""Training rows below which the paper trains for 20 epochs (appendix)."""
EVALUATIONS = 10
"""Dev evaluations of a run that names no interval."""


@dataclass(frozen=True)
class StepPlan:
    """The budget of a run, in optimizer steps."""

    steps: int
    """Optimizer steps of the run."""
    warmup_steps: int
    """Steps of linear warm-up; more than `steps` only with `warmup_fraction` 1."""
    steps_per_epoch: int
    """Batches that visit every training row once."""
    eval_steps: int
    """Steps between dev evaluations."""

    def describe(self) -> str:
        """Return the plan in words."""
        return (
            f"{self.steps:,} steps ({self.steps / self.steps_per_epoch:.3g} epochs of {self.steps_per_epoch:,}), "
            f"warm-up {self.warmup_steps:,}, dev every {self.eval_steps:,}"
        )


@dataclass(frozen=True)
class LinearSchedule:
    """Linear warm-up to the peak, then linear decay to 0: a pure function of the step."""

    steps: int
    """Optimizer steps of the run."""
    warmup_steps: int
    """Steps until the peak."""

    def factor(self, step: int) -> float:
        """Return the share of the peak learning rate at optimizer step `step`, counted from 0.

        Warm-up ends with the full rate at step `warmup_steps - 1`, so that no step is spent at rate 0.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return max(0.0, (self.steps - step) / max(1, self.steps - self.warmup_steps))

    def apply(self, optimizer: AdamW, step: int) -> dict[str, float]:
        """Set every group's learning rate for optimizer step `step`; return the rates by group name."""
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return {str(group["name"]): float(group["lr"]) for group in optimizer.param_groups}


def build_optimizer(method: Method, training: TrainingConfig) -> AdamW:
    """Return AdamW over the method's groups; `name` and `peak_lr` stand beside each group's tensors."""
    groups: list[dict[str, Any]] = [
        {**group, "peak_lr": group["lr"]} for group in method.parameter_groups(training)
    ]
    return AdamW(groups, betas=BETAS, eps=EPS)


def plan_steps(training: TrainingConfig, *, steps_per_epoch: int, default_epochs: float) -> StepPlan:
    """Return the budget in steps: `steps` as it is, or `epochs` converted and rounded up.

    `warmup_fraction` 1 keeps the warm-up as it is, longer than the run or not: with the paper's 500 steps the small
    tasks never reach the peak learning rate.

    Args:
        training: Steps or epochs, warm-up and evaluation interval.
        steps_per_epoch: Batches that visit every training row once.
        default_epochs: Budget where the config names none; see `paper_epochs`.
    """
    epochs = default_epochs if training.epochs is None else training.epochs
    steps = training.steps or max(1, math.ceil(epochs * steps_per_epoch))
    longest = (
        training.warmup_steps if training.warmup_fraction == 1 else int(training.warmup_fraction * steps)
    )
    return StepPlan(
        steps=steps,
        warmup_steps=min(training.warmup_steps, longest),
        steps_per_epoch=steps_per_epoch,
        eval_steps=min(steps, training.eval_steps or -(-steps // EVALUATIONS)),
    )


def paper_epochs(config: Config, *, tasks: Sequence[Task], train_rows: Sequence[int]) -> float:
    """Return the paper's epochs: 5 for sources and MRQA, else 20 below 10,000 training rows and 10 from there on.

    A group of tasks follows its largest (appendix: 20 for SuperGLUE, 10 for Others).
    """
    if config.job != "target" or any(task.group == "MRQA" for task in tasks):
        return 5
    return 20 if max(train_rows) < SMALL_ROWS else 10


@torch.no_grad()
def step_without(optimizer: AdamW, per_task: Sequence[Tensor], *, absent_N: Tensor) -> None:
    """Take an optimizer step that leaves what belongs to absent tasks, and its Adam moments, as they are.

    Dense Adam, as in the authors' code, goes on moving it by momentum and weight decay. The step count behind
    Adam's bias correction is shared by all tasks.

    Args:
        optimizer: The optimizer; gradients are in place.
        per_task: What trains for each task apart, its first axis being the task.
        absent_N: True for tasks without a row in the batch.
    """
    held = []
    for tensor in per_task:
        state = optimizer.state.get(tensor, {})
        held += [tensor, *(state[name] for name in ("exp_avg", "exp_avg_sq") if name in state)]
    kept = [tensor[absent_N].clone() for tensor in held]
    optimizer.step()
    for tensor, rows in zip(held, kept, strict=True):
        tensor[absent_N] = rows
