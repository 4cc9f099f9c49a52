"""What a frozen layer computes, keeping little for the backward pass.

Where weights do not train, a product keeps nothing: its input is not needed again. What is left is what the functions
between the products keep, and most of that is as wide as the feed-forward layer. A rectifier and the dropout after it are
one bit of each number to their backward pass, here a byte; other activations are computed again from their input.

Shapes: N tokens, H model width, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everyone writes it

Shape = tuple[int, int]
"""Rows and width of a segment."""
Activation = Callable[[Tensor], Tensor]

_LANES = 4
"""Random numbers of 16 bits that one draw of 64 bits gives."""
_LEVELS = 2**16


@dataclass(frozen=True)
class Dropout:
    """Dropout that draws every segment's mask from a generator of its own, in the segment's own shape.

    The probability is rounded to a multiple of 2^-16, and what is kept grows by exactly its reciprocal.
    """

    probability: float
    generators: Sequence[torch.Generator | None] = ()

    @property
    def scale(self) -> float:
        """Factor of what is kept."""
        return _LEVELS / self._limit

    @property
    def _limit(self) -> int:
        return round((1 - self.probability) * _LEVELS)

    def flat(self, tensor_NH: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Drop from tokens of all segments."""
        if not self.probability:
            return tensor_NH
        kept_NH = self.kept(tensor_NH.shape[1], shapes, tensor_NH.device)
        return (tensor_NH * kept_NH).mul_(self.scale)

    def part(self, tensor: Tensor, index: int) -> Tensor:
        """Drop from something of one segment."""
        if not self.probability:
            return tensor
        return (tensor * self._drawn(tensor.shape, index, tensor.device)).mul_(self.scale)

    def kept(self, width: int, shapes: Sequence[Shape], device: torch.device) -> Tensor:
        """Return kept_NF, true on what stays of `width` numbers of each token of all segments."""
        drawn = [
            self._drawn(torch.Size((rows * tokens, width)), index, device)
            for index, (rows, tokens) in enumerate(shapes)
        ]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn)

    def replayed(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return a context for a first computation, and one for its repetition in which the same masks are drawn."""
        states = [None if own is None else own.get_state() for own in self.generators]

        @contextmanager
        def again() -> Iterator[None]:
            for own, state in zip(self.generators, states, strict=True):
                if own is not None and state is not None:
                    own.set_state(state)
            yield

        return nullcontext(), again()

    def _drawn(self, shape: torch.Size, index: int, device: torch.device) -> Tensor:
        generator = self.generators[index] if self.generators else None
        count = shape.numel()
        draws = torch.empty(-(-count // _LANES), dtype=torch.int64, device=device)
        draws.random_(-(2**63), None, generator=generator)
        return (draws.view(torch.int16)[:count] < self._limit - _LEVELS // 2).view(shape)


NO_DROPOUT = Dropout(0.0)


def rectified(
    input_NH: Tensor, wi_FH: Tensor, wo_HF: Tensor, kept_NF: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Return output_NH of a frozen feed-forward layer with a rectifier, as in T5 v1.0.

    Args:
        input_NH: Its input, normalised.
        wi_FH: Its first weights.
        wo_HF: Its second weights.
        kept_NF: True on what dropout keeps between them; None drops nothing.
        scale: Factor of what is kept.
    """
    output_NH: Tensor = _Rectified.apply(input_NH, wi_FH, wo_HF, kept_NF, scale)  # type: ignore[no-untyped-call]
    return output_NH


def activated(
    input_NH: Tensor,
    activation: Activation,
    wi_FH: Tensor,
    gated_FH: Tensor | None,
    wo_HF: Tensor,
    kept_NF: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Return output_NH of a frozen feed-forward layer with any activation.

    Args:
        input_NH: Its input, normalised.
        activation: What follows the first weights.
        wi_FH: Its first weights.
        gated_FH: Weights of what the activation is multiplied with, as in T5 v1.1; None where it has no gate.
        wo_HF: Its last weights.
        kept_NF: True on what dropout keeps before the last weights; None drops nothing.
        scale: Factor of what is kept.
    """
    output_NH: Tensor = _Activated.apply(  # type: ignore[no-untyped-call]
        input_NH, activation, wi_FH, gated_FH, wo_HF, kept_NF, scale
    )
    return output_NH


class _Rectified(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input_NH: Tensor, wi_FH: Tensor, wo_HF: Tensor, kept_NF: Tensor | None, scale: float
    ) -> Tensor:
        inner_NF = F.linear(input_NH, wi_FH)
        passed_NF = inner_NF > 0
        if kept_NF is None:
            inner_NF.relu_()
        else:
            passed_NF &= kept_NF
            inner_NF *= passed_NF
        ctx.save_for_backward(wi_FH, wo_HF, passed_NF)
        ctx.scale = scale
        # Scaled where it is narrow.
        return F.linear(inner_NF, wo_HF).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wi_FH, wo_HF, passed_NF = ctx.saved_tensors
        inner_NF = grads[0] @ wo_HF
        inner_NF *= passed_NF
        return (inner_NF @ wi_FH).mul_(ctx.scale), None, None, None, None


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input_NH: Tensor,
        activation: Activation,
        wi_FH: Tensor,
        gated_FH: Tensor | None,
        wo_HF: Tensor,
        kept_NF: Tensor | None,
        scale: float,
    ) -> Tensor:
        before_NF = F.linear(input_NH, wi_FH)
        gate_NF = None if gated_FH is None else F.linear(input_NH, gated_FH)
        inner_NF = activation(before_NF)
        for factor_NF in (gate_NF, kept_NF):
            if factor_NF is not None:
                inner_NF = inner_NF * factor_NF
        ctx.save_for_backward(wi_FH, gated_FH, wo_HF, before_NF, gate_NF, kept_NF)
        ctx.activation, ctx.scale = activation, scale
        return F.linear(inner_NF, wo_HF).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wi_FH, gated_FH, wo_HF, before_NF, gate_NF, kept_NF = ctx.saved_tensors
        inner_NF = grads[0] @ wo_HF
        if kept_NF is not None:
            inner_NF *= kept_NF
        with torch.enable_grad():
            before_NF = before_NF.detach().requires_grad_()
            after_NF = ctx.activation(before_NF)
        wanted_NF = inner_NF if gate_NF is None else inner_NF * gate_NF
        (grad_NF,) = torch.autograd.grad(after_NF, before_NF, wanted_NF)
        grad_NH = grad_NF @ wi_FH
        if gated_FH is not None:
            grad_NH += inner_NF.mul_(after_NF.detach()) @ gated_FH
        return grad_NH.mul_(ctx.scale), None, None, None, None, None, None
