"""Full fine-tuning (Asai et al. 2022, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attempt_ray.config import TrainingConfig
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods.base import Method, group
from attempt_ray.model.methods.parts import Parts


class FineTuning(Method):
    """All weights train. It takes the backbone over: its weights move, so nothing else may share it."""

    def __init__(self, backbone: Backbone, tasks: Sequence[str]) -> None:
        super().__init__(backbone, tasks)
        self.backbone.unfreeze()

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the one group `backbone`."""
        return group(
            "backbone",
            self.backbone.parameters(),
            learning_rate=training.backbone_learning_rate,
            weight_decay=training.weight_decay,
        )


def build(parts: Parts) -> FineTuning:
    """Return full fine-tuning of the backbone."""
    return FineTuning(parts.backbone, parts.names)
