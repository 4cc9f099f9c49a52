"""Tables and figures of finished runs: `python -m jobs.report --config embedded`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from attempt_ray.config import Config
from attempt_ray.reporting.report import ReportSummary, write_report
from jobs.edge import tell
from jobs.plan import study_name


def report(config: Config) -> dict[str, Any]:
    """Report on every finished run under `runs`.

    Raises:
        AttemptError: There is no finished run, or the disk refused.
    """
    summary = report_on(config)
    tell(f"report: {summary.directory / 'report.md'}")
    return {"job": "report", **summary.as_dict()}


def report_on(config: Config, *, digests: Collection[str] | None = None) -> ReportSummary:
    """Write the report of the study that `config` describes into `<runs>/<study>`.

    Args:
        config: Where runs are, and the known parents.
        digests: Digests of the runs to report on; None takes all.

    Raises:
        AttemptError: There is no finished run, or the disk refused.
    """
    root = Path(config.runs).expanduser()
    name = study_name(config) if digests is not None else "all-runs"
    return write_report(root, root / name, parents=config.study.parents, digests=digests)


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("report")
