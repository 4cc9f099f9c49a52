"""Run directories as typed values: the only place where reporting gets its numbers.

A run directory holds ``report.json`` once its run has finished, and ``metrics.jsonl`` from its first step on.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attempt_ray.bank.local import LocalStorage
from attempt_ray.bank.places import open_runs
from attempt_ray.bank.storage import Storage
from attempt_ray.errors import DataError

_FIX = "finish some runs with `python -m jobs.run_pipeline`, or set `runs` to the directory that holds them"
_MOST_BYTES = 2**30
"""No report or history of a run is larger."""
_FILES = ("config.json", "state.json", "metrics.jsonl", "report.json")
_AT_ONCE = 8
"""Runs fetched from a store at once."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Score(_Record):
    """Metrics of one split, in 0..100, over `n` examples."""

    n: int = Field(ge=1)
    metrics: Mapping[str, float]


class Attention(_Record):
    """Mixing weights of one target over its test instances, candidates in order."""

    candidates: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    entropy_nats: float
    uniform_entropy_nats: float
    n: int = Field(ge=1)


class Backbone(_Record):
    """The language model a run used."""

    name: str
    weights_sha256: str


class Report(_Record):
    """``report.json`` of a finished run, schema 1; keys that reporting does not read are ignored."""

    schema_version: Literal[1] = Field(alias="schema")
    job: Literal["source", "prior", "target"]
    method: str
    label: str
    tasks: tuple[str, ...] = Field(min_length=1)
    seed: int
    digest: str
    steps: int
    warmup_steps: int
    backbone: Backbone
    backbone_unchanged: bool | None = None
    trainable_parameters: int
    parameters_per_task: float
    train_rows: Mapping[str, int]
    data_sha256: Mapping[str, str] = {}
    seconds: float
    tokens: int
    best_step: int | None = None
    scores: Mapping[str, Mapping[str, Score]]
    headline: Mapping[str, str]
    attention: Mapping[str, Attention] | None = None
    bank: Mapping[str, str] | None = None
    parents: tuple[str, ...] = ()
    constant_prediction: Mapping[str, bool] = {}
    examples_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One line of ``metrics.jsonl``: finite numbers by name, without the step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run: its report and its history."""

    directory: Path
    report: Report
    history: tuple[Point, ...]
    """In order of steps; where a resumed run wrote a step twice, the later line."""
    unreadable_lines: int
    """Lines of ``metrics.jsonl`` that a crash tore."""
    finished: float
    """Modification time of ``report.json``, in seconds since the epoch."""

    def test_score(self, task: str) -> float:
        """Return the headline metric of `task` on the test split, in points."""
        return self.report.scores[task]["test"].metrics[self.report.headline[task]]

    def test_rows(self, task: str) -> int:
        """Return how many examples the test score of `task` rests on."""
        return self.report.scores[task]["test"].n

    def curve(self, name: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Return the steps and values at which `name` was written, such as ``loss`` or ``dev/mean``."""
        points = [point for point in self.history if name in point.values]
        return tuple(point.step for point in points), tuple(point.values[name] for point in points)


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A directory that holds no finished run, and why."""

    directory: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunSet:
    """What a directory of run directories holds, sorted by name."""

    root: Path
    runs: tuple[Run, ...]
    set_aside: tuple[SetAside, ...]

    def of_job(self, job: Literal["source", "prior", "target"]) -> tuple[Run, ...]:
        """Return the runs of one job."""
        return tuple(run for run in self.runs if run.report.job == job)


def read_runs(root: Path, *, digests: Collection[str] | None = None) -> RunSet:
    """Read every run directory under `root`; broken and unfinished ones are set aside with the reason.

    Hidden directories and earlier reports (directories with a ``report.md``) are passed over.

    Args:
        root: Directory of run directories.
        digests: Keep only the runs with these digests; None keeps all.

    Raises:
        DataError: `root` is not a directory, or holds no finished run.
    """
    if not root.is_dir():
        raise DataError(f"no directory {root}; {_FIX}")
    runs: list[Run] = []
    set_aside: list[SetAside] = []
    for directory in sorted(root.iterdir()):
        if not directory.is_dir() or directory.name.startswith(".") or (directory / "report.md").exists():
            continue
        if digests is not None and not directory.name.endswith(tuple(digests)):
            continue
        try:
            runs.append(read_run(directory))
        except DataError as error:
            set_aside.append(SetAside(directory=directory, reason=str(error)))
    if not runs:
        held = f"{len(set_aside)} without a result, such as {set_aside[0].reason}" if set_aside else "nothing"
        raise DataError(f"{root} holds no finished run ({held}); {_FIX}")
    return RunSet(root=root, runs=tuple(runs), set_aside=tuple(set_aside))


@contextmanager
def fetched(place: str, *, names: Collection[str] | None = None, examples: bool = False) -> Iterator[Path]:
    """Hold the directory of run directories at a path or URI as one of this machine, for the time of the block.

    Of an object store it is a temporary one with what reporting reads of every run; of earlier reports it holds the
    names alone.

    Args:
        place: The path or URI.
        names: Fetch the runs of these names alone; None fetches all.
        examples: Fetch their answers row by row too.

    Raises:
        ConfigError: `place` is neither a path nor a URI that pyarrow opens.
        IntegrityError: A file is larger than it can be.
        StorageError: The store refused.
    """
    storage = open_runs(place)
    if isinstance(storage, LocalStorage):
        yield storage.root if "://" in place else Path(place).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="attempt-runs-") as root, ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [
            entry.name
            for entry in storage.entries("")
            if entry.kind == "directory" and not entry.name.startswith(".")
            if names is None or entry.name in names
        ]
        wanted = (*_FILES, "examples.jsonl") if examples else _FILES
        list(pool.map(lambda name: _fetch(storage, name, Path(root) / name, files=wanted), found))
        yield Path(root)


def _fetch(storage: Storage, name: str, directory: Path, *, files: Collection[str]) -> None:
    directory.mkdir()
    entries = storage.entries(name)
    found = {entry.name: entry for entry in entries if entry.kind == "file"}
    if "report.md" in found:
        (directory / "report.md").touch()
        return
    for file in files:
        if file in found:
            _fetch_file(storage, f"{name}/{file}", directory / file, found[file].modified)
    if any(entry.name == ".lease" and entry.kind == "directory" for entry in entries):
        (directory / ".lease").mkdir()
        for holder in storage.entries(f"{name}/.lease"):
            path = directory / ".lease" / holder.name
            with suppress(FileNotFoundError):  # the holder may leave at this moment
                _fetch_file(storage, f"{name}/.lease/{holder.name}", path, holder.modified)


def _fetch_file(storage: Storage, source: str, path: Path, modified: float | None) -> None:
    path.write_bytes(storage.read(source, limit=_MOST_BYTES))
    if modified is not None:
        os.utime(path, (modified, modified))


def read_run(directory: Path) -> Run:
    """Read one run directory.

    Raises:
        DataError: The run has not finished, or its ``report.json`` cannot be used.
    """
    path = directory / "report.json"
    try:
        finished = path.stat().st_mtime
        report = Report.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise DataError(
            f"{directory.name}: no report.json; the run has not finished, start it again"
        ) from None
    except OSError as error:
        raise DataError(f"{directory.name}: cannot read report.json: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "top level"
        raise DataError(
            f"{directory.name}: report.json, {where}: {problem['msg'].lower()}; run it again or delete it"
        ) from None
    except ValueError:
        raise DataError(f"{directory.name}: report.json is not JSON; run it again or delete it") from None
    _check_complete(report, directory)
    history, unreadable_lines = read_history(directory / "metrics.jsonl")
    return Run(
        directory=directory,
        report=report,
        history=history,
        unreadable_lines=unreadable_lines,
        finished=finished,
    )


def _check_complete(report: Report, directory: Path) -> None:
    """Refuse a report whose parts do not fit together, so that no table needs to."""
    for task, attention in (report.attention or {}).items():
        if not len(attention.candidates) == len(attention.mean) == len(attention.std) > 0:
            raise DataError(
                f"{directory.name}: report.json, attention.{task}: one weight per candidate wanted"
            )
    if report.job != "target":
        return
    for task in report.tasks:
        test = report.scores.get(task, {}).get("test")
        if test is None or report.headline.get(task) not in test.metrics or task not in report.train_rows:
            raise DataError(
                f"{directory.name}: report.json has no test score, headline metric or training rows of "
                f"'{task}'; run it again or delete it"
            )


def read_history(path: Path) -> tuple[tuple[Point, ...], int]:
    """Return the points of a ``metrics.jsonl`` in order of steps, and how many of its lines cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return (), 0
    merged: dict[int, dict[str, float]] = {}
    unreadable = 0
    for line in lines:
        try:
            entry = json.loads(line)
            step = entry.pop("step")
        except (ValueError, KeyError, AttributeError, TypeError):
            unreadable += bool(line.strip())
            continue
        if not isinstance(step, int):
            unreadable += 1
            continue
        values = merged.setdefault(step, {})
        values.update(
            (name, float(value))
            for name, value in entry.items()
            if isinstance(value, int | float) and math.isfinite(value)
        )
    return tuple(Point(step=step, values=merged[step]) for step in sorted(merged)), unreadable
