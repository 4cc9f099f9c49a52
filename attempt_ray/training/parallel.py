"""One run on several processes: each computes a part of every batch, and their gradients are added.

Only what trains is exchanged, a few hundred thousand numbers a step; the frozen backbone is whole in every process. The
batch of a step is that of one process, so that a run may go on with more or fewer processes than it began with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from attempt_ray.data.batching import Batch


@dataclass(frozen=True)
class Team:
    """The processes that share a run, as seen from one of them."""

    rank: int = 0
    """Number of this process; 0 leads: it alone writes."""
    size: int = 1
    """Processes."""

    @classmethod
    def of_process_group(cls) -> Team:
        """Return the team of torch's default process group, which stands."""
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def part(self, batch: Batch) -> Batch:
        """Return this process's rows of a batch: every `size`-th; none where there are fewer rows than processes."""
        if self.size == 1:
            return batch
        rows = {field.name: getattr(batch, field.name)[self.rank :: self.size] for field in fields(batch)}
        return replace(batch, **rows)

    def add_gradients(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        """Add up the gradients of all processes, in place and to the same bits everywhere; return the sum of losses.

        Args:
            parameters: What trains; a gradient that is None counts as zero.
            loss: This process's part of the loss.
        """
        if self.size == 1:
            return loss
        trained = list(parameters)
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        device = gradients[0].device
        flat = torch.cat(
            [*(gradient.flatten() for gradient in gradients), torch.tensor([loss], device=device)]
        )
        dist.all_reduce(flat)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return float(flat[-1])

    def any(self, mine: bool) -> bool:
        """Return whether it is so in any process."""
        if self.size == 1:
            return mine
        flag = torch.tensor([float(mine)], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(flag)
        return bool(flag.item())

    def gathered(self, found: Any) -> list[Any]:
        """Return what every process found, by rank."""
        if self.size == 1:
            return [found]
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, found)
        return everything

    def from_leader(self, found: Any) -> Any:
        """Return what the leading process found; what the others give is not read."""
        if self.size == 1:
            return found
        told = [found]
        dist.broadcast_object_list(told, src=0)
        return told[0]


ALONE = Team()
"""A run in one process."""
