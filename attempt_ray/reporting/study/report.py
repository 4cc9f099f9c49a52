"""The report of a study, as far as it has come: Markdown, LaTeX, HTML, JSON and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attempt_ray.bank.durable import storage_errors, write_durably
from attempt_ray.reporting.attention import AttentionTable, TargetWeights, attention_table
from attempt_ray.reporting.parameters import parameter_table
from attempt_ray.reporting.runs import fetched
from attempt_ray.reporting.study import (
    ablations,
    figures,
    instances,
    leave_one_out,
    mind,
    ordering,
    scaling,
    tables,
)
from attempt_ray.reporting.study.bootstrap import LEVEL, RESAMPLES, Bootstrap
from attempt_ray.reporting.study.cells import Study, join, read_study_file, scored
from attempt_ray.reporting.study.figures import Picture
from attempt_ray.reporting.study.grid import Grid
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.pages import (
    Block,
    Bullets,
    Heading,
    html_page,
    latex_page,
    markdown_page,
)
from attempt_ray.reporting.study.paper import TABLE_2, TABLE_3

REFERENCES = ("prompt_tuning", "finetune")
"""Rows that every row is compared with."""
Inputs = Literal["shown", "withheld"]
"""Whether a report shows test rows; licences of data may forbid to pass them on."""
_PICTURES = "figures"
_INTERVALS = (
    f"Intervals are {LEVEL:.0%} percentile intervals of {RESAMPLES:,} bootstrap resamples. A resample draws the test rows of each "
    "task and the seeds with replacement, the same for both rows of a difference, and computes the task's metric anew; the "
    "difference is the mean over tasks and common seeds. A bootstrap of few seeds understates what seeds add: the variance "
    "between S seeds comes out (S-1)/S of what it is."
)


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """What was written, and what is to be printed."""

    directory: Path
    files: tuple[Path, ...]
    lines: tuple[str, ...]
    """What was found, in plain words."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """All that a report says."""

    study: Study
    bootstrap: Bootstrap
    order: ordering.Ordering
    removals: leave_one_out.LeaveOneOut
    points: tuple[ablations.SweepPoint, ...]
    weights: AttentionTable
    examples: tuple[instances.Instances, ...]
    warnings: tuple[str, ...]

    @property
    def references(self) -> tuple[Line, ...]:
        """Those of `REFERENCES` that the study has a score of."""
        lines = (Line(row=row, backbone=self.study.backbone) for row in REFERENCES)
        return tuple(line for line in lines if self.study.of(line))


def write_study_report(
    directory: Path, *, runs: str, out: Path | None = None, inputs: Inputs = "shown"
) -> StudyReport:
    """Write ``report.md``, ``report.tex``, ``report.html``, ``report.json`` and ``figures/`` of a study.

    Every number is read back from the run directories that ``study.json`` names; what is missing is said. Each file appears
    whole or not at all, the Markdown page last, and a figure of an earlier report that this one does not have is removed.

    Args:
        directory: The study's directory, which holds ``study.json``.
        runs: Path or URI of the run directories.
        out: Directory of the report, or a Markdown file: then that page alone is written, its pictures as PNG in a directory
            of the page's name beside it. None is the directory ``report`` in `directory`.
        inputs: `withheld` leaves out the examples, which are test rows.

    Raises:
        ConfigError: `runs` is neither a path nor a URI that pyarrow opens.
        DataError: ``study.json`` is missing or is not one.
        StorageError: The disk or store refused.
    """
    out = directory / "report" if out is None else out
    page_alone = out.suffix == ".md"
    place, page = (out.parent, out.name) if page_alone else (out, "report.md")
    shown = Path(page).stem if page_alone else _PICTURES
    file = read_study_file(directory)
    names = {cell.run for cell in file.cells if cell.run is not None}
    with fetched(runs, names=names, examples=True) as root:
        study = join(file, root)
        found = _findings(study, inputs)
    pictures = _pictures(found)
    title = f"Study {study.name}"
    blocks = tuple(_blocks(found, pictures))
    contents = {f"{shown}/{picture.name}.png": picture.png for picture in pictures.values()}
    if not page_alone:
        contents |= {f"{shown}/{picture.name}.svg": picture.svg for picture in pictures.values()}
        contents["report.json"] = json.dumps(_json(found), indent=1, allow_nan=False).encode() + b"\n"
        contents["report.tex"] = latex_page(title, blocks, pictures=shown).encode()
        contents["report.html"] = html_page(title, blocks).encode()
    contents[page] = markdown_page(title, blocks, pictures=shown).encode()
    with storage_errors(f"write the report into {place}", where=place):
        (place / shown).mkdir(parents=True, exist_ok=True)
        for path in (place / shown).iterdir():
            if path.suffix in (".png", ".svg") and f"{shown}/{path.name}" not in contents:
                path.unlink()
    for name, data in contents.items():
        write_durably(place / name, data)
    return StudyReport(
        directory=place,
        files=tuple(place / name for name in contents),
        lines=(*_progress(study), *found.order.sentences),
        warnings=found.warnings,
    )


def _findings(study: Study, inputs: Inputs) -> _Findings:
    scores, notes = scored(study)
    bootstrap = Bootstrap(scores)
    whole = [Line(row=row, backbone=study.backbone) for row in ordering.OURS]
    return _Findings(
        study=study,
        bootstrap=bootstrap,
        order=ordering.ordering(study, bootstrap),
        removals=leave_one_out.leave_one_out(study, bootstrap),
        points=ablations.sweep(study, bootstrap),
        weights=attention_table(study.finished(whole), parents={}),
        examples=instances.instances(study) if inputs == "shown" else (),
        warnings=mind.warnings(
            study,
            bootstrap,
            scores=scores,
            notes=notes,
            references=[Line(row=row, backbone=study.backbone) for row in REFERENCES],
        ),
    )


def _progress(study: Study) -> tuple[str, ...]:
    runs = {
        run.directory
        for tasks in study.runs.values()
        for by_seed in tasks.values()
        for run in by_seed.values()
    }
    done = len(study.cells) - len(study.missing)
    return (f"{done} of {len(study.cells)} cells have a score, from {len(runs)} runs.",)


def _pictures(found: _Findings) -> dict[str, Picture]:
    study, bootstrap = found.study, found.bootstrap
    compared = {}
    for row in ("attempt", "prompt_tuning"):
        tasks = found.points[0].mean.tasks if found.points else ()
        mean = bootstrap.mean(Line(row=row, backbone=study.backbone), tasks) if tasks else None
        if mean is not None:
            compared[row] = mean
    drawn = [
        figures.means(found.order, level=bootstrap.level),
        figures.parameters(parameter_table(None)),
        figures.scaling(study, bootstrap),
        *(
            figures.attention(_in_order(study, found.weights.of(label)), label=label)
            for label in found.weights.labels
        ),
        figures.sweep(found.points, lines=compared, level=bootstrap.level),
        figures.leave_one_out(found.removals, level=bootstrap.level),
    ]
    return {picture.name: picture for picture in drawn if picture is not None}


def _in_order(study: Study, rows: Sequence[TargetWeights]) -> list[TargetWeights]:
    tasks = study.tasks()
    return sorted(rows, key=lambda row: tasks.index(row.task))


def _blocks(found: _Findings, pictures: dict[str, Picture]) -> list[Block]:
    study, bootstrap = found.study, found.bootstrap
    seeds = sorted({cell.seed for cell in study.cells})
    backbones = list(dict.fromkeys(cell.backbone for cell in study.cells))
    others = (
        f" (also {', '.join(name for name in backbones if name != study.backbone)})"
        if len(backbones) > 1
        else ""
    )
    blocks: list[Block | None] = [
        *_progress(study),
        f"Backbone of the tables: {study.backbone or 'none'}{others}; seeds: {', '.join(map(str, seeds)) or 'none'}; targets: "
        f"{', '.join(study.tasks()) or 'none'}.",
        Heading("Ordering found"),
        Bullets(found.order.sentences)
        if found.order.sentences
        else "ATTEMPT and what it is compared with have no target in common yet.",
        ordering.grid(found.order, level=bootstrap.level),
        *([_left_out(found.order.left_out)] if found.order.left_out else []),
        pictures.get("means"),
        _INTERVALS,
    ]
    if found.warnings:
        blocks += [Heading("Mind when reading"), Bullets(found.warnings)]
    blocks += _tables(found)
    blocks += [Heading("Costs"), tables.costs_grid(study, study.lines())]
    blocks += _section(
        "Ablations",
        ablations.paper_grid(study),
        ablations.further_grid(study, bootstrap),
        pictures.get("temperature"),
    )
    blocks += _section(
        "Leave one out",
        leave_one_out.grid(found.removals, level=bootstrap.level),
        pictures.get("leave-one-out"),
    )
    blocks += _section(
        "Scaling", pictures.get("figure-4a"), scaling.grid(study, bootstrap), pictures.get("figure-4b")
    )
    blocks += _section(
        "Attention", *(picture for name, picture in pictures.items() if name.startswith("figure-5"))
    )
    blocks += _section("Inputs and their weights", *map(instances.grid, found.examples))
    blocks += _section("What is missing", mind.missing_grid(study))
    return [block for block in blocks if block is not None]


def _left_out(lines: Sequence[Line]) -> str:
    return f"Left out of the ordering, since it has scores on fewer than half of the targets: {', '.join(line.name for line in lines)}."


def _section(title: str, *blocks: Grid | Picture | None) -> list[Block | None]:
    """Return a section, or nothing where all of it is missing."""
    return [Heading(title), *blocks] if any(block is not None for block in blocks) else []


def _tables(found: _Findings) -> list[Block | None]:
    study, bootstrap = found.study, found.bootstrap
    blocks: list[Block | None] = []
    for layout in tables.layouts(study):
        name = {TABLE_2.title: "table-2", TABLE_3.title: "table-3"}.get(layout.title, "further")
        lines = [line for line in study.lines() if set(study.tasks([line])) & set(layout.tasks)]
        blocks += [Heading(layout.title), tables.scores_grid(study, layout, lines, name=name)]
        for reference in found.references:
            blocks.append(
                tables.differences_grid(
                    study,
                    bootstrap,
                    layout,
                    lines=lines,
                    reference=reference,
                    name=f"{name}-against-{reference.row.replace('_', '-')}",
                )
            )
    return blocks


def _json(found: _Findings) -> dict[str, Any]:
    study, bootstrap = found.study, found.bootstrap
    return {
        "schema": 1,
        "kind": "study",
        "name": study.name,
        "backbone": study.backbone,
        "bootstrap": {"resamples": bootstrap.resamples, "level": bootstrap.level},
        "ordering": found.order.as_dict(),
        "warnings": list(found.warnings),
        "lines": [_line_dict(found, line) for line in study.runs],
        "paper": {
            layout.title: {
                label: {
                    "scores": {task: layout.score(label, task) for task in layout.tasks},
                    "averages": [layout.average(label, tasks) for _, tasks in layout.blocks],
                    "printed_averages": list(row.averages),
                }
                for label, row in layout.rows.items()
            }
            for layout in tables.layouts(study)
            if layout.rows
        },
        "temperature": ablations.sweep_dicts(found.points),
        "leave_one_out": found.removals.as_dict(),
        "scaling": {
            row: {name: mean.as_dict() for name, mean in points}
            for row, points in scaling.points(study, bootstrap).items()
        },
        "parameters": parameter_table(None).as_dict(),
        "attention": found.weights.as_dict(),
        "examples": [each.as_dict() for each in found.examples],
        "missing": [
            {"key": missing.cell.key, "status": missing.cell.status, "why": missing.why}
            for missing in study.missing
        ],
    }


def _line_dict(found: _Findings, line: Line) -> dict[str, Any]:
    """Return a line's scores, facts of its runs, and its differences to the references on its backbone."""
    study, bootstrap = found.study, found.bootstrap
    row = tables.table_row(study, line)
    reports = [run.report for run in study.finished([line])]
    tasks = study.tasks([line])
    differences = {}
    parent = [ablations.full(line)] if line.ablation else []
    for reference in (*parent, *(Line(row=name, backbone=line.backbone) for name in REFERENCES)):
        shared = tables.common(study, (line, reference), tasks)
        mean = bootstrap.difference(line, reference, shared) if shared else None
        if mean is not None:
            each = {task: bootstrap.difference(line, reference, [task]) for task in shared}
            differences[reference.label] = {
                "mean": mean.as_dict(),
                "tasks": {task: found and found.as_dict() for task, found in each.items()},
            }
    return {
        "label": line.label,
        "row": line.row,
        "ablation": line.ablation,
        "backbone": line.backbone,
        "scores": {task: cell.as_dict() for task, cell in row.cells.items()},
        "parameters_per_task": list(row.parameters_per_task),
        "trainable_parameters": sorted({report.trainable_parameters for report in reports}),
        "steps": list(row.steps),
        "tokens": [report.tokens for report in reports],
        "seconds": [report.seconds for report in reports],
        "test_rows": {
            task: next(iter(by_seed.values())).test_rows(task) for task, by_seed in study.of(line).items()
        },
        "differences": differences,
    }
