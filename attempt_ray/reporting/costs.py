"""What a step costs, from a backbone's shape alone: the useful floating-point operations.

Useful is what no exact method can do without: padding is not counted, nor the gradient of frozen weights, nor keys and
values of the encoder's output where the decoder asks so few questions that they need not be formed.
"""

from __future__ import annotations

from collections.abc import Iterable

from attempt_ray.reporting.parameters import BackboneShape


def forward_flops(shape: BackboneShape, *, tokens: int, targets: int) -> float:
    """Return the operations of one row's forward pass, a multiplication and its addition being two.

    Args:
        shape: The backbone.
        tokens: Encoder input of the row, prompt included.
        targets: Target tokens of the row, the end token included.
    """
    d, inner = shape.width, shape.inner
    feed_forward = (3 if shape.gated else 2) * d * shape.feed_forward
    encoder = tokens * (4 * d * inner + feed_forward) + 2 * tokens**2 * inner
    self_attention = targets * 4 * d * inner + 2 * targets**2 * inner
    formed = 2 * tokens * d * inner + 2 * targets * tokens * inner
    # Queries taken to the encoder's width, scored there, and what they found taken back: no keys or values.
    absorbed = 2 * targets * d * inner + 2 * targets * tokens * shape.heads * d
    cross_attention = targets * 2 * d * inner + min(formed, absorbed)
    decoder = self_attention + cross_attention + targets * feed_forward
    output = targets * d * shape.vocabulary
    return 2.0 * (shape.encoder_layers * encoder + shape.decoder_layers * decoder + output)


def training_flops(shape: BackboneShape, rows: Iterable[tuple[int, int]]) -> float:
    """Return the operations of a training step on a frozen backbone: forward, and backward to the input alone.

    Args:
        shape: The backbone.
        rows: (tokens, targets) of every row, as in `forward_flops`.
    """
    return 2.0 * sum(forward_flops(shape, tokens=tokens, targets=targets) for tokens, targets in rows)
