"""The results table: methods against target tasks, on the test split, as mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attempt_ray.reporting import checks, markdown
from attempt_ray.reporting.runs import Run

METHODS = {
    "finetune": "full fine-tuning",
    "adapter": "Adapter",
    "bitfit": "BitFit",
    "lora": "LoRA",
    "prompt_tuning": "prompt tuning",
    "spot": "SPoT",
    "spot_similar": "SPoT (similar source)",
    "spot_generic": "SPoT-g",
    "spot_targeted": "SPoT-t",
    "attempt": "ATTEMPT",
    "mpt": "MPT",
    "dept": "DePT",
    "finetune_mt": "full fine-tuning-MT",
    "adapter_mt": "Adapter-MT",
    "spot_generic_mt": "SPoT-g-MT",
    "spot_targeted_mt": "SPoT-t-MT",
    "attempt_mt": "ATTEMPT-MT",
    "mpt_mt": "MPT-MT",
}
"""Rows of the table, in order, and how they are printed; other labels follow under their own names."""

SMALL_TARGET_ROWS = 600
"""Training rows up to which a target counts as small."""

REFERENCE = "prompt_tuning"
"""Row that the second block takes differences to."""


def method_name(label: str) -> str:
    """Return how a row label is printed."""
    return METHODS.get(label, label)


def method_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return labels without repetition, the known ones first and in the order of `METHODS`."""
    known = list(METHODS)
    return tuple(
        sorted(set(labels), key=lambda label: (known.index(label) if label in known else len(known), label))
    )


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One quantity over seeds."""

    mean: float
    by_seed: Mapping[int, float]

    @classmethod
    def of(cls, by_seed: Mapping[int, float], *, mean: float | None = None) -> Spread:
        """Return the spread of values by seed; `mean` replaces theirs where it rests on more than them."""
        ordered = {seed: by_seed[seed] for seed in sorted(by_seed)}
        return cls(mean=statistics.fmean(ordered.values()) if mean is None else mean, by_seed=ordered)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None with fewer than two."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} \u00b1 {self.std:.1f}"

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, JSON-able."""
        return {
            "mean": self.mean,
            "std": self.std,
            "seeds": len(self.by_seed),
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Column:
    """A target task as a column: what its scores are and rest on."""

    task: str
    metric: str
    train_rows: int
    test_rows: int

    @property
    def small(self) -> bool:
        """Whether the target has at most `SMALL_TARGET_ROWS` training rows."""
        return self.train_rows <= SMALL_TARGET_ROWS


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method's scores by task; tasks without a run are missing."""

    label: str
    cells: Mapping[str, Spread]
    parameters_per_task: tuple[float, ...]
    """Distinct values over its runs, ascending."""
    steps: tuple[int, ...]
    """Distinct values over its runs, ascending."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that any cell rests on."""
        return tuple(sorted({seed for cell in self.cells.values() for seed in cell.by_seed}))

    def mean(self, tasks: Sequence[str]) -> Spread | None:
        """Return the mean over those of `tasks` that have a run; None where none has.

        The mean is that of the printed cells; the spread is that of the seeds that all of these tasks share.
        """
        cells = [self.cells[task] for task in tasks if task in self.cells]
        if not cells:
            return None
        shared = set.intersection(*(set(cell.by_seed) for cell in cells))
        by_seed = {seed: statistics.fmean(cell.by_seed[seed] for cell in cells) for seed in shared}
        return Spread.of(by_seed, mean=statistics.fmean(cell.mean for cell in cells))


@dataclass(frozen=True, kw_only=True)
class ResultsTable:
    """Test scores of every method on every target, and what to mind when reading them."""

    columns: tuple[Column, ...]
    """In order of training rows, so that small targets stand together."""
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The column names."""
        return tuple(column.task for column in self.columns)

    @property
    def shared_tasks(self) -> tuple[str, ...]:
        """Targets that every method has a score on: the only fair ground for means."""
        return tuple(task for task in self.tasks if all(task in row.cells for row in self.rows))

    @property
    def shared_small_tasks(self) -> tuple[str, ...]:
        """The small ones among the shared tasks."""
        return tuple(
            column.task for column in self.columns if column.small and column.task in self.shared_tasks
        )

    def markdown(self) -> str:
        """Return both blocks and the warnings."""
        if not self.rows:
            return "No target run has finished yet."
        parts = [self._scores_markdown(), self._means_markdown()]
        if self.warnings:
            parts.append("**Mind when reading**\n\n" + "\n".join(f"- {warning}" for warning in self.warnings))
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return every number of the table, JSON-able."""
        return {
            "columns": [
                {
                    "task": column.task,
                    "metric": column.metric,
                    "train_rows": column.train_rows,
                    "test_rows": column.test_rows,
                    "small": column.small,
                }
                for column in self.columns
            ],
            "rows": [self._row_dict(row) for row in self.rows],
            "shared_tasks": list(self.shared_tasks),
            "shared_small_tasks": list(self.shared_small_tasks),
            "warnings": list(self.warnings),
        }

    def _row_dict(self, row: Row) -> dict[str, Any]:
        return {
            "label": row.label,
            "scores": {task: cell.as_dict() for task, cell in row.cells.items()},
            "mean": _dict(row.mean(self.tasks)),
            "mean_shared": _dict(row.mean(self.shared_tasks)),
            "mean_shared_small": _dict(row.mean(self.shared_small_tasks)),
            "parameters_per_task": list(row.parameters_per_task),
            "steps": list(row.steps),
        }

    def _scores_markdown(self) -> str:
        best = {task: self._best(task) for task in self.tasks}
        head = [
            ["*metric*", *(column.metric for column in self.columns), "", "", "", ""],
            ["*training rows*", *(f"{column.train_rows:,}" for column in self.columns), "", "", "", ""],
            [
                "*test n (points each)*",
                *(_test_size(column.test_rows) for column in self.columns),
                "",
                "",
                "",
                "",
            ],
        ]
        body = []
        for row in self.rows:
            cells = [_cell(row.cells.get(task), bold=row.label == best[task]) for task in self.tasks]
            mean = _cell(row.mean(self.tasks))
            if len(row.cells) < len(self.tasks):
                mean += f" ({len(row.cells)} of {len(self.tasks)} tasks)"
            body.append(
                [
                    method_name(row.label),
                    *cells,
                    mean,
                    str(len(row.seeds)),
                    markdown.span(row.parameters_per_task),
                    markdown.span(row.steps),
                ]
            )
        header = ["method", *self.tasks, "mean", "seeds", "trainable per task", "steps"]
        return (
            "Test score, mean \u00b1 standard deviation over seeds; bold is the best of the methods that keep the "
            "backbone frozen.\n\n" + markdown.table(header, [*head, *body])
        )

    def _means_markdown(self) -> str:
        reference = next((row for row in self.rows if row.label == REFERENCE), None)
        groups = (self.shared_small_tasks, self.shared_tasks)
        body = []
        for row in self.rows:
            cells = []
            for tasks in groups:
                mean = row.mean(tasks)
                base = reference.mean(tasks) if reference else None
                cells += [_cell(mean), f"{mean.mean - base.mean:+.1f}" if mean and base else "-"]
            body.append([method_name(row.label), *cells])
        delta = f"vs {method_name(REFERENCE)}"
        header = [
            "method",
            f"small targets ({len(self.shared_small_tasks)})",
            delta,
            f"all targets ({len(self.shared_tasks)})",
            delta,
        ]
        small = ", ".join(self.shared_small_tasks) or "none"
        return (
            f"Means over the {len(self.shared_tasks)} targets that every method has; small targets have at most "
            f"{SMALL_TARGET_ROWS} training rows: {small}.\n\n" + markdown.table(header, body)
        )

    def _best(self, task: str) -> str | None:
        means = {
            row.label: row.cells[task].mean
            for row in self.rows
            if task in row.cells and row.label != "finetune"
        }
        return max(means, key=means.__getitem__) if len(means) > 1 else None


def results_table(runs: Iterable[Run]) -> ResultsTable:
    """Return the table over the target runs among `runs`; others are passed over."""
    kept, notes = checks.newest(run for run in runs if run.report.job == "target")
    labels = method_order(run.report.label for run in kept)
    return ResultsTable(
        columns=_columns(kept),
        rows=tuple(_row(label, [run for run in kept if run.report.label == label]) for label in labels),
        warnings=(*notes, *checks.warnings(kept)),
    )


def _columns(runs: Sequence[Run]) -> tuple[Column, ...]:
    columns: dict[str, Column] = {}
    for run in runs:
        for task in run.report.tasks:
            columns.setdefault(
                task,
                Column(
                    task=task,
                    metric=run.report.headline[task],
                    train_rows=run.report.train_rows[task],
                    test_rows=run.test_rows(task),
                ),
            )
    return tuple(sorted(columns.values(), key=lambda column: (column.train_rows, column.task)))


def _row(label: str, runs: Sequence[Run]) -> Row:
    by_task: dict[str, dict[int, float]] = {}
    for run in runs:
        for task in run.report.tasks:
            by_task.setdefault(task, {})[run.report.seed] = run.test_score(task)
    return Row(
        label=label,
        cells={task: Spread.of(by_seed) for task, by_seed in sorted(by_task.items())},
        parameters_per_task=tuple(sorted({run.report.parameters_per_task for run in runs})),
        steps=tuple(sorted({run.report.steps for run in runs})),
    )


def _cell(spread: Spread | None, *, bold: bool = False) -> str:
    if spread is None:
        return "-"
    return f"**{spread}**" if bold else str(spread)


def _dict(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else spread.as_dict()


def _test_size(rows: int) -> str:
    """Return a test set's size with what one example is worth, in points."""
    return f"{rows:,} ({100 / rows:.2f})"
