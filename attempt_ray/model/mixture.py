"""The instance prompt: source prompts mixed for each input, added to the target prompt.

Source: Asai et al. (2022), section 3.2, equation 4; variants without attention or target: section 5.2 (Table 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from attempt_ray.errors import ConfigError
from attempt_ray.model.attention import PromptAttention, spread_of
from attempt_ray.model.soft_prompt import SoftPrompts

TARGET = "target"
"""Name of the last candidate where a target prompt is among them."""


class Mixed(NamedTuple):
    """What each row's encoder input opens with, and why."""

    prompts_BPH: Tensor | None
    """Instance prompts; None where the method has none."""
    weights_BK: Tensor | None
    """Mixing weights of the candidates; None where nothing is mixed."""


class PromptMixture(nn.Module):
    """Mix frozen source prompts and a trained target prompt, row by row.

    Attributes:
        candidates: Names of the K columns of the mixing weights: the sources in order, then `target`.
        targets: The target prompts, or None for a mixture of sources alone.
        attention: G, or None where the weights are constant.
    """

    sources_SPH: Tensor
    keys_SH: Tensor

    def __init__(
        self,
        sources: Mapping[str, Tensor],
        *,
        targets: SoftPrompts | None,
        attention: PromptAttention | None,
        weights: Literal["learned", "uniform", "uniform_sources"] = "learned",
    ) -> None:
        """Freeze the sources and pool them once.

        Args:
            sources: Source prompts of shape [P, H] by task name, in the order of the candidates.
            targets: Target prompts; None drops the residual and the target candidate.
            attention: G; needed by `weights="learned"`, unused otherwise.
            weights: `learned` by G; `uniform` 1/(S+1) over sources and target (authors' code); `uniform_sources`
                1/S over the sources (paper), the target keeping its residual alone.

        Raises:
            ConfigError: No source, learned weights without G, or `uniform` without a target.
        """
        super().__init__()
        if not sources:
            raise ConfigError("the mixture got no source prompt; name at least one in attention.sources")
        if weights == "learned" and attention is None:
            raise ConfigError(
                "mixing weights 'learned' got no attention module; pass one or use uniform weights"
            )
        if weights == "uniform" and targets is None:
            raise ConfigError("mixing weights 'uniform' got no target prompt; use uniform_sources")
        sources_SPH = torch.stack([prompt.detach().to("cpu", torch.float32) for prompt in sources.values()])
        self.candidates = (*sources, TARGET) if targets is not None else tuple(sources)
        self.weights = weights
        self.targets = targets
        self.attention = attention if weights == "learned" else None
        self.register_buffer("sources_SPH", sources_SPH, persistent=False)
        self.register_buffer("keys_SH", sources_SPH.amax(dim=1), persistent=False)

    def forward(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Mixed:
        """Return the instance prompts and the weights behind them (paper equation 4).

        P_instance = P_target + sum_j a_j P_j over the sources and the target, computed as
        sum over sources + (1 + a_target) P_target, so that no B x K x P x H tensor exists.

        Args:
            embedded_BTH: Raw token embeddings, before any prompt is prepended.
            mask_BT: True on real tokens; every row has at least one.
            task_B: Index of each row's task in the run's task list.
        """
        weights_BK = self._weights(embedded_BTH, mask_BT, task_B)
        num_sources, length, width = self.sources_SPH.shape
        flat_sources = self.sources_SPH.view(num_sources, length * width)
        mixed_BPH = (weights_BK[:, :num_sources] @ flat_sources).view(-1, length, width)
        if self.targets is not None:
            share_B = 1 + weights_BK[:, num_sources]
            mixed_BPH = mixed_BPH + share_B[:, None, None] * self.targets(task_B)
        return Mixed(mixed_BPH, weights_BK)

    def _weights(self, embedded_BTH: Tensor, mask_BT: Tensor, task_B: Tensor) -> Tensor:
        if self.attention is not None:
            target_keys_BH = self.targets.keys(task_B) if self.targets is not None else None
            weights_BK: Tensor = self.attention(embedded_BTH, mask_BT, self.keys_SH, target_keys_BH)
            return weights_BK
        num_candidates, num_sources = len(self.candidates), len(self.keys_SH)
        weights_K = self.keys_SH.new_zeros(num_candidates)
        weighed = num_candidates if self.weights == "uniform" else num_sources
        weights_K[:weighed] = 1 / weighed
        return weights_K.expand(len(task_B), num_candidates)

    @torch.no_grad()
    def spreads(self) -> dict[str, float]:
        """Return the standard deviation of each pooled source prompt, and of the targets' mean under `target`.

        G's sharpness is bounded by these numbers over the divisor, so they are worth logging.
        """
        spreads = dict(
            zip(self.candidates[: len(self.keys_SH)], spread_of(self.keys_SH).tolist(), strict=True)
        )
        if self.targets is not None:
            spreads[TARGET] = spread_of(self.targets.prompts_NPH.amax(dim=1)).mean().item()
        return spreads
