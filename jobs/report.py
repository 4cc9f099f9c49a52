"""Tables and figures of finished runs: `python -m jobs.report --config embedded`."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from attempt_ray.bank.durable import storage_errors
from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.places import open_runs
from attempt_ray.bank.storage import Storage
from attempt_ray.config import Config
from attempt_ray.reporting.report import ReportSummary, write_report
from attempt_ray.reporting.runs import fetched
from jobs.edge import tell
from jobs.plan import study_name


def report(config: Config) -> dict[str, Any]:
    """Report on every finished run under `runs`.

    Raises:
        AttemptError: There is no finished run, or the disk refused.
    """
    summary = report_on(config)
    tell(f"report: {summary.directory / 'report.md'}{also_at(config, summary)}")
    return {"job": "report", **summary.as_dict()}


def report_on(config: Config, *, digests: Collection[str] | None = None) -> ReportSummary:
    """Write the report of the study that `config` describes into `<runs>/<study>`.

    Where runs are on an object store, a copy stays in the cache directory, and the summary names that.

    Args:
        config: Where runs are, and the known parents.
        digests: Digests of the runs to report on; None takes all.

    Raises:
        AttemptError: There is no finished run, or the disk or store refused.
    """
    name = study_name(config) if digests is not None else "all-runs"
    storage = open_runs(config.runs)
    with fetched(config.runs) as root:
        summary = write_report(root, root / name, parents=config.study.parents, digests=digests)
        if isinstance(storage, LocalStorage):
            return summary
        return _published(summary, storage, name, copy=_copies(config) / name)


def also_at(config: Config, summary: ReportSummary) -> str:
    """Return words on where else a report is, which stands beside the runs of an object store too."""
    storage = open_runs(config.runs)
    if isinstance(storage, LocalStorage):
        return ""
    return f" (and {storage.place(summary.directory.name)}/report.md)"


def _published(summary: ReportSummary, storage: Storage, name: str, *, copy: Path) -> ReportSummary:
    """Take a report to the store, its text last, and to the directory `copy`; return it as it is there."""
    files = [path.name for path in summary.files]
    for entry in storage.entries(name):
        if entry.name not in files:
            storage.remove(f"{name}/{entry.name}")
    for path in summary.files:
        storage.replace(f"{name}/{path.name}", path.read_bytes())
    with storage_errors(f"write {copy}", where=copy):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(summary.directory, copy)
    return replace(summary, directory=copy, files=tuple(copy / file for file in files))


def _copies(config: Config) -> Path:
    place = hashlib.sha256(config.runs.encode()).hexdigest()[:12]
    return Path(config.data.cache_dir).expanduser() / "reports" / place


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("report")
