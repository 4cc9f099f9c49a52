"""Adapters (Houlsby et al. 2019, section 2.1), placed and started as the authors of ATTEMPT do.

After self-attention and after the feed-forward part, in encoder and decoder, before dropout and residual; none after
cross-attention. The gains of all RMS norms train too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from attempt_ray.model.methods.extended import Extended
from attempt_ray.model.methods.parts import PARTS_SEED_OFFSET, Parts, generator

_STD = 0.01


class Bottleneck(nn.Module):
    """An adapter: x + W_up gelu(W_down x + b_down) + b_up, gelu by its tanh formula as in T5 v1.1."""

    def __init__(self, width: int, bottleneck: int, *, generator: torch.Generator) -> None:
        """Draw the weights from N(0, 0.01^2); biases are 0."""
        super().__init__()
        self.down_RH = nn.Parameter(torch.randn(bottleneck, width, generator=generator) * _STD)
        self.down_R = nn.Parameter(torch.zeros(bottleneck))
        self.up_HR = nn.Parameter(torch.randn(width, bottleneck, generator=generator) * _STD)
        self.up_H = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Return hidden_BTH with what the adapter adds."""
        inner_BTR = gelu(hidden_BTH @ self.down_RH.T + self.down_R, approximate="tanh")
        return hidden_BTH + inner_BTR @ self.up_HR.T + self.up_H


def build(parts: Parts) -> Extended:
    """Return adapters of the width that `adapter.reduction` asks for, at least 1.

    Raises:
        BackboneError: The backbone has been taken over before.
    """
    wanted, width = parts.config.adapter, parts.backbone.width
    random = generator(parts.config.seed + PARTS_SEED_OFFSET)

    def extend(model: Any) -> None:
        device = model.shared.weight.device
        for block in (*model.encoder.block, *model.decoder.block):
            attention, feed_forward = block.layer[0].SelfAttention, block.layer[-1]
            first, second = (
                Bottleneck(width, max(1, width // wanted.reduction), generator=random).to(device)
                for _ in range(2)
            )
            attention.o = nn.Sequential(attention.o, first)
            feed_forward.DenseReluDense = nn.Sequential(feed_forward.DenseReluDense, second)
        for module in model.modules():
            if isinstance(module, T5LayerNorm | MT5LayerNorm):
                module.requires_grad_(True)

    return Extended(
        parts.backbone, parts.names, name="adapter", learning_rate=wanted.learning_rate, extend=extend
    )
