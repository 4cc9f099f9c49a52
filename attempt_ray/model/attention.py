"""Instance-wise attention over soft prompts: module G of ATTEMPT.

Source: Asai et al. (2022), section 3.2, equations 1 to 3; constants the paper leaves open are those of the authors'
code (https://github.com/AkariAsai/ATTEMPT).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from attempt_ray.errors import ConfigError

INIT_STD = 0.01
"""Standard deviation that both projections start with (authors' code)."""

NORM_EPS = 1e-5
"""Added to LayerNorm's variance (authors' code: torch's default)."""


class PromptAttention(nn.Module):
    """Weigh every candidate prompt for every input.

    Trains 2*H*R + 2*H numbers: 155,136 for T5-base with a bottleneck of 100.

    Attributes:
        divisor: What scores are divided by before the softmax; see `temperature_divisor` and `auto_divisor`.
        center_H: What pooled inputs are lessened by; a part of G's state, though nothing trains it.
    """

    center_H: Tensor | None

    def __init__(
        self,
        width: int,
        *,
        bottleneck: int,
        divisor: float,
        pooling: Literal["masked", "authors"] = "masked",
        train_norm: bool = True,
        pad_embedding_H: Tensor | None = None,
        authors_width: int = 256,
        center_H: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Start both projections at N(0, INIT_STD**2) and LayerNorm at the identity.

        Args:
            width: Model width H.
            bottleneck: Width R of the bottleneck.
            divisor: Positive number that scores are divided by.
            pooling: Max-pool the input over its real tokens, or as the authors' code does over the padded width.
            train_norm: Train LayerNorm's gain and bias, as the paper counts; the authors' code freezes them.
            pad_embedding_H: Embedding of the padding token, needed by `pooling="authors"`.
            authors_width: Padded width that `pooling="authors"` reproduces, in tokens.
            center_H: Mean of pooled inputs, to be taken off each; None takes off nothing, as the paper.
            generator: CPU generator behind the starting values.

        Raises:
            ConfigError: `pooling="authors"` without the padding token's embedding.
        """
        super().__init__()
        if pooling == "authors" and pad_embedding_H is None:
            raise ConfigError(
                "pooling 'authors' got no padding embedding; pass the backbone's pad_embedding_H"
            )
        self.divisor = divisor
        self.pooling = pooling
        self.authors_width = authors_width
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.norm.requires_grad_(train_norm)
        nn.init.normal_(self.down.weight, std=INIT_STD, generator=generator)
        nn.init.normal_(self.up.weight, std=INIT_STD, generator=generator)
        self.register_buffer("pad_embedding_H", pad_embedding_H, persistent=False)
        self.register_buffer("center_H", center_H)

    def pool(self, embedded_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Return the float32 pooled input_BH: the maximum over tokens, dimension by dimension.

        The authors' code pools over the padded width, so there padding takes part in every row shorter than it. With
        `pooling="authors"` the padding token's embedding joins the maximum of exactly those rows; no padded input is
        computed. With `"masked"` a row's result does not depend on its neighbours.
        """
        pooled_BH = pool_tokens(embedded_BTH, mask_BT)
        if self.pooling == "masked":
            return pooled_BH
        padded_B = mask_BT.sum(dim=1) < self.authors_width
        return join_padding(pooled_BH, self.get_buffer("pad_embedding_H"), padded_B=padded_B)

    def forward(
        self, embedded_BTH: Tensor, mask_BT: Tensor, keys_SH: Tensor, target_keys_BH: Tensor | None
    ) -> Tensor:
        """Return mixing weights_BK in float32: rows are positive and sum to 1 (paper equations 1 to 3).

        h = LayerNorm(W_up SiLU(W_down X_pooled)); score_j = P_pooled_j . h / divisor; weights = softmax(scores).

        Args:
            embedded_BTH: Raw token embeddings, before any prompt is prepended.
            mask_BT: True on real tokens; every row has at least one.
            keys_SH: Source prompts max-pooled over their positions.
            target_keys_BH: Each row's target prompt, pooled likewise; None leaves the target out, and K is S.
        """
        return self.scores(embedded_BTH, mask_BT, keys_SH, target_keys_BH).softmax(dim=-1)

    def scores(
        self, embedded_BTH: Tensor, mask_BT: Tensor, keys_SH: Tensor, target_keys_BH: Tensor | None
    ) -> Tensor:
        """Return the scores_BK under the softmax, already divided.

        With LayerNorm at the identity, |score_j| is at most H / divisor times the standard deviation of key j.
        """
        pooled_BH = self.pool(embedded_BTH, mask_BT)
        if self.center_H is not None:
            pooled_BH = pooled_BH - self.center_H
        query_BH: Tensor = self.norm(self.up(nn.functional.silu(self.down(pooled_BH))))
        return score_keys(query_BH, keys_SH, target_keys_BH) / self.divisor


def score_keys(query_BH: Tensor, keys_SH: Tensor, target_keys_BH: Tensor | None) -> Tensor:
    """Return the undivided scores_BK of the pooled candidates (paper equation 2); without target keys, K is S."""
    scores_BK = query_BH @ keys_SH.T
    if target_keys_BH is None:
        return scores_BK
    return torch.cat([scores_BK, (query_BH * target_keys_BH).sum(dim=-1, keepdim=True)], dim=-1)


def join_padding(pooled_BH: Tensor, pad_embedding_H: Tensor, *, padded_B: Tensor) -> Tensor:
    """Return pooled_BH with the padding token in the maximum of the rows that `padded_B` marks (authors' code)."""
    return torch.where(padded_B[:, None], torch.maximum(pooled_BH, pad_embedding_H.float()), pooled_BH)


def pool_tokens(embedded_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the float32 maximum_BH over each row's real tokens, dimension by dimension (paper section 3.2)."""
    return embedded_BTH.masked_fill(~mask_BT[..., None], -torch.inf).amax(dim=1).float()


def temperature_divisor(width: int, *, temperature: float) -> float:
    """Return width * e^temperature: 2087.6 for T5-base at the paper's K = 1 (section 3.2; authors' code: 2087)."""
    return width * math.exp(temperature)


def auto_divisor(keys_SH: Tensor, *, auto_logit: float) -> float:
    """Return width * mean spread of the keys / auto_logit, which bounds a typical score by `auto_logit`.

    How sharp G can be depends on the spread of the pooled prompts alone, which differs by an order of magnitude
    between prompts that started from noise and from vocabulary rows. Ours; not in the paper.

    Raises:
        ConfigError: The keys have no spread.
    """
    spread = spread_of(keys_SH).mean().item()
    if not spread > 0:
        raise ConfigError(
            "attention.temperature 'auto' needs source prompts that vary over the model width; "
            "set attention.temperature=1.0 or train the sources first"
        )
    return keys_SH.shape[-1] * spread / auto_logit


def spread_of(keys_SH: Tensor) -> Tensor:
    """Return spread_S: the standard deviation of each pooled prompt over the model width."""
    return keys_SH.std(dim=-1, correction=0)
