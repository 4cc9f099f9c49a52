"""Which rows train, which select (dev) and which are reported (test).

The `paper` policy cuts as the paper's code does, from one seeded `torch.randperm` (seed 42 gives its very rows):

    small   train whole; `dev_split` permuted: the first n // 2 rows are dev, the others test
    large   train permuted: the first 1,000 rows are dev, the others train; `test_split` whole is test
    native  the data set's own splits

The `native` policy keeps the data set's own splits for every task. Where it publishes only one labelled split besides
train, that one is test, whole, and dev is cut from train as by the large rule, so that no test row selects anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

from attempt_ray.config import DataConfig
from attempt_ray.data.origins import load_split
from attempt_ray.errors import DataError
from attempt_ray.tasks.spec import SplitRule, Task

LARGE_DEV_ROWS = 1000
"""Rows that the large rule takes from train for dev (authors' code); never more than a tenth of train."""


@dataclass(frozen=True)
class Splits:
    """The rows of a task, in hub schema."""

    train: Dataset
    dev: Dataset
    test: Dataset


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one published split."""

    split: str
    """Name of the published split."""
    rows: Tensor
    """Row numbers in it, in order; int64."""

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class SplitPlan:
    """Which rows of which published splits become train, dev and test."""

    train: Part
    dev: Part
    test: Part


def published_splits(task: Task, data: DataConfig) -> tuple[str, ...]:
    """Return the names of the origin's splits that the task's train, dev and test rows come from."""
    rule, dev, test = _rule(task, data)
    named = {"small": ("train", dev), "large": ("train", test), "native": ("train", dev, test)}
    return named[rule]


def plan_splits(task: Task, data: DataConfig, *, counts: Mapping[str, int]) -> SplitPlan:
    """Return the rows of each split, from the numbers of rows alone.

    Caps (`data.max_*_rows`, and the task's own under the paper policy) cut after the permutation; a split that the
    rule leaves in order is permuted first when a cap cuts it.

    Args:
        task: Task whose split rule applies.
        data: Policy, seed and caps.
        counts: Number of rows of every split that `published_splits` names.

    Raises:
        DataError: There are too few rows to cut.
    """
    rule, dev, test = _rule(task, data)
    train_cap, seed = _train_cap(task, data), data.split_seed
    if rule == "small":
        order, half = _permutation(counts[dev], seed), counts[dev] // 2
        plan = SplitPlan(
            train=_whole("train", counts, train_cap, seed),
            dev=Part(dev, order[:half][: data.max_dev_rows]),
            test=Part(dev, order[half:][: data.max_test_rows]),
        )
    elif rule == "large":
        order = _permutation(counts["train"], seed)
        held_out = min(LARGE_DEV_ROWS, -(-counts["train"] // 10))
        plan = SplitPlan(
            train=Part("train", order[held_out:][:train_cap]),
            dev=Part("train", order[:held_out][: data.max_dev_rows]),
            test=_whole(test, counts, data.max_test_rows, seed),
        )
    else:
        plan = SplitPlan(
            train=_whole("train", counts, train_cap, seed),
            dev=_whole(dev, counts, data.max_dev_rows, seed),
            test=_whole(test, counts, data.max_test_rows, seed),
        )
    for role, part in (("train", plan.train), ("dev", plan.dev), ("test", plan.test)):
        if len(part) == 0:
            raise DataError(
                f"task '{task.name}' has too few rows for its {role} split: {counts[part.split]} in "
                f"'{part.split}' under split rule '{rule}'; give it more rows"
            )
    return plan


def load_splits(task: Task, data: DataConfig) -> Splits:
    """Load the task's rows and cut them into train, dev and test.

    Raises:
        DataError: A split is missing, unreadable, empty or too small to cut.
        StorageError: The disk refused.
    """
    published = {name: load_split(task, name, data) for name in published_splits(task, data)}
    plan = plan_splits(task, data, counts={name: len(rows) for name, rows in published.items()})
    train, dev, test = (
        published[part.split].select(part.rows.numpy()) for part in (plan.train, plan.dev, plan.test)
    )
    return Splits(train=train, dev=dev, test=test)


def _rule(task: Task, data: DataConfig) -> tuple[SplitRule, str, str]:
    """Return the rule in force and the published splits of dev and test."""
    if data.origin == "embedded":
        return "native", "validation", "test"
    if data.split_policy == "paper" and task.split_rule != "native":
        return task.split_rule, task.dev_split, task.test_split
    if task.dev_split in ("train", task.test_split):
        return "large", task.dev_split, task.test_split
    return "native", task.dev_split, task.test_split


def _train_cap(task: Task, data: DataConfig) -> int | None:
    own = task.max_train_rows if data.split_policy == "paper" else None
    return min((cap for cap in (own, data.max_train_rows) if cap is not None), default=None)


def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _whole(split: str, counts: Mapping[str, int], cap: int | None, seed: int) -> Part:
    if cap is None or counts[split] <= cap:
        return Part(split, torch.arange(counts[split]))
    return Part(split, _permutation(counts[split], seed)[:cap])
