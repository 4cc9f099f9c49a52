"""Prompt tuning (Lester et al. 2021). SPoT (Vu et al. 2022) is this, started from other prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attempt_ray.config import TrainingConfig
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods.base import Method, group
from attempt_ray.model.methods.parts import Parts, starting_prompts
from attempt_ray.model.mixture import Mixed
from attempt_ray.model.soft_prompt import SoftPrompts


class PromptTuning(Method):
    """One soft prompt per task, or one for all tasks of the run.

    Attributes:
        prompts: The trainable prompts.
        shared: Whether its only prompt serves all tasks.
    """

    def __init__(
        self, backbone: Backbone, tasks: Sequence[str], prompts: SoftPrompts, *, shared: bool = False
    ) -> None:
        super().__init__(backbone, tasks, prompt_length=prompts.prompts_NPH.shape[1])
        self.prompts = prompts
        self.shared = shared

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:  # noqa: ARG002 - the interface
        """Return each row's task's prompt; nothing is mixed."""
        return Mixed(self.prompts(torch.zeros_like(task_B) if self.shared else task_B), None)

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the one group `prompts`."""
        return group(
            "prompts",
            self.prompts.parameters(),
            learning_rate=training.prompt_learning_rate,
            weight_decay=training.weight_decay,
        )

    @property
    def per_task(self) -> tuple[nn.Parameter, ...]:
        """The prompts, unless all tasks share one."""
        return () if self.shared else (self.prompts.prompts_NPH,)

    def prompt_tensors(self) -> dict[str, Tensor]:
        """Return copies on the CPU of the prompts [P, H] by task; where they share one, each gets a copy of it."""
        if not self.shared:
            return self.prompts.by_task(self.tasks)
        return {task: self.source_tensors()["prompt"] for task in self.tasks}

    def source_tensors(self) -> dict[str, Tensor]:
        """Return a copy on the CPU of the run's first or only `prompt` [P, H]."""
        return {"prompt": self.prompts.prompts_NPH[0].detach().to("cpu", copy=True)}


def build(parts: Parts) -> PromptTuning:
    """Return prompt tuning; a prompt that all tasks share starts as the first task's would.

    Raises:
        ConfigError: The prompts cannot start as configured.
        BackboneError: The prompt to start from has another width than the backbone.
    """
    shared, initial_NPH = parts.config.prompt.shared, starting_prompts(parts)
    prompts = SoftPrompts(initial_NPH[:1] if shared else initial_NPH)
    return PromptTuning(parts.backbone, parts.names, prompts, shared=shared)
