"""Which source mattered: what a target loses when a source is left out, beside what G attends to."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attempt_ray.reporting.study.bootstrap import Bootstrap, Estimate
from attempt_ray.reporting.study.cells import Study
from attempt_ray.reporting.study.grid import Grid, row
from attempt_ray.reporting.study.lines import WITHOUT, Line
from attempt_ray.reporting.study.paper import task_name
from attempt_ray.reporting.study.tables import NOTHING, entry

_FEWEST = 3
"""Fewest pairs that have a rank correlation worth a number: of two it is always 1 or -1."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A source left out for a target."""

    task: str
    source: str
    drop: Estimate
    """Points that the score falls by when the source is left out; below 0 where it rises."""
    weight: float
    """Mean weight of the source in the whole mixture, over test instances, then over the seeds of `drop`."""


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's rank correlation of drops and weights."""

    rho: float | None
    """None where it is undefined: fewer than three pairs, or one side constant."""
    n: int
    """Pairs."""

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {"rho": self.rho, "n": self.n}

    def __str__(self) -> str:
        return (
            f"undefined (n = {self.n})"
            if self.rho is None
            else f"{self.rho:+.2f} (n = {self.n})".replace("-", "\u2212")
        )


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """All removals of a study, and how they agree with attention."""

    removals: tuple[Removal, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Targets with a removal, in order."""
        return tuple(dict.fromkeys(removal.task for removal in self.removals))

    def correlation(self, task: str | None = None) -> RankCorrelation:
        """Return the rank correlation within a target, or over all pairs of target and source."""
        return rank_correlation(
            [removal for removal in self.removals if task is None or removal.task == task]
        )

    def as_dict(self) -> dict[str, Any]:
        """Return every number, JSON-able."""
        return {
            "removals": [
                {
                    "task": removal.task,
                    "source": removal.source,
                    "drop": removal.drop.as_dict(),
                    "weight": removal.weight,
                }
                for removal in self.removals
            ],
            "rank_correlation": {task: self.correlation(task).as_dict() for task in self.tasks},
            "rank_correlation_all": self.correlation().as_dict(),
        }


def rank_correlation(removals: Sequence[Removal]) -> RankCorrelation:
    """Return Spearman's correlation of drop and weight, ties sharing the mean of their ranks."""
    drops, weights = [removal.drop.value for removal in removals], [removal.weight for removal in removals]
    if len(removals) < _FEWEST or len(set(drops)) == 1 or len(set(weights)) == 1:
        return RankCorrelation(rho=None, n=len(removals))
    from scipy.stats import spearmanr

    return RankCorrelation(rho=float(spearmanr(drops, weights).statistic), n=len(removals))


def leave_one_out(study: Study, bootstrap: Bootstrap) -> LeaveOneOut:
    """Return every removal whose score and whose whole mixture's weights are there."""
    found: list[Removal] = []
    lines: dict[str, list[Line]] = defaultdict(list)
    for line in study.lines(ablations=True):
        if line.row == "attempt" and (line.ablation or "").startswith(WITHOUT):
            for task in study.of(line):
                lines[task].append(line)
    whole = Line(row="attempt", backbone=study.backbone)
    for task in study.tasks():
        removed = []
        for line in lines[task]:
            source = (line.ablation or "").removeprefix(WITHOUT)
            drop = bootstrap.difference(whole, line, [task])
            weights = _weights(study, whole, task, drop)
            if drop is not None and source in weights:
                place = list(weights).index(source)
                removed.append((place, Removal(task=task, source=source, drop=drop, weight=weights[source])))
        found += [removal for _, removal in sorted(removed, key=lambda each: each[0])]
    return LeaveOneOut(removals=tuple(found))


def _weights(study: Study, whole: Line, task: str, drop: Estimate | None) -> dict[str, float]:
    """Return the whole mixture's mean weights over the seeds of a drop, by candidate; none where a run has none."""
    mixed = [
        (study.of(whole)[task][seed].report.attention or {}).get(task)
        for seed in (drop.seeds if drop else ())
    ]
    each = [dict(zip(one.candidates, one.mean, strict=True)) for one in mixed if one is not None]
    if not each or len(each) < len(mixed):
        return {}
    names = [name for name in each[0] if all(name in one for one in each)]
    return {name: statistics.fmean(one[name] for one in each) for name in names}


def grid(found: LeaveOneOut, *, level: float) -> Grid | None:
    """Return targets against sources, each with drop and weight; None without removals."""
    if not found.removals:
        return None
    sources = tuple(dict.fromkeys(removal.source for removal in found.removals))
    by_pair = {(removal.task, removal.source): removal for removal in found.removals}
    body = []
    for task in found.tasks:
        drops, weights = [], []
        for source in sources:
            removal = by_pair.get((task, source))
            drops.append(entry(removal.drop) if removal else NOTHING)
            weights.append(f"{removal.weight:.2f}" if removal else NOTHING)
        body.append(row(task_name(task), "drop", *drops, str(found.correlation(task)), above=True))
        body.append(row("", "attention", *weights, "", faint=True))
    body.append(row("all pairs", "", *("" for _ in sources), str(found.correlation()), above=True))
    return Grid(
        name="leave-one-out",
        caption="Leave one source out: points lost, beside attention",
        header=("target", "", *sources, "rank correlation"),
        rows=tuple(body),
        left=2,
        notes=(
            f"Drop: score of ATTEMPT with all sources less its score without this one, with {level:.0%} interval (bold: it "
            "leaves out 0). Attention: mean weight of the source in the mixture of all. Rank correlation: Spearman's, of drops "
            "and weights; pairs of one target are not independent.",
        ),
    )
