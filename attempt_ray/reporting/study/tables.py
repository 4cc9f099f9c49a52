"""The paper's Tables 2 and 3 from a study: scores, differences with intervals, and what each row costs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from attempt_ray.reporting import markdown
from attempt_ray.reporting.study.bootstrap import Bootstrap, Estimate
from attempt_ray.reporting.study.cells import Study
from attempt_ray.reporting.study.grid import Entry, Grid, Rule, row
from attempt_ray.reporting.study.lines import Line
from attempt_ray.reporting.study.paper import TABLE_2, TABLE_3, PaperTable, task_name
from attempt_ray.reporting.tables import Row, Spread

NOTHING = "\u2013"
_TYPED_WRONG = 0.015
"""Difference from which on a printed average is not the scores' average rounded."""


def table_row(study: Study, line: Line) -> Row:
    """Return a line's scores by task over seeds."""
    runs = [run for by_seed in study.of(line).values() for run in by_seed.values()]
    return Row(
        label=line.label,
        cells={
            task: Spread.of({seed: run.test_score(task) for seed, run in by_seed.items()})
            for task, by_seed in study.of(line).items()
        },
        parameters_per_task=tuple(sorted({run.report.parameters_per_task for run in runs})),
        steps=tuple(sorted({run.report.steps for run in runs})),
    )


def layouts(study: Study) -> tuple[PaperTable, ...]:
    """Return Table 2, Table 3 and one of all other targets, those of them that the study has a target of."""
    tasks = study.tasks(study.lines())
    others = tuple(task for task in tasks if task not in (*TABLE_2.tasks, *TABLE_3.tasks))
    further = PaperTable(
        title="Targets without a table in the paper", blocks=(("Avg.", others),), train_rows={}, rows={}
    )
    return tuple(table for table in (TABLE_2, TABLE_3, further) if set(table.tasks) & set(tasks))


def scores_grid(study: Study, layout: PaperTable, lines: Sequence[Line], *, name: str) -> Grid:
    """Return a table in the paper's layout: each line's mean and deviation over seeds, below it what the paper prints."""
    rows = {line: table_row(study, line) for line in lines}
    printed = any(line.averages for line in layout.rows.values())
    best = {task: _best(rows, task) for task in layout.tasks}
    header = ["method", "params/task"]
    for title, tasks in layout.blocks:
        header += [*map(task_name, tasks), title, *([f"{title} printed"] if printed else [])]
    body = _facts(study, layout, printed=printed)
    wrong = False
    for line, found in rows.items():
        ours: list[str | Entry] = [line.name, markdown.span(found.parameters_per_task)]
        theirs = ["in the paper", layout.rows[line.label].parameters if line.label in layout.rows else ""]
        for number, (_, tasks) in enumerate(layout.blocks):
            ours += [Entry(_text(found.cells.get(task)), bold=best[task] == line) for task in tasks]
            ours.append(_average(found, tasks))
            theirs += [_plain(layout.score(line.label, task)) for task in tasks]
            average = layout.average(line.label, tasks)
            theirs.append(_plain(average))
            if printed:
                typed = layout.printed_average(line.label, number)
                differs = typed is not None and average is not None and abs(typed - average) > _TYPED_WRONG
                wrong |= differs
                ours.append("")
                theirs.append(_plain(typed) + ("\u2020" if differs else ""))
        body.append(row(*ours, above=not body or body[-1].faint is False or line == lines[0]))
        if line.label in layout.rows:
            body.append(row(*theirs, faint=True))
    notes = [
        "Test scores, mean \u00b1 standard deviation over seeds; bold is the best of the methods that keep the backbone "
        "frozen. An average is over the tasks that the row has."
    ]
    if any(line.label in layout.rows for line in lines):
        notes.append(
            "Rows `in the paper`: Asai et al. 2022, T5-base; their averages are computed from the printed scores, and what "
            "the paper prints as average stands beside them"
            + (" (\u2020: it is not what the scores average to)." if wrong else ".")
            if printed
            else "Rows `in the paper`: Asai et al. 2022, T5-base; their averages are computed from the printed scores."
        )
    return Grid(
        name=name, caption=layout.title, header=tuple(header), rows=tuple(body), left=1, notes=tuple(notes)
    )


def _facts(study: Study, layout: PaperTable, *, printed: bool) -> list[Rule]:
    """Return rows on what the scores of each task are and rest on."""
    metric, trained, tested = (
        ["metric", ""],
        ["training rows" + (" (paper)" if layout.train_rows else ""), ""],
        ["test rows (points each)", ""],
    )
    for _, tasks in layout.blocks:
        for task in tasks:
            run = study.any_run(task)
            rows = run.report.train_rows[task] if run else None
            theirs = layout.train_rows.get(task)
            metric.append(run.report.headline[task] if run else "")
            trained.append(
                (f"{rows:,}" if rows is not None else NOTHING) + (f" ({theirs})" if theirs else "")
            )
            tested.append(f"{run.test_rows(task):,} ({100 / run.test_rows(task):.2f})" if run else NOTHING)
        for facts in (metric, trained, tested):
            facts += ["", *([""] if printed else [])]
    return [row(*facts, faint=True) for facts in (metric, trained, tested)]


def _best(rows: Mapping[Line, Row], task: str) -> Line | None:
    means = {
        line: found.cells[task].mean
        for line, found in rows.items()
        if task in found.cells and not line.row.startswith("finetune")
    }
    return max(means, key=means.__getitem__) if len(means) > 1 else None


def _average(found: Row, tasks: Sequence[str]) -> str:
    mean, count = found.mean(tasks), sum(task in found.cells for task in tasks)
    return _text(mean) + (f" ({count} of {len(tasks)})" if 0 < count < len(tasks) else "")


def _text(spread: Spread | None) -> str:
    return NOTHING if spread is None else str(spread)


def _plain(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def signed(value: float) -> str:
    """Return a difference in points with its sign."""
    text = f"{value:+.1f}"
    return text.replace("-", "\u2212") if float(text) else "0.0"


def interval(estimate: Estimate | None, *, difference: bool = True) -> str:
    """Return an estimate with its interval, where it has one."""
    if estimate is None:
        return NOTHING
    text = signed if difference else "{:.1f}".format
    if estimate.low is None or estimate.high is None:
        return text(estimate.value)
    return f"{text(estimate.value)} [{text(estimate.low)}, {text(estimate.high)}]"


def entry(estimate: Estimate | None) -> Entry:
    """Return a difference as a field, bold where its interval leaves out 0."""
    return Entry(interval(estimate), bold=estimate is not None and estimate.decided is True)


def common(study: Study, lines: Iterable[Line], tasks: Sequence[str]) -> tuple[str, ...]:
    """Return those of `tasks` that all lines have with at least one seed in common with each other."""
    lines = tuple(lines)

    def shared(task: str) -> bool:
        return bool(set.intersection(*(set(study.of(line).get(task, {})) for line in lines)))

    return tuple(task for task in tasks if lines and shared(task))


def differences_grid(
    study: Study,
    bootstrap: Bootstrap,
    layout: PaperTable,
    *,
    lines: Sequence[Line],
    reference: Line,
    name: str,
) -> Grid | None:
    """Return differences of lines to a reference, task by task and on average; None where there is none.

    The average of a line is over the tasks that it shares with the reference.
    """
    header = ["method"]
    for title, tasks in layout.blocks:
        header += [*map(task_name, tasks), title]
    body = []
    for line in lines:
        if line == reference or not common(study, (line, reference), layout.tasks):
            continue
        entries: list[str | Entry] = [line.name]
        for _, tasks in layout.blocks:
            entries += [entry(bootstrap.difference(line, reference, [task])) for task in tasks]
            shared = common(study, (line, reference), tasks)
            entries.append(entry(bootstrap.difference(line, reference, shared)) if shared else NOTHING)
        body.append(row(*entries))
    if not body:
        return None
    return Grid(
        name=name,
        caption=f"{layout.title}: difference to {reference.name}",
        header=tuple(header),
        rows=tuple(body),
        notes=(
            f"Points above (+) or below (\u2212) {reference.name} on the seeds that both have, with "
            f"{bootstrap.level:.0%} intervals of {bootstrap.resamples:,} paired resamples of test rows and seeds; bold: the "
            "interval leaves out 0.",
        ),
    )


def costs_grid(study: Study, lines: Sequence[Line]) -> Grid:
    """Return what each line trains and takes; means over its runs."""
    body = []
    for line in lines:
        reports = [run.report for run in study.finished([line])]
        if not reports:
            continue
        seconds = [report.seconds for report in reports]
        body.append(
            row(
                line.name,
                markdown.span(report.trainable_parameters for report in reports),
                markdown.span(report.parameters_per_task for report in reports),
                markdown.span(report.steps for report in reports),
                f"{statistics.fmean(report.tokens for report in reports):,.0f}",
                duration(statistics.fmean(seconds)),
                str(len(reports)),
                duration(sum(seconds)),
            )
        )
    header = (
        "method",
        "trainable",
        "per task",
        "steps",
        "tokens per run",
        "time per run",
        "runs",
        "time in all",
    )
    return Grid(
        name="costs",
        caption="What each row trains and takes",
        header=header,
        rows=tuple(body),
        notes=(
            "Tokens are input tokens of training. Wall time is that of the runs as they were placed, restarts included; runs "
            "that share a forward pass share its time unequally, so it compares rows of one study only roughly.",
        ),
    )


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
