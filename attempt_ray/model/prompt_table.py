"""Prompts and Gs of the bank on the device: rows of one table, from which any batch is mixed.

Everything a version holds is made of vectors of the model width, so one table [X, H] has room for all of it, whatever the
lengths of prompts and the bottlenecks of Gs: a prompt takes its P positions and one row for its key, the maximum over
them (paper section 3.2); G takes the R rows of its down projection, the R columns of its up projection, the gain and bias
of its LayerNorm and its centre. What has not been used for longest gives way. Versions never change, so a reference with
its number is all the key there needs to be.

Shapes besides those of the package: X rows of the table, M rows of the batch that are mixed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - as everyone writes it

from attempt_ray.bank.manifest import Manifest, MixtureRecord
from attempt_ray.bank.names import Reference
from attempt_ray.bank.store import Bank
from attempt_ray.bank.versions import Loaded
from attempt_ray.data.encoding import IntArray
from attempt_ray.errors import BankError, ConfigError
from attempt_ray.model.attention import NORM_EPS, join_padding, pool_tokens, score_keys
from attempt_ray.model.backbone import Backbone
from attempt_ray.model.mixture import TARGET
from attempt_ray.model.published import backbone_record

_FIRST_ROWS = 1024
"""Rows that the table starts with; it doubles up to its limit."""
_MOST_AT_ONCE = 64
"""Gs whose weights are gathered at a time: more would hold a copy of every G of the batch at once."""
_VECTORS = 3
"""Rows of a G besides its projections: gain, bias and centre."""


@dataclass(frozen=True, eq=False)
class Resident:
    """A version in the table."""

    reference: str
    """The version, with its number."""
    rows_X: IntArray
    """Where its rows lie."""
    manifest: Manifest
    """What it says about itself."""

    @property
    def length(self) -> int:
        """Positions P of a prompt."""
        return len(self.rows_X) - 1

    @property
    def bottleneck(self) -> int:
        """Bottleneck R of a G."""
        return (len(self.rows_X) - _VECTORS) // 2

    @property
    def mixture(self) -> MixtureRecord | None:
        """How the prompt is mixed; None for one that is used alone."""
        return self.manifest.mixture

    @cached_property
    def candidates(self) -> tuple[str, ...]:
        """Names of the mixing weights: the sources in order, then `target` where it takes part."""
        if self.mixture is None:
            return ()
        names = tuple(Reference.parse(source).name for source in self.mixture.sources)
        return (*names, TARGET) if self.mixture.target == "trained" else names


class PromptTable:
    """The versions in use, loaded from the bank when they are first asked for.

    Attributes:
        lock: To be held from `hold` until the rows that were held have been mixed.
    """

    def __init__(self, bank: Bank, backbone: Backbone, *, max_bytes: int) -> None:
        """Start empty.

        Args:
            bank: Where versions come from.
            backbone: What they must have been made for.
            max_bytes: Most bytes of the table, on the backbone's device, in float32.
        """
        self._bank = bank
        self._backbone = backbone
        self._made_for = backbone_record(backbone)
        self._row_bytes = 4 * backbone.width
        self._max_rows = max_bytes // self._row_bytes
        self._table_XH = torch.empty(0, backbone.width, device=backbone.device)
        self._free: list[int] = []
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self.lock = threading.RLock()

    def __contains__(self, reference: str) -> bool:
        return reference in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def used_bytes(self) -> int:
        """Bytes of all versions in the table."""
        with self.lock:
            return self._row_bytes * (len(self._table_XH) - len(self._free))

    def length(self, reference: str) -> int:
        """Return the positions P of a prompt; 0 for one that is not in the table."""
        resident = self._residents.get(reference)
        return 0 if resident is None else resident.length

    def load(self, reference: str) -> Resident:
        """Load a prompt and all that its mixture needs, ahead of the first row that asks for it, and return it.

        Files are read without the lock, so rows under way do not wait for them.

        Raises:
            As `hold`.
        """
        with self.lock:
            known = dict(self._residents)
        # With nothing to keep, there is room or an error.
        return cast("Resident", self.hold(reference, keep=set(), read=self._absent(reference, known)))

    def hold(
        self, reference: str, *, keep: set[str], read: Mapping[str, Loaded] = MappingProxyType({})
    ) -> Resident | None:
        """Return a prompt, loaded with all that its mixture needs; None where there is no room beside `keep`.

        Args:
            reference: A source or target prompt, with its number.
            keep: Versions that must stay; what was held joins them.
            read: Versions that were read already.

        Raises:
            BankError: It is not in the bank, not whole, a G, or its mixture does not fit together.
            BackboneError: It, a source or its G was made for another backbone.
            StorageError: The disk or store refused.
            ConfigError: It alone exceeds the table.
        """
        with self.lock:
            fresh = self._absent(reference, self._residents, read)
            manifest = (
                fresh[reference].manifest if reference in fresh else self._residents[reference].manifest
            )
            needed = {reference, *_parts(manifest)}
            if not self._make_room(reference, needed=needed, fresh=fresh, keep=keep):
                return None
            for name, loaded in fresh.items():
                self._place(name, loaded)
            for name in needed:
                self._residents.move_to_end(name)
            keep |= needed
            return self._residents[reference]

    def mix(
        self, residents: Sequence[Resident], embedded_BTH: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, list[list[float] | None]]:
        """Return prompts_BPH and the K mixing weights behind each row; None where nothing is mixed.

        Paper equations 1 to 4, as `PromptMixture` computes them for one set of sources and one G: here each row has its
        own. Rows with the same sources are mixed in one product, and Gs are applied as one batched product.

        Args:
            residents: The prompt of each row, all held and of one length.
            embedded_BTH: Raw token embeddings of the rows.
            mask_BT: True on real tokens.
        """
        prompts_BPH = self._rows(np.stack([one.rows_X[:-1] for one in residents]))
        weights: list[list[float] | None] = [None] * len(residents)
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for row, one in enumerate(residents):
            if one.mixture is not None:
                groups[one.mixture.sources, one.mixture.weights, one.mixture.target].append(row)
        if not groups:
            return prompts_BPH, weights
        queries_BH = self._queries(residents, embedded_BTH, mask_BT)
        for rows in groups.values():
            chosen = [residents[row] for row in rows]
            sources = [self._residents[name] for name in _record(chosen[0]).sources]
            sources_SPH = self._rows(np.stack([source.rows_X[:-1] for source in sources]))
            weights_MK = self._weights(chosen, sources, queries_BH[rows])
            # sum over sources + (1 + a_target) P_target, so that no M x K x P x H tensor exists.
            mixed_MPH = (weights_MK[:, : len(sources)] @ sources_SPH.flatten(1)).unflatten(
                1, prompts_BPH.shape[1:]
            )
            if _record(chosen[0]).target == "trained":
                share_M = 1 + weights_MK[:, len(sources)]
                mixed_MPH = mixed_MPH + share_M[:, None, None] * prompts_BPH[rows]
            prompts_BPH[rows] = mixed_MPH
            for row, shares in zip(rows, weights_MK.tolist(), strict=True):
                weights[row] = shares
        return prompts_BPH, weights

    def _weights(self, chosen: Sequence[Resident], sources: Sequence[Resident], query_MH: Tensor) -> Tensor:
        """Return weights_MK of rows with the same sources."""
        first = _record(chosen[0])
        with_target = first.target == "trained"
        if first.weights == "learned":
            keys_SH = self._rows(np.array([source.rows_X[-1] for source in sources]))
            target_keys_MH = self._rows(np.array([one.rows_X[-1] for one in chosen])) if with_target else None
            divisor_M = query_MH.new_tensor([_record(one).divisor for one in chosen])
            return (score_keys(query_MH, keys_SH, target_keys_MH) / divisor_M[:, None]).softmax(dim=-1)
        weights_MK = query_MH.new_zeros(len(chosen), len(sources) + with_target)
        weighed = weights_MK.shape[1] if first.weights == "uniform" else len(sources)
        weights_MK[:, :weighed] = 1 / weighed
        return weights_MK

    def _queries(self, residents: Sequence[Resident], embedded_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Return queries_BH: what G makes of each row's pooled input; zero for rows without a G (paper equation 1)."""
        pooled_BH = self._pooled(residents, embedded_BTH, mask_BT)
        queries_BH = torch.zeros_like(pooled_BH)
        rows_by_attention: dict[str, list[int]] = defaultdict(list)
        for row, one in enumerate(residents):
            if one.mixture is not None and one.mixture.attention is not None:
                rows_by_attention[one.mixture.attention].append(row)
        # Gs with as many rows each make one product without padding.
        alike: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, rows in rows_by_attention.items():
            alike[self._residents[name].bottleneck, len(rows)].append(name)
        for (bottleneck, _), names in alike.items():
            for start in range(0, len(names), _MOST_AT_ONCE):
                some = names[start : start + _MOST_AT_ONCE]
                rows_GM = torch.tensor([rows_by_attention[name] for name in some], device=pooled_BH.device)
                weights_GXH = self._rows(np.stack([self._residents[name].rows_X for name in some]))
                queries_BH[rows_GM] = _apply(weights_GXH, pooled_BH[rows_GM], bottleneck=bottleneck)
        return queries_BH

    def _pooled(self, residents: Sequence[Resident], embedded_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        pooled_BH = pool_tokens(embedded_BTH, mask_BT)
        widths = [
            one.mixture.authors_width if one.mixture is not None and one.mixture.pooling == "authors" else 0
            for one in residents
        ]
        if not any(widths):
            return pooled_BH
        padded_B = mask_BT.sum(dim=1) < torch.tensor(widths, device=mask_BT.device)
        return join_padding(pooled_BH, self._backbone.pad_embedding_H, padded_B=padded_B)

    def _absent(
        self,
        reference: str,
        known: Mapping[str, Resident],
        read: Mapping[str, Loaded] = MappingProxyType({}),
    ) -> dict[str, Loaded]:
        """Return a prompt and the parts of its mixture that are not among `known`, each checked."""

        def manifest_of(name: str) -> Manifest:
            if name not in known and name not in fresh:
                fresh[name] = read.get(name) or self._read(name)
            return fresh[name].manifest if name in fresh else known[name].manifest

        fresh: dict[str, Loaded] = {}
        manifest = manifest_of(reference)
        if manifest.kind == "attention":
            raise BankError(f"{reference} is a G, which answers nothing alone; name a prompt")
        parts = {name: manifest_of(name) for name in _parts(manifest)}
        if reference in fresh:
            _check_mixture(manifest, parts)
        return fresh

    def _read(self, reference: str) -> Loaded:
        loaded = self._bank.load(reference)
        loaded.manifest.check_backbone(self._made_for)
        return loaded

    def _make_room(
        self, reference: str, *, needed: set[str], fresh: dict[str, Loaded], keep: set[str]
    ) -> bool:
        """Evict what has not been used for longest until `fresh` fits; whether it does."""
        if not fresh:
            return True
        rows = sum(_row_count(loaded.manifest) for loaded in fresh.values())
        resident = sum(len(self._residents[name].rows_X) for name in needed - fresh.keys())
        if rows + resident > self._max_rows:
            raise ConfigError(
                f"{reference} and what it is mixed with take {(rows + resident) * self._row_bytes:,} bytes; the table of"
                f" prompts has {self._max_rows * self._row_bytes:,}; raise serving.prompt_bytes"
            )
        taken = len(self._table_XH) - len(self._free)
        excess = taken + rows - self._max_rows
        victims: list[str] = []
        for name, one in self._residents.items():
            if excess <= 0:
                break
            if name not in keep and name not in needed:
                victims.append(name)
                excess -= len(one.rows_X)
        if excess > 0:
            return False
        for name in victims:
            self._free += self._residents.pop(name).rows_X.tolist()
        self._grow(rows)
        return True

    def _grow(self, rows: int) -> None:
        """Enlarge the table until `rows` are free."""
        size = len(self._table_XH)
        lacking = rows - len(self._free)
        if lacking <= 0:
            return
        wanted = min(self._max_rows, max(size + lacking, 2 * size, _FIRST_ROWS))
        larger_XH = self._table_XH.new_empty(wanted, self._table_XH.shape[1])
        larger_XH[:size] = self._table_XH
        self._table_XH = larger_XH
        self._free += range(size, wanted)

    def _place(self, reference: str, loaded: Loaded) -> None:
        content_XH = _content(loaded)
        rows_X = np.array(self._free[-len(content_XH) :], dtype=np.int64)
        del self._free[-len(content_XH) :]
        self._table_XH[torch.from_numpy(rows_X)] = content_XH.to(self._table_XH.device)
        self._residents[reference] = Resident(reference, rows_X, loaded.manifest)

    def _rows(self, rows: IntArray) -> Tensor:
        return F.embedding(torch.from_numpy(rows).to(self._table_XH.device), self._table_XH)


def _apply(weights_GXH: Tensor, pooled_GMH: Tensor, *, bottleneck: int) -> Tensor:
    """Return queries_GMH of several Gs, each for M rows: LayerNorm(W_up SiLU(W_down (X_pooled - centre)))."""
    down_GRH, up_GRH, vectors_GVH = weights_GXH.split([bottleneck, bottleneck, _VECTORS], dim=1)
    gain_G1H, bias_G1H, center_G1H = vectors_GVH.split(1, dim=1)
    hidden_GMR = F.silu((pooled_GMH - center_G1H) @ down_GRH.mT)
    normed_GMH = F.layer_norm(hidden_GMR @ up_GRH, pooled_GMH.shape[-1:], eps=NORM_EPS)
    queries_GMH: Tensor = normed_GMH * gain_G1H + bias_G1H
    return queries_GMH


def _content(loaded: Loaded) -> Tensor:
    """Return what a version holds as rows of the table."""
    tensors = {name: torch.from_numpy(array) for name, array in loaded.tensors.items()}
    if loaded.version.kind != "attention":
        prompt_PH = tensors["prompt"]
        return torch.cat([prompt_PH, prompt_PH.amax(dim=0, keepdim=True)])
    gain_H = tensors["norm.weight"]
    center_H = tensors.get("center_H", torch.zeros_like(gain_H))
    vectors_VH = torch.stack([gain_H, tensors["norm.bias"], center_H])
    return torch.cat([tensors["down.weight"], tensors["up.weight"].T, vectors_VH])


def _row_count(manifest: Manifest) -> int:
    if manifest.kind == "attention":
        return 2 * manifest.tensors["down.weight"].shape[0] + _VECTORS
    return manifest.tensors["prompt"].shape[0] + 1


def _record(resident: Resident) -> MixtureRecord:
    assert resident.mixture is not None  # noqa: S101 - rows without one are not in any group
    return resident.mixture


def _parts(manifest: Manifest) -> tuple[str, ...]:
    """Return the versions that a prompt is mixed with, its G last."""
    if manifest.mixture is None:
        return ()
    attention = manifest.mixture.attention
    return (*manifest.mixture.sources, *(() if attention is None else (attention,)))


def _check_mixture(manifest: Manifest, parts: Mapping[str, Manifest]) -> None:
    """Check that sources are prompts of the target's length, and G a G.

    Raises:
        BankError: The mixture does not fit together.
    """
    record = manifest.mixture
    if record is None:
        return
    if not record.sources or (record.weights == "learned" and record.attention is None):
        raise BankError(
            f"{manifest.reference} says of its mixture: {len(record.sources)} sources, weights '{record.weights}', G"
            f" {record.attention}; wanted a source, and a G where weights are learned; train it anew"
        )
    if record.attention is not None and parts[record.attention].kind != "attention":
        raise BankError(
            f"{manifest.reference} names {record.attention} as its G, which is a prompt; train it anew"
        )
    length = manifest.tensors["prompt"].shape[0]
    for name in record.sources:
        if parts[name].kind == "attention":
            raise BankError(f"{manifest.reference} names {name} as a source, which is a G; train it anew")
        if parts[name].tensors["prompt"].shape[0] != length:
            raise BankError(
                f"{manifest.reference} has {length} positions, its source {name} has"
                f" {parts[name].tensors['prompt'].shape[0]}; mix prompts of one length; train it anew"
            )
