"""From encoded splits to batches: bucketed by length, mixed over tasks, a pure function of (seed, step).

Rows of one task whose padded width is equal form a bucket. An epoch deals the rows of every bucket in a seeded order,
lines the buckets of each task up by width, interleaves the tasks in proportion to their rows, cuts the line into
batches and shuffles those. So a batch holds rows of like length, each task in its share (paper, section 4.3: uniform
over the concatenated data sets), and the cuts are the same in every epoch: a run meets few distinct shapes, and
the epoch of a step follows from its number alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attempt_ray.data.encoding import EncodedSplit, IntArray
from attempt_ray.errors import DataError

Mixing = Literal["concatenate", "temperature"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one or several tasks, padded to a common width."""

    input_ids_BT: Tensor
    """Input token ids, task prefix and `</s>` included, padded on the right; int64."""
    mask_BT: Tensor
    """True on real tokens; bool."""
    labels_BL: Tensor
    """Target token ids, padded on the right with -100; int64."""
    task_B: Tensor
    """Index of each row's task in the run's task list; int64."""
    row_B: Tensor
    """Row number inside its task's split; int64."""

    def __len__(self) -> int:
        return len(self.row_B)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(
            input_ids_BT=self.input_ids_BT.to(device),
            mask_BT=self.mask_BT.to(device),
            labels_BL=self.labels_BL.to(device),
            task_B=self.task_B.to(device),
            row_B=self.row_B.to(device),
        )


@dataclass(frozen=True, eq=False)
class _Bucket:
    """Rows of one task and padded width."""

    rows: IntArray
    """Row numbers inside the task's split."""
    draws: int
    """How many of them an epoch deals; more than there are deals some again."""


class BatchStream:
    """The endless, seeded stream of training batches of one or several tasks.

    `batch(step)` depends on the constructor's arguments and `step` alone, in whatever order steps are asked for. The
    plan of one epoch is kept, so that steps in order cost a gather each.

    Attributes:
        steps_per_epoch: Batches in an epoch.
        rows_per_epoch: Rows in an epoch: all of them, each once, under `concatenate`.
        digest: SHA-256 of everything the stream depends on.
    """

    def __init__(
        self,
        splits: Sequence[EncodedSplit],
        *,
        seed: int,
        rows: int,
        tokens: int | None = None,
        mixing: Mixing = "concatenate",
        mixing_temperature: float = 2.0,
        pad_id: int = 0,
    ) -> None:
        """Plan the stream; costs one pass over the lengths.

        Args:
            splits: Training split of every task, in the run's task order.
            seed: Seed of the order.
            rows: Rows per batch over all tasks; an epoch's last batch may hold fewer.
            tokens: Most input tokens per batch, padding counted; replaces `rows`. A row that alone exceeds it makes
                a batch of one.
            mixing: `concatenate` deals every row once per epoch; `temperature` deals tasks in proportion to
                rows ** (1 / mixing_temperature) and each task's rows equally often.
            mixing_temperature: See `mixing`; 1 is proportional to size.
            pad_id: Token id of padding.

        Raises:
            DataError: There is no split.
        """
        if not splits:
            raise DataError("a batch stream got no split; give it the training split of at least one task")
        self._splits = tuple(splits)
        self._seed = seed % 2**64
        self._pad_id = pad_id
        sizes = np.array([len(split) for split in splits], dtype=np.float64)
        shares = sizes if mixing == "concatenate" else sizes ** (1 / mixing_temperature)
        deals_per_row = shares / shares.sum() * sizes.sum() / sizes
        self._buckets: list[_Bucket] = []
        tasks, quantiles, widths = [], [], []
        for index, (split, deals) in enumerate(zip(splits, deals_per_row, strict=True)):
            buckets = _buckets(split.lengths, deals)
            draws = [bucket.draws for _, bucket in buckets]
            self._buckets += [bucket for _, bucket in buckets]
            tasks.append(np.full(sum(draws), index))
            quantiles.append((np.arange(sum(draws)) + 0.5) / sum(draws))
            widths.append(np.repeat([width for width, _ in buckets], draws))
        # Place in line of each deal, the deals listed task by task and bucket by bucket.
        self._line = np.argsort(np.concatenate(quantiles), kind="stable")
        self._task_in_line = np.concatenate(tasks)[self._line]
        width_in_line = np.concatenate(widths)[self._line]
        self._cuts = _cuts_by_rows(len(self._line), rows) if tokens is None else _cuts(width_in_line, tokens)
        self.rows_per_epoch = len(self._line)
        self.steps_per_epoch = len(self._cuts) - 1
        self._settings = [seed, rows, tokens, mixing, mixing_temperature, pad_id]
        self._epoch: int | None = None
        self._plan: tuple[IntArray, IntArray]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything the stream depends on."""
        content = [[split.task.name, split.digest] for split in self._splits]
        return hashlib.sha256(json.dumps([content, self._settings]).encode()).hexdigest()

    def batch(self, step: int) -> Batch:
        """Return the batch of optimizer step `step`, counted from 0."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        rows, order = self._planned(epoch)
        place = slice(self._cuts[order[turn]], self._cuts[order[turn] + 1])
        return _collated(self._splits, self._task_in_line[place], rows[place], pad_id=self._pad_id)

    def _planned(self, epoch: int) -> tuple[IntArray, IntArray]:
        """Return an epoch's rows, in line, and the order of its batches."""
        if epoch != self._epoch:
            dealt = [self._dealt(number, epoch) for number in range(len(self._buckets))]
            order = np.random.default_rng((self._seed, 1, epoch)).permutation(self.steps_per_epoch)
            self._plan = (np.concatenate(dealt)[self._line], order)
            self._epoch = epoch
        return self._plan

    def _dealt(self, number: int, epoch: int) -> IntArray:
        """Return an epoch's share of a bucket's endless stream of permutations."""
        bucket = self._buckets[number]
        first, start = divmod(epoch * bucket.draws, len(bucket.rows))
        last = (start + bucket.draws - 1) // len(bucket.rows)
        passes = [
            np.random.default_rng((self._seed, 0, number, first + more)).permutation(bucket.rows)
            for more in range(last + 1)
        ]
        return np.concatenate(passes)[start : start + bucket.draws]


def evaluation_batches(
    split: EncodedSplit,
    *,
    rows: int,
    task_index: int,
    tokens: int | None = None,
    pad_id: int = 0,
    first: int | None = None,
) -> Iterator[Batch]:
    """Yield every row of a split once, longest first, so that memory runs out at the start or not at all.

    Args:
        split: The split.
        rows: Rows per batch.
        task_index: Index of its task in the run's task list.
        tokens: Most input tokens per batch, padding counted; replaces `rows`. A row that alone exceeds it makes a batch
            of one.
        pad_id: Token id of padding.
        first: Leave out all rows but the split's first so many.
    """
    order = np.argsort(-split.lengths[:first], kind="stable")
    widths = padded_widths(split.lengths[order])
    cuts = _cuts_by_rows(len(order), rows) if tokens is None else _cuts(widths, tokens)
    for start, end in pairwise(cuts):
        chosen = order[start:end]
        yield _collated({task_index: split}, np.full(len(chosen), task_index), chosen, pad_id=pad_id)


def padded_widths(lengths: IntArray) -> IntArray:
    """Return lengths rounded up to few distinct widths: multiples of 8 up to 64, of 32 above."""
    grid = np.where(lengths <= 64, 8, 32)
    return -(-lengths // grid) * grid


def _buckets(lengths: IntArray, deals_per_row: float) -> list[tuple[int, _Bucket]]:
    """Return the buckets of a split with their widths, narrowest first."""
    widths = padded_widths(lengths)
    order = np.argsort(widths, kind="stable")
    distinct, starts = np.unique(widths[order], return_index=True)
    return [
        (int(width), _Bucket(rows=rows, draws=max(1, round(deals_per_row * len(rows)))))
        for width, rows in zip(distinct, np.split(order, starts[1:]), strict=True)
    ]


def _cuts_by_rows(count: int, rows: int) -> IntArray:
    return np.append(np.arange(0, count, rows), count)


def _cuts(widths: IntArray, tokens: int) -> IntArray:
    """Return batch boundaries such that rows times the widest of them stays within `tokens`."""
    most_rows = max(1, tokens // int(widths.min()))
    cuts = [0]
    while cuts[-1] < len(widths):
        ahead = np.maximum.accumulate(widths[cuts[-1] : cuts[-1] + most_rows])
        fitting = np.count_nonzero(ahead * np.arange(1, len(ahead) + 1) <= tokens)
        cuts.append(cuts[-1] + max(1, int(fitting)))
    return np.array(cuts)


def _collated(
    splits: Sequence[EncodedSplit] | dict[int, EncodedSplit], tasks: IntArray, rows: IntArray, *, pad_id: int
) -> Batch:
    present = [(int(index), np.flatnonzero(tasks == index)) for index in np.unique(tasks)]
    longest = max(int(splits[index].lengths[rows[places]].max()) for index, places in present)
    width = int(padded_widths(np.array([longest]))[0])
    label_width = max(int(splits[index].label_lengths[rows[places]].max()) for index, places in present)
    input_ids = np.empty((len(rows), width), dtype=np.int64)
    labels = np.empty((len(rows), label_width), dtype=np.int64)
    lengths = np.empty(len(rows), dtype=np.int64)
    for index, places in present:
        split, chosen = splits[index], rows[places]
        input_ids[places] = split.inputs(chosen, width=width, pad_id=pad_id)
        labels[places] = split.labels(chosen, width=label_width)
        lengths[places] = split.lengths[chosen]
    return Batch(
        input_ids_BT=torch.from_numpy(input_ids),
        mask_BT=torch.from_numpy(np.arange(width) < lengths[:, None]),
        labels_BL=torch.from_numpy(labels),
        task_B=torch.from_numpy(tasks),
        row_B=torch.from_numpy(rows),
    )
