"""A study, planned, executed and reported: `python -m jobs.run_study --config study/embedded-quick`.

The same command goes on with a study that was stopped or killed: finished runs are found by their directories, the others
go on from their checkpoints.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_ray.config import Config, parse
from attempt_ray.errors import DataError
from attempt_ray.orchestration.ray_job import check_places
from attempt_ray.orchestration.study import PoolEvent
from jobs import plan, pooled
from jobs.edge import one_line, tell
from jobs.preflight import preflight
from jobs.study_estimate import BackboneEstimate, estimate_study
from jobs.study_plan import ABLATIONS, StudyPlan, plan_study
from jobs.study_state import Known, Outcome, Standing, held, read_study, study_directory, write_study
from jobs.watch import clock, counted

if TYPE_CHECKING:
    from attempt_ray.reporting.study.report import Inputs

_WRITE_SECONDS = 1.0
"""Least time between two writes of study.json while runs end; where runs stand is told by their directories too."""


def run_study(config: Config, *, placement: pooled.Placement = "pool") -> dict[str, Any]:
    """Do what a study has not done yet, write its report, and return what came of it.

    Args:
        config: The study.
        placement: A pool of Ray workers, or `here`: one run after the other in this process.

    Raises:
        AttemptError: Something cannot be used; nothing was trained.
    """
    started = time.monotonic()
    check_places(config, study=True)
    study = plan_study(config)
    for line in plan_lines(study, estimate_study(study)):
        tell(line)
    for page in study.backbones.values():
        preflight(page, plan.check(page).values())
    directory = study_directory(config, study.name)
    with held(directory):
        board = _Board(study, directory)
        board.write()
        try:
            done = pooled.run_study(study.jobs, config, placement=placement, on_event=board.event)
        finally:
            board.write()
        counts = Counter(board.status_of(cell.job) for cell in study.cells)
        files = _report(directory, config) if counts["finished"] else []
    failed = done.failures
    for item in failed:
        tell(f"Set aside: {item['run']}: {item['error']}")
    tell(
        f"{study.name}: {counts['finished']} of {counted(len(study.cells), 'cell')} done by "
        f"{counted(len(done.finished), 'run')} in {clock(time.monotonic() - started)}; {directory}"
    )
    return {
        "job": "run_study",
        "study": study.name,
        "directory": str(directory),
        "seconds": round(time.monotonic() - started, 1),
        "cells": dict(counts),
        "runs": len(done.finished),
        "report": files,
        "failed": failed,
    }


def dry_run(config: Config, *, tflops: float | None = None, memory_gb: float | None = None) -> dict[str, Any]:
    """Return what a study would do and take, told without weights and rows; nothing is written.

    Args:
        config: The study.
        tflops: Useful operations a second of one worker, in units of 10^12.
        memory_gb: Memory of a worker's device.

    Raises:
        ConfigError: The study cannot be planned.
    """
    study = plan_study(config)
    estimates = estimate_study(study, tflops=tflops, memory_gb=memory_gb)
    for line in plan_lines(study, estimates):
        tell(line)
    return {
        "job": "run_study",
        "study": study.name,
        "cells": len(study.cells),
        "runs": len(study.jobs),
        "backbones": {found.backbone: found.as_dict() for found in estimates},
    }


def plan_lines(study: StudyPlan, estimates: Sequence[BackboneEstimate]) -> list[str]:
    """Return what a study will do and take, in lines for people."""
    config = study.config.study
    in_cells = {cell.job for cell in study.cells}
    changed = sum(cell.ablation is not None for cell in study.cells)
    shared = len(study.cells) - len(in_cells)
    lines = [
        f"study {study.name}: {counted(len(config.methods), 'row')} on {counted(len(config.targets), 'target')}, "
        f"{counted(len(config.seeds), 'seed')}, {counted(len(study.backbones), 'backbone')}",
        f"  cells        {len(study.cells):,}, {changed:,} of them ablations; {shared:,} share another's run",
        f"  before them  {counted(len(study.jobs) - len(in_cells), 'run')} of sources, priors and tuned prompts",
    ]
    for found in estimates:
        lines += found.describe()
    return lines


def status_lines(found: Standing) -> list[str]:
    """Return where a study stands, by row, in lines for people."""
    header = ("row", "done", "running", "waiting", "failed", "of")
    parts = {**found.rows, "(before them)": found.before}
    rows = [
        (row, *(str(getattr(counts, name)) for name in header[1:-1]), str(counts.total))
        for row, counts in parts.items()
    ]
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *rows)
    ]
    lines += [f"{key}: {error}" for key, error in found.errors.items()]
    process = f"process {found.process} is at it" if found.process else "nobody is at it"
    done, total = sum(c.done for c in found.rows.values()), sum(c.total for c in found.rows.values())
    return [*lines, f"{found.name}: {done} of {counted(total, 'cell')} done; {process}"]


def row_lines() -> list[tuple[str, str, str]]:
    """Return every row and ablation: name, kind, what it is."""
    from attempt_ray.reporting.tables import method_name

    rows = [
        (row, "per target" if row in plan.SINGLE else "per group", method_name(row)) for row in plan.METHODS
    ]
    changes = [(name, "ablation", text) for name, text in ABLATIONS.items()]
    return [*rows, *changes, ("without_<source>", "leave-one-out", "one source less; study.leave_one_out")]


def report_study(
    name: str, *, directory: str = "studies", out: Path | None = None, inputs: Inputs = "shown"
) -> dict[str, Any]:
    """Write the report of what a study has done so far.

    Args:
        name: The study's.
        directory: Where studies are.
        out: Another directory for the report, or a Markdown file: that page and its pictures alone.
        inputs: Whether the report shows test rows.

    Raises:
        AttemptError: There is no such study, or nothing of it has finished.
    """
    place = Path(directory).expanduser() / name
    config = parse([read_study(place).config])
    return {"job": "study_report", "study": name, "files": _report(place, config, out=out, inputs=inputs)}


def _report(
    directory: Path, config: Config, *, out: Path | None = None, inputs: Inputs = "shown"
) -> list[str]:
    from attempt_ray.reporting.study.report import write_study_report

    found = write_study_report(directory, runs=config.runs, out=out, inputs=inputs)
    for line in found.lines:
        tell(line)
    return [str(path) for path in found.files]


class _Board:
    """What came of the runs of a study, kept in study.json."""

    def __init__(self, study: StudyPlan, directory: Path) -> None:
        self._study = study
        self._directory = directory
        self._known = _earlier(study, directory)
        self._written = 0.0
        backbones = study.backbones.items()
        self._banks = {job.key: page for name, page in backbones for job in study.jobs_on(name)}

    def event(self, event: PoolEvent) -> None:
        """Take over what happened to a run."""
        if event.kind == "finished":
            pooled.promote(self._banks[event.key], event)
            self._known[event.key] = Known(status="finished", run=Path(event.directory).name)
        elif event.kind in ("failed", "skipped"):
            status: Outcome = "failed" if event.kind == "failed" else "skipped"
            self._known[event.key] = Known(status=status, error=one_line(event.facts["error"]))
        else:
            return
        if time.monotonic() - self._written > _WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Replace study.json."""
        write_study(self._directory, self._study, self._known)
        self._written = time.monotonic()

    def status_of(self, job: str) -> Outcome:
        """Return what came of a run."""
        return self._known[job].status if job in self._known else "waiting"


def _earlier(study: StudyPlan, directory: Path) -> dict[str, Known]:
    """Return what is known to have finished before; what failed is tried again."""
    try:
        record = read_study(directory)
    except DataError:
        return {}
    jobs = {cell.key: cell.job for cell in study.cells}
    return {
        jobs[cell.key]: Known(status="finished", run=cell.run)
        for cell in record.cells
        if cell.status == "finished" and cell.key in jobs
    }


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("study run")
