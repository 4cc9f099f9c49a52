"""Which kernel computes attention: torch's fused ones, or the plain products.

On a processor torch's fused kernel is the choice: over the shapes of docs/measurements.md it was at most 9 % slower than the
plain products and up to 2.8 times as fast. A choice by timing would also let equal runs differ in their last bits there.
On a GPU the kernels that accept a bias differ by shape, so the first batch of each shape tries all and keeps the fastest.

Shapes: B rows, A heads, Q queries, T keys, D head width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everyone writes it
from torch.nn.attention import SDPBackend, sdpa_kernel

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Attention with T5's bare scores: (query_BAQD, key_BATD, value_BATD, bias added to the scores) -> found_BAQD."""
Wanted = Literal["auto", "fused", "plain"]

_REPEATS = 5


def softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax over the last dimension in float32, in the type of the scores."""
    masked = scores.float() if bias is None else scores.float() + bias
    return masked.softmax(dim=-1).to(scores.dtype)


def plain(query_BAQD: Tensor, key_BATD: Tensor, value_BATD: Tensor, bias_BAQT: Tensor | None) -> Tensor:
    """Attend by two products with a softmax between them."""
    return softmax(query_BAQD @ key_BATD.mT, bias_BAQT) @ value_BATD


def fused(query_BAQD: Tensor, key_BATD: Tensor, value_BATD: Tensor, bias_BAQT: Tensor | None) -> Tensor:
    """Attend by the kernel that torch picks."""
    return F.scaled_dot_product_attention(query_BAQD, key_BATD, value_BATD, attn_mask=bias_BAQT, scale=1.0)


class AttentionKernels:
    """Attention by the kernel that is wanted or, on a GPU with `auto`, by the fastest for the shape."""

    def __init__(self, wanted: Wanted = "auto", trials: Mapping[str, Kernel] | None = None) -> None:
        """Take the wish, and the kernels to try where it is `auto`; None tries torch's own on a GPU alone."""
        self._wanted = wanted
        self._trials = trials
        self.chosen: dict[tuple[object, ...], str] = {}
        """Name of the kernel by shape, type and whether gradients are wanted."""

    def __call__(
        self, query_BAQD: Tensor, key_BATD: Tensor, value_BATD: Tensor, bias_BAQT: Tensor | None
    ) -> Tensor:
        """Return found_BAQD."""
        given = (query_BAQD, key_BATD, value_BATD, bias_BAQT)
        if self._wanted != "auto":
            return (plain if self._wanted == "plain" else fused)(*given)
        trials = self._trials
        if trials is None:
            if not query_BAQD.is_cuda or torch.compiler.is_compiling():
                return fused(*given)
            trials = _CUDA
        shapes = tuple(None if one is None else tuple(one.shape) for one in given)
        key = (shapes, query_BAQD.dtype, torch.is_grad_enabled())
        if key not in self.chosen:
            self.chosen[key] = fastest(trials, *given)
        return trials[self.chosen[key]](*given)


def fastest(
    kernels: Mapping[str, Kernel],
    query_BAQD: Tensor,
    key_BATD: Tensor,
    value_BATD: Tensor,
    bias_BAQT: Tensor | None,
) -> str:
    """Return the name of the kernel that takes the least time, with its backward pass where gradients are enabled.

    Kernels that refuse the inputs are passed over; where all do, the first is named.
    """
    backward = torch.is_grad_enabled()
    # As it lies in memory: the layout decides too.
    query, key, value = (one.detach().requires_grad_(backward) for one in (query_BAQD, key_BATD, value_BATD))
    times: dict[str, float] = {}
    for name, kernel in kernels.items():
        try:
            times[name] = min(
                _timed(kernel, query, key, value, bias_BAQT, backward=backward) for _ in range(_REPEATS)
            )
        except RuntimeError:
            continue
    return min(times, key=times.__getitem__) if times else next(iter(kernels))


def _timed(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, backward: bool
) -> float:
    _wait(query.device)
    start = time.perf_counter()
    found = kernel(query, key, value, bias)
    if backward:
        torch.autograd.grad(found, (query, key, value), torch.ones_like(found))
    _wait(query.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _only(
    backend: SDPBackend, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    with sdpa_kernel(backend):
        return fused(query, key, value, bias)


_CUDA: Mapping[str, Kernel] = {
    "efficient": partial(_only, SDPBackend.EFFICIENT_ATTENTION),
    "cudnn": partial(_only, SDPBackend.CUDNN_ATTENTION),
    "flash": partial(_only, SDPBackend.FLASH_ATTENTION),
    "plain": plain,
}
