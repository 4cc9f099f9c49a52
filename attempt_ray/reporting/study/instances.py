"""Single test rows with their mixing weights: those with the most and the least even ones of each target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from attempt_ray.errors import DataError
from attempt_ray.reporting.examples import read_examples
from attempt_ray.reporting.runs import Run
from attempt_ray.reporting.study.cells import Study
from attempt_ray.reporting.study.grid import Grid, row
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.paper import task_name

_EACH = 2
_CHARACTERS = 140
_WEIGHTS = 3


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One test row as a mixture answered it."""

    row: int
    input: str
    answer: str
    gold: tuple[str, ...]
    weights: dict[str, float]
    """By candidate, in order."""
    entropy_nats: float


@dataclass(frozen=True, kw_only=True)
class Instances:
    """Rows of one target."""

    task: str
    line: str
    seed: int
    even: tuple[Instance, ...]
    """Highest entropy of the weights first."""
    sharp: tuple[Instance, ...]
    """Lowest entropy first."""

    def as_dict(self) -> dict[str, Any]:
        """Return the rows, JSON-able."""
        return asdict(self)


def instances(study: Study) -> tuple[Instances, ...]:
    """Return rows of every target that a mixture answered, of ATTEMPT's first seed where it has one."""
    found = []
    for task in study.tasks():
        for label in ("attempt", "attempt_mt"):
            line = Line(row=label, backbone=study.backbone)
            by_seed = study.of(line).get(task, {})
            chosen = _of(by_seed[min(by_seed)], task) if by_seed else None
            if chosen:
                ranked = sorted(chosen, key=lambda each: (each.entropy_nats, each.row))
                sharp = ranked[:_EACH]
                even = [each for each in ranked[::-1][:_EACH] if each not in sharp]
                found.append(
                    Instances(
                        task=task, line=line.name, seed=min(by_seed), even=tuple(even), sharp=tuple(sharp)
                    )
                )
                break
    return tuple(found)


def _of(run: Run, task: str) -> list[Instance]:
    mixed = (run.report.attention or {}).get(task)
    if mixed is None:
        return []
    try:
        answered = read_examples(run)[task]
    except DataError:
        return []
    return [
        Instance(
            row=number,
            input=answered.inputs[number],
            answer=answered.answers[number],
            gold=answered.golds[number],
            weights=dict(zip(mixed.candidates, weights, strict=True)),
            entropy_nats=-sum(weight * math.log(weight) for weight in weights if weight > 0),
        )
        for number, weights in enumerate(answered.weights or ())
    ]


def grid(found: Instances) -> Grid:
    """Return the rows of one target as a table."""
    rows = [("even", each) for each in found.even] + [("sharp", each) for each in found.sharp]
    return Grid(
        name=f"examples-{found.task}",
        caption=f"{task_name(found.task)}: test rows whose weights are most even and most sharp ({found.line}, seed {found.seed})",
        header=("weights", "input", "answer", "gold", "most attended", "entropy (nats)"),
        rows=tuple(
            row(
                kind,
                _cut(each.input),
                _cut(each.answer),
                _cut(" | ".join(each.gold)),
                _attended(each.weights),
                f"{each.entropy_nats:.2f}",
            )
            for kind, each in rows
        ),
        left=5,
    )


def _cut(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _CHARACTERS else plain[: _CHARACTERS - 1].rstrip() + "\u2026"


def _attended(weights: dict[str, float]) -> str:
    first: Sequence[tuple[str, float]] = sorted(weights.items(), key=lambda each: -each[1])[:_WEIGHTS]
    return ", ".join(f"{name} {weight:.2f}" for name, weight in first)
