"""Muon: momentum whose matrix updates are made orthogonal, for pre-training.

Source: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/, with the step size of Liu et al. (2025),
https://arxiv.org/abs/2502.16982, equation 4. `torch.optim.Muon` computes in bfloat16, which a processor without
native bfloat16 multiplies some hundred times slower than float32, and one matrix at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalised(matrices_KMN: Tensor) -> Tensor:
    """Return each matrix with its singular values moved close to 1, by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices_KMN.shape[-2] > matrices_KMN.shape[-1]
    x_KMN = matrices_KMN.mT if tall else matrices_KMN
    x_KMN = x_KMN / (x_KMN.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram_KMM = x_KMN @ x_KMN.mT
        x_KMN = a * x_KMN + (b * gram_KMM + c * gram_KMM @ gram_KMM) @ x_KMN
    result_KMN: Tensor = x_KMN.mT if tall else x_KMN
    return result_KMN


class Muon(torch.optim.Optimizer):
    """Muon over matrices; equal shapes are updated together."""

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        """Take matrices alone.

        Args:
            params: Two-dimensional parameters.
            lr: Step size, on AdamW's scale (root mean square of an update: 0.2 of it).
            momentum: Nesterov momentum.
            weight_decay: Decoupled weight decay.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take one step; a closure is not used."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append((parameter, parameter.grad))
            for shape, moving in by_shape.items():
                updates = []
                for parameter, gradient in moving:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(state["momentum"], group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for (parameter, _), update in zip(moving, orthogonalised(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-scale)
