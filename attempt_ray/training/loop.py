"""The training loop: a generator that takes one optimizer step and tells of it.

The caller decides what a step is worth: report it, evaluate, checkpoint, or stop iterating. Nothing here opens a file,
and no random number comes from a global generator, so a loop that starts at step s from the state that another had
after s steps goes on exactly like it.

Several trainings on one frozen backbone take their steps in one forward pass. Each keeps its own prompts, G, optimizer,
schedule, clipping and data order, and none sees the others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn
from torch.optim import AdamW

from attempt_ray.data.batching import Batch
from attempt_ray.errors import ConfigError, NonFiniteError
from attempt_ray.model.backbone import IGNORED, MOST_TOKENS_CPU, MOST_TOKENS_GPU
from attempt_ray.model.methods import Method, losses
from attempt_ray.model.precision import FEW_ROWS
from attempt_ray.training.optimizer import LinearSchedule, step_without
from attempt_ray.training.parallel import ALONE, Team


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


@dataclass(eq=False, kw_only=True)
class Training:
    """One training and the step that it has reached."""

    method: Method
    """What trains."""
    stream: Stream
    """Batches by step."""
    optimizer: AdamW
    """As `build_optimizer` makes it."""
    schedule: LinearSchedule
    """Learning rates by step; its `steps` ends the training."""
    seed: int
    """Seed of dropout, which is seeded for every step anew, by (seed, step) alone."""
    max_grad_norm: float
    """Gradients are scaled down to this norm over all trainables."""
    absent_tasks: Literal["dense", "lazy"] = "dense"
    """`dense` lets Adam move what is a task's own without a row of it in the batch (authors' code), `lazy` leaves it."""
    step: int = 0
    """Optimizer steps taken so far."""
    team: Team = ALONE
    """Processes that share every batch."""

    @property
    def done(self) -> bool:
        """Whether the schedule has ended."""
        return self.step >= self.schedule.steps

    def dropout_seed(self) -> int:
        """Return the seed of the next step's dropout in this process."""
        process = f"/{self.team.rank}" if self.team.rank else ""
        return int.from_bytes(
            hashlib.sha256(f"dropout/{self.seed}/{self.step}{process}".encode()).digest()[:7]
        )

    def update(self, batch: Batch, loss: float, rates: Mapping[str, float]) -> Progress:
        """Take the step that the gradients of all processes ask for.

        Args:
            batch: The batch of all processes.
            loss: This process's part of its loss.
            rates: Learning rates, to be told.

        Raises:
            NonFiniteError: Loss or gradient norm is NaN or infinite; the step was not taken.
        """
        trainables = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        loss = self.team.add_gradients(trainables, loss)
        grad_norm = nn.utils.clip_grad_norm_(trainables, self.max_grad_norm).item()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(
                f"step {self.step + 1} of {self.schedule.steps} met loss {loss} and gradient norm {grad_norm}, wanted "
                "finite ones; the step was not taken; lower training.prompt_learning_rate, "
                "training.attention_learning_rate or training.max_grad_norm"
            )
        _update(self.optimizer, self.method, batch, absent_tasks=self.absent_tasks)
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return Progress(
            step=self.step,
            steps=self.schedule.steps,
            loss=loss,
            grad_norm=grad_norm,
            learning_rates=rates,
            tokens=int(batch.mask_BT.sum()) + _label_tokens(batch),
        )


def train(training: Training) -> Iterator[Progress]:
    """Take one optimizer step per iteration, to the end of the schedule.

    Between two iterations the caller may evaluate, save or change the mode of the method.

    Raises:
        NonFiniteError: Loss or gradient norm is NaN or infinite; the step was not taken.
    """
    while not training.done:
        (outcome,) = take_step([training])
        if isinstance(outcome, Exception):
            raise outcome
        yield outcome


def take_step(trainings: Sequence[Training], *, most_tokens: int | None = None) -> list[Progress | Exception]:
    """Take one optimizer step of every training, in as few forward and backward passes as memory and caches like.

    Args:
        trainings: Trainings on one backbone.
        most_tokens: Most tokens of one pass, prompts and padding counted; one training alone may exceed it. None is
            what suits the device: on a processor, trainings share a pass only where none comes to other bits by it.

    Returns:
        What each step did, or why it was not taken; one that fails does not disturb the others: where a shared pass
        fails, each of its trainings has one of its own.

    Raises:
        ConfigError: The trainings have different backbones; nothing was done.
    """
    backbone = trainings[0].method.backbone
    if any(training.method.backbone is not backbone for training in trainings):
        raise ConfigError("trainings that share a step got several backbones; load one and build all on it")
    exact = most_tokens is None and backbone.device.type == "cpu"
    apart = exact and len(trainings) > 1 and not backbone.rows_stand_alone
    if most_tokens is None:
        most_tokens = MOST_TOKENS_CPU if exact else MOST_TOKENS_GPU
    outcomes: dict[int, Progress | Exception] = {}
    waiting: list[tuple[int, Training, Batch]] = []
    tokens = 0
    for place, training in enumerate(trainings):
        try:
            batch = training.stream.batch(training.step).to(backbone.device)
        except Exception as error:  # noqa: BLE001 - whatever a stream raises is its training's alone
            outcomes[place] = error
            continue
        more = _tokens(training, batch)
        if apart or (exact and batch.labels_BL.numel() < FEW_ROWS):
            outcomes |= _steps([(place, training, batch)])
            continue
        if waiting and tokens + more > most_tokens:
            outcomes |= _steps(waiting)
            waiting, tokens = [], 0
        waiting.append((place, training, batch))
        tokens += more
    if waiting:
        outcomes |= _steps(waiting)
    return [outcomes[place] for place in range(len(trainings))]


def _tokens(training: Training, batch: Batch) -> int:
    rows, width = batch.input_ids_BT.shape
    return rows * (width + training.method.prompt_length)


def _steps(together: Sequence[tuple[int, Training, Batch]]) -> dict[int, Progress | Exception]:
    """Return what came of the steps of trainings that share a pass, by their places."""
    try:
        losses_and_rates = _gradients(
            [training for _, training, _ in together], [batch for *_, batch in together]
        )
    except Exception as error:  # noqa: BLE001 - such as memory that is short: the smaller the pass, the likelier it fits
        for _, training, _ in together:
            training.optimizer.zero_grad(set_to_none=True)
        if len(together) == 1:
            return {together[0][0]: error}
    else:
        return {
            place: _updated(training, batch, loss, rates)
            for (place, training, batch), (loss, rates) in zip(together, losses_and_rates, strict=True)
        }
    return {place: outcome for one in together for place, outcome in _steps([one]).items()}


def _gradients(
    trainings: Sequence[Training], batches: Sequence[Batch]
) -> list[tuple[float, Mapping[str, float]]]:
    """Give every training the gradients of its batch, in one pass; return its loss and learning rates."""
    backbone = trainings[0].method.backbone
    segments, rates, shares = [], [], []
    for training, batch in zip(trainings, batches, strict=True):
        if not (training.method.training and backbone.training):
            training.method.train()  # the backbone under it may be in another mode
        rates.append(training.schedule.apply(training.optimizer, training.step))
        part = training.team.part(batch)
        shares.append(1.0 if part is batch else _label_tokens(part) / max(1, _label_tokens(batch)))
        if len(part):
            segments.append(training.method.segment(part, seed=training.dropout_seed()))
    if not segments:
        return [(0.0, rate) for rate in rates]
    found = iter(losses(backbone, segments))
    parts = [next(found) * share if share else torch.zeros((), device=backbone.device) for share in shares]
    values = torch.stack([loss.detach() for loss in parts]).tolist()
    finite = [
        loss for loss, value in zip(parts, values, strict=True) if loss.requires_grad and math.isfinite(value)
    ]
    if finite:
        torch.autograd.backward(finite)
    return list(zip(values, rates, strict=True))


def _label_tokens(batch: Batch) -> int:
    return int((batch.labels_BL != IGNORED).sum())


def _updated(
    training: Training, batch: Batch, loss: float, rates: Mapping[str, float]
) -> Progress | Exception:
    try:
        return training.update(batch, loss, rates)
    except Exception as error:  # noqa: BLE001 - its own, whatever it is
        return error


def _update(
    optimizer: AdamW, method: Method, batch: Batch, *, absent_tasks: Literal["dense", "lazy"]
) -> None:
    if absent_tasks == "lazy":
        absent_N = torch.ones(len(method.tasks), dtype=torch.bool, device=batch.task_B.device)
        absent_N[batch.task_B] = False
        step_without(optimizer, method.per_task, absent_N=absent_N)
    else:
        optimizer.step()
