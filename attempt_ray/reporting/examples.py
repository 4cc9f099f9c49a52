"""What a run answered, row by row, read back from ``examples.jsonl`` and checked against its report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attempt_ray.errors import DataError
from attempt_ray.reporting.runs import Run

FILE = "examples.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    task: str
    row: int = Field(ge=0)
    input: str
    answer: str
    gold: tuple[str, ...] = Field(min_length=1)
    group: str = ""
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One task's test rows as a run answered them; all fields are in the order of the rows."""

    inputs: tuple[str, ...]
    """The template's text, cut."""
    answers: tuple[str, ...]
    golds: tuple[tuple[str, ...], ...]
    """Every accepted answer, the preferred one first."""
    weights: tuple[tuple[float, ...], ...] | None
    """Mixing weights, candidates in the order of the report's; None where nothing is mixed."""
    groups: tuple[str, ...] = ()
    """What each row belongs to, such as a question of MultiRC; empty where rows stand alone."""

    def __len__(self) -> int:
        return len(self.answers)


def read_examples(run: Run) -> Mapping[str, Answered]:
    """Return what a run answered on the test rows of each of its tasks.

    Raises:
        DataError: The run left no answers row by row, as those of earlier versions, or its file does not hold what was
            written.
    """
    path = run.directory / FILE
    again = "run it again for intervals and examples"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{run.directory.name}: no per-example answers ({FILE}); {again}") from None
    except OSError as error:
        raise DataError(f"{run.directory.name}: cannot read {FILE}: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != run.report.examples_sha256:
        raise DataError(f"{run.directory.name}: {FILE} does not hold what the run wrote; {again}")
    by_task: dict[str, list[_Line]] = {task: [] for task in run.report.tasks}
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            parsed = _Line.model_validate_json(line)
            by_task[parsed.task].append(parsed)
        except (ValidationError, KeyError):
            raise DataError(
                f"{run.directory.name}: {FILE}, line {number}: not an answer to a row of {', '.join(by_task)}; {again}"
            ) from None
    return {task: _checked(run, task, lines) for task, lines in by_task.items()}


def _checked(run: Run, task: str, lines: list[_Line]) -> Answered:
    """Return the lines of a task as columns, if they are those of all its test rows, in order."""
    rows = run.test_rows(task)
    mixed = (run.report.attention or {}).get(task)
    wanted = len(mixed.candidates) if mixed else None
    whole = [line.row for line in lines] == list(range(rows))
    if not whole or any((line.weights and len(line.weights)) != wanted for line in lines):
        raise DataError(
            f"{run.directory.name}: {FILE} does not hold the {rows} test rows of '{task}' in order, with "
            f"{wanted or 'no'} weights each; run it again"
        )
    return Answered(
        inputs=tuple(line.input for line in lines),
        answers=tuple(line.answer for line in lines),
        golds=tuple(line.gold for line in lines),
        weights=tuple(line.weights or () for line in lines) if mixed else None,
        groups=tuple(line.group for line in lines) if all(line.group for line in lines) else (),
    )
