"""What a reader of a study's numbers must be told."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from attempt_ray.reporting.study.bootstrap import Bootstrap, Scores
from attempt_ray.reporting.study.cells import Study, run_warnings
from attempt_ray.reporting.study.grid import Grid, row
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.tables import common

_SAME = 1e-9
_SHOWN = 5


def warnings(
    study: Study,
    bootstrap: Bootstrap,
    *,
    scores: Scores,
    notes: Sequence[str],
    references: Sequence[Line],
) -> tuple[str, ...]:
    """Return the warnings, one sentence each, in a fixed order.

    Args:
        study: The study.
        bootstrap: Its intervals.
        scores: What the intervals are made of.
        notes: Why some runs cannot be resampled.
        references: Lines that ATTEMPT is compared with.
    """
    return (
        *_unfinished(study),
        *run_warnings(study),
        *_like_a_constant(study, scores),
        *_undecided(study, bootstrap, references),
        *_without_answers(notes),
    )


def _unfinished(study: Study) -> list[str]:
    counts = Counter(missing.cell.status for missing in study.missing)
    gone = counts.pop("finished", 0)
    told = [f"{count} {status}" for status, count in sorted(counts.items())]
    told += [f"{gone} whose run cannot be read"] if gone else []
    if not told:
        return []
    return [
        f"{len(study.missing)} of {len(study.cells)} cells have no score ({', '.join(told)}); see What is missing"
    ]


def _like_a_constant(study: Study, scores: Scores) -> list[str]:
    """Tell of scores that a constant answer has too, though the answers are not all the same."""
    found: dict[tuple[Line, str], list[int]] = defaultdict(list)
    for line, tasks in scores.items():
        for task, by_seed in tasks.items():
            for seed, scored in by_seed.items():
                constant = study.of(line)[task][seed].report.constant_prediction.get(task, False)
                alike = any(abs(scored.points - score) < _SAME for score in scored.constants)
                if alike and not constant:
                    found[line, task].append(seed)
    by_line: dict[Line, list[str]] = defaultdict(list)
    for (line, task), seeds in found.items():
        by_line[line].append(f"{task} (seeds {', '.join(map(str, sorted(seeds)))})")
    return [
        f"{study.on(line.backbone)}{line.label} scores exactly what answering one class always does: {', '.join(tasks)}"
        for line, tasks in by_line.items()
    ]


def _undecided(study: Study, bootstrap: Bootstrap, references: Sequence[Line]) -> list[str]:
    """Tell on which targets ATTEMPT's difference to a reference lies within its interval."""
    told = []
    whole = Line(row="attempt", backbone=study.backbone)
    for reference in references:
        tasks = common(study, (whole, reference), study.tasks([whole]))
        found = {task: bootstrap.difference(whole, reference, [task]) for task in tasks}
        open_ones = [task for task, each in found.items() if each is not None and each.decided is False]
        if open_ones:
            told.append(
                f"{whole.name} against {reference.name}: the interval holds 0 on {len(open_ones)} of {len(found)} targets "
                f"({', '.join(open_ones)}), so nothing is shown there either way"
            )
    return told


def _without_answers(notes: Sequence[str]) -> list[str]:
    if len(notes) <= _SHOWN:
        return list(notes)
    return [*notes[:_SHOWN], f"and {len(notes) - _SHOWN} more runs without intervals"]


def missing_grid(study: Study) -> Grid | None:
    """Return how far each line is, where a cell has no score; None where none is missing."""
    lacking: dict[Line, Counter[str]] = defaultdict(Counter)
    for missing in study.missing:
        lacking[missing.cell.line][missing.cell.status] += 1
    if not lacking:
        return None
    cells = Counter(cell.line for cell in study.cells)
    several = len({line.backbone for line in cells}) > 1
    body = [
        row(
            f"{line.name} ({line.backbone})" if several else line.name,
            str(cells[line]),
            *(str(lacking[line][status] or "") for status in ("waiting", "failed", "skipped", "finished")),
        )
        for line in cells
        if line in lacking
    ]
    reasons = Counter(missing.why for missing in study.missing if missing.cell.status != "waiting")
    notes = [f"{count} times: {why}" if count > 1 else why for why, count in reasons.most_common(4 * _SHOWN)]
    if len(reasons) > 4 * _SHOWN:
        notes.append(f"and {len(reasons) - 4 * _SHOWN} more reasons, in report.json")
    header = ("method", "cells", "waiting", "failed", "skipped", "unreadable")
    return Grid(
        name="missing", caption="Cells without a score", header=header, rows=tuple(body), notes=tuple(notes)
    )
