"""The forward pass of a frozen T5-family model, without what its frozen state makes needless.

It reads the weights of a transformers model and computes what that model computes. Position bias and mask are made once
a batch instead of once a layer, query, key and value are one product, and cross-attention never forms the keys and
values of the encoder's output where the decoder asks few questions: with T5's bare scores, q (E W_k)^T = (q W_k) E^T, and
likewise for values.

A batch comes in segments, each a rectangle of rows with a width of its own. Attention stays inside a segment; all else
computes the tokens of all segments at once. So rows of unlike length share a forward without padding, and what a segment
comes to, its dropout included, does not depend on its neighbours.

Shapes: G segments of B rows by T input tokens with the prompt, L target tokens, C candidate targets of one row; N tokens
of all segments; A heads, D head width, X = A * D, H model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everyone writes it
from torch.utils.checkpoint import checkpoint
from transformers import MT5ForConditionalGeneration, T5ForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput

from attempt_ray.model.attention_kernels import AttentionKernels, Wanted, softmax
from attempt_ray.model.frozen_ops import NO_DROPOUT, Activation, Dropout, Shape, activated, rectified

T5 = T5ForConditionalGeneration | MT5ForConditionalGeneration
Seeds = Sequence[int | None]
"""Seed of each segment's dropout; None draws from the global generator."""


@dataclass(frozen=True)
class PassOptions:
    """How a frozen backbone is computed; what it computes is the same up to rounding."""

    recompute: bool = False
    """Keep each encoder layer's input alone for the backward pass and compute the layer again there."""
    attention: Wanted = "auto"
    """Kernel of attention; see `attention_kernels`."""
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    """Mode of torch.compile for the encoder without dropout; "reduce-overhead" and "max-autotune" replay CUDA graphs."""


@dataclass
class DecoderState:
    """What a greedy decoder has read."""

    keys: list[Tensor] = field(default_factory=list)
    """Keys of every layer, [B, A, L, D]."""
    values: list[Tensor] = field(default_factory=list)
    """Values of every layer, likewise."""
    cache: Any = None
    """The same, as transformers keeps it."""

    def keep(self, rows_B: Tensor) -> None:
        """Forget all rows but these."""
        self.keys = [keys_BALD[rows_B] for keys_BALD in self.keys]
        self.values = [values_BALD[rows_B] for values_BALD in self.values]
        if self.cache is not None:
            self.cache.batch_select_indices(rows_B)


class WholeT5:
    """The forward pass of transformers, for weights that train and for comparison."""

    def __init__(self, model: T5, *, recompute: bool = False) -> None:
        """Wrap a model; see `FrozenT5` for what the methods return and `PassOptions` for `recompute`."""
        self._model = model
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def encode(
        self, inputs: Sequence[Tensor], masks: Sequence[Tensor], seeds: Seeds | None = None
    ) -> list[Tensor]:
        """Return the encoder's output encoded_BTH of every segment."""
        encoded = []
        for index, (inputs_BTH, mask_BT) in enumerate(zip(inputs, masks, strict=True)):
            with _seeded(inputs_BTH.device, seeds, index, 0):
                output = self._model.encoder(inputs_embeds=inputs_BTH, attention_mask=mask_BT)
            encoded.append(output.last_hidden_state)
        return encoded

    def decode(
        self,
        encoded: Sequence[Tensor],
        masks: Sequence[Tensor],
        ids: Sequence[Tensor],
        seeds: Seeds | None = None,
    ) -> list[Tensor]:
        """Return logits_BCLV of every segment: `logits` of what `hidden` returns."""
        return self.logits(self.hidden(encoded, masks, ids, seeds))

    def hidden(
        self,
        encoded: Sequence[Tensor],
        masks: Sequence[Tensor],
        ids: Sequence[Tensor],
        seeds: Seeds | None = None,
    ) -> list[Tensor]:
        """Return the decoder's output hidden_BCLH of every segment, for C targets' tokens, teacher-forced."""
        found = []
        for index, (encoded_BTH, mask_BT, ids_BCL) in enumerate(zip(encoded, masks, ids, strict=True)):
            num_candidates = ids_BCL.shape[1]
            with _seeded(encoded_BTH.device, seeds, index, 1):
                hidden_RLH = self._model.decoder(
                    input_ids=ids_BCL.flatten(0, 1),
                    encoder_hidden_states=encoded_BTH.repeat_interleave(num_candidates, dim=0),
                    encoder_attention_mask=mask_BT.repeat_interleave(num_candidates, dim=0),
                    use_cache=False,
                ).last_hidden_state
            found.append(hidden_RLH.view(*ids_BCL.shape, -1))
        return found

    def logits(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return logits_BCLV of every segment: of the token after each, from the decoder's output hidden_BCLH."""
        return [self._model.lm_head(hidden_BCLH * _scale(self._model)) for hidden_BCLH in hidden]

    def step(self, encoded_BTH: Tensor, mask_BT: Tensor, last_B: Tensor, state: DecoderState) -> Tensor:
        """Return logits_BV of the next token, after one more token; `state` grows by it. Call in eval mode."""
        output = self._model(
            encoder_outputs=BaseModelOutput(encoded_BTH),
            attention_mask=mask_BT,
            decoder_input_ids=last_B[:, None],
            past_key_values=state.cache,
            use_cache=True,
        )
        state.cache = output.past_key_values
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


class FrozenT5:
    """Encoder and decoder of a frozen model. Gradients flow to the encoder's input alone.

    The model's query, key and value weights become views of fused ones. Weights that are replaced afterwards, as by a move
    to another device, are not seen.
    """

    def __init__(self, model: T5, options: PassOptions | None = None) -> None:
        """Fuse the weights of each layer's query, key and value; the rest is read where it lies."""
        self._options = options or PassOptions()
        config, kernels = model.config, AttentionKernels(self._options.attention)
        self._model = model
        self._encoder = [_EncoderLayer(block, config, kernels) for block in model.encoder.block]
        self._decoder = [_DecoderLayer(block, config, kernels) for block in model.decoder.block]
        self._scale = _scale(model)
        self._through = self._through_encoder
        if self._options.compile != "off":
            # One compilation a shape, of which batches have few.
            self._through = torch.compile(self._through_encoder, dynamic=False, mode=self._options.compile)

    def encode(
        self, inputs: Sequence[Tensor], masks: Sequence[Tensor], seeds: Seeds | None = None
    ) -> list[Tensor]:
        """Return the encoder's output encoded_BTH of every segment.

        Args:
            inputs: Prompt and token embeddings [B, T, H] of every segment.
            masks: True on prompt and real tokens, [B, T].
            seeds: Seeds of the segments' dropout; None draws from the global generator.
        """
        shapes = [(len(inputs_BTH), inputs_BTH.shape[1]) for inputs_BTH in inputs]
        dropout = self._dropout(seeds, 0)
        first: Any = self._model.encoder.block[0]
        biases = [
            _encoder_bias(first.layer[0].SelfAttention, inputs_BTH, mask_BT)
            for inputs_BTH, mask_BT in zip(inputs, masks, strict=True)
        ]
        # Masks drawn from generators of their own cannot be compiled.
        through = self._through_encoder if dropout.probability else self._through
        return _parts(through(_flat(inputs), shapes, biases, dropout), shapes)

    def decode(
        self,
        encoded: Sequence[Tensor],
        masks: Sequence[Tensor],
        ids: Sequence[Tensor],
        seeds: Seeds | None = None,
    ) -> list[Tensor]:
        """Return logits_BCLV of every segment: `logits` of what `hidden` returns."""
        return self.logits(self.hidden(encoded, masks, ids, seeds))

    def hidden(
        self,
        encoded: Sequence[Tensor],
        masks: Sequence[Tensor],
        ids: Sequence[Tensor],
        seeds: Seeds | None = None,
    ) -> list[Tensor]:
        """Return the decoder's output hidden_BCLH of every segment, for C targets' tokens, teacher-forced.

        Args:
            encoded: The encoder's output [B, T, H] of every segment.
            masks: True on what may be attended to, [B, T].
            ids: Decoder input ids [B, C, L], start token first. Padding on the right needs no mask: nothing before it
                sees it.
            seeds: As for `encode`.
        """
        shapes = [(ids_BCL.shape[0] * ids_BCL.shape[1], ids_BCL.shape[2]) for ids_BCL in ids]
        dropout = self._dropout(seeds, 1)
        first: Any = self._model.decoder.block[0]
        biases = [_decoder_bias(first.layer[0].SelfAttention, length) for _, length in shapes]
        read = [
            _Read(encoded_BTH, _mask_bias(mask_BT, encoded_BTH.dtype))
            for encoded_BTH, mask_BT in zip(encoded, masks, strict=True)
        ]
        embedded_NH = self._model.shared(torch.cat([ids_BCL.flatten() for ids_BCL in ids]))
        hidden_NH = dropout.flat(embedded_NH, shapes)
        for layer in self._decoder:
            hidden_NH = layer(hidden_NH, shapes, biases, read, dropout)
        hidden_NH = self._finished(hidden_NH, shapes, dropout)
        return [
            part.view(*ids_BCL.shape, -1)
            for part, ids_BCL in zip(_parts(hidden_NH, shapes), ids, strict=True)
        ]

    def logits(self, hidden: Sequence[Tensor]) -> list[Tensor]:
        """Return logits_BCLV of every segment: of the token after each, from the decoder's output hidden_BCLH."""
        shapes = [hidden_BCLH.shape[:-1] for hidden_BCLH in hidden]
        logits_NV = self._logits(_joined([hidden_BCLH.flatten(0, -2) for hidden_BCLH in hidden]))
        lines = logits_NV.split([shape.numel() for shape in shapes])
        return [line.view(*shape, -1) for line, shape in zip(lines, shapes, strict=True)]

    def step(self, encoded_BTH: Tensor, mask_BT: Tensor, last_B: Tensor, state: DecoderState) -> Tensor:
        """Return logits_BV of the next token, after one more token; `state` grows by it. Call in eval mode."""
        shapes = [(len(last_B), 1)]
        first: Any = self._model.decoder.block[0]
        seen = state.keys[0].shape[2] if state.keys else 0
        bias_1A1L = first.layer[0].SelfAttention.compute_bias(1, seen + 1, past_seen_tokens=seen)
        read = [_Read(encoded_BTH, _mask_bias(mask_BT, encoded_BTH.dtype))]
        hidden_BH = self._model.shared(last_B)
        for index, layer in enumerate(self._decoder):
            hidden_BH = layer(hidden_BH, shapes, [bias_1A1L], read, NO_DROPOUT, grown=_grow(state, index))
        return self._logits(self._finished(hidden_BH, shapes, NO_DROPOUT))

    def _through_encoder(
        self, hidden_NH: Tensor, shapes: Sequence[Shape], biases: Sequence[Tensor], dropout: Dropout
    ) -> Tensor:
        hidden_NH = dropout.flat(hidden_NH, shapes)
        for layer in self._encoder:
            given = (layer, hidden_NH, shapes, biases, dropout)
            if self._options.recompute and hidden_NH.requires_grad:
                hidden_NH = checkpoint(*given, use_reentrant=False, context_fn=dropout.replayed)
            else:
                hidden_NH = layer(*given[1:])
        return dropout.flat(_norm(self._model.encoder.final_layer_norm, hidden_NH), shapes)

    def _finished(self, hidden_NH: Tensor, shapes: Sequence[Shape], dropout: Dropout) -> Tensor:
        return dropout.flat(_norm(self._model.decoder.final_layer_norm, hidden_NH), shapes)

    def _logits(self, hidden_NH: Tensor) -> Tensor:
        logits_NV: Tensor = self._model.lm_head(hidden_NH * self._scale)
        return logits_NV

    def _dropout(self, seeds: Seeds | None, stream: int) -> Dropout:
        model: Any = self._model
        probability = float(model.encoder.dropout.p) if model.training else 0.0
        if not probability:
            return NO_DROPOUT
        device = model.shared.weight.device
        generators = [
            None if seed is None else torch.Generator(device).manual_seed(2 * seed + stream)
            for seed in seeds or ()
        ]
        return Dropout(probability, generators)


Grown = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Read:
    """A segment of the encoder's output and the bias that hides its padding."""

    encoded_BTH: Tensor
    bias_B11T: Tensor | None


def _grow(state: DecoderState, index: int) -> Grown:
    def grown(keys_BALD: Tensor, values_BALD: Tensor) -> tuple[Tensor, Tensor]:
        if index == len(state.keys):
            state.keys.append(keys_BALD)
            state.values.append(values_BALD)
        else:
            state.keys[index] = torch.cat([state.keys[index], keys_BALD], dim=2)
            state.values[index] = torch.cat([state.values[index], values_BALD], dim=2)
        return state.keys[index], state.values[index]

    return grown


class _Attention:
    def __init__(self, kernels: AttentionKernels, config: Any) -> None:
        self._kernels = kernels
        self._heads, self._head_width = config.num_heads, config.d_kv

    def _attend(
        self,
        query_BAQD: Tensor,
        key_BATD: Tensor,
        value_BATD: Tensor,
        bias_BAQT: Tensor | None,
        dropout: Dropout,
        index: int,
    ) -> Tensor:
        """Dropout needs the weights in hand, so that they are dropped by their own seed."""
        if not dropout.probability:
            return self._kernels(query_BAQD, key_BATD, value_BATD, bias_BAQT)
        weights_BAQT = softmax(query_BAQD @ key_BATD.mT, bias_BAQT)
        return dropout.part(weights_BAQT, index) @ value_BATD


class _SelfAttention(_Attention):
    def __init__(self, layer: Any, config: Any, kernels: AttentionKernels) -> None:
        super().__init__(kernels, config)
        attention = layer.SelfAttention
        self._norm, self._out = layer.layer_norm, attention.o.weight
        parts = (attention.q.weight, attention.k.weight, attention.v.weight)
        self._qkv = torch.cat([part.detach() for part in parts])
        for part, fused in zip(parts, self._qkv.chunk(3), strict=True):
            part.data = fused  # one copy of the weights, whoever reads them

    def __call__(
        self,
        hidden_NH: Tensor,
        shapes: Sequence[Shape],
        biases: Sequence[Tensor],
        dropout: Dropout,
        grown: Grown | None = None,
    ) -> Tensor:
        mixed_NX = F.linear(_norm(self._norm, hidden_NH), self._qkv)
        found = []
        for index, (mixed_BTX, bias_BATT) in enumerate(zip(_parts(mixed_NX, shapes), biases, strict=True)):
            query_BATD, key_BATD, value_BATD = mixed_BTX.view(
                *shapes[index], 3, self._heads, self._head_width
            ).permute(2, 0, 3, 1, 4)
            if grown is not None:
                key_BATD, value_BATD = grown(key_BATD, value_BATD)
            found_BATD = self._attend(query_BATD, key_BATD, value_BATD, bias_BATT, dropout, index)
            found.append(found_BATD.transpose(1, 2).reshape(mixed_BTX.shape[0] * mixed_BTX.shape[1], -1))
        return hidden_NH + dropout.flat(F.linear(_joined(found), self._out), shapes)


class _CrossAttention(_Attention):
    def __init__(self, layer: Any, config: Any, kernels: AttentionKernels) -> None:
        super().__init__(kernels, config)
        self._norm, self._attention = layer.layer_norm, layer.EncDecAttention

    def __call__(
        self, hidden_NH: Tensor, shapes: Sequence[Shape], read: Sequence[_Read], dropout: Dropout
    ) -> Tensor:
        query_NX = self._attention.q(_norm(self._norm, hidden_NH))
        found = [
            self._found(query_RLX, segment, dropout, index)
            for index, (query_RLX, segment) in enumerate(zip(_parts(query_NX, shapes), read, strict=True))
        ]
        return hidden_NH + dropout.flat(self._attention.o(_joined(found)), shapes)

    def _found(self, query_RLX: Tensor, read: _Read, dropout: Dropout, index: int) -> Tensor:
        encoded_BTH, heads, head_width = read.encoded_BTH, self._heads, self._head_width
        num_rows, num_tokens, width = encoded_BTH.shape
        # All candidates of a row ask in one product: Q = C * L, M = B * Q.
        query_MAD = query_RLX.reshape(-1, heads, head_width)
        queries = len(query_MAD) // num_rows
        if queries <= head_width // 2:
            key_ADH, value_ADH = (
                part.weight.view(heads, head_width, width) for part in (self._attention.k, self._attention.v)
            )
            asked_AMH = query_MAD.transpose(0, 1) @ key_ADH
            asked_BZH = asked_AMH.view(heads, num_rows, queries, width).transpose(0, 1).flatten(1, 2)
            scores_BZT = asked_BZH @ encoded_BTH.mT  # Z = A * Q
            bias_B1T = None if read.bias_B11T is None else read.bias_B11T[:, 0]
            weights_BZT = dropout.part(softmax(scores_BZT, bias_B1T), index)
            found_BAQH = (weights_BZT @ encoded_BTH).view(num_rows, heads, queries, width)
            found_AMD = found_BAQH.transpose(0, 1).flatten(1, 2) @ value_ADH.mT
            found_MX: Tensor = found_AMD.transpose(0, 1).flatten(1)
            return found_MX
        query_BAQD = query_MAD.view(num_rows, queries, heads, head_width).transpose(1, 2)
        key_BATD, value_BATD = (
            part(encoded_BTH).view(num_rows, num_tokens, heads, head_width).transpose(1, 2)
            for part in (self._attention.k, self._attention.v)
        )
        found_BAQD = self._attend(query_BAQD, key_BATD, value_BATD, read.bias_B11T, dropout, index)
        return found_BAQD.transpose(1, 2).reshape(len(query_MAD), -1)


class _FeedForward:
    def __init__(self, layer: Any, config: Any) -> None:
        self._norm, self._dense = layer.layer_norm, layer.DenseReluDense
        self._gated, self._name = config.is_gated_act, config.dense_act_fn
        self._activation = _activation(self._name)

    def __call__(self, hidden_NH: Tensor, shapes: Sequence[Shape], dropout: Dropout) -> Tensor:
        dense = self._dense
        normed_NH = _norm(self._norm, hidden_NH)
        first, *gate = (dense.wi_0, dense.wi_1) if self._gated else (dense.wi,)
        kept_NF, scale = None, 1.0
        if dropout.probability:
            kept_NF, scale = dropout.kept(first.weight.shape[0], shapes, hidden_NH.device), dropout.scale
        if self._name == "relu" and not gate:
            output_NH = rectified(normed_NH, first.weight, dense.wo.weight, kept_NF, scale)
        else:
            gated_FH = gate[0].weight if gate else None
            output_NH = activated(
                normed_NH, self._activation, first.weight, gated_FH, dense.wo.weight, kept_NF, scale
            )
        return hidden_NH + dropout.flat(output_NH, shapes)


def _activation(name: str) -> Activation:
    # transformers spells this one out in eight operations.
    if name == "gelu_new":
        return partial(F.gelu, approximate="tanh")
    found: Activation = ACT2FN[name]
    return found


class _EncoderLayer:
    def __init__(self, block: nn.Module, config: Any, kernels: AttentionKernels) -> None:
        layers: Any = block.layer
        self._attention = _SelfAttention(layers[0], config, kernels)
        self._feed_forward = _FeedForward(layers[1], config)

    def __call__(
        self, hidden_NH: Tensor, shapes: Sequence[Shape], biases: Sequence[Tensor], dropout: Dropout
    ) -> Tensor:
        hidden_NH = self._attention(hidden_NH, shapes, biases, dropout)
        return self._feed_forward(hidden_NH, shapes, dropout)


class _DecoderLayer:
    def __init__(self, block: nn.Module, config: Any, kernels: AttentionKernels) -> None:
        layers: Any = block.layer
        self._attention = _SelfAttention(layers[0], config, kernels)
        self._cross = _CrossAttention(layers[1], config, kernels)
        self._feed_forward = _FeedForward(layers[2], config)

    def __call__(
        self,
        hidden_NH: Tensor,
        shapes: Sequence[Shape],
        biases: Sequence[Tensor],
        read: Sequence[_Read],
        dropout: Dropout,
        grown: Grown | None = None,
    ) -> Tensor:
        hidden_NH = self._attention(hidden_NH, shapes, biases, dropout, grown)
        hidden_NH = self._cross(hidden_NH, shapes, read, dropout)
        return self._feed_forward(hidden_NH, shapes, dropout)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    """Lay the tokens of all segments in one line."""
    return _joined([part.flatten(0, 1) for part in parts])


def _parts(tensor_NH: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Return every segment of a line of tokens, [B, T, H]."""
    lines = tensor_NH.split([rows * width for rows, width in shapes])
    return [line.view(*shape, -1) for line, shape in zip(lines, shapes, strict=True)]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@contextmanager
def _seeded(device: torch.device, seeds: Seeds | None, index: int, stream: int) -> Iterator[None]:
    """Draw from generators of a segment's own seed inside the block; the global ones are unmoved after it."""
    own = None if seeds is None else seeds[index]
    if own is None:
        yield
        return
    seed = 2 * own + stream
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would format a stack trace at every call, which costs as much as a small layer.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _scale(model: T5) -> float:
    """Return what the decoder's output is multiplied by before the output layer."""
    config: Any = model.config
    scaled = getattr(config, "scale_decoder_outputs", False)  # mT5 has no such option
    return float(config.d_model**-0.5) if scaled else 1.0


def _norm(layer: Any, hidden_NH: Tensor) -> Tensor:
    return F.rms_norm(hidden_NH, layer.weight.shape, layer.weight, layer.variance_epsilon)


def _encoder_bias(attention: Any, inputs_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """Return what is added to the encoder's scores, [B or 1, A, T, T]: by distance, and least where padding is."""
    tokens = inputs_BTH.shape[1]
    bias_1ATT: Tensor = attention.compute_bias(tokens, tokens)
    mask_B11T = _mask_bias(mask_BT, bias_1ATT.dtype)
    return bias_1ATT if mask_B11T is None else bias_1ATT + mask_B11T


def _decoder_bias(attention: Any, length: int) -> Tensor:
    """Return what is added to the decoder's scores, [1, A, L, L]: by distance, and least where the future is."""
    bias_1ALL: Tensor = attention.compute_bias(length, length)
    later_LL = torch.ones(length, length, dtype=torch.bool, device=bias_1ALL.device).triu(1)
    return bias_1ALL.masked_fill(later_LL, torch.finfo(bias_1ALL.dtype).min)


def _mask_bias(mask_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to scores, [B, 1, 1, T]: 0 on real tokens; None where all are real."""
    if bool(mask_BT.all()):
        return None
    bias_BT = torch.zeros(mask_BT.shape, dtype=dtype, device=mask_BT.device)
    return bias_BT.masked_fill(~mask_BT, torch.finfo(dtype).min)[:, None, None]
