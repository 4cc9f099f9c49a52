"""Scores by size of the backbone (the paper's Figure 4b)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attempt_ray.errors import ConfigError
from attempt_ray.reporting.parameters import backbone_shape
from attempt_ray.reporting.study.bootstrap import Bootstrap, Estimate
from attempt_ray.reporting.study.cells import Study
from attempt_ray.reporting.study.grid import Entry, Grid, row
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.tables import NOTHING, entry, interval
from attempt_ray.reporting.tables import method_name

_REFERENCE = "prompt_tuning"
"""Row that the others are compared with on each backbone."""


def points(study: Study, bootstrap: Bootstrap) -> dict[str, list[tuple[str, Estimate]]]:
    """Return each row's mean by backbone, the smallest first; rows on one backbone alone are left out."""
    names = list(sizes(study))
    found: dict[str, list[tuple[str, Estimate]]] = {}
    for method in dict.fromkeys(line.row for name in names for line in study.lines(backbone=name)):
        lines = [line for name in names if study.of(line := Line(row=method, backbone=name))]
        tasks = tuple(task for task in study.tasks(lines) if all(task in study.of(line) for line in lines))
        means = [(line.backbone, bootstrap.mean(line, tasks)) for line in lines] if tasks else []
        kept = [(name, mean) for name, mean in means if mean is not None]
        if len(kept) > 1:
            found[method] = kept
    return found


def sizes(study: Study) -> dict[str, int]:
    """Return the parameters of every backbone with a score whose shape can be told, the smallest first."""
    counts: dict[str, int] = {}
    for line, tasks in study.runs.items():
        if line.backbone not in counts and (size := _size(line, tasks)):
            counts[line.backbone] = size
    return dict(sorted(counts.items(), key=lambda item: item[1]))


def _size(line: Line, tasks: Mapping[str, Mapping[int, Any]]) -> int | None:
    names = [
        line.backbone,
        *(run.report.backbone.name for by_seed in tasks.values() for run in by_seed.values()),
    ]
    for name in names[:2]:
        try:
            shape = backbone_shape(name)
        except ConfigError:
            continue
        return shape.parameters(vocabulary=shape.vocabulary)
    return None


def grid(study: Study, bootstrap: Bootstrap) -> Grid | None:
    """Return rows against backbones, each with its mean and its difference to prompt tuning; None with one backbone."""
    found, counts = points(study, bootstrap), sizes(study)
    if not found:
        return None
    body = []
    for method, each in found.items():
        means = dict(each)
        scores = [interval(means.get(name), difference=False) for name in counts]
        body.append(row(method_name(method), str(len(each[0][1].tasks)), *scores, above=True))
        if method == _REFERENCE:
            continue
        differences: list[str | Entry] = []
        for name in counts:
            lines = Line(method, backbone=name), Line(_REFERENCE, backbone=name)
            told = bootstrap.difference(*lines, means[name].tasks) if name in means else None
            differences.append(entry(told))
        if any(difference != Entry(NOTHING) for difference in differences):
            body.append(row("", "", *differences, faint=True))
    return Grid(
        name="scaling",
        caption="Scores by size of the backbone",
        header=("method", "targets", *(f"{name} ({count:,})" for name, count in counts.items())),
        rows=tuple(body),
        notes=(
            f"Mean over targets and seeds with {bootstrap.level:.0%} interval, by backbone (parameters); below it the difference "
            f"to {method_name(_REFERENCE)} on the same backbone, bold where its interval leaves out 0. A method's targets are those "
            "that it has on all of its backbones.",
        ),
    )
