"""BitFit (Ben Zaken et al. 2022) for T5, which has no biases: as the authors of ATTEMPT do, they are added.

To every linear map, the output layer's included, and to every RMS norm. They start at 0, so that at first nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from attempt_ray.model.methods.extended import Extended
from attempt_ray.model.methods.parts import Parts


class BiasedNorm(nn.Module):
    """An RMS norm and a bias."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = norm
        self.bias_H = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_BTH: Tensor) -> Tensor:
        """Return the normed input plus the bias."""
        normed_BTH: Tensor = self.norm(hidden_BTH)
        return normed_BTH + self.bias_H


def build(parts: Parts) -> Extended:
    """Return a backbone whose biases alone train.

    Raises:
        BackboneError: The backbone has been taken over before.
    """
    rate = parts.config.bitfit.learning_rate
    return Extended(parts.backbone, parts.names, name="bitfit", learning_rate=rate, extend=_add_biases)


def _add_biases(model: Any) -> None:
    device = model.shared.weight.device
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features, device=device))
        for name, child in list(module.named_children()):
            if isinstance(child, T5LayerNorm | MT5LayerNorm):
                setattr(module, name, BiasedNorm(child, model.config.d_model).to(device))
