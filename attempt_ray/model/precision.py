"""What the processor's products are like: whether bfloat16 is native, and whether a row's depends on those beside it.

Prompts, G, the optimizer, softmax and loss are float32 whatever this says. T5 was trained in bfloat16; float16 overflows
in its feed-forward layers.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch

Precision = Literal["float32", "bfloat16"]

_CPU_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Names under which torch lists a processor's bfloat16 products; the last is Arm's."""
_FIRST_CUDA = (8, 0)
"""First compute capability with bfloat16 products."""
FEW_ROWS = 8
"""Products of fewer rows are computed by kernels of their own, which round otherwise."""


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


def rows_stand_alone(width: int, inner: int, dtype: torch.dtype) -> bool:
    """Whether this processor's products give a row the same bits whatever rows stand beside it.

    That holds where one thread runs along each row in one order, which is tried on matrices of a backbone's shapes,
    with `FEW_ROWS` rows and more. Several threads cut the rows at places that depend on how many there are.

    Args:
        width: Model width.
        inner: Inner width of the feed-forward layers.
        dtype: Type of the weights.
    """
    return torch.get_num_threads() == 1 and _tried_to_stand_alone(width, inner, dtype)


@functools.cache
def _tried_to_stand_alone(width: int, inner: int, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    for rows_in, rows_out in ((width, 3 * width), (width, inner), (inner, width)):
        weight_OI = torch.randn(rows_out, rows_in, generator=generator).to(dtype)
        rows_NI = torch.randn(600, rows_in, generator=generator).to(dtype)
        for weight_IO in (weight_OI.T, weight_OI.T.contiguous()):
            together_NO = rows_NI @ weight_IO
            for start, end in ((0, FEW_ROWS), (3, 40), (41, 140), (140, 600)):
                if not torch.equal(rows_NI[start:end] @ weight_IO, together_NO[start:end]):
                    return False
    return True
