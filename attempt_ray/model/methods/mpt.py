"""MPT, multitask prompt tuning (Wang et al. 2023, arXiv 2303.02861): P_task = P_shared * (u_task v_task^T).

A source stage learns the shared prompt on all source tasks, each taught by its own source prompt; a target starts from
that prompt and the mean of the sources' u and v. What a task reads is an ordinary soft prompt, the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attempt_ray.config import MptConfig, TrainingConfig
from attempt_ray.data.batching import Batch
from attempt_ray.errors import ConfigError
from attempt_ray.model.backbone import Backbone, Lesson
from attempt_ray.model.methods.base import Method, group
from attempt_ray.model.methods.parts import Parts, check_prompt_shape, starting_prompts
from attempt_ray.model.mixture import Mixed

SHARED = ("shared_PH", "rows_P", "columns_H")
"""Tensors that a source stage leaves in the bank, beside their product `prompt`."""


class MultitaskPromptTuning(Method):
    """A shared prompt times a rank-1 matrix per task: P*H + N*(P + H) numbers (77,668 for one task on T5-base)."""

    teachers_NPH: Tensor

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[str],
        *,
        shared_PH: Tensor,
        rows_P: Tensor,
        columns_H: Tensor,
        config: MptConfig,
        teachers_NPH: Tensor | None = None,
    ) -> None:
        """Start all tasks alike.

        Args:
            backbone: The language model.
            tasks: Names of the run's tasks.
            shared_PH: The shared prompt.
            rows_P: u of every task.
            columns_H: v of every task.
            config: Learning rate of the tasks' parts, and how much the teachers count.
            teachers_NPH: Prompts that teach the tasks; None where nobody does.
        """
        super().__init__(backbone, tasks, prompt_length=len(shared_PH))
        self._config = config
        self.shared_PH = nn.Parameter(shared_PH.detach().to("cpu", torch.float32).clone())
        self.rows_NP, self.columns_NH = (
            nn.Parameter(part.detach().to("cpu", torch.float32).repeat(len(self.tasks), 1))
            for part in (rows_P, columns_H)
        )
        self.register_buffer("teachers_NPH", teachers_NPH, persistent=False)

    def prompts(self) -> Tensor:
        """Return prompts_NPH: every task's product."""
        return self.shared_PH * (self.rows_NP[:, :, None] * self.columns_NH[:, None, :])

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:  # noqa: ARG002 - the interface
        """Return each row's task's product; nothing is mixed."""
        return Mixed(self.prompts().index_select(0, task_B), None)

    def lesson(self, batch: Batch) -> Lesson | None:
        """Return the source prompts of the rows' tasks, where they teach."""
        if self.teachers_NPH is None:
            return None
        return Lesson(self.teachers_NPH.index_select(0, batch.task_B), self._config.distill)

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the groups `prompts`, the shared one, and `tasks`, the tasks' parts."""
        decay = training.weight_decay
        return [
            *group(
                "prompts", [self.shared_PH], learning_rate=training.prompt_learning_rate, weight_decay=decay
            ),
            *group(
                "tasks",
                [self.rows_NP, self.columns_NH],
                learning_rate=self._config.task_learning_rate,
                weight_decay=decay,
            ),
        ]

    @property
    def per_task(self) -> tuple[nn.Parameter, ...]:
        """The tasks' u and v."""
        return (self.rows_NP, self.columns_NH)

    @torch.no_grad()
    def prompt_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the products [P, H] by task."""
        return dict(zip(self.tasks, self.prompts().to("cpu", copy=True).unbind(), strict=True))

    @torch.no_grad()
    def source_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of what a target starts from: `SHARED` with the tasks' mean u and v, and `prompt`."""
        shared_PH, rows_P, columns_H = (
            tensor.to("cpu", copy=True)
            for tensor in (self.shared_PH, self.rows_NP.mean(dim=0), self.columns_NH.mean(dim=0))
        )
        prompt_PH = shared_PH * (rows_P[:, None] * columns_H)
        return {"prompt": prompt_PH, **dict(zip(SHARED, (shared_PH, rows_P, columns_H), strict=True))}


def build(parts: Parts) -> MultitaskPromptTuning:
    """Return MPT, with teachers where it is to be a source stage and `mpt.distill` is above 0.

    Without a source stage to start from, the shared prompt starts as the first task's would under prompt tuning, and u
    and v at 1, so that every task's prompt starts as the shared one.

    Raises:
        ConfigError: A teacher is missing, or prompts cannot start as configured.
        BackboneError: A prompt has another width than the backbone.
    """
    config, width = parts.config, parts.backbone.width
    if parts.shared is None:
        shared_PH = starting_prompts(parts)[0]
        rows_P, columns_H = torch.ones(config.prompt_length), torch.ones(width)
    else:
        if missing := [name for name in SHARED if name not in parts.shared]:
            raise ConfigError(
                f"mpt.source names a version without {', '.join(missing)}; name what a source stage of MPT left, such as "
                "source/mpt-mnli-squad"
            )
        shared_PH, rows_P, columns_H = (parts.shared[name] for name in SHARED)
        check_prompt_shape("the shared prompt of mpt.source", shared_PH, parts=parts)
    teachers_NPH = None
    if config.job == "source" and config.mpt.distill:
        for name in parts.names:
            if name not in parts.sources:
                raise ConfigError(
                    f"mpt.distill got no source prompt of task '{name}' to teach; train it first"
                )
            check_prompt_shape(f"source prompt '{name}'", parts.sources[name], parts=parts)
        teachers_NPH = torch.stack([parts.sources[name].float() for name in parts.names])
    return MultitaskPromptTuning(
        parts.backbone,
        parts.names,
        shared_PH=shared_PH,
        rows_P=rows_P,
        columns_H=columns_H,
        config=config.mpt,
        teachers_NPH=teachers_NPH,
    )
