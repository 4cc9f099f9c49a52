"""What each part of ATTEMPT is worth: the paper's Table 4, our further ablations, the sweep of the temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attempt_ray.reporting.study.bootstrap import Bootstrap, Estimate
from attempt_ray.reporting.study.cells import Study
from attempt_ray.reporting.study.grid import Entry, Grid, row
from attempt_ray.reporting.study.lines import TEMPERATURE, WITHOUT, Line, temperature
from attempt_ray.reporting.study.paper import TABLE_4, task_name
from attempt_ray.reporting.study.tables import NOTHING, common, entry, scores_grid, table_row


def ablated(study: Study) -> tuple[Line, ...]:
    """Return the lines that change a part; those without a source are no part of these tables."""
    lines = study.lines(ablations=True)
    return tuple(line for line in lines if not (line.ablation or "").startswith(WITHOUT))


def full(line: Line) -> Line:
    """Return the line that an ablation changes."""
    return Line(row=line.row, backbone=line.backbone)


def paper_grid(study: Study) -> Grid | None:
    """Return the ablations that the paper has, in its layout; None where the study has none of them on its tasks."""
    lines = [
        line
        for label in TABLE_4.rows
        for line in (*study.lines(), *study.lines(ablations=True))
        if line.label == label and set(study.tasks([line])) & set(TABLE_4.tasks)
    ]
    if not any(line.ablation for line in lines):
        return None
    return scores_grid(study, TABLE_4, lines, name="table-4")


def further_grid(study: Study, bootstrap: Bootstrap) -> Grid | None:
    """Return every ablation on every target that has one, beside the row that it changes; None without ablations."""
    lines = ablated(study)
    tasks = study.tasks(lines)
    body = []
    for parent in dict.fromkeys(map(full, lines)):
        for line in (parent, *(line for line in lines if full(line) == parent)):
            found = table_row(study, line)
            shared = common(study, (line, parent), study.tasks([line])) if line != parent else ()
            change: str | Entry = "" if line == parent else NOTHING
            if shared:
                change = entry(bootstrap.difference(line, parent, shared))
            mean = found.mean(tasks)
            body.append(
                row(
                    line.name,
                    *(str(found.cells[task]) if task in found.cells else NOTHING for task in tasks),
                    NOTHING if mean is None else str(mean),
                    change,
                    above=line == parent,
                )
            )
    if not body:
        return None
    return Grid(
        name="ablations",
        caption="All ablations",
        header=("method", *map(task_name, tasks), "Avg.", "difference to the whole"),
        rows=tuple(body),
        notes=(
            "The last column is the mean difference to the row that is changed, over the tasks and seeds that both have, with "
            f"its {bootstrap.level:.0%} interval; bold: the interval leaves out 0.",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One temperature of the sweep."""

    name: str
    """K, or `auto`."""
    mean: Estimate
    change: Estimate | None
    """Difference to the row at its own temperature."""

    @property
    def number(self) -> float | None:
        """K; None where the sources give it."""
        return temperature(TEMPERATURE + self.name)


def sweep(study: Study, bootstrap: Bootstrap) -> tuple[SweepPoint, ...]:
    """Return the means of ATTEMPT by temperature on the tasks that all of them have, numbers first; empty without a sweep."""
    parent = Line(row="attempt", backbone=study.backbone)
    lines = [
        line
        for line in study.lines(ablations=True)
        if (line.ablation or "").startswith(TEMPERATURE) and full(line) == parent and study.of(line)
    ]
    tasks = common(study, lines, study.tasks(lines))
    points = []
    for line in lines:
        mean = bootstrap.mean(line, tasks) if tasks else None
        if mean is not None:
            shared = common(study, (line, parent), tasks)
            points.append(
                SweepPoint(
                    name=(line.ablation or "").removeprefix(TEMPERATURE),
                    mean=mean,
                    change=bootstrap.difference(line, parent, shared) if shared else None,
                )
            )
    return tuple(sorted(points, key=lambda point: (point.number is None, point.number or 0.0)))


def sweep_dicts(points: Sequence[SweepPoint]) -> list[dict[str, object]]:
    """Return the sweep, JSON-able."""
    return [
        {
            "temperature": point.name,
            "mean": point.mean.as_dict(),
            "difference": point.change and point.change.as_dict(),
        }
        for point in points
    ]
