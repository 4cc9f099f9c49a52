"""The ordering found: rows by their mean with intervals, and whether ATTEMPT beats what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attempt_ray.reporting.study.ablations import ablated
from attempt_ray.reporting.study.bootstrap import Bootstrap, Estimate
from attempt_ray.reporting.study.cells import Study
from attempt_ray.reporting.study.grid import Grid, row
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.tables import common, entry, interval

OURS = ("attempt", "attempt_mt")
RIVALS = ("prompt_tuning", "spot", "spot_similar", "spot_generic", "spot_targeted", "finetune")
_ENOUGH = 0.5
"""Share of the study's targets from which on a line takes part in the ordering."""
_CLOSING = (*OURS, "mpt", "mpt_mt", "dept")
"""Rows that, with their ablations, are looked through for what reaches a rival that ATTEMPT does not beat."""
_CLOSERS = 3


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """Lines by their mean on the targets that all of them have."""

    tasks: tuple[str, ...]
    means: tuple[tuple[Line, Estimate, Estimate | None], ...]
    """Line, its mean, and its difference to ATTEMPT; the best first."""
    left_out: tuple[Line, ...]
    """Lines with scores on too few targets."""
    sentences: tuple[str, ...]
    """What was found, in plain words."""

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers and words, JSON-able."""
        return {
            "tasks": list(self.tasks),
            "lines": [
                {
                    "line": line.label,
                    "mean": mean.as_dict(),
                    "difference_to_attempt": difference and difference.as_dict(),
                }
                for line, mean, difference in self.means
            ],
            "left_out": [line.label for line in self.left_out],
            "sentences": list(self.sentences),
        }


def ordering(study: Study, bootstrap: Bootstrap) -> Ordering:
    """Return the ordering of the rows, ablations left aside, and what is to be said of it."""
    lines = [line for line in study.lines() if study.of(line)]
    wanted = _ENOUGH * len(study.tasks(lines))
    ground = [line for line in lines if len(study.of(line)) >= wanted]
    tasks = common(study, ground, study.tasks(ground))
    whole = Line(row="attempt", backbone=study.backbone)
    means = []
    for line in ground:
        mean = bootstrap.mean(line, tasks) if tasks else None
        if mean is not None:
            means.append((line, mean, bootstrap.difference(line, whole, tasks)))
    return Ordering(
        tasks=tasks,
        means=tuple(sorted(means, key=lambda found: -found[1].value)),
        left_out=tuple(line for line in lines if line not in ground),
        sentences=tuple(
            sentence
            for ours in OURS
            for rival in RIVALS
            for sentence in _compared(
                study, bootstrap, Line(ours, None, study.backbone), Line(rival, None, study.backbone)
            )
        ),
    )


def _compared(study: Study, bootstrap: Bootstrap, ours: Line, rival: Line) -> list[str]:
    """Return whether `ours` beats `rival`, and where it does not, what closes the gap."""
    tasks = common(study, (ours, rival), study.tasks((ours, rival)))
    found = bootstrap.difference(ours, rival, tasks) if tasks else None
    if found is None:
        return []
    return [
        _sentence(ours, rival, found),
        *(_closers(study, bootstrap, ours, rival, found) if found.value <= 0 else ()),
    ]


def _sentence(ours: Line, rival: Line, found: Estimate) -> str:
    what = f"{interval(found)} points over {_count(found.tasks, 'target')} and {_count(found.seeds, 'seed')}"
    if found.decided is None:
        verb = "stands above" if found.value > 0 else "does not beat"
        return f"{ours.name} {verb} {rival.name}: {what}; without answers row by row there is no interval."
    if not found.decided:
        side = "ahead of" if found.value > 0 else "behind"
        return f"{ours.name} does not beat {rival.name} beyond doubt, being {side} it by {what}: the interval holds 0."
    if found.value > 0:
        return f"{ours.name} beats {rival.name}: {what}."
    return f"{ours.name} does not beat {rival.name}: {what}."


def _closers(study: Study, bootstrap: Bootstrap, ours: Line, rival: Line, gap: Estimate) -> list[str]:
    """Return which lines do reach the rival, the best first; else which comes nearest."""
    lines = (*study.lines(), *ablated(study))
    others = [line for line in lines if line.row in _CLOSING and line != ours and study.of(line)]
    found = []
    for line in others:
        tasks = common(study, (line, rival), gap.tasks)
        # On other tasks the gap is another one.
        if tasks == gap.tasks and (difference := bootstrap.difference(line, rival, tasks)) is not None:
            found.append((difference.value, line, difference))
    found.sort(key=lambda each: -each[0])
    reaching = [each for each in found if each[0] >= 0]
    if reaching:
        named = ", ".join(
            f"{line.name} ({interval(difference)})" for _, line, difference in reaching[:_CLOSERS]
        )
        return [f"What reaches {rival.name} on these targets: {named}."]
    if not found:
        return []
    _, line, difference = found[0]
    return [
        f"Nothing in this study reaches {rival.name} on these targets; the nearest is {line.name} ({interval(difference)})."
    ]


def grid(found: Ordering, *, level: float) -> Grid | None:
    """Return the ordering as a table; None where there is none."""
    if not found.means:
        return None
    body = [
        row(
            str(place),
            line.name,
            interval(mean, difference=False),
            entry(difference) if difference else "",
            str(len(mean.seeds)),
        )
        for place, (line, mean, difference) in enumerate(found.means, start=1)
    ]
    return Grid(
        name="ordering",
        caption=f"Ordering found, by the mean over {_count(found.tasks, 'target')}",
        header=("", "method", f"mean [{level:.0%} interval]", "difference to ATTEMPT", "seeds"),
        rows=tuple(body),
        left=2,
        notes=(
            f"Over the targets that all of these rows have: {', '.join(found.tasks)}. Whether two rows differ is told by the "
            "interval of their difference, which is paired, not by whether their own intervals overlap.",
        ),
    )


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}" if len(things) == 1 else f"{len(things)} {noun}s"
