"""A study: runs that may need others, what comes of each, and what a watching person is told.

This is the driver's side of a pool, and knows no Ray.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from attempt_ray.config import Config
from attempt_ray.errors import AttemptError, StorageError

Report = Mapping[str, Any]
"""The content of a run's report.json."""


@dataclass(frozen=True, kw_only=True)
class PoolResult:
    """What came of one run: a report, or the reason why there is none."""

    key: str
    config: Config | None
    """None where the config was to be computed from runs that failed."""
    status: Literal["finished", "failed", "skipped"]
    directory: str = ""
    report: Report = field(default_factory=dict)
    error: str = ""
    """One line; empty for a finished run."""
    error_type: str = ""
    """Name of the exception's class."""
    user_error: bool = False
    """Whether the exception was an AttemptError: something the user can mend."""
    traceback: str = ""
    attempts: int = 0


Results = Mapping[str, PoolResult]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a study."""

    key: str
    """Name of the run inside the study, for messages."""
    config: Config | Callable[[Results], Config]
    """The run, or how to tell it from the results of the runs it needs; called in the driver."""
    needs: tuple[str, ...] = ()
    """Keys of the runs that must have finished before."""


@dataclass(frozen=True, kw_only=True)
class PoolEvent:
    """Something that happened to a run, for the person who watches."""

    kind: Literal["started", "progress", "retried", "finished", "failed", "skipped"]
    key: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`progress`: what the run said of itself; `finished`: its report; the others: `error`."""
    directory: str = ""
    """`finished`: where the run is kept."""


OnEvent = Callable[[PoolEvent], None]


class Study:
    """The driver's side: which jobs may go to the queue, and what came of those that did."""

    def __init__(self, jobs: Sequence[Job], on_event: OnEvent) -> None:
        self._jobs = {job.key: job for job in jobs}
        if len(self._jobs) != len(jobs):
            raise ValueError("two jobs have the same key; give every job its own")
        for job in jobs:
            if unknown := [need for need in job.needs if need not in self._jobs]:
                raise ValueError(f"job '{job.key}' needs '{unknown[0]}', which is none of the jobs")
        self._open = list(enumerate(jobs))
        self._configs: dict[str, Config] = {}
        self._results: dict[str, PoolResult] = {}
        self._on_event = on_event

    def ready(self) -> Iterator[tuple[str, Config, int]]:
        """Yield key, config and order of every job whose needs have finished since the last call."""
        progressed = True
        while progressed:  # a job that is skipped may settle others
            progressed = False
            for order, job in list(self._open):
                if any(need not in self._results for need in job.needs):
                    continue
                self._open.remove((order, job))
                progressed = True
                if (config := self._config(job)) is not None:
                    self._configs[job.key] = config
                    yield job.key, config, order

    def unfinished(self) -> Iterator[tuple[str, Config, int]]:
        """Yield key, config and order of every job that was yielded before and has no result."""
        for order, key in enumerate(self._jobs):
            if key in self._configs and key not in self._results:
                yield key, self._configs[key], order

    def done(self) -> bool:
        """Return whether every job has a result."""
        return len(self._results) == len(self._jobs)

    def take(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Take over what the queue noted."""
        for event in events:
            key, kind = event["key"], event["event"]
            if kind == "finished":
                result = event["result"]
                self._settle(
                    PoolResult(
                        key=key,
                        config=self._configs[key],
                        status="finished",
                        directory=result["directory"],
                        report=result["report"],
                        attempts=event["attempts"],
                    )
                )
                self._on_event(
                    PoolEvent(kind="finished", key=key, facts=result["report"], directory=result["directory"])
                )
            elif kind == "failed":
                self._fail(key, event["error"], attempts=event["attempts"])
            elif kind == "retried":
                self._on_event(PoolEvent(kind="retried", key=key, facts={"error": event["error"]["message"]}))
            else:
                self._on_event(PoolEvent(kind=kind, key=key, facts=event.get("facts", {})))

    def results(self) -> list[PoolResult]:
        """Return the results in the order of the jobs."""
        return [self._results[key] for key in self._jobs]

    def _config(self, job: Job) -> Config | None:
        """Return the job's config, or None after having settled the job without one."""
        for need in job.needs:
            if self._results[need].status != "finished":
                reason = f"it needs '{need}', which {self._results[need].status}"
                self._settle(PoolResult(key=job.key, config=None, status="skipped", error=reason))
                self._on_event(PoolEvent(kind="skipped", key=job.key, facts={"error": reason}))
                return None
        if isinstance(job.config, Config):
            return job.config
        try:
            return job.config(self._results)
        except AttemptError as error:
            self._fail(job.key, describe_error(error), attempts=0)
            return None

    def _fail(self, key: str, error: Mapping[str, Any], *, attempts: int) -> None:
        self._settle(
            PoolResult(
                key=key,
                config=self._configs.get(key),
                status="failed",
                error=error["message"],
                error_type=error["type"],
                user_error=error.get("user", False),
                traceback=error["traceback"],
                attempts=attempts,
            )
        )
        self._on_event(PoolEvent(kind="failed", key=key, facts={"error": error["message"]}))

    def _settle(self, result: PoolResult) -> None:
        self._results[result.key] = result


def progress_facts(progress: Any) -> dict[str, Any]:
    """Return what a run says of itself (a dataclass) as plain data; `kind` is `step` unless it names another."""
    return {"kind": "step", **asdict(progress)}


def is_mendable(error: Exception) -> bool:
    """Return whether another attempt may go well: not where the user's mistake or the arithmetic is to blame."""
    return isinstance(error, StorageError) or not isinstance(error, AttemptError)


def describe_error(error: Exception) -> dict[str, Any]:
    """Return an exception as `type`, `message`, `traceback` and whether it is the `user`'s to mend."""
    user = isinstance(error, AttemptError)
    return {
        "type": type(error).__name__,
        "message": str(error) if user else " ".join(f"{type(error).__name__}: {error}".split()),
        "traceback": "" if user else "".join(traceback.format_exception(error)),
        "user": user,
    }
