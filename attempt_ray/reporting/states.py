"""Where a run stands, from its directory alone, while another process may be writing to it."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from attempt_ray.errors import DataError
from attempt_ray.reporting.runs import Point, read_history, read_run
from attempt_ray.training.lease import STALE_SECONDS

_RATE_LINES = 50
"""Newest training steps of the history that the rate is measured over."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands."""

    directory: Path
    state: Literal["running", "finished", "stopped", "failed", "interrupted"]
    """`stopped` was asked to, `failed` met an error, `interrupted` left no word, as when killed."""
    process: str | None
    """Process id that holds the run, on the machine it runs on."""
    reason: str | None
    """What ended it before its time, where it is known."""
    label: str
    """Row of the results table; the method of a run that has not finished."""
    tasks: tuple[str, ...]
    step: int
    """Optimizer steps taken, as far as they are written down."""
    steps: int | None
    """Optimizer steps of the plan; None before it is made."""
    steps_per_second: float | None
    """Over the newest lines of the history, evaluations counted in."""
    loss: float | None
    """Token-mean cross-entropy of the newest step written down, in nats."""
    dev: tuple[int, float] | None
    """Newest evaluation: step and mean of the tasks' dev headline metrics, in points."""
    best: tuple[int, float] | None
    """The same of the best evaluation so far."""
    tokens: int | None
    """Tokens trained on."""
    seconds: float | None
    """Time of training, restarts counted in."""
    checkpoint: tuple[int, float] | None
    """Newest checkpoint: step and age in seconds."""
    idle_seconds: float
    """Time since anything was written."""
    unreadable_lines: int
    """Lines of the history that cannot be read; one may be under way."""
    tensorboard: bool
    """Whether there are event files."""
    report: Mapping[str, Any] | None
    """The content of report.json, once the run has finished."""

    @property
    def eta_seconds(self) -> float | None:
        """Time until the last step of the plan; None where it cannot be told."""
        if self.state != "running" or not self.steps_per_second or self.steps is None:
            return None
        return max(self.steps - self.step, 0) / self.steps_per_second

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain JSON."""
        return {
            "run": self.directory.name,
            "directory": str(self.directory),
            "state": self.state,
            "process": self.process,
            "reason": self.reason,
            "label": self.label,
            "tasks": list(self.tasks),
            "step": self.step,
            "steps": self.steps,
            "steps_per_second": self.steps_per_second,
            "eta_seconds": self.eta_seconds,
            "loss": self.loss,
            "dev": _scored(self.dev),
            "best": _scored(self.best),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "checkpoint": self.checkpoint
            and {"step": self.checkpoint[0], "age_seconds": round(self.checkpoint[1], 1)},
            "idle_seconds": round(self.idle_seconds, 1),
            "unreadable_lines": self.unreadable_lines,
            "metrics": str(self.directory / "metrics.jsonl"),
            "tensorboard": str(self.directory) if self.tensorboard else None,
            "report": self.report,
        }


def run_directories(root: Path) -> list[Path]:
    """Return the run directories under `root`, by name.

    Raises:
        DataError: `root` is not a directory, or holds no run.
    """
    if not root.is_dir():
        raise DataError(f"no directory {root}; give the directory of run directories with --runs")
    found = sorted(path for path in root.iterdir() if _is_run(path))
    if not found:
        raise DataError(f"{root} holds no run; start one with `attempt train-target` or `attempt pipeline`")
    return found


def read_state(directory: Path) -> RunState:
    """Return where a run stands.

    Raises:
        DataError: The directory holds no run, or a file that holds something else than a run writes.
    """
    if not _is_run(directory):
        raise DataError(f"{directory} holds neither config.json nor report.json; give a run's directory")
    process = holder(directory)
    config = _mapping(directory / "config.json", "remove the run and start it again") or {}
    report = None
    if process is None and (directory / "report.json").exists():
        read_run(directory)  # tells what is wrong with it
        report = _mapping(directory / "report.json", "run it again or delete it")
    written = _mapping(directory / "state.json", "start the run again, which writes it anew") or {}
    history, unreadable_lines = read_history(directory / "metrics.jsonl")
    if unreadable_lines > 1 and not history:
        raise DataError(
            f"{directory.name}: metrics.jsonl holds no line of a run's history; remove it and start the run again"
        )
    ended: Mapping[str, Any] = written.get("ended", {})
    checkpoint = _newest_checkpoint(directory / "checkpoints")
    trained = [point for point in history if "loss" in point.values]
    dev = [(point.step, point.values["dev/mean"]) for point in history if "dev/mean" in point.values]
    newest = trained[-1].values if trained else {}
    facts = report or config
    state: Any = "finished" if report else ended.get("how", "interrupted")
    return RunState(
        directory=directory,
        state="running" if process is not None else state,
        process=process,
        reason=ended.get("error") if process is None and report is None else None,
        label=str(facts.get("label") or facts.get("method", "")),
        tasks=tuple(facts.get("tasks", ())),
        step=report["steps"] if report else max(_last_step(history), checkpoint[0] if checkpoint else 0),
        steps=report.get("planned_steps") if report else written.get("steps"),
        steps_per_second=_rate(trained),
        loss=newest.get("loss"),
        dev=dev[-1] if dev else None,
        best=max(dev, key=lambda scored: scored[1], default=None),
        tokens=int(newest["tokens"]) if "tokens" in newest else None,
        seconds=report["seconds"] if report else newest.get("seconds"),
        checkpoint=checkpoint,
        idle_seconds=_idle(directory),
        unreadable_lines=unreadable_lines,
        tensorboard=any(directory.glob("events.out.tfevents.*")),
        report=report,
    )


def _is_run(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and ((path / "config.json").is_file() or (path / "report.json").is_file())


def holder(directory: Path) -> str | None:
    """Return the process that holds the lease of a run or study, None where none does."""
    if (directory / ".lease").is_dir():
        return _remote_holder(directory / ".lease")
    try:
        with (directory / ".lease").open("rb") as lease:
            try:
                fcntl.flock(lease.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lease.read(32).decode(errors="replace").strip() or "unknown"
    except OSError:
        pass
    return None


def _remote_holder(leases: Path) -> str | None:
    """Return the process that lately renewed its object in the lease of a run on an object store."""
    for path in sorted(leases.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        if time.time() - path.stat().st_mtime < STALE_SECONDS:
            content = _mapping(path, "wait, and look again") or {}
            return str(content.get("holder", "unknown"))
    return None


def _mapping(path: Path, fix: str) -> dict[str, Any] | None:
    """Return the JSON object in a file that is written whole; None where there is no file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{path.parent.name}: {path.name} is not a JSON object; {fix}")
    return content


def _newest_checkpoint(directory: Path) -> tuple[int, float] | None:
    """Return step and age of the newest checkpoint whose manifest can be read; old ones go as new ones come."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((path / "manifest.json").read_bytes())
            written = (path / "manifest.json").stat().st_mtime
            return int(manifest["step"]), max(time.time() - written, 0.0)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _last_step(history: Sequence[Point]) -> int:
    return history[-1].step if history else 0


def _rate(trained: Sequence[Point]) -> float | None:
    timed = [point for point in trained if "seconds" in point.values][-_RATE_LINES:]
    if not timed:
        return None
    first = (timed[0].step, timed[0].values["seconds"]) if len(timed) > 1 else (0, 0.0)
    steps, seconds = timed[-1].step - first[0], timed[-1].values["seconds"] - first[1]
    return steps / seconds if seconds > 0 else None


def _idle(directory: Path) -> float:
    """Return the seconds since the run wrote anything, 0 where it is gone."""
    written = 0.0
    for name in ("report.json", "metrics.jsonl", "state.json", "config.json"):
        try:
            written = max(written, (directory / name).stat().st_mtime)
        except OSError:
            continue
    return max(time.time() - written, 0.0) if written else 0.0


def _scored(scored: tuple[int, float] | None) -> dict[str, Any] | None:
    return scored and {"step": scored[0], "mean": scored[1]}
