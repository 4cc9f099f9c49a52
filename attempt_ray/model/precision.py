"""Which type the frozen weights are computed in: bfloat16 where the processor multiplies it natively.

Prompts, G, the optimizer, softmax and loss are float32 whatever this says. T5 was trained in bfloat16; float16 overflows
in its feed-forward layers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Precision = Literal["float32", "bfloat16"]

_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Names under which torch lists a processor's bfloat16 products; the last is Arm's."""
_FIRST_CUDA = (8, 0)
"""First compute capability with bfloat16 products."""


class Choice(NamedTuple):
    """A precision and the reason for it."""

    dtype: Precision
    reason: str


def choose_precision(
    wanted: Literal["auto"] | Precision, device: torch.device | str, *, weights_train: bool = False
) -> Choice:
    """Return the type of a backbone's weights: what is wanted, or what suits the device where that is `auto`.

    Args:
        wanted: `backbone.dtype` of the config.
        device: Where the backbone computes.
        weights_train: Its weights move, in steps that bfloat16 would round away.
    """
    device = torch.device(device)
    if wanted != "auto":
        return Choice(wanted, "as configured")
    if weights_train:
        return Choice("float32", "all weights train")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this processor"
    if native_bfloat16(device):
        return Choice("bfloat16", f"{name} multiplies it natively")
    return Choice("float32", f"{name} has no native bfloat16")


def native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _FIRST_CUDA
    found = torch.cpu.get_capabilities()
    return any(found.get(flag, False) for flag in _CPU_FLAGS)
