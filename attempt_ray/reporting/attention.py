"""What attends to what: mixing weights of every target over its candidates, against its known parents.

The paper's Fig. 5 does not say what it averages. Here a weight is the mean over all test instances of one run, from
the state that was kept, with dropout off, and then the mean over seeds.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attempt_ray.reporting import checks, markdown
from attempt_ray.reporting.runs import Attention, Run
from attempt_ray.reporting.tables import method_name, method_order

TARGET = "target"
"""Name of the candidate that is the target's own prompt."""

_TIE = 1e-6


@dataclass(frozen=True, kw_only=True)
class TargetWeights:
    """The mixing weights of one method on one target."""

    label: str
    task: str
    weights: Mapping[str, float]
    """By candidate, the target last; they sum to 1. Mean over test instances, then over seeds."""
    std: Mapping[str, float]
    """By candidate, the same order: standard deviation over the test instances of a run, mean over seeds."""
    entropy_nats: float
    """Mean over instances of the entropy of each one's weights, then over seeds."""
    uniform_entropy_nats: float
    test_rows: int
    by_seed: Mapping[int, str | None]
    """Most attended source of each seed's run."""
    parents: tuple[str, ...]
    """Known parents that are among the candidates."""

    @property
    def top_source(self) -> str | None:
        """The most attended source, the target's own prompt left aside; None on a tie or without sources."""
        return _top_source(self.weights)

    @property
    def agrees(self) -> bool | None:
        """Whether the most attended source is a true parent; None where no candidate is known to be one."""
        return self.top_source in self.parents if self.parents else None

    @property
    def chance(self) -> float:
        """Probability that a source picked blindly is a true parent."""
        sources = [name for name in self.weights if name != TARGET]
        return len(self.parents) / len(sources) if sources else 0.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often a method's most attended source is a true parent of the target."""

    agreeing: int
    known: int
    """Targets with a known parent among the candidates."""
    chance: float
    """Expected share if sources were picked blindly."""

    @property
    def share(self) -> float | None:
        """Share of the known targets, 0..1; None where nothing is known."""
        return self.agreeing / self.known if self.known else None


@dataclass(frozen=True, kw_only=True)
class AttentionTable:
    """Mixing weights of every method that has any."""

    candidates: tuple[str, ...]
    """Sources in the order of the runs, then the target."""
    rows: tuple[TargetWeights, ...]
    """By method, then by training rows of the target."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Methods with mixing weights."""
        return method_order(row.label for row in self.rows)

    def of(self, label: str) -> tuple[TargetWeights, ...]:
        """Return the rows of one method."""
        return tuple(row for row in self.rows if row.label == label)

    def agreement(self, label: str) -> Agreement:
        """Return how often `label` attends most to a true parent."""
        known = [row for row in self.of(label) if row.agrees is not None]
        return Agreement(
            agreeing=sum(row.agrees is True for row in known),
            known=len(known),
            chance=statistics.fmean(row.chance for row in known) if known else 0.0,
        )

    def markdown(self) -> str:
        """Return the table and one sentence per method on its agreement with known parents."""
        if not self.rows:
            return "No run has mixing weights."
        header = [
            "method",
            "target",
            "most attended source",
            "weight",
            "own prompt",
            "entropy / uniform (nats)",
        ]
        header += ["test n", "true parents", "agrees", "seeds agreeing"]
        lines = []
        for label in self.labels:
            agreement = self.agreement(label)
            if agreement.share is not None:
                lines.append(
                    f"{method_name(label)}: the most attended source is a true parent for {agreement.agreeing} of "
                    f"{agreement.known} targets with a known one ({agreement.share:.0%}; picked blindly "
                    f"{agreement.chance:.0%})."
                )
        table = markdown.table(header, [_cells(row) for row in self.rows], left=3)
        return "\n\n".join([table, *lines])

    def as_dict(self) -> dict[str, Any]:
        """Return every number of the table, JSON-able."""
        return {
            "candidates": list(self.candidates),
            "rows": [
                {
                    "label": row.label,
                    "task": row.task,
                    "weights": dict(row.weights),
                    "std": dict(row.std),
                    "top_source": row.top_source,
                    "entropy_nats": row.entropy_nats,
                    "uniform_entropy_nats": row.uniform_entropy_nats,
                    "test_rows": row.test_rows,
                    "parents": list(row.parents),
                    "agrees": row.agrees,
                    "top_source_by_seed": {str(seed): source for seed, source in row.by_seed.items()},
                }
                for row in self.rows
            ],
            "agreement": {
                label: {
                    "share": self.agreement(label).share,
                    "agreeing": self.agreement(label).agreeing,
                    "known": self.agreement(label).known,
                    "chance": self.agreement(label).chance,
                }
                for label in self.labels
            },
        }


def attention_table(runs: Iterable[Run], *, parents: Mapping[str, Sequence[str]]) -> AttentionTable:
    """Return the mixing weights of the target runs among `runs`.

    Args:
        runs: Runs of any job; only target runs with mixing weights count.
        parents: True source tasks of a target, where they are known (``study.parents``).
    """
    kept, _ = checks.newest(run for run in runs if run.report.job == "target")
    found: dict[tuple[str, str], dict[int, Attention]] = defaultdict(dict)
    train_rows: dict[str, int] = {}
    for run in kept:
        for task, attention in (run.report.attention or {}).items():
            found[run.report.label, task][run.report.seed] = attention
            train_rows.setdefault(task, run.report.train_rows.get(task, 0))
    labels = method_order(label for label, _ in found)
    order = sorted(found, key=lambda key: (labels.index(key[0]), train_rows[key[1]], key[1]))
    rows = tuple(_row(*key, by_seed=found[key], parents=parents.get(key[1], ())) for key in order)
    sources = dict.fromkeys(name for row in rows for name in row.weights if name != TARGET)
    own = [TARGET] if any(TARGET in row.weights for row in rows) else []
    return AttentionTable(candidates=(*sources, *own), rows=rows)


def _row(label: str, task: str, *, by_seed: Mapping[int, Attention], parents: Sequence[str]) -> TargetWeights:
    seeds = sorted(by_seed)
    each = {seed: dict(zip(by_seed[seed].candidates, by_seed[seed].mean, strict=True)) for seed in seeds}
    names = dict.fromkeys(name for seed in seeds for name in each[seed])
    weights = {name: statistics.fmean(each[seed].get(name, 0.0) for seed in seeds) for name in names}
    if TARGET in weights:
        weights[TARGET] = weights.pop(TARGET)
    spread = {seed: dict(zip(by_seed[seed].candidates, by_seed[seed].std, strict=True)) for seed in seeds}
    return TargetWeights(
        label=label,
        task=task,
        weights=weights,
        std={name: statistics.fmean(spread[seed].get(name, 0.0) for seed in seeds) for name in weights},
        entropy_nats=statistics.fmean(by_seed[seed].entropy_nats for seed in seeds),
        uniform_entropy_nats=statistics.fmean(by_seed[seed].uniform_entropy_nats for seed in seeds),
        test_rows=by_seed[seeds[0]].n,
        by_seed={seed: _top_source(each[seed]) for seed in seeds},
        parents=tuple(name for name in parents if name in weights),
    )


def _top_source(weights: Mapping[str, float]) -> str | None:
    """Return the source with the largest weight; None on a tie, as constant weights have."""
    ranked = sorted(((weight, name) for name, weight in weights.items() if name != TARGET), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] - ranked[1][0] < _TIE):
        return None
    return ranked[0][1]


def _cells(row: TargetWeights) -> list[str]:
    agreeing = sum(source in row.parents for source in row.by_seed.values())
    own = row.weights.get(TARGET)
    return [
        method_name(row.label),
        row.task,
        row.top_source or "-",
        f"{row.weights[row.top_source]:.2f}" if row.top_source else "-",
        f"{own:.2f}" if own is not None else "-",
        f"{row.entropy_nats:.2f} / {row.uniform_entropy_nats:.2f}",
        f"{row.test_rows:,}",
        ", ".join(row.parents) or "-",
        {True: "yes", False: "no", None: "-"}[row.agrees],
        f"{agreeing} of {len(row.by_seed)}" if row.parents else "-",
    ]
