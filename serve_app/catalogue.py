"""What callers are told of a task: the columns it reads, an example, and what it serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from attempt_ray.data import microworld
from attempt_ray.tasks import Task, TemplateOptions
from serve_app.schema import Canary, Problem, RowIn, TaskInfo


class _Recorder(Mapping[str, Any]):
    """A row that notes which of its columns are read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self.read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        self.read[name] = self._row[name]
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def __len__(self) -> int:
        return len(self._row)


@cache
def example_fields(task: Task) -> Mapping[str, Any]:
    """Return a row that the task's template reads, without the columns that only hold its answer."""
    if task.name in microworld.MINIATURES:
        row: Mapping[str, Any] = microworld.rows(task.name, "validation", seed=0, count=1)[0]
    else:
        row = {name: f"some {name}" for name in task.fields}
    recorder = _Recorder(row)
    task.source_text(recorder, TemplateOptions())
    return recorder.read


def describe(
    task: Task,
    *,
    words: tuple[str, ...],
    prompt: str,
    versions: tuple[int, ...],
    aliases: Mapping[str, int],
    canary: Canary | None,
    sources: tuple[str, ...],
    problems: list[Problem],
) -> TaskInfo:
    """Return what callers are told of a task that is served.

    Args:
        task: The task.
        words: Its label words; none for open tasks.
        prompt: The version that it serves.
        versions: Numbers of all versions.
        aliases: Version of each alias.
        canary: The trial under way, or the last one.
        sources: Names of the mixing weights of what it serves.
        problems: Versions that are refused.
    """
    fields = dict(example_fields(task))
    return TaskInfo(
        task=task.name,
        kind=task.kind,
        fields=list(fields),
        labels=list(words),
        prompt=prompt,
        versions=list(versions),
        aliases=dict(aliases),
        canary=canary,
        sources=list(sources),
        example=RowIn(task=task.name, fields=fields),
        problems=problems,
    )
