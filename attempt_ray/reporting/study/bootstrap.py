"""Intervals by a paired bootstrap over test rows and seeds.

The estimator. For lines A and B of the report, tasks T and the seeds S that both have on all of T,

    difference = mean over t in T, s in S of  m_t(A, s) - m_t(B, s)

where m_t(A, s) is the task's headline metric, in points, of A's run with seed s on the test rows of t. A resample draws, for
each task, as many test rows as there are, with replacement (where rows belong together, as the answers to a question of
MultiRC do, as many of those groups: a cluster bootstrap, Field and Welsh 2007), and, once for all tasks, as many seeds as there are, with
replacement; A and B get the same rows and the same seeds, and the metric is computed anew on the drawn rows. The interval is
the percentile interval of the resampled differences (Efron and Tibshirani 1993, section 13.3): rows of a test set are
paired because both lines answer the same ones, seeds because a seed decides data order, dropout and, where a study
trains them, the source prompts of both. The interval of one line is that of its mean, resampled alike.

Of few seeds a bootstrap sees too little: the variance between S seeds is underestimated by the factor (S - 1) / S.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from attempt_ray.errors import DataError
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.resampling import Array, Resampled

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 2_000_000
"""Draws held at once."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean or a difference, in points, with its interval."""

    value: float
    low: float | None
    """None, as is `high`, where some run left no answers row by row."""
    high: float | None
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    """Seeds that it rests on."""

    @property
    def decided(self) -> bool | None:
        """Whether the interval leaves out 0; None without an interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "tasks": list(self.tasks),
            "seeds": list(self.seeds),
        }


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One run's score on one task, and how to compute it on other rows."""

    points: float
    rows: int
    resampled: Resampled | None
    """None where the run left no answers row by row."""
    asked: bytes = b""
    """Digest of the gold answers: what tells one test set from another."""
    constants: tuple[float, ...] = ()
    """Scores of answering every row with one label, by label; empty for open tasks."""
    groups: tuple[str, ...] = ()
    """What each row belongs to; empty where rows stand alone."""


Scores = Mapping[Line, Mapping[str, Mapping[int, Scored]]]
"""By line, task and seed."""


class Bootstrap:
    """Scores of lines by task and seed, resampled together."""

    def __init__(
        self,
        scores: Scores,
        *,
        resamples: int = RESAMPLES,
        level: float = LEVEL,
        seed: int = 0,
    ) -> None:
        """Take the scores: line, then task, then seed.

        Raises:
            DataError: There is less than one resample, or the level is outside 0..1.
        """
        if resamples < 1 or not 0 < level < 1:
            raise DataError(
                f"bootstrap got {resamples} resamples and level {level}; wanted 1 or more, and 0 to 1"
            )
        self.resamples = resamples
        self.level = level
        self._scores = scores
        self._seed = seed
        self._seed_draws: dict[tuple[int, ...], Array] = {}
        self._means: dict[tuple[Line, str, tuple[int, ...]], Array | None] = {}

    def mean(self, line: Line, tasks: Sequence[str]) -> Estimate | None:
        """Return the mean of a line over tasks and the seeds that all of them have; None where there is no such seed."""
        return self._estimate({line: 1.0}, tasks)

    def difference(self, line: Line, reference: Line, tasks: Sequence[str]) -> Estimate | None:
        """Return how much `line` is above `reference` over tasks; None where they share no seed on all of them."""
        return self._estimate({line: 1.0, reference: -1.0}, tasks) if line != reference else None

    def _estimate(self, terms: Mapping[Line, float], tasks: Sequence[str]) -> Estimate | None:
        cells = [self._scores.get(line, {}).get(task, {}) for line in terms for task in tasks]
        seeds = tuple(sorted(set.intersection(*map(set, cells)))) if cells else ()
        if not seeds:
            return None
        value = 0.0
        drawn: Array | None = np.zeros(self.resamples)
        for line, sign in terms.items():
            for task in tasks:
                value += sign * float(np.mean([self._scores[line][task][seed].points for seed in seeds]))
                mean = self._drawn_mean(line, task, seeds) if drawn is not None else None
                drawn = None if mean is None or drawn is None else drawn + sign * mean
        low, high = (
            (None, None)
            if drawn is None
            else np.quantile(drawn / len(tasks), [(1 - self.level) / 2, (1 + self.level) / 2]).tolist()
        )
        return Estimate(value=value / len(tasks), low=low, high=high, tasks=tuple(tasks), seeds=seeds)

    def _drawn_mean(self, line: Line, task: str, seeds: tuple[int, ...]) -> Array | None:
        """Return the mean of a line on a task over the drawn seeds, for each resample."""
        key = (line, task, seeds)
        if key not in self._means:
            each = [self._drawn[line, task, seed] for seed in seeds if (line, task, seed) in self._drawn]
            whole = len(each) == len(seeds)
            self._means[key] = (
                np.sum(self._seed_shares(seeds) * np.stack(each, axis=1), axis=1) if whole else None
            )
        return self._means[key]

    def _seed_shares(self, seeds: tuple[int, ...]) -> Array:
        """Return which share of each resample every seed has."""
        if seeds not in self._seed_draws:
            rng = self._generator(f"seeds {seeds}")
            count = len(seeds)
            draws_BS = rng.multinomial(count, np.full(count, 1 / count), size=self.resamples)
            self._seed_draws[seeds] = draws_BS / count
        return self._seed_draws[seeds]

    @cached_property
    def _drawn(self) -> Mapping[tuple[Line, str, int], Array]:
        """Every run's score on every resample of its task's test rows."""
        by_task: dict[str, dict[tuple[Line, int], Scored]] = defaultdict(dict)
        for line, tasks in self._scores.items():
            for task, by_seed in tasks.items():
                by_task[task].update({(line, seed): scored for seed, scored in by_seed.items()})
        found: dict[tuple[Line, str, int], Array] = {}
        for task, runs in by_task.items():
            usable = _of_one_test_set(runs)
            if not usable:
                continue
            rng, rows = self._generator(f"rows {task}"), next(iter(runs[key].rows for key in usable))
            groups: Sequence[str | int] = next(
                (runs[key].groups for key in usable if runs[key].groups), range(rows)
            )
            place = {group: index for index, group in enumerate(dict.fromkeys(groups))}
            group_N, count = [place[group] for group in groups], len(place)
            drawn: dict[tuple[Line, int], list[Array]] = {key: [] for key in usable}
            step = max(1, _CHUNK // rows)
            for start in range(0, self.resamples, step):
                size = min(step, self.resamples - start)
                draws_BG = rng.multinomial(count, np.full(count, 1 / count), size=size)
                draws_BN = draws_BG[:, group_N].astype(float)
                for key, scored in usable.items():
                    drawn[key].append(scored(draws_BN))
            found |= {(line, task, seed): np.concatenate(parts) for (line, seed), parts in drawn.items()}
        return found

    def _generator(self, purpose: str) -> np.random.Generator:
        """Return a generator that depends on nothing but what it is for."""
        return np.random.default_rng([self._seed, zlib.crc32(purpose.encode())])


def _of_one_test_set(runs: Mapping[tuple[Line, int], Scored]) -> dict[tuple[Line, int], Resampled]:
    """Return how to resample the runs that can be resampled together: those on the test set that most of them answered."""
    sets: dict[bytes, dict[tuple[Line, int], Resampled]] = defaultdict(dict)
    for key, scored in runs.items():
        if scored.resampled is not None:
            sets[scored.asked][key] = scored.resampled
    return max(sets.values(), key=len, default={})
