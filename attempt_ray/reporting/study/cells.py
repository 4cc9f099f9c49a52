"""study.json joined with its run directories: which cell of the study has which score."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attempt_ray.errors import ConfigError, DataError
from attempt_ray.reporting import checks
from attempt_ray.reporting.examples import Answered, read_examples
from attempt_ray.reporting.runs import Run, read_run
from attempt_ray.reporting.study.bootstrap import Scored, Scores
from attempt_ray.reporting.study.lines import Line, line_order
from attempt_ray.reporting.study.resampling import resampled
from attempt_ray.tasks import TARGET_TASKS, all_tasks

FILE = "study.json"
_TOLERANCE = 1e-6
"""Largest difference in points between a reported score and that of the answers, which is rounding."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Data(_Record):
    label_words: Literal["digits", "words"] = "digits"
    user_tasks: tuple[str, ...] = ()


class _Backbone(_Record):
    name: str = ""


class _Config(_Record):
    data: _Data = _Data()
    backbone: _Backbone = _Backbone()


class Cell(_Record):
    """One cell of the study: a row of the tables on some tasks with one seed."""

    row: str
    ablation: str | None = None
    tasks: tuple[str, ...] = Field(min_length=1)
    seed: int
    backbone: str
    key: str
    status: Literal["finished", "failed", "skipped", "waiting"]
    run: str | None = None
    error: str = ""

    @property
    def line(self) -> Line:
        """The line of the report that the cell belongs to."""
        return Line(row=self.row, ablation=self.ablation, backbone=self.backbone)


class StudyFile(_Record):
    """``study.json``, schema 1; of the config only what reporting reads."""

    schema_version: Literal[1] = Field(alias="schema")
    name: str
    config: _Config = _Config()
    cells: tuple[Cell, ...]


Runs = Mapping[Line, Mapping[str, Mapping[int, Run]]]
"""Finished runs by line, task and seed."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A cell without a score, and why."""

    cell: Cell
    why: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as far as it has come."""

    name: str
    cells: tuple[Cell, ...]
    runs: Runs
    missing: tuple[Missing, ...]
    backbone: str
    """The backbone of the tables: the config's, or the one that most cells are for."""
    config: _Config

    def lines(self, *, ablations: bool = False, backbone: str | None = None) -> tuple[Line, ...]:
        """Return the lines on a backbone (None: that of the tables) that have a cell, finished or not."""
        wanted = backbone or self.backbone
        return line_order(
            cell.line
            for cell in self.cells
            if cell.backbone == wanted and (cell.ablation is not None) == ablations
        )

    def tasks(self, lines: Iterable[Line] | None = None) -> tuple[str, ...]:
        """Return the tasks of lines (None: of all), in the order of the paper's tables, others after them."""
        among = None if lines is None else set(lines)
        found = {task for cell in self.cells if among is None or cell.line in among for task in cell.tasks}
        known = [task for task in TARGET_TASKS if task in found]
        return (*known, *sorted(found - set(known)))

    def on(self, backbone: str) -> str:
        """Return what a sentence on a backbone begins with: its name where runs are on several, else nothing."""
        return f"{backbone}: " if len({line.backbone for line in self.runs}) > 1 else ""

    def of(self, line: Line) -> Mapping[str, Mapping[int, Run]]:
        """Return the runs of a line by task and seed."""
        return self.runs.get(line, {})

    def finished(self, lines: Iterable[Line]) -> tuple[Run, ...]:
        """Return the runs of lines, each once under the line's label."""
        return tuple(
            replace(run, report=run.report.model_copy(update={"label": line.label}))
            for line in lines
            for run in {
                run.directory.name: run for by_seed in self.of(line).values() for run in by_seed.values()
            }.values()
        )

    def any_run(self, task: str) -> Run | None:
        """Return some run of a task on the backbone of the tables, for what all have in common."""
        found = (
            run
            for line, tasks in self.runs.items()
            if line.backbone == self.backbone
            for run in tasks.get(task, {}).values()
        )
        return next(found, None)


def read_study_file(directory: Path) -> StudyFile:
    """Read ``study.json``.

    Raises:
        DataError: The file is missing or is not one.
    """
    path = directory / FILE
    try:
        return StudyFile.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise DataError(
            f"no {path}; give the directory of a study, which `attempt study run` makes"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "top level"
        raise DataError(
            f"{path}, {where}: {problem['msg'].lower()}; run the study again, which writes it anew"
        ) from None
    except ValueError:
        raise DataError(f"{path} is not JSON; run the study again, which writes it anew") from None


def join(file: StudyFile, root: Path) -> Study:
    """Return the study with the runs under `root` that its cells name; what cannot be read is missing."""
    runs: dict[str, Run | DataError] = {}
    found: dict[Line, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    missing: list[Missing] = []
    for cell in file.cells:
        if cell.status != "finished" or cell.run is None:
            missing.append(Missing(cell=cell, why=cell.error or cell.status))
            continue
        if cell.run not in runs:
            runs[cell.run] = _read(root / cell.run)
        run = runs[cell.run]
        if isinstance(run, DataError):
            missing.append(Missing(cell=cell, why=str(run)))
            continue
        if lacking := [task for task in cell.tasks if task not in run.report.tasks]:
            missing.append(Missing(cell=cell, why=f"{cell.run} has no score of '{lacking[0]}'"))
            continue
        for task in cell.tasks:
            found[cell.line][task][cell.seed] = run
    counts = Counter(cell.backbone for cell in file.cells)
    # Cells have short names, the last part of a hub id or path.
    configured = file.config.backbone.name.rstrip("/").rsplit("/", 1)[-1]
    return Study(
        name=file.name,
        cells=file.cells,
        runs={line: dict(tasks) for line, tasks in found.items()},
        missing=tuple(missing),
        backbone=configured if configured in counts else max(counts, key=counts.__getitem__, default=""),
        config=file.config,
    )


def _read(directory: Path) -> Run | DataError:
    try:
        run = read_run(directory)
    except DataError as error:
        return error
    if run.report.job != "target":
        return DataError(f"{directory.name} is a {run.report.job} run; wanted one of targets")
    return run


def scored(study: Study) -> tuple[Scores, tuple[str, ...]]:
    """Return every score with what resampling it needs, and why some cannot be resampled.

    Answers are read run by run and let go, so that a large study fits in memory.
    """
    labels = _labels(study)
    notes: set[str] = set()
    known: dict[tuple[str, str], Scored] = {}
    for tasks in study.runs.values():
        for by_seed in tasks.values():
            for run in by_seed.values():
                if (run.directory.name, run.report.tasks[0]) not in known:
                    known |= {
                        (run.directory.name, task): found for task, found in _of_run(run, labels, notes)
                    }
    return {
        line: {
            task: {seed: known[run.directory.name, task] for seed, run in by_seed.items()}
            for task, by_seed in tasks.items()
        }
        for line, tasks in study.runs.items()
    }, tuple(sorted(notes))


def _labels(study: Study) -> Mapping[str, tuple[str, ...]]:
    """Return the label texts of every task; none of those whose files are gone."""
    try:
        tasks = all_tasks(study.config.data.user_tasks)
    except ConfigError:
        tasks = all_tasks()
    return {name: task.labels.get(study.config.data.label_words, ()) for name, task in tasks.items()}


def _of_run(run: Run, labels: Mapping[str, tuple[str, ...]], notes: set[str]) -> Iterator[tuple[str, Scored]]:
    try:
        answered: Mapping[str, Answered] = read_examples(run)
    except DataError as error:
        notes.add(str(error))
        answered = {}
    for task in run.report.tasks:
        points, rows = run.test_score(task), run.test_rows(task)
        plain = Scored(points=points, rows=rows, resampled=None)
        if task not in answered:
            yield task, plain
            continue
        try:
            yield task, _resampled(run, task, answered[task], labels.get(task, ()))
        except DataError as error:
            notes.add(f"{run.directory.name}, {task}: {error}; its differences have no interval")
            yield task, plain


def _resampled(run: Run, task: str, answered: Answered, labels: tuple[str, ...]) -> Scored:
    import numpy as np

    metric, rows = run.report.headline[task], len(answered)
    compute = resampled(metric, answered, labels=labels)
    points = run.test_score(task)
    found = float(compute(np.ones((1, rows)))[0])
    if abs(found - points) > _TOLERANCE:
        raise DataError(f"its answers score {found:.4f} where its report says {points:.4f}")
    asked = hashlib.sha256(repr(answered.golds).encode()).digest()
    constants = tuple(
        float(
            resampled(metric, replace(answered, answers=(label,) * rows), labels=labels)(np.ones((1, rows)))[
                0
            ]
        )
        for label in labels
    )
    return Scored(
        points=points,
        rows=rows,
        resampled=compute,
        asked=asked,
        constants=constants,
        groups=answered.groups,
    )


def run_warnings(study: Study) -> tuple[str, ...]:
    """Return what `checks` has to say about the runs on each backbone, which is named where there are several."""
    backbones = dict.fromkeys(line.backbone for line in study.runs)
    return tuple(
        f"{study.on(backbone)}{warning}"
        for backbone in backbones
        for warning in checks.warnings(
            study.finished(line for line in line_order(study.runs) if line.backbone == backbone)
        )
    )
