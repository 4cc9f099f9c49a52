"""The forward pass of a frozen T5-family model, without what its frozen state makes needless.

It reads the weights of a transformers model and computes what that model computes. Position bias and mask are made once
a batch instead of once a layer, query, key and value are one product, and cross-attention never forms the keys and
values of the encoder's output where the decoder asks few questions: with T5's bare scores, q (E W_k)^T = (q W_k) E^T, and
likewise for values.

Shapes: B rows, T input tokens with the prompt, L target tokens, C candidate targets of one row, A heads, D head width,
H model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everyone writes it
from transformers import MT5ForConditionalGeneration, T5ForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput

T5 = T5ForConditionalGeneration | MT5ForConditionalGeneration


@dataclass
class DecoderState:
    """What a greedy decoder has read."""

    keys: list[Tensor] = field(default_factory=list)
    """Keys of every layer, [B, A, L, D]."""
    values: list[Tensor] = field(default_factory=list)
    """Values of every layer, likewise."""
    cache: Any = None
    """The same, as transformers keeps it."""


class WholeT5:
    """The forward pass of transformers, for weights that train and for comparison."""

    def __init__(self, model: T5) -> None:
        """Wrap a model; see `FrozenT5` for what the methods return."""
        self._model = model

    def encode(self, inputs_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the encoder's output encoded_BTH."""
        encoded_BTH: Tensor = self._model.encoder(
            inputs_embeds=inputs_BTH, attention_mask=mask_BT
        ).last_hidden_state
        return encoded_BTH

    def decode(self, encoded_BTH: Tensor, mask_BT: Tensor, ids_BCL: Tensor) -> Tensor:
        """Return logits_BCLV of the token after each of C targets' tokens, teacher-forced."""
        num_candidates = ids_BCL.shape[1]
        logits_NLV: Tensor = self._model(
            encoder_outputs=BaseModelOutput(encoded_BTH.repeat_interleave(num_candidates, dim=0)),
            attention_mask=mask_BT.repeat_interleave(num_candidates, dim=0),
            decoder_input_ids=ids_BCL.flatten(0, 1),
            use_cache=False,
        ).logits
        return logits_NLV.view(*ids_BCL.shape, -1)

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

    Fused weights are copies, so weights that move afterwards are not seen; full fine-tuning runs the model itself.
    """

    def __init__(self, model: T5) -> None:
        """Fuse the weights of each layer's query, key and value; the rest is read where it lies."""
        config = model.config
        self._model = model
        self._encoder = [_EncoderLayer(block, config) for block in model.encoder.block]
        self._decoder = [_DecoderLayer(block, config) for block in model.decoder.block]
        scaled = getattr(config, "scale_decoder_outputs", False)  # mT5 has no such option
        self._scale = config.d_model**-0.5 if scaled else 1.0

    def encode(self, inputs_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the encoder's output encoded_BTH.

        Args:
            inputs_BTH: Prompt and token embeddings.
            mask_BT: True on prompt and real tokens.
        """
        dropout = self._dropout()
        bias_BATT = self._encoder_bias(inputs_BTH, mask_BT)
        hidden_BTH = _drop(inputs_BTH, dropout)
        for layer in self._encoder:
            hidden_BTH = layer(hidden_BTH, bias_BATT, dropout)
        return _drop(_norm(self._model.encoder.final_layer_norm, hidden_BTH), dropout)

    def decode(self, encoded_BTH: Tensor, mask_BT: Tensor, ids_BCL: Tensor) -> Tensor:
        """Return logits_BCLV of the token after each of C targets' tokens, teacher-forced.

        Args:
            encoded_BTH: The encoder's output.
            mask_BT: True on what may be attended to.
            ids_BCL: Decoder input ids, start token first. Padding on the right needs no mask: nothing before it sees it.
        """
        dropout = self._dropout()
        num_rows, num_candidates, length = ids_BCL.shape
        first: Any = self._model.decoder.block[0]
        bias_1ALL = first.layer[0].SelfAttention.compute_bias(length, length)
        later_LL = torch.ones(length, length, dtype=torch.bool, device=bias_1ALL.device).triu(1)
        bias_1ALL = bias_1ALL.masked_fill(later_LL, torch.finfo(bias_1ALL.dtype).min)
        cross_B11T = _mask_bias(mask_BT, encoded_BTH.dtype)
        hidden_NLH = _drop(self._model.shared(ids_BCL.flatten(0, 1)), dropout)  # N = B * C
        for layer in self._decoder:
            hidden_NLH = layer(hidden_NLH, bias_1ALL, encoded_BTH, cross_B11T, dropout)
        return self._logits(hidden_NLH, dropout).view(num_rows, num_candidates, length, -1)

    def step(self, encoded_BTH: Tensor, mask_BT: Tensor, last_B: Tensor, state: DecoderState) -> Tensor:
        """Return logits_BV of the next token, after one more token; `state` grows by it. Call in eval mode."""
        first: Any = self._model.decoder.block[0]
        seen = state.keys[0].shape[2] if state.keys else 0
        bias_1A1L = first.layer[0].SelfAttention.compute_bias(1, seen + 1, past_seen_tokens=seen)
        cross_B11T = _mask_bias(mask_BT, encoded_BTH.dtype)
        hidden_B1H = self._model.shared(last_B[:, None])
        for index, layer in enumerate(self._decoder):
            hidden_B1H = layer(hidden_B1H, bias_1A1L, encoded_BTH, cross_B11T, 0.0, grown=_grow(state, index))
        return self._logits(hidden_B1H, 0.0)[:, 0]

    def _encoder_bias(self, inputs_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        tokens = inputs_BTH.shape[1]
        first: Any = self._model.encoder.block[0]
        bias_1ATT: Tensor = first.layer[0].SelfAttention.compute_bias(tokens, tokens)
        mask_B11T = _mask_bias(mask_BT, bias_1ATT.dtype)
        return bias_1ATT if mask_B11T is None else bias_1ATT + mask_B11T

    def _logits(self, hidden_NLH: Tensor, dropout: float) -> Tensor:
        hidden_NLH = _drop(_norm(self._model.decoder.final_layer_norm, hidden_NLH), dropout)
        logits_NLV: Tensor = self._model.lm_head(hidden_NLH * self._scale)
        return logits_NLV

    def _dropout(self) -> float:
        model: Any = self._model
        return float(model.encoder.dropout.p) if model.training else 0.0


Grown = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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


class _SelfAttention:
    def __init__(self, layer: Any, config: Any) -> None:
        attention = layer.SelfAttention
        self._norm, self._out = layer.layer_norm, attention.o.weight
        self._qkv = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]).detach()
        self._heads, self._head_width = config.num_heads, config.d_kv

    def __call__(
        self, hidden_BTH: Tensor, bias_BATT: Tensor, dropout: float, grown: Grown | None = None
    ) -> Tensor:
        rows, tokens, _ = hidden_BTH.shape
        mixed_BTX = F.linear(_norm(self._norm, hidden_BTH), self._qkv)
        query_BATD, key_BATD, value_BATD = mixed_BTX.view(
            rows, tokens, 3, self._heads, self._head_width
        ).permute(2, 0, 3, 1, 4)
        if grown is not None:
            key_BATD, value_BATD = grown(key_BATD, value_BATD)
        found_BATD = F.scaled_dot_product_attention(
            query_BATD, key_BATD, value_BATD, attn_mask=bias_BATT, dropout_p=dropout, scale=1.0
        )
        found_BTX = found_BATD.transpose(1, 2).reshape(rows, tokens, -1)
        return hidden_BTH + _drop(F.linear(found_BTX, self._out), dropout)


class _CrossAttention:
    def __init__(self, layer: Any, config: Any) -> None:
        attention = layer.EncDecAttention
        self._norm, self._attention = layer.layer_norm, attention
        self._heads, self._head_width = config.num_heads, config.d_kv

    def __call__(
        self, hidden_NLH: Tensor, encoded_BTH: Tensor, bias_B11T: Tensor | None, dropout: float
    ) -> Tensor:
        attention, heads = self._attention, self._heads
        num_rows, _, width = encoded_BTH.shape
        query_NLX = attention.q(_norm(self._norm, hidden_NLH))
        # All candidates of a row ask in one product: Q = C * L.
        query_BAQD = query_NLX.view(num_rows, -1, heads, self._head_width).transpose(1, 2)
        key_ADH, value_ADH = (
            part.weight.view(heads, self._head_width, width) for part in (attention.k, attention.v)
        )
        queries = query_BAQD.shape[2]
        if queries <= self._head_width // 2:
            asked_BZH = (query_BAQD @ key_ADH).reshape(num_rows, -1, width)  # Z = A * Q
            scores_BZT = asked_BZH @ encoded_BTH.mT
            weights_BZT = _softmax(scores_BZT, None if bias_B11T is None else bias_B11T[:, 0], dropout)
            found_BAQH = (weights_BZT @ encoded_BTH).view(num_rows, heads, queries, width)
            found_BAQD = found_BAQH @ value_ADH.mT
        else:
            key_BATD = (encoded_BTH[:, None] @ key_ADH.mT).to(query_BAQD.dtype)
            value_BATD = encoded_BTH[:, None] @ value_ADH.mT
            found_BAQD = F.scaled_dot_product_attention(
                query_BAQD, key_BATD, value_BATD, attn_mask=bias_B11T, dropout_p=dropout, scale=1.0
            )
        found_NLX = found_BAQD.transpose(1, 2).reshape(query_NLX.shape)
        return hidden_NLH + _drop(attention.o(found_NLX), dropout)


class _FeedForward:
    def __init__(self, layer: Any, config: Any) -> None:
        self._norm, self._dense = layer.layer_norm, layer.DenseReluDense
        self._gated, self._activation = config.is_gated_act, ACT2FN[config.dense_act_fn]

    def __call__(self, hidden_BTH: Tensor, dropout: float) -> Tensor:
        dense = self._dense
        normed_BTH = _norm(self._norm, hidden_BTH)
        if self._gated:
            inner_BTF = self._activation(dense.wi_0(normed_BTH)) * dense.wi_1(normed_BTH)
        else:
            inner_BTF = self._activation(dense.wi(normed_BTH))
        return hidden_BTH + _drop(dense.wo(_drop(inner_BTF, dropout)), dropout)


class _EncoderLayer:
    def __init__(self, block: nn.Module, config: Any) -> None:
        layers: Any = block.layer
        self._attention, self._feed_forward = (
            _SelfAttention(layers[0], config),
            _FeedForward(layers[1], config),
        )

    def __call__(self, hidden_BTH: Tensor, bias_BATT: Tensor, dropout: float) -> Tensor:
        return self._feed_forward(self._attention(hidden_BTH, bias_BATT, dropout), dropout)


class _DecoderLayer:
    def __init__(self, block: nn.Module, config: Any) -> None:
        layers: Any = block.layer
        self._attention = _SelfAttention(layers[0], config)
        self._cross = _CrossAttention(layers[1], config)
        self._feed_forward = _FeedForward(layers[2], config)

    def __call__(
        self,
        hidden_NLH: Tensor,
        bias_1ALL: Tensor,
        encoded_BTH: Tensor,
        cross_B11T: Tensor | None,
        dropout: float,
        grown: Grown | None = None,
    ) -> Tensor:
        hidden_NLH = self._attention(hidden_NLH, bias_1ALL, dropout, grown)
        hidden_NLH = self._cross(hidden_NLH, encoded_BTH, cross_B11T, dropout)
        return self._feed_forward(hidden_NLH, dropout)


def _norm(layer: Any, hidden_BTH: Tensor) -> Tensor:
    return F.rms_norm(hidden_BTH, layer.weight.shape, layer.weight, layer.variance_epsilon)


def _drop(tensor: Tensor, dropout: float) -> Tensor:
    return F.dropout(tensor, dropout) if dropout else tensor


def _mask_bias(mask_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to scores, [B, 1, 1, T]: 0 on real tokens; None where all are real."""
    if bool(mask_BT.all()):
        return None
    bias_BT = torch.zeros(mask_BT.shape, dtype=dtype, device=mask_BT.device)
    return bias_BT.masked_fill(~mask_BT, torch.finfo(dtype).min)[:, None, None]


def _softmax(scores_BZT: Tensor, bias_B1T: Tensor | None, dropout: float) -> Tensor:
    """Softmax in float32 over the input tokens."""
    masked_BZT = scores_BZT.float() if bias_B1T is None else scores_BZT.float() + bias_B1T
    return _drop(masked_BZT.softmax(dim=-1), dropout).to(scores_BZT.dtype)
