"""The directory of a study: who does it, study.json, and where its runs stand.

<study.directory>/<name>/
    study.json, report
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attempt_ray.bank.durable import storage_errors, write_durably
from attempt_ray.config import Config, parse
from attempt_ray.errors import AttemptError, ConfigError, DataError
from attempt_ray.reporting.runs import fetched
from attempt_ray.reporting.states import holder, read_state, run_directories
from attempt_ray.reporting.study.cells import FILE, Cell
from jobs.study_plan import StudyPlan, identity, plan_study

_LEASE = ".lease"
_LOCK_SECONDS = 1.0
"""Longest wait for a study that another process only looks at."""

Outcome = Literal["finished", "failed", "skipped", "waiting"]


class StudyRecord(BaseModel):
    """The content of study.json, schema 1."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    config: Mapping[str, Any]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What came of a run."""

    status: Outcome
    run: str | None = None
    error: str = ""


def study_directory(config: Config, name: str) -> Path:
    """Return where a study keeps its study.json and report."""
    return Path(config.study.directory).expanduser() / name


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a study for this process, its directory made; the kernel frees a dead holder's.

    Raises:
        ConfigError: Another process does it.
        StorageError: The disk refused.
    """
    with storage_errors(f"write {directory}", where=directory):
        directory.mkdir(parents=True, exist_ok=True)
        lease = (directory / _LEASE).open("a+b")
    with lease:
        if not _locked(lease.fileno()):
            other = (directory / _LEASE).read_text().strip() or "unknown"
            raise ConfigError(
                f"study {directory} is being done by process {other}; wait for it, or set study.name to another name"
            )
        lease.truncate(0)
        lease.write(f"{os.getpid()}\n".encode())
        lease.flush()
        yield


def _locked(descriptor: int) -> bool:
    """Lock a file for this process alone; who looks at a study holds it for a moment too."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        else:
            return True


def write_study(directory: Path, study: StudyPlan, known: Mapping[str, Known]) -> None:
    """Replace study.json, wholly or not at all.

    Args:
        directory: The study's.
        study: Its plan.
        known: What came of runs, by key; the others wait.

    Raises:
        StorageError: The disk refused.
    """
    waiting = Known(status="waiting")
    record = StudyRecord(
        schema=1,
        name=study.name,
        config=study.config.model_dump(mode="json"),
        cells=tuple(
            Cell(
                row=cell.row,
                ablation=cell.ablation,
                tasks=cell.tasks,
                seed=cell.seed,
                backbone=cell.backbone,
                key=cell.key,
                **vars(known.get(cell.job, waiting)),
            )
            for cell in study.cells
        ),
    )
    content = json.dumps(record.model_dump(mode="json", by_alias=True), indent=1)
    write_durably(directory / FILE, content.encode())


def read_study(directory: Path) -> StudyRecord:
    """Return what study.json holds.

    Raises:
        DataError: There is none, or it is something else.
    """
    path = directory / FILE
    try:
        return StudyRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}; give the name of a study that `attempt study run` began"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "top level"
        raise DataError(f"{path}, {where}: {problem['msg'].lower()}; run the study again") from None


@dataclass
class Counts:
    """Cells of a row by where they stand."""

    done: int = 0
    running: int = 0
    waiting: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.done + self.running + self.waiting + self.failed


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a study stands."""

    name: str
    process: str | None
    """Process that does it, on this machine."""
    rows: Mapping[str, Counts]
    """Cells by row, an ablation being `<row>-<ablation>`, on several backbones with its name before it."""
    before: Counts
    """Runs that stand in no cell: sources, priors, and tuned prompts that others start from."""
    errors: Mapping[str, str]
    """Why runs failed, by the key of the cell."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain JSON."""
        return {
            "name": self.name,
            "process": self.process,
            "rows": {row: vars(counts) for row, counts in self.rows.items()},
            "before": vars(self.before),
            "errors": dict(self.errors),
        }


def standing(directory: Path) -> Standing:
    """Return where a study stands, from study.json and the run directories, while others may be writing them.

    A run that has finished, or is under way, is told by its directory, whatever study.json knew.

    Raises:
        DataError: There is no study, or what it holds cannot be used.
    """
    record = read_study(directory)
    config = parse([record.config])
    study = plan_study(config)
    states = _run_states(config, study)
    recorded = {cell.key: cell for cell in record.cells}
    several = len(study.backbones) > 1
    rows: dict[str, Counts] = {}
    errors: dict[str, str] = {}
    for cell in study.cells:
        row = cell.row if cell.ablation is None else f"{cell.row}-{cell.ablation}"
        counts = rows.setdefault(f"{cell.backbone}/{row}" if several else row, Counts())
        known = recorded.get(cell.key)
        found = states.get(cell.job)
        if found is None and known is not None and known.status in ("failed", "skipped"):
            counts.failed += 1
            errors[cell.key] = known.error
        else:
            _count(counts, found)
    before = Counts()
    in_cells = {cell.job for cell in study.cells}
    for job in study.jobs:
        if job.key not in in_cells:
            _count(before, states.get(job.key))
    return Standing(name=record.name, process=holder(directory), rows=rows, before=before, errors=errors)


def _count(counts: Counts, found: str | None) -> None:
    if found == "finished":
        counts.done += 1
    elif found == "running":
        counts.running += 1
    else:
        counts.waiting += 1


def _run_states(config: Config, study: StudyPlan) -> dict[str, str]:
    """Return `finished` or `running` by key of those runs that are so by their directories."""
    keys = {identity(run): key for key, run in study.known.items()}
    found: dict[str, str] = {}
    with fetched(config.runs) as root:
        try:
            directories = run_directories(root)
        except DataError:
            return {}
        for directory in directories:
            try:
                key = keys.get(identity(parse([json.loads((directory / "config.json").read_bytes())])))
                if key is None or found.get(key) == "finished":
                    continue
                finished = (directory / "report.json").exists()
                state = "finished" if finished else read_state(directory).state
            except (AttemptError, OSError, ValueError):
                continue
            if state in ("finished", "running"):
                found[key] = state
    return found
