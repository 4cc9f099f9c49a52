"""The training loop: a generator that takes one optimizer step and tells of it.

The caller decides what a step is worth: report it, evaluate, checkpoint, or stop iterating. Nothing here opens a file,
and no random number comes from a global generator, so a loop that starts at step s from the state that another had
after s steps goes on exactly like it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn
from torch.optim import AdamW

from attempt_ray.data.batching import Batch
from attempt_ray.errors import NonFiniteError
from attempt_ray.model.backbone import IGNORED
from attempt_ray.model.methods import Method
from attempt_ray.training.optimizer import LinearSchedule, step_without


class Stream(Protocol):
    """Where batches come from: a pure function of the step."""

    def batch(self, step: int) -> Batch:
        """Return the batch of optimizer step `step`, counted from 0."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one optimizer step did."""

    step: int
    """Optimizer steps taken so far."""
    steps: int
    """Optimizer steps of the run."""
    loss: float
    """Token-mean cross-entropy of the step's batch in nats, before the update."""
    grad_norm: float
    """Gradient norm over all trainables, before clipping."""
    learning_rates: Mapping[str, float]
    """Learning rate of each parameter group in this step."""
    tokens: int
    """Input and label tokens of the step's batch, padding not counted."""


def train(
    method: Method,
    stream: Stream,
    *,
    optimizer: AdamW,
    schedule: LinearSchedule,
    seed: int,
    max_grad_norm: float,
    absent_tasks: Literal["dense", "lazy"] = "dense",
    start_step: int = 0,
) -> Iterator[Progress]:
    """Take one optimizer step per iteration, from `start_step` to the end of the schedule.

    Between two iterations the caller may evaluate, save or change the mode of the method; dropout is seeded for every
    step anew, by (seed, step) alone.

    Args:
        method: What trains.
        stream: Batches by step.
        optimizer: As `build_optimizer` makes it.
        schedule: Learning rates by step; its `steps` ends the loop.
        seed: Seed of dropout.
        max_grad_norm: Gradients are scaled down to this norm over all trainables.
        absent_tasks: `dense` lets Adam move the prompts of tasks without a row in the batch (authors' code), `lazy`
            leaves them alone.
        start_step: Steps that were taken before.

    Raises:
        NonFiniteError: Loss or gradient norm is NaN or infinite; the step was not taken.
    """
    trainables = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = method.backbone.device
    method.train()  # the backbone under it may be in another mode
    for step in range(start_step, schedule.steps):
        batch = stream.batch(step).to(device)
        rates = schedule.apply(optimizer, step)
        if not method.training:
            method.train()
        with seeded(device, f"dropout/{seed}/{step}"):
            loss = method.loss(batch)
            loss_value = loss.item()
            if math.isfinite(loss_value):
                torch.autograd.backward(loss)
        grad_norm = nn.utils.clip_grad_norm_(trainables, max_grad_norm).item()
        if not (math.isfinite(loss_value) and math.isfinite(grad_norm)):
            optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"step {step + 1} of {schedule.steps} met loss {loss_value} and gradient norm {grad_norm}, wanted finite "
                "ones; the step was not taken; lower training.prompt_learning_rate, "
                "training.attention_learning_rate or training.max_grad_norm"
            )
        _update(optimizer, method, batch, absent_tasks=absent_tasks)
        optimizer.zero_grad(set_to_none=True)
        yield Progress(
            step=step + 1,
            steps=schedule.steps,
            loss=loss_value,
            grad_norm=grad_norm,
            learning_rates=rates,
            tokens=int(batch.mask_BT.sum() + (batch.labels_BL != IGNORED).sum()),
        )


@contextmanager
def seeded(device: torch.device, what: str) -> Iterator[None]:
    """Draw from generators seeded by the text `what` inside the block; the global ones are unmoved after it."""
    seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8]) >> 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would format a stack trace at every call, which costs as much as a small layer.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _update(
    optimizer: AdamW, method: Method, batch: Batch, *, absent_tasks: Literal["dense", "lazy"]
) -> None:
    if absent_tasks == "lazy" and method.prompts is not None and method.prompts.prompts_NPH.requires_grad:
        prompts_NPH = method.prompts.prompts_NPH
        absent_N = torch.ones(len(prompts_NPH), dtype=torch.bool, device=prompts_NPH.device)
        absent_N[batch.task_B] = False
        step_without(optimizer, prompts_NPH, absent_N=absent_N)
    else:
        optimizer.step()
