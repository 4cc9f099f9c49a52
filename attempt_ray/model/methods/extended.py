"""What adapters, BitFit and LoRA share: parts of their own in a frozen backbone, all trained at one rate.

The backbone is taken over: its modules change, so nothing else may share it. transformers computes it, since our own pass
reads the weights of a plain T5 alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attempt_ray.config import TrainingConfig
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.methods.base import Method, group


class Extended(Method):
    """A frozen backbone with parts that train, whatever task a row belongs to."""

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[str],
        *,
        name: str,
        learning_rate: float,
        extend: Callable[[Any], None],
    ) -> None:
        """Take a backbone over.

        Args:
            backbone: The language model; it must not have been extended before.
            tasks: Names of the run's tasks.
            name: What the optimizer's group is called.
            learning_rate: Peak learning rate of all that trains.
            extend: Given the transformers model, all frozen, adds what trains.

        Raises:
            BackboneError: The backbone has been taken over before.
        """
        super().__init__(backbone, tasks)
        backbone.take_over()
        extend(backbone.model)
        self._name, self._learning_rate = name, learning_rate

    def parameter_groups(self, training: TrainingConfig) -> list[dict[str, Any]]:
        """Return the one group of what was added, at the method's own rate."""
        return group(
            self._name,
            self.backbone.parameters(),
            learning_rate=self._learning_rate,
            weight_decay=training.weight_decay,
        )
