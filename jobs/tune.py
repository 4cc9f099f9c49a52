"""Search settings of ATTEMPT on dev rows: `python -m jobs.tune --config embedded --set tasks=[rte,cb]`."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import BankError, ConfigError
from attempt_ray.orchestration.ray_job import check_places
from jobs.edge import one_line, tell
from jobs.pooled import Placement, nominate, run_study
from jobs.preflight import preflight
from jobs.search_plan import SearchPlan, plan_search
from jobs.watch import clock, counted

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from attempt_ray.orchestration.search import Search


def tune(config: Config, *, placement: Placement = "pool") -> dict[str, Any]:
    """Search settings for the targets on dev rows, test what was found with fresh seeds, and say what came of it.

    The same call goes on with a search that was stopped or has died.

    Args:
        config: Tasks, space and budget; its bank holds the source prompts and priors.
        placement: Workers of Ray, or `here`: in this process.

    Raises:
        AttemptError: Something cannot be used, or no trial came to a value.
    """
    from attempt_ray.orchestration.search import Search
    from attempt_ray.orchestration.study_storage import held, open_study_storage
    from attempt_ray.reporting.search import write_search_report

    started = time.monotonic()
    check_places(config, search=True)
    search_plan = plan_search(config)
    config = search_plan.config
    versions = starting_versions(search_plan)
    place = storage_place(config)
    storage = open_study_storage(place)
    preflight(config, search_plan.tasks.values())
    with held(place, search_plan.name):
        search = Search.open(
            storage,
            config.search,
            search_plan.space,
            name=search_plan.name,
            facts=search_plan.facts() | {"starts_from": versions},
            costs=search_plan.costs,
        )
        _tell_plan(search_plan, search)
        watch = _Watch(search, trials=config.search.trials)
        _try(search_plan, search, watch, placement=placement)
        searched = time.monotonic() - started
        best = search.standing().best
        watch.sum_up(best)
        if best is None:
            raise ConfigError(search.over or "no trial came to a value; run the same command again")
        final, failed = _tested(search_plan, search, best, placement=placement)
    summary = write_search_report(search.study, search_directory(config), commands=next_commands(search_plan))
    tell(f"report: {summary.directory / 'report.md'}")
    standing = search.standing()
    return {
        "job": "tune",
        "study": search_plan.name,
        "storage": place,
        "finished": standing.finished,
        "pruned": standing.pruned,
        "failed_trials": standing.failed,
        "steps": standing.steps,
        "tokens": standing.tokens,
        "best": {"trial": best.number, "dev": best.values[0], "point": best.user_attrs["point"]},
        "final": final,
        "report": str(summary.directory),
        "search_seconds": round(searched, 1),
        "seconds": round(time.monotonic() - started, 1),
        "failed": failed,
    }


def next_commands(search_plan: SearchPlan) -> list[str]:
    """Return commands to go on with."""
    config = search_plan.config
    place = "" if config.search.storage is None else f" --storage {shlex.quote(config.search.storage)}"
    where = f" --directory {shlex.quote(config.search.directory)}{place}"
    task = next(iter(search_plan.tasks))
    return [
        f"attempt tune ui {search_plan.name}{where}",
        f"attempt tune report {search_plan.name}{where}",
        f"attempt bank promote target/{task}@candidate --bank {shlex.quote(config.bank)}",
    ]


def search_directory(config: Config) -> Path:
    """Return the directory of a search whose name is settled."""
    return Path(config.search.directory).expanduser() / str(config.search.study)


def storage_place(config: Config) -> str:
    """Return where the study of a search is, whose name is settled."""
    return config.search.storage or str(search_directory(config) / "study.db")


def starting_versions(search_plan: SearchPlan) -> dict[str, str]:
    """Return the versions of the source prompts and priors that trials start from, by reference.

    Raises:
        BankError: The bank lacks one.
        ConfigError: A known point cannot be used.
    """
    from attempt_ray.bank.store import Bank

    config = search_plan.config
    bank = Bank(config.bank)
    needed = {f"source/{name}": "train-sources" for name in config.attention.sources}
    for point in search_plan.corners():
        for run in search_plan.runs_of(point).values():
            if run.attention.prior is not None:
                needed[run.attention.prior] = "train-prior"
    versions = {}
    for reference, job in needed.items():
        try:
            versions[reference] = bank.resolve(reference).reference
        except BankError as error:
            raise BankError(
                f"a search starts from what is in the bank: {one_line(error)}; make it first: attempt {job}, with the same "
                "configs"
            ) from None
    return versions


def _tell_plan(search_plan: SearchPlan, search: Search) -> None:
    """Say what is going to be tried and what it takes at most."""
    config, standing = search_plan.config, search.standing()
    settings = config.search
    tell(
        f"search {search_plan.name}: {settings.trials} trials of {counted(search_plan.runs_per_trial, 'run')} over "
        f"{', '.join(search_plan.tasks)}; space {search_plan.space.name}, {settings.sampler}, pruner {settings.pruner}"
    )
    for line in search_plan.cost().describe():
        tell(line)
    tell("  at most: a trial that is given up takes less, and every trial was counted at the longest budget")
    if standing.ended:
        tell(
            f"going on: {standing.finished} finished, {standing.pruned} given up, {standing.failed} failed; "
            f"{standing.steps:,} steps so far"
        )


def _try(search_plan: SearchPlan, search: Search, watch: _Watch, *, placement: Placement) -> None:
    config = search_plan.config
    if placement == "here":
        from attempt_ray.orchestration.search_here import search_here

        search_here(
            search,
            search_plan.runs_of,
            trials_at_once=trials_at_once(search_plan, workers=1),
            packed=config.search.packed,
            on_end=watch.ended,
        )
    else:
        from attempt_ray.orchestration.tuner import search_on_ray

        tell(f"starting Ray for {config.cluster.workers} workers ...")
        search_on_ray(
            search,
            search_plan.runs_of,
            cluster=with_places(search_plan),
            trials_at_once=trials_at_once(search_plan, workers=config.cluster.workers),
            packed=config.search.packed,
            on_end=watch.ended,
            places=(config.bank, search_plan.trial_runs),
        )


def _tested(
    search_plan: SearchPlan, search: Search, best: FrozenTrial, *, placement: Placement
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Train the best trial's settings with fresh seeds, test them, and make the result the bank's candidate.

    Returns:
        What came of it, as the study keeps it, None where a run failed; and the runs that failed.
    """
    from attempt_ray.bank.store import Bank

    config = search_plan.config
    seeds = list(config.search.final_seeds)
    known: dict[str, Any] | None = search.study.user_attrs.get("final")
    if known is not None and (known["trial"], known["seeds"]) == (best.number, seeds):
        return known, []
    tell(f"training trial {best.number}'s settings with seeds {', '.join(map(str, seeds))}, to be tested ...")
    study = run_study(search_plan.final_jobs(best.user_attrs["point"]), config, placement=placement)
    if study.failures:
        return None, study.failures
    reports = [result.report for result in study.finished]
    test: dict[str, dict[int, float]] = {task: {} for task in search_plan.tasks}
    for report in reports:
        for task in report["tasks"]:
            test[task][report["seed"]] = report["scores"][task]["test"]["metrics"][report["headline"][task]]
    means = [fmean(scores[seed] for scores in test.values()) for seed in seeds]
    versions = nominate(Bank(config.bank), reports)
    final = {
        "trial": best.number,
        "seeds": seeds,
        "test": {task: [scores[seed] for seed in seeds] for task, scores in test.items()},
        "mean": fmean(means),
        "std": stdev(means) if len(means) > 1 else None,
        "bank": {task: version.reference for task, version in versions.items()},
    }
    search.study.set_user_attr("final", final)
    told = "" if final["std"] is None else f" ± {final['std']:.1f}"
    tell(f"test {final['mean']:.1f}{told} over {counted(len(seeds), 'fresh seed')}")
    return final, []


class _Watch:
    """Tells of every trial that ended, of the best so far, and of when the search may end."""

    def __init__(self, search: Search, *, trials: int) -> None:
        self._search = search
        self._trials = trials
        self._before = search.standing().ended
        self._began = time.monotonic()

    def ended(self, number: int) -> None:
        """Tell what came of a trial."""
        trial = self._search.study.trials[number]
        standing = self._search.standing()
        best = "none finished yet"
        if standing.best is not None:
            best = f"best {standing.best.values[0]:.1f}, trial {standing.best.number}"
        done = standing.finished + standing.pruned
        tell(
            f"[{done}/{self._trials}] trial {number}: {_outcome(trial)} ({best}){self._eta(standing.ended, done)}"
        )

    def sum_up(self, best: FrozenTrial | None) -> None:
        """Tell what the search took and found."""
        standing = self._search.standing()
        tell(
            f"{standing.finished} trials finished, {standing.pruned} given up early, {standing.failed} failed; "
            f"{standing.steps:,} steps and {standing.tokens:,} tokens in all, {clock(time.monotonic() - self._began)} this time"
        )
        if self._search.over is not None:
            tell(f"the search ended early: {self._search.over}")
        if best is not None:
            tell(
                f"best: trial {best.number}, dev {best.values[0]:.2f}: {shown_point(best.user_attrs['point'])}"
            )

    def _eta(self, ended: int, done: int) -> str:
        left, here = self._trials - done, ended - self._before
        if left <= 0 or here <= 0:
            return ""
        return f"  ETA {clock((time.monotonic() - self._began) / here * left)}"


def with_places(search_plan: SearchPlan) -> ClusterConfig:
    """Return the cluster, its workers having places for the runs of all trials under way, unless it says how many."""
    search, cluster = search_plan.config.search, search_plan.config.cluster
    if not search.packed or cluster.runs_per_worker is not None or search.trials_at_once is None:
        return cluster
    places = -(-search.trials_at_once * search_plan.runs_per_trial // cluster.workers)
    return cluster.model_copy(update={"runs_per_worker": places})


def trials_at_once(search_plan: SearchPlan, *, workers: int) -> int:
    """Return how many trials are under way at once: by default as many as there are places for their runs."""
    search, cluster = search_plan.config.search, search_plan.config.cluster
    if search.trials_at_once is not None:
        return search.trials_at_once
    if not search.packed:
        return workers
    return -(-workers * cluster.runs_at_once // search_plan.runs_per_trial)


def shown_point(point: Mapping[str, Any]) -> str:
    """Return a point on one line."""
    return ", ".join(
        f"{key.rpartition('.')[2]} {value:.3g}"
        if isinstance(value, float)
        else f"{key.rpartition('.')[2]} {value}"
        for key, value in point.items()
    )


def _outcome(trial: FrozenTrial) -> str:
    from optuna.trial import TrialState

    if trial.state is TrialState.COMPLETE:
        spread = trial.user_attrs.get("spread")
        told = f"dev {trial.values[0]:.1f}" + ("" if spread is None else f" ± {spread:.1f}")
        return told + "".join(f", {value:,.0f}" for value in trial.values[1:])
    if trial.state is TrialState.PRUNED:
        values = trial.intermediate_values
        last = max(values, default=0)
        return f"given up at {values.get(last, 0.0):.1f} after {last} steps"
    return f"failed: {one_line(trial.user_attrs.get('reason', 'left behind'))}"


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("tune")
