"""What `attempt runs` shows: where runs stand, as a table, a block of text, or lines until the end."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from attempt_ray.errors import DataError, unknown_name
from attempt_ray.reporting.runs import fetched
from attempt_ray.reporting.states import RunState, read_state, run_directories
from jobs.watch import clock, outcome

_LOOK_SECONDS = 1.0
"""Time between two looks at a run that is followed."""
_PLAIN_SECONDS = 15.0
"""Least time between two lines of a followed run where there is no terminal."""
_PATIENCE_SECONDS = 30.0
"""Longest wait for a process to take up a followed run: it loads the backbone first."""


def run_rows(place: str) -> list[list[str]]:
    """Return one row per run directory: name, state, method, steps, and its score or the reason why there is none.

    Args:
        place: Path or URI of the run directories.

    Raises:
        DataError: There is no run.
        StorageError: The store refused.
    """
    with fetched(place) as root:
        return [_row(directory) for directory in run_directories(root)]


def _row(directory: Path) -> list[str]:
    try:
        state = read_state(directory)
    except DataError as error:
        return [directory.name, "broken", "", "", str(error).removeprefix(f"{directory.name}: ")]
    planned = "" if state.report or state.steps is None else f"/{state.steps:,}"
    return [directory.name, state.state, state.label, f"{state.step:,}{planned}", _score(state)]


def find_run(root: Path, name: str) -> Path:
    """Return the directory of the one run whose name has `name` in it, or whose path it is; a whole name comes first.

    Raises:
        DataError: There is none, or several.
    """
    if "/" in name and Path(name).is_dir():
        return Path(name)
    known = {directory.name: directory for directory in run_directories(root)}
    matching = [directory for key, directory in known.items() if name in key]
    if name in known:
        return known[name]
    if len(matching) > 1:
        raise DataError(
            f"{len(matching)} runs have '{name}' in their names, such as {matching[0].name}; give more of the name"
        )
    if not matching:
        raise DataError(unknown_name("run", name, known))
    return matching[0]


def show_run(place: str, name: str, *, follow: bool, as_json: bool) -> bool:
    """Print where a run stands, and go on until it ends where that is asked; return False if it then has not finished.

    Raises:
        DataError: There is no such run, or one to be followed is not on this machine.
    """
    if follow and "://" in place:
        raise DataError(f"--follow got runs on a store; look again now and then: attempt runs show {name}")
    with fetched(place) as root:
        directory = find_run(root, name)
        if follow:
            return follow_run(directory, as_json=as_json)
        state = read_state(directory)
        sys.stdout.write((json.dumps(state.as_dict()) if as_json else run_text(state)) + "\n")
    return True


def run_text(state: RunState) -> str:
    """Return where a run stands, for people; lines have at most 80 characters, but for paths."""
    rows = [("state", _state_words(state))]
    if state.state == "failed":
        rows.append(("reason", state.reason or ""))
    rows.append(("progress", _progress_words(state)))
    if state.report:
        rows.append(("result", outcome(state.report)))
    elif state.loss is not None:
        rows.append(("loss", f"{state.loss:.4f}"))
    if state.dev is not None and state.best is not None:
        best = (
            "the best so far" if state.best == state.dev else f"best {state.best[1]:.2f} at {state.best[0]:,}"
        )
        rows.append(("dev", f"{state.dev[1]:.2f} at step {state.dev[0]:,}; {best}"))
    if state.seconds is not None:
        counted = "" if state.tokens is None else f", {state.tokens:,} tokens"
        rows.append(("trained", f"{clock(state.seconds)}{counted}"))
    if state.checkpoint is not None:
        rows.append(("checkpoint", f"step {state.checkpoint[0]:,}, {_ago(state.checkpoint[1])}"))
    if state.unreadable_lines > 1:
        rows.append(("warning", f"{state.unreadable_lines} lines of metrics.jsonl cannot be read"))
    if state.report and (published := state.report.get("bank")):
        rows.append(("bank", ", ".join(published.values())))
    lines = [state.directory.name]
    for name, words in rows:
        if words:
            lines += textwrap.wrap(
                words,
                80,
                initial_indent=f"  {name:<12}",
                subsequent_indent=" " * 14,
                break_long_words=False,
                break_on_hyphens=False,
            )
    lines.append(f"  {'metrics':<12}{state.directory / 'metrics.jsonl'}")
    if state.tensorboard:
        lines.append(f"  {'watch':<12}tensorboard --logdir {state.directory.parent}")
    return "\n".join(lines)


def follow_run(directory: Path, *, as_json: bool = False, stream: TextIO | None = None) -> bool:
    """Show a run until it ends: redrawn on a terminal, as lines elsewhere; return whether it has finished.

    Args:
        directory: Its directory.
        as_json: Lines of JSON, one whenever steps were taken.
        stream: Where to write; None is stdout.

    Raises:
        DataError: The directory holds no run.
    """
    out = stream or sys.stdout
    if out.isatty() and os.environ.get("TERM") != "dumb" and not as_json:
        state = _redraw(directory, out)
    else:
        state = _log(directory, out, as_json=as_json)
    out.write(f"{json.dumps(state.as_dict()) if as_json else run_text(state)}\n")
    return state.state == "finished"


def _looks(directory: Path) -> Iterator[RunState]:
    """Yield where a run stands, again and again, until it has ended; the last is its end."""
    began, seen = time.monotonic(), False
    while True:
        state = read_state(directory)
        yield state
        if state.state == "running":
            began, seen = time.monotonic(), True
        elif (
            state.state == "finished"
            or (seen and state.state != "interrupted")
            or time.monotonic() - began >= _PATIENCE_SECONDS
        ):
            return
        time.sleep(_LOOK_SECONDS)


def _redraw(directory: Path, out: TextIO) -> RunState:
    """Show a run in place while it goes on; return its last state."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(file=out, highlight=False), auto_refresh=False, transient=True) as live:
        for state in _looks(directory):
            live.update(Text(run_text(state), no_wrap=True, overflow="ellipsis"), refresh=True)
    return state


def _log(directory: Path, out: TextIO, *, as_json: bool) -> RunState:
    """Write a line now and then while a run goes on, every new step as JSON; return its last state."""
    told, shown, waiting = float("-inf"), -1, False
    for state in _looks(directory):
        words = ""
        if state.state == "running":
            waiting = False
            if state.step > shown and (as_json or time.monotonic() - told >= _PLAIN_SECONDS):
                told, shown = time.monotonic(), state.step
                words = json.dumps(state.as_dict()) if as_json else _line(state)
        elif state.state != "finished" and not waiting and not as_json:
            waiting = True
            words = (
                f"{state.state}; waiting up to {_PATIENCE_SECONDS:.0f} s for a process that goes on with it"
            )
        if words:
            out.write(f"{words}\n")
            out.flush()
    return state


def _state_words(state: RunState) -> str:
    match state.state:
        case "running":
            return f"running in process {state.process}, wrote {_ago(state.idle_seconds)}"
        case "finished":
            return f"finished {_ago(state.idle_seconds)}"
        case "failed":
            return f"failed {_ago(state.idle_seconds)}"
        case word:
            return f"{word} {_ago(state.idle_seconds)}; the same command goes on with it"


def _progress_words(state: RunState) -> str:
    if not state.steps:
        return f"{state.step:,} steps" if state.step or state.report else "no step yet"
    share = min(state.step / state.steps, 1.0)
    bar = f"[{'#' * int(share * 20):<20}] {state.step:,}/{state.steps:,} steps"
    if state.report:
        return f"{bar}, stopped early" if state.step < state.steps else bar
    if state.state == "running" and state.step >= state.steps:
        return f"{bar}, scoring"
    rate = f", {state.steps_per_second:.1f}/s" if state.steps_per_second else ""
    eta = f", {clock(state.eta_seconds)} left" if state.eta_seconds is not None else ""
    return f"{bar}{rate}{eta}"


def _line(state: RunState) -> str:
    """Return a running run on one line of a log."""
    planned = "" if state.steps is None else f"/{state.steps:,}"
    parts = [f"{state.step:,}{planned} steps"]
    if state.steps_per_second:
        parts.append(f"{state.steps_per_second:.1f} steps/s")
    if state.eta_seconds is not None:
        parts.append(f"ETA {clock(state.eta_seconds)}")
    if state.loss is not None:
        parts.append(f"loss {state.loss:.3f}")
    if state.dev is not None:
        parts.append(f"dev {state.dev[1]:.1f}")
    return "  ".join(parts)


def _score(state: RunState) -> str:
    """Return a test score, failing that a dev score, failing that what is known."""
    if state.report is not None:
        scores, headline = state.report["scores"], state.report["headline"]
        tested = [
            scores[task]["test"]["metrics"][headline[task]]
            for task in state.tasks
            if "test" in scores.get(task, {})
        ]
        mean = sum(tested) / len(tested) if tested else None
        return "" if mean is None else f"{mean:.1f}{' (mean)' if len(tested) > 1 else ''}"
    if state.reason:
        return state.reason
    return "" if state.best is None else f"{state.best[1]:.1f} (dev)"


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
