"""DePT, decomposed prompt tuning (Shi and Lipani 2024, arXiv 2309.05173, section 2.2).

A soft prompt shorter than prompt tuning's, and with the numbers saved a low-rank update of the input's embeddings: token
t of an input reads E[x_t] + scale * (A B)[t].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attempt_ray.config import DeptConfig, TrainingConfig
from attempt_ray.data.batching import Batch
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods.base import Method, group
from attempt_ray.model.methods.parts import PARTS_SEED_OFFSET, Parts, generator, starting_prompts
from attempt_ray.model.mixture import Mixed
from attempt_ray.model.soft_prompt import SoftPrompts


class DecomposedPromptTuning(Method):
    """A short prompt and an update of the embeddings by position, both of each task: m*d + s*r + r*d numbers.

    Attributes:
        prompts: The trainable prompts.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[str],
        prompts: SoftPrompts,
        *,
        left_SR: Tensor,
        config: DeptConfig,
    ) -> None:
        """Start all tasks alike, the update at 0.

        Args:
            backbone: The language model.
            tasks: Names of the run's tasks.
            prompts: Prompts to start from, one per task.
            left_SR: A of every task, for S input positions; B starts at 0.
            config: Scale and learning rate of the update.
        """
        super().__init__(backbone, tasks, prompt_length=prompts.prompts_NPH.shape[1])
        self.prompts = prompts
        self._config, (_, rank) = config, left_SR.shape
        self._scale = config.alpha / math.sqrt(rank)
        self.left_NSR = nn.Parameter(left_SR.expand(len(self.tasks), -1, -1).clone())
        self.right_NRH = nn.Parameter(torch.zeros(len(self.tasks), rank, backbone.width))

    def embed(self, batch: Batch) -> Tensor:
        """Return embedded_BTH: token embeddings plus the update of each row's task; positions beyond S get none."""
        embedded_BTH = super().embed(batch)
        tokens = min(embedded_BTH.shape[1], self.left_NSR.shape[1])
        update_NTH = self.left_NSR[:, :tokens] @ self.right_NRH * self._scale
        update_BTH = update_NTH.index_select(0, batch.task_B)
        padded_BTH = nn.functional.pad(update_BTH, (0, 0, 0, embedded_BTH.shape[1] - tokens))
        return (embedded_BTH + padded_BTH).to(embedded_BTH.dtype)

    def instance_prompts(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:  # noqa: ARG002 - the interface
        """Return each row's task's prompt; nothing is mixed."""
        return Mixed(self.prompts(task_B), None)

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the groups `prompts` and `update`."""
        decay = training.weight_decay
        return [
            *group(
                "prompts",
                self.prompts.parameters(),
                learning_rate=training.prompt_learning_rate,
                weight_decay=decay,
            ),
            *group(
                "update",
                [self.left_NSR, self.right_NRH],
                learning_rate=self._config.update_learning_rate,
                weight_decay=decay,
            ),
        ]

    @property
    def per_task(self) -> tuple[nn.Parameter, ...]:
        """Prompts and updates."""
        return (self.prompts.prompts_NPH, self.left_NSR, self.right_NRH)


def build(parts: Parts) -> DecomposedPromptTuning:
    """Return DePT; as in the authors' code, A is drawn from U(-1/sqrt(r), 1/sqrt(r)), Kaiming's rule with a = sqrt(5).

    Raises:
        ConfigError: The prompts cannot start as configured.
        BackboneError: The prompt to start from has another width than the backbone.
    """
    wanted = parts.config.dept
    random = generator(parts.config.seed + PARTS_SEED_OFFSET)
    left_SR = (2 * torch.rand(wanted.positions, wanted.rank, generator=random) - 1) / math.sqrt(wanted.rank)
    return DecomposedPromptTuning(
        parts.backbone, parts.names, SoftPrompts(starting_prompts(parts)), left_SR=left_SR, config=wanted
    )
