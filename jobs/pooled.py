"""Send the runs of a study to the pool, show them, and sum up what came of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from attempt_ray.bank.aliases import CANDIDATE
from attempt_ray.config import Config
from attempt_ray.orchestration.study import Job, OnEvent, PoolEvent, PoolResult
from jobs.edge import one_line, tell
from jobs.watch import Screen

if TYPE_CHECKING:
    from attempt_ray.bank.names import Version
    from attempt_ray.bank.store import Bank

Placement = Literal["pool", "here"]


@dataclass(frozen=True)
class Study:
    """The results of a study, in the order of its jobs."""

    results: tuple[PoolResult, ...]

    @property
    def finished(self) -> tuple[PoolResult, ...]:
        """The runs that have a report."""
        return tuple(result for result in self.results if result.status == "finished")

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The runs that were set aside, as a job prints them."""
        return [
            {"run": result.key, "error": one_line(result.error), "user_error": _users(result, self.results)}
            for result in self.results
            if result.status != "finished"
        ]

    def summary(self) -> dict[str, Any]:
        """Return what a job prints."""
        runs = {
            result.key: {
                "directory": result.directory,
                "bank": result.report["bank"],
                "scores": result.report["scores"],
                "seconds": result.report["seconds"],
            }
            for result in self.finished
        }
        return {"runs": runs, "failed": self.failures}


def run_study(
    jobs: Sequence[Job],
    config: Config,
    *,
    placement: Placement = "pool",
    on_event: OnEvent | None = None,
) -> Study:
    """Execute jobs in the pool that `config.cluster` describes, or here, without Ray.

    Args:
        jobs: The runs.
        config: The study.
        placement: A pool of Ray workers, or `here`: one after the other in this process.
        on_event: Called with everything that happens to a run; of a finished one, before the runs that need it start.

    Raises:
        ClusterError: The cluster cannot run them.
    """
    from attempt_ray.orchestration.pool import run_jobs

    with Screen(total=len(jobs)) as screen:

        def show(event: PoolEvent) -> None:
            screen.event(event)
            if on_event is not None:
                on_event(event)

        if placement == "pool":
            screen.say(f"starting Ray for {len(jobs)} runs on {config.cluster.workers} workers ...")
        results = run_jobs(jobs, cluster=config.cluster, on_event=show, in_process=placement == "here")
    for result in results:
        if result.traceback:
            tell(f"{result.key}:\n{result.traceback}")
    return Study(tuple(results))


def promote(config: Config, event: PoolEvent) -> None:
    """Make what a finished source or prior run published the champion: later runs of the study start from it."""
    from attempt_ray.bank.store import Bank

    if event.kind != "finished" or event.facts["job"] == "target":
        return
    bank = Bank(config.bank)
    for reference in event.facts["bank"].values():
        bank.promote(reference)


def nominate(bank: Bank, reports: Iterable[Mapping[str, Any]]) -> dict[str, Version]:
    """Make the target prompts with the best dev scores, each with its G, the bank's candidates; return them by task.

    Of equal ones a mixture is taken: it tells what its answers draw on.

    Raises:
        BankError: A run reported what is no version of the bank.
    """
    best: dict[str, tuple[tuple[float, bool], Mapping[str, Any]]] = {}
    for report in reports:
        for task in report["tasks"]:
            dev = report["scores"][task].get("dev")
            if report["job"] != "target" or task not in report["bank"] or dev is None:
                continue
            rank = (dev["metrics"][report["headline"][task]], report["method"] == "attempt")
            if task not in best or rank > best[task][0]:
                best[task] = (rank, report["bank"])
    found = {}
    for task, (_, references) in sorted(best.items()):
        found[task] = bank.resolve(references[task])
        attention = references.get(f"attention:{task}", references.get("attention"))
        for version in (found[task], *([bank.resolve(attention)] if attention else [])):
            bank.set_alias(version.kind, version.name, CANDIDATE, version.number)
    return found


def _users(result: PoolResult, results: Sequence[PoolResult]) -> bool:
    """Return whether the user can mend a failure; a skipped run is as bad as the worst failure."""
    if result.status == "failed":
        return result.user_error
    return all(other.user_error for other in results if other.status == "failed")
