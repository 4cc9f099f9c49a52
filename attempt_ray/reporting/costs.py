"""What a training step on a frozen backbone costs, from its shape alone: floating-point operations and memory.

Useful operations are what no exact method can do without: padding is not counted, nor the gradient of frozen weights, nor keys and values
of the encoder's output where the decoder asks so few questions that they need not be formed. Memory is that of
`model.frozen_t5`: what its backward pass reads, and what a layer needs while it is computed; or that of a whole model in
which weights train.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from attempt_ray.errors import ConfigError
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


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes that a training step takes at its peak; optimizer and prompts of a frozen model are left out: megabytes."""

    weights: int
    """The frozen weights."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    output: int
    """Logits over the vocabulary, their softmax and gradient."""
    workspace: int
    """What the widest layer's backward pass needs for itself."""
    libraries: int = 80_000_000
    """What torch and its matrix library take for themselves once they compute, as measured on a processor."""
    optimizer: int = 0
    """Gradients and Adam's two moments of weights that train."""

    @property
    def peak(self) -> int:
        """All of them, but of output and workspace the greater one alone: they are not needed at one time."""
        steady = self.weights + self.optimizer + self.activations + self.libraries
        return steady + max(self.output, self.workspace)


def step_memory(
    shape: BackboneShape,
    *,
    rows: int,
    tokens: int,
    targets: int,
    weight_bytes: int,
    padded: bool = True,
    recompute: bool = False,
    dropout: bool = False,
) -> StepMemory:
    """Return the memory of a training step on a frozen backbone.

    Args:
        shape: The backbone.
        rows: Rows of the batch.
        tokens: Encoder input of a row, prompt and padding included.
        targets: Target tokens of a row.
        weight_bytes: Bytes of a number of the frozen weights: 4 in float32, 2 in bfloat16.
        padded: Some rows are padded, so that each has a position bias of its own.
        recompute: Encoder layers are computed again in the backward pass (`backbone.recompute`).
        dropout: The backbone drops out, which keeps masks, and every softmax of the encoder.
    """
    d, inner, heads = shape.width, shape.inner, shape.heads
    read, written = rows * tokens, rows * targets
    # A rectifier keeps a byte of each number; a gate its two factors.
    inside = 2 * shape.feed_forward * weight_bytes if shape.gated else shape.feed_forward
    # Attention keeps the logarithm of every softmax's sum in float32, a norm its row's scale.
    layer = (2 * d + 4 * inner) * weight_bytes + inside + 4 * (heads + 2)
    if dropout:
        layer += heads * tokens * (2 * weight_bytes + 1) + 2 * d + shape.feed_forward
    encoder = shape.encoder_layers * layer
    if recompute:
        encoder = shape.encoder_layers * d * weight_bytes + layer
    decoder = shape.decoder_layers * ((3 * d + 4 * inner) * weight_bytes + inside)
    asked = shape.decoder_layers * heads * (d + tokens) * weight_bytes
    bias = (rows if padded else 1) * heads * tokens**2 * weight_bytes
    ends = 2 * d * weight_bytes  # the encoder's input and its output
    logits = written * shape.vocabulary
    return StepMemory(
        weights=shape.parameters(vocabulary=shape.vocabulary) * weight_bytes,
        activations=read * (encoder + ends) + written * (decoder + d * weight_bytes + asked) + bias,
        output=logits * (2 * weight_bytes + 3 * 4),
        workspace=read * ((4 if shape.gated else 2) * shape.feed_forward + 2 * d) * weight_bytes,
    )


def trained_memory(
    shape: BackboneShape, *, rows: int, tokens: int, targets: int, weight_bytes: int, trained: int
) -> StepMemory:
    """Return the memory of a training step in which weights inside the model train.

    Every layer keeps what automatic differentiation of transformers' T5 reads: inputs of norms and products, queries, keys
    and values, softmax and mask, and both sides of the feed-forward (Korthikanti et al. 2022, section 4.1, for T5's layers).

    Args:
        shape: The backbone.
        rows: Rows of the batch.
        tokens: Encoder input of a row, padding included.
        targets: Target tokens of a row.
        weight_bytes: Bytes of a number of weights and activations.
        trained: Numbers that train, in float32.
    """
    d, inner, heads, wide = shape.width, shape.inner, shape.heads, shape.feed_forward
    read, written = rows * tokens, rows * targets
    masks = 2 * d + wide
    feed_forward = (2 * d + (4 if shape.gated else 2) * wide) * weight_bytes + masks
    attention = (2 * d + 4 * inner) * weight_bytes
    softmax = heads * (2 * weight_bytes + 1)
    encoder = attention + softmax * tokens + feed_forward
    decoder = 2 * attention + softmax * (targets + tokens) + feed_forward + d
    kept = shape.encoder_layers * read * encoder
    kept += shape.decoder_layers * (written * decoder + read * 2 * inner * weight_bytes)
    logits = written * shape.vocabulary
    return StepMemory(
        weights=shape.parameters(vocabulary=shape.vocabulary) * weight_bytes,
        activations=kept + (read + written) * 2 * d * weight_bytes,
        output=logits * (2 * weight_bytes + 3 * 4),
        workspace=read * (2 * wide + 2 * d) * weight_bytes,
        optimizer=trained * 3 * 4,
    )


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What a batch on a backbone takes, before anything is loaded."""

    shape: BackboneShape
    rows: int
    tokens: int
    targets: int
    weight_bytes: int
    recompute: bool
    memory: StepMemory
    flops: float
    """Useful operations of one optimizer step; layers that are computed again are not counted twice."""
    limit: float | None
    """Memory at hand in bytes."""
    most_rows: int | None
    """Most rows of a batch within the limit; 0 where not even one fits."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plan, JSON-able; memory in bytes."""
        return {
            "backbone": self.shape.name,
            "rows": self.rows,
            "tokens": self.tokens,
            "targets": self.targets,
            "weight_bytes": self.weight_bytes,
            "recompute": self.recompute,
            "bytes": {
                "weights": self.memory.weights,
                "activations": self.memory.activations,
                "output": self.memory.output,
                "workspace": self.memory.workspace,
                "libraries": self.memory.libraries,
                "peak": self.memory.peak,
            },
            "tflop": self.flops / 1e12,
            "most_rows": self.most_rows,
        }

    def describe(self) -> str:
        """Return the plan in lines for people."""
        memory, gb = self.memory, 1e9
        lines = [
            f"{self.shape.name}: a step of {self.rows:,} rows of {self.tokens:,} input tokens (prompt included) and "
            f"{self.targets:,} target tokens",
            f"  frozen weights   {memory.weights / gb:8.2f} GB, {self.weight_bytes} bytes each",
            f"  activations      {memory.activations / gb:8.2f} GB{', layers computed again' if self.recompute else ''}",
            f"  while computing  {max(memory.output, memory.workspace) / gb:8.2f} GB",
            f"  peak             {memory.peak / gb:8.2f} GB",
            f"  useful work      {self.flops / 1e12:8.2f} TFLOP",
        ]
        if self.limit is not None:
            fits = f"at most {self.most_rows:,} rows fit" if self.most_rows else "not one row fits"
            lines.append(f"  in {self.limit / gb:g} GB {fits}")
        return "\n".join(lines)


def plan_step(
    shape: BackboneShape,
    *,
    rows: int,
    tokens: int,
    targets: int,
    weight_bytes: int,
    recompute: bool = False,
    limit: float | None = None,
) -> StepPlan:
    """Return what a training step takes, and how many rows fit in `limit` bytes.

    Raises:
        ConfigError: A number is below 1.
    """
    for name, value in (("rows", rows), ("tokens", tokens), ("targets", targets)):
        if value < 1:
            raise ConfigError(f"{name}: got {value}; wanted 1 or more")
    if limit is not None and limit <= 0:
        raise ConfigError(f"memory: got {limit / 1e9:g} GB; wanted more than 0")

    def memory(count: int) -> StepMemory:
        return step_memory(
            shape, rows=count, tokens=tokens, targets=targets, weight_bytes=weight_bytes, recompute=recompute
        )

    most = None
    if limit is not None:
        # Activations, output and workspace grow with the rows alone.
        one = memory(1)
        fixed = one.weights + one.libraries
        most = max(0, int((limit - fixed) // (one.peak - fixed)))
    return StepPlan(
        shape=shape,
        rows=rows,
        tokens=tokens,
        targets=targets,
        weight_bytes=weight_bytes,
        recompute=recompute,
        memory=memory(rows),
        flops=training_flops(shape, [(tokens, targets)] * rows),
        limit=limit,
        most_rows=most,
    )
