"""A study's report: Markdown, JSON and figures, every number read back from run directories."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attempt_ray.bank.durable import storage_errors, write_durably
from attempt_ray.reporting import figures, markdown
from attempt_ray.reporting.attention import AttentionTable, attention_table
from attempt_ray.reporting.runs import RunSet, read_runs
from attempt_ray.reporting.tables import ResultsTable, method_name, results_table

_CAPTIONS = {
    "results.png": "Results on the test split",
    "attention.png": "Mean mixing weights of every target",
    "curves.png": "Learning curves",
}


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """What was written, and the few numbers a job prints."""

    directory: Path
    files: tuple[Path, ...]
    runs: int
    set_aside: int
    warnings: tuple[str, ...]
    small_means: Mapping[str, float | None]
    """By method: mean over the small targets that every method has; None without such targets."""
    means: Mapping[str, float | None]
    """By method: mean over all targets that every method has."""
    parent_agreement: Mapping[str, float | None]
    """By method with mixing weights: share of targets whose most attended source is a true parent, 0..1."""

    def as_dict(self) -> dict[str, Any]:
        """Return the summary, JSON-able."""
        return {
            "directory": str(self.directory),
            "files": [str(path) for path in self.files],
            "runs": self.runs,
            "set_aside": self.set_aside,
            "warnings": list(self.warnings),
            "small_means": dict(self.small_means),
            "means": dict(self.means),
            "parent_agreement": dict(self.parent_agreement),
        }


def write_report(
    run_dirs_root: Path,
    out: Path,
    *,
    parents: Mapping[str, Sequence[str]],
    digests: Collection[str] | None = None,
) -> ReportSummary:
    """Write ``report.md``, ``report.json`` and the figures of the runs under `run_dirs_root` into `out`.

    Each file appears whole or not at all, ``report.md`` last; a figure of an earlier report that this one does not
    have is removed.

    Args:
        run_dirs_root: Directory of run directories.
        out: Directory of the report; made if it is not there.
        parents: True source tasks of a target, where they are known (``study.parents``).
        digests: Report on the runs with these digests alone; None takes all.

    Raises:
        DataError: There is no finished run.
        StorageError: The disk refused.
    """
    runs = read_runs(run_dirs_root, digests=digests)
    results = results_table(runs.runs)
    attention = attention_table(runs.runs, parents=parents)
    drawn = {
        "results.png": figures.results_chart(results),
        "attention.png": figures.attention_heatmap(attention),
        "curves.png": figures.learning_curves(runs.runs),
    }
    contents = {name: data for name, data in drawn.items() if data is not None}
    text = _markdown(runs, results=results, attention=attention, pictures=tuple(contents), out=out)
    contents["report.json"] = (
        json.dumps(_json(runs, results=results, attention=attention), indent=1, allow_nan=False).encode()
        + b"\n"
    )
    contents["report.md"] = text.encode()
    with storage_errors(f"write the report into {out}", where=out):
        out.mkdir(parents=True, exist_ok=True)
        for name in set(drawn) - set(contents):
            (out / name).unlink(missing_ok=True)
    for name, data in contents.items():
        write_durably(out / name, data)
    return ReportSummary(
        directory=out,
        files=tuple(out / name for name in contents),
        runs=len(runs.runs),
        set_aside=len(runs.set_aside),
        warnings=results.warnings,
        small_means=_means(results, results.shared_small_tasks),
        means=_means(results, results.shared_tasks),
        parent_agreement={label: attention.agreement(label).share for label in attention.labels},
    )


def _means(results: ResultsTable, tasks: Sequence[str]) -> dict[str, float | None]:
    spreads = {row.label: row.mean(tasks) for row in results.rows}
    return {label: None if spread is None else spread.mean for label, spread in spreads.items()}


def _json(runs: RunSet, *, results: ResultsTable, attention: AttentionTable) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "study",
        "results": results.as_dict(),
        "attention": attention.as_dict(),
        "runs": [
            {
                "directory": run.directory.name,
                "job": run.report.job,
                "label": run.report.label,
                "tasks": list(run.report.tasks),
                "seed": run.report.seed,
                "digest": run.report.digest,
                "steps": run.report.steps,
                "best_step": run.report.best_step,
                "seconds": run.report.seconds,
                "tokens": run.report.tokens,
                "trainable_parameters": run.report.trainable_parameters,
                "backbone": {
                    "name": run.report.backbone.name,
                    "weights_sha256": run.report.backbone.weights_sha256,
                },
                "bank": dict(run.report.bank or {}),
                "parents": list(run.report.parents),
            }
            for run in runs.runs
        ],
        "set_aside": [{"directory": item.directory.name, "reason": item.reason} for item in runs.set_aside],
    }


def _markdown(
    runs: RunSet, *, results: ResultsTable, attention: AttentionTable, pictures: Sequence[str], out: Path
) -> str:
    reports = [run.report for run in runs.runs]
    backbones = ", ".join(sorted({report.backbone.name for report in reports}))
    seeds = ", ".join(
        str(seed) for seed in sorted({report.seed for report in reports if report.job == "target"})
    )
    where = os.path.relpath(runs.root, out)
    parts = [
        "# Report",
        f"Read from {len(runs.runs)} finished runs in [{where}]({where}); backbone {backbones}; "
        f"seeds of target runs: {seeds or 'none'}; {sum(report.seconds for report in reports) / 60:,.1f} minutes of "
        "training in all.",
        "## Results",
        results.markdown(),
        *_picture("results.png", pictures),
        "## What attends to what",
        "Weights are means over all test instances, then over seeds; the entropy is the mean of the instances' own, "
        "so it can be lower than that of the mean weights.",
        attention.markdown(),
        *_picture("attention.png", pictures),
        "## Learning curves",
        *(_picture("curves.png", pictures) or ("No run has a history.",)),
        "## Runs",
        markdown.table(
            ["run", "job", "method", "tasks", "seed", "steps", "best step", "seconds"],
            [
                [
                    run.directory.name,
                    run.report.job,
                    method_name(run.report.label),
                    ", ".join(run.report.tasks),
                    str(run.report.seed),
                    f"{run.report.steps:,}",
                    "-" if run.report.best_step is None else f"{run.report.best_step:,}",
                    f"{run.report.seconds:,.1f}",
                ]
                for run in runs.runs
            ],
            left=4,
        ),
    ]
    if runs.set_aside:
        lines = [f"- {item.reason}" for item in runs.set_aside]
        parts += ["## Directories without a result", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _picture(name: str, pictures: Sequence[str]) -> tuple[str, ...]:
    return (f"![{_CAPTIONS[name]}]({name})",) if name in pictures else ()
