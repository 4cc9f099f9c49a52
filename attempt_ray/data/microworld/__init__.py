"""The embedded data: a generated English micro-world with a miniature of every source and target task."""

from __future__ import annotations

from typing import Any

from attempt_ray.data.microworld.miniatures import EVALUATION_ROWS, MINIATURES, PARENTS, TRAIN_ROWS
from attempt_ray.data.microworld.world import Speaker
from attempt_ray.errors import DataError, unknown_name

MOST_MISSES = 10_000
"""Draws in a row without a new one after which a miniature counts as exhausted."""

__all__ = ["EVALUATION_ROWS", "MINIATURES", "PARENTS", "TRAIN_ROWS", "rows"]


def rows(task: str, split: str, *, seed: int, count: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of one split of a miniature, in the schema of its hub data set.

    The splits of one seed share no row: each row is a distinct draw.

    Args:
        task: Name of a source or target task of the paper.
        split: `train`, `validation` or `test`.
        seed: Seed of the generator; equal arguments give equal rows.
        count: Number of rows; None is the miniature's own size (`TRAIN_ROWS`, `EVALUATION_ROWS`).

    Raises:
        DataError: There is no such miniature or split.
    """
    if task not in MINIATURES:
        raise DataError(unknown_name("embedded miniature for task", task, MINIATURES))
    sizes = {"train": TRAIN_ROWS[task], **EVALUATION_ROWS}
    if split not in sizes:
        raise DataError(unknown_name(f"split of the embedded task '{task}':", split, sizes))
    # Dev and test are drawn first, from streams of their own, and train avoids both: its size moves neither.
    seen: set[str] = set()
    for name in ("validation", "test", "train"):
        wanted = (count if count is not None else sizes[name]) if name == split else sizes[name]
        drawn = _distinct(task, Speaker(f"{seed}/{task}/{name}"), wanted, seen)
        if name == split:
            return drawn
    raise AssertionError(split)


def _distinct(task: str, rng: Speaker, count: int, seen: set[str]) -> list[dict[str, Any]]:
    drawn: list[dict[str, Any]] = []
    misses = 0
    while len(drawn) < count:
        row = MINIATURES[task](rng)
        key = repr(row)
        if key in seen:
            misses += 1
            if misses > MOST_MISSES:
                raise DataError(f"the miniature '{task}' has fewer than {count} distinct rows; ask for fewer")
            continue
        misses = 0
        seen.add(key)
        drawn.append(row)
    return drawn
