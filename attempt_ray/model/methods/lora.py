"""LoRA (Hu et al. 2022) through PEFT: low-rank updates of every attention's query and value matrix."""

from __future__ import annotations

from typing import Any

import torch

from attempt_ray.model.methods.extended import Extended
from attempt_ray.model.methods.parts import PARTS_SEED_OFFSET, Parts

TARGETS = ("q", "v")
"""Modules with an update: self-attention's and cross-attention's (Hu et al., section 4.2; PEFT's default for T5)."""


def build(parts: Parts) -> Extended:
    """Return LoRA; at first it changes nothing.

    Raises:
        BackboneError: The backbone has been taken over before.
    """
    wanted, seed = parts.config.lora, parts.config.seed + PARTS_SEED_OFFSET

    def extend(model: Any) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # a second to import, for this method alone

        lora = LoraConfig(r=wanted.rank, lora_alpha=wanted.alpha, target_modules=list(TARGETS))
        with torch.random.fork_rng(devices=[]):  # PEFT draws on the processor, from the global generator
            torch.manual_seed(seed)
            inject_adapter_in_model(lora, model)

    return Extended(
        parts.backbone, parts.names, name="lora", learning_rate=wanted.learning_rate, extend=extend
    )
