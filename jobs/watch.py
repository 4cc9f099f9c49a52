"""What a person sees while runs go on: bars on a terminal, plain lines elsewhere; all of it on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from attempt_ray.orchestration.study import PoolEvent, progress_facts

_TOLD = ("resumed", "damaged", "stopped")
"""Kinds of events of a run that get a line of their own; its plan too, where it is the only one."""
_PLAIN_SECONDS = 15.0
"""Least time between two plain lines of one run's steps."""


class Screen:
    """Shows the runs of a job; a context manager.

    Args:
        total: Runs of the job; 1 shows no line for the whole.
        stream: Where to write; None is stderr.
    """

    def __init__(self, *, total: int = 1, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bars = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._console = Console(file=self._stream, highlight=False, soft_wrap=not self._bars)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[news]}"),
            console=self._console,
            transient=True,
            disable=not self._bars,
        )
        self._total = total
        self._done = 0
        self._rows: dict[str, TaskID] = {}
        self._whole: TaskID | None = None
        self._runs: dict[str, _Run] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        if self._total > 1:
            self._whole = self._progress.add_task("all runs", total=self._total, news="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False)

    def event(self, event: PoolEvent) -> None:
        """Show what happened to a run."""
        match event.kind:
            case "started":
                self._runs[event.key] = _Run()
                self._row(event.key)
            case "progress":
                self._step(event.key, event.facts)
            case "retried":
                self.say(f"{event.key}: tried again after {event.facts['error']}")
            case "finished":
                self._finish(event.key, f"{event.key}: {outcome(event.facts)}")
            case "failed":
                self._finish(event.key, f"{event.key}: set aside: {event.facts['error']}")
            case "skipped":
                self._finish(event.key, f"{event.key}: skipped: {event.facts['error']}")

    def watcher(self, key: str) -> Callable[[Any], None]:
        """Return a function that shows what the one run of this process says of itself."""
        self.event(PoolEvent(kind="started", key=key))
        return lambda progress: self.event(
            PoolEvent(kind="progress", key=key, facts=progress_facts(progress))
        )

    def _row(self, key: str) -> TaskID:
        if key not in self._rows:
            self._rows[key] = self._progress.add_task(key, total=None, news="")
        return self._rows[key]

    def _step(self, key: str, facts: Mapping[str, Any]) -> None:
        run = self._runs.setdefault(key, _Run())
        if facts["kind"] != "step":
            run.note(facts)
            if facts["kind"] in _TOLD or (facts["kind"] == "plan" and self._total == 1):
                self.say(f"{key}: {facts['message']}")
            return
        run.step(facts)
        self._progress.update(
            self._row(key), completed=facts["step"], total=facts["steps"], news=run.news(), refresh=False
        )
        if not self._bars and run.due():
            self.say(f"{key}: {run.line()}")

    def _finish(self, key: str, line: str) -> None:
        if key in self._rows:
            self._progress.remove_task(self._rows.pop(key))
        self._runs.pop(key, None)
        self._done += 1
        if self._whole is not None:
            self._progress.update(self._whole, completed=self._done)
            line = f"[{self._done}/{self._total}] {line}"
        self.say(line)


@contextmanager
def step_bar(name: str, *, total: int) -> Iterator[Callable[..., None]]:
    """Show one run of `total` steps; yields a function of the step and of numbers to show beside it, such as the loss."""
    with Screen() as screen:
        screen.event(PoolEvent(kind="started", key=name))

        def advance(step: int, *, loss: float, **_more: float) -> None:
            facts = {"kind": "step", "step": step, "steps": total, "loss": loss}
            screen.event(PoolEvent(kind="progress", key=name, facts=facts))

        yield advance


class _Run:
    """The last that is known of a run."""

    def __init__(self) -> None:
        self._told = 0.0
        self._first: tuple[float, int] | None = None
        self._last: Mapping[str, Any] = {}
        self._metric = ""

    def step(self, facts: Mapping[str, Any]) -> None:
        if self._first is None:
            self._told = time.monotonic()
            self._first = (self._told, facts["step"])
        self._last = facts

    def note(self, facts: Mapping[str, Any]) -> None:
        if facts["kind"] == "evaluated":
            self._metric = f"dev {facts['facts']['mean']:.1f}"

    def news(self) -> str:
        return f"loss {self._last['loss']:.3f}  {self._metric}".rstrip()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._told < _PLAIN_SECONDS:
            return False
        self._told = now
        return True

    def line(self) -> str:
        began, first = self._first or (time.monotonic(), 0)
        taken, steps = self._last["step"], self._last["steps"]
        rate = (taken - first) / max(time.monotonic() - began, 1e-9)
        eta = f"  {rate:.1f} steps/s  ETA {clock((steps - taken) / rate)}" if rate > 0 else ""
        return f"{taken:,}/{steps:,} steps{eta}  {self.news()}"


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f}/s")


def outcome(report: Mapping[str, Any]) -> str:
    """Return what a finished run reached, in words: the headline metric of up to three tasks, or their mean."""
    scores = report["scores"]
    parts = []
    for task, metric in report["headline"].items():
        split = "test" if "test" in scores[task] else "dev"
        scored = scores[task][split]
        parts.append(
            (
                scored["metrics"][metric],
                f"{task} {metric} {scored['metrics'][metric]:.1f} ({split}, n={scored['n']:,})",
            )
        )
    if len(parts) <= 3:
        text = ", ".join(part for _, part in parts)
    else:
        text = f"mean headline of {len(parts)} tasks {sum(value for value, _ in parts) / len(parts):.1f}"
    return f"{text} in {clock(report['seconds'])}"


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(count: int, noun: str) -> str:
    """Return a count and what is counted, such as `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
