"""A search on Ray Tune: each trial of the study is one of Tune's, and the study alone decides and remembers.

Tune starts the trials, gives them their resources and brings what they report. What to try comes from `Search`, and so
does when to give a trial up, in place of Ray's OptunaSearch and ASHAScheduler: those keep what they know in pickles of
their own, tell Optuna that a stopped trial is complete, crash on a study that already holds a trial's end, and leave dead
trials running (docs/architecture.md). Nothing of Tune's own state is ever read again.

Packed, a trial of Tune is a light process that hands its runs to a pool, whose workers take the steps of many trials in
shared forward passes. Else it computes its runs itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import ray
from ray import tune
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import AttemptError, ClusterError, DataError, StorageError
from attempt_ray.orchestration.cluster import check_shared, connected
from attempt_ray.orchestration.desk import Desk
from attempt_ray.orchestration.pool import Pool, leave, standing_pool, worker_settings
from attempt_ray.orchestration.search import Outcome, Search
from attempt_ray.orchestration.study import (
    Job,
    PoolEvent,
    Study,
    describe_error,
    is_mendable,
    progress_facts,
)
from attempt_ray.orchestration.trial import OnEnd, Reached, RunsOf, Scores, next_trial
from attempt_ray.orchestration.worker import Held, Work, ending_when_hung, settle_worker
from attempt_ray.training.stopping import heed_stop, is_stop_asked

_POLL_SECONDS = 0.2
_AHEAD = 1_000_000
"""More runs than a trial has: those of earlier trials go first."""


def search_on_ray(
    search: Search,
    runs_of: RunsOf,
    *,
    cluster: ClusterConfig,
    trials_at_once: int,
    packed: bool,
    on_end: OnEnd,
    places: Iterable[str] = (),
    work: Work | None = None,
) -> None:
    """Try what the search asks for on the cluster until it asks for no more.

    Args:
        search: The search; its study is written by this process alone.
        runs_of: The runs of a trial; it can be pickled.
        cluster: Where, and with how many workers.
        trials_at_once: Trials under way at once.
        packed: Whether trials share the backbones of a pool; else each has a process with a worker's resources.
        on_end: Called for every trial that ended.
        places: What trials read and write, which all nodes have to share.
        work: What a worker does with a run; None is `attempt_ray.training.run.execute`.

    Raises:
        ClusterError: The cluster cannot be reached, can never give what is asked, lost its workers for good, or a node
            does not share one of the places.
        StorageError: The study's storage refused, or one of the places.
        StoppedError: This process was asked to stop; the runs keep what they have reached.
    """
    with connected(cluster) as scratch, ExitStack() as stack:
        for place in places:
            check_shared(place)
        pool = stack.enter_context(standing_pool(cluster, work=work, scratch=scratch)) if packed else None
        if pool is not None:
            trainable = tune.with_parameters(_try_in_pool, runs_of=runs_of, pool=pool.name)
            # The workers have the resources; Tune refuses to ask for nothing at all.
            asked = PlacementGroupFactory([{"memory": 1}])
        else:
            settings = worker_settings(cluster)
            trainable = tune.with_parameters(_try_here, runs_of=runs_of, work=work, settings=settings)
            labels = {"bundle_label_selector": [dict(cluster.labels)]} if cluster.labels else {}
            asked = PlacementGroupFactory([cluster.bundle()], **labels)
        driver = _Driver(search, runs_of, at_once=trials_at_once, pool=pool, on_end=on_end)
        tuner = tune.Tuner(
            tune.with_resources(trainable, asked),
            tune_config=tune.TuneConfig(
                search_alg=_Suggestions(driver),
                scheduler=_Verdicts(driver),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"trial-{trial.config['trial']}",
            ),
            run_config=tune.RunConfig(
                name="search", storage_path=str(scratch / "tune"), stop=_End(driver), verbose=0
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise driver.error or ClusterError(f"Ray Tune gave up: {reason}") from error
        finally:
            with suppress(StorageError):
                search.release()
        if driver.error is not None:
            raise driver.error
    heed_stop()


class _Driver:
    """What Tune's hooks share in the driver: the search, and which trial of it each of Tune's is.

    Tune logs what a hook raises, or ends with an error of its own: the first one is kept here.
    """

    def __init__(
        self, search: Search, runs_of: RunsOf, *, at_once: int, pool: Pool | None, on_end: OnEnd
    ) -> None:
        self._search = search
        self._runs_of = runs_of
        self._at_once = at_once
        self._pool = pool
        self._on_end = on_end
        self._numbers: dict[str, int] = {}
        self._keys: dict[int, list[str]] = {}
        self._pruned: set[int] = set()
        self._left = False
        self.error: AttemptError | None = None

    def must_end(self) -> bool:
        """Return whether all trials shall end at once, having let the workers keep what they have reached."""
        if self.error is None and self._pool is not None and (problem := self._pool.problem()) is not None:
            self.error = ClusterError(f"{problem}; run the same command again")
        if is_stop_asked() and not self._left:
            self._left = True
            with self._first_error_kept():
                self._search.release()  # at once: this process may have seconds left
            if self._pool is not None:
                leave(self._pool.queue)
        return self.error is not None or is_stop_asked()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return what a trial of Tune is to try; None for nothing now, FINISHED for nothing any more."""
        if self.must_end():
            return str(Searcher.FINISHED)
        if len(self._search.under_way) >= self._at_once:
            return None
        with self._first_error_kept():
            if (found := next_trial(self._search, self._runs_of, self._on_end)) is not None:
                trial, runs = found
                self._numbers[trial_id] = trial.number
                self._keys[trial.number] = [_key(trial.number, key) for key in runs]
                return {"trial": trial.number, "point": json.dumps(trial.point)}
        return None if self._search.under_way else str(Searcher.FINISHED)

    def reported(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take what a trial reported; return whether it is given up."""
        number = self._numbers[trial_id]
        if "value" in result:
            with self._first_error_kept():
                if self._search.report(number, result["step"], result["value"]) and not result["last"]:
                    self._pruned.add(number)
        return number in self._pruned

    def ended(self, trial_id: str, result: Mapping[str, Any], *, died: bool) -> None:
        """Note what came of a trial of Tune."""
        number, steps = self._numbers.pop(trial_id), result.get("steps", 0)
        keys = self._keys.pop(number)
        if self._pool is not None:
            self._pool.queue.drop.remote(keys)
        if number not in self._search.under_way:
            return
        with self._first_error_kept():
            if "outcome" in result:
                self._search.finish(number, Outcome(**json.loads(result["outcome"])))
            elif "reason" in result:
                self._search.fail(number, result["reason"], again=result["again"], steps=steps)
            elif number in self._pruned:
                spent = {key: result[key] for key in ("steps", "tokens", "seconds")}
                self._search.prune(number, Outcome(scores={}, spread=None, **spent))
            elif died:
                self._search.fail(number, "its process died", again=True, steps=steps)
            else:
                self._search.fail(number, "the search was stopped", again=True, charged=False, steps=steps)
            self._on_end(number)

    @contextmanager
    def _first_error_kept(self) -> Iterator[None]:
        try:
            yield
        except AttemptError as error:
            self.error = self.error or error


class _Suggestions(Searcher):  # type: ignore[misc]
    """What Tune asks for trials."""

    def __init__(self, driver: _Driver | None) -> None:
        super().__init__()
        self._driver = driver

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the study out: Tune pickles its searchers, and this one is never restored."""
        return _Suggestions, (None,)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial."""
        return None if self._driver is None else self._driver.suggest(trial_id)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Note the end of a trial."""
        if self._driver is not None:
            self._driver.ended(trial_id, result or {}, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the study has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""


class _Verdicts(FIFOScheduler):  # type: ignore[misc]
    """Gives up trials as the study's pruner says."""

    def __init__(self, driver: _Driver | None) -> None:
        super().__init__()
        self._driver = driver

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the study out, as `_Suggestions`."""
        return _Verdicts, (None,)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Decide on a trial."""
        given_up = self._driver is not None and self._driver.reported(trial.trial_id, result)
        return str(TrialScheduler.STOP if given_up else TrialScheduler.CONTINUE)


class _End(tune.Stopper):  # type: ignore[misc]
    """Ends all trials at once when the search may not go on."""

    def __init__(self, driver: _Driver | None) -> None:
        self._driver = driver

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the study out, as `_Suggestions`."""
        return _End, (None,)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        """Return whether a trial is at its end; it says so itself."""
        return False

    def stop_all(self) -> bool:
        """Return whether all are."""
        return self._driver is not None and self._driver.must_end()


class _Told:
    """What the runs of a trial say, passed on to Tune from the trial's process."""

    def __init__(self, runs: Mapping[str, Config]) -> None:
        self._scores = Scores(list(runs))
        self._began = time.monotonic()
        self._end: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether the trial has come to its end, or one of its runs has failed."""
        return self._end is not None

    def heard(self, key: str, facts: Mapping[str, Any]) -> None:
        """Pass on what a run said of itself; Tune may end this thread in here."""
        self._pass_on(self._scores.heard(key, facts))

    def finished(self, key: str, report: Mapping[str, Any]) -> None:
        """Take the report of a run."""
        self._pass_on(self._scores.ended(key, report))
        if self._scores.done:
            try:
                self._end = {"outcome": json.dumps(asdict(self._scores.outcome()))}
            except DataError as error:
                self.failed(str(error), again=False)

    def failed(self, reason: str, *, again: bool) -> None:
        """Note that a run failed, and with it the trial."""
        self._end = self._end or {"reason": reason, "again": again}

    def report_end(self) -> None:
        """Tell Tune how the trial ended."""
        tune.report(self._facts() | (self._end or {"reason": "its runs ended without a word", "again": True}))

    def _pass_on(self, points: Sequence[Reached]) -> None:
        for point in points:
            tune.report(self._facts() | asdict(point))

    def _facts(self) -> dict[str, Any]:
        seconds = round(time.monotonic() - self._began, 3)
        return {"steps": self._scores.steps, "tokens": self._scores.tokens, "seconds": seconds}


def _try_in_pool(config: dict[str, Any], *, runs_of: RunsOf, pool: str) -> None:
    """Hand the runs of a trial to a pool and pass on what they say; executed in a process of Tune."""
    number, queue = config["trial"], ray.get_actor(pool, namespace=pool)
    runs = {_key(number, key): run for key, run in _runs(config, runs_of).items()}
    told = _Told(runs)

    def on_event(event: PoolEvent) -> None:
        if event.kind == "progress":
            told.heard(event.key, event.facts)
        elif event.kind == "finished":
            told.finished(event.key, event.facts)
        elif event.kind == "failed":  # the pool has tried it again as often as that may help
            told.failed(" ".join(event.facts["error"].split()), again=False)

    study = Study([Job(key=key, config=run) for key, run in runs.items()], on_event)
    checked = {place for run in runs.values() for place in (run.runs, run.bank)}
    desk = Desk(queue, study, after=number * _AHEAD, checked=checked)
    while not told.ended:
        desk.submit_what_is_ready()
        study.take(ray.get(queue.drain.remote(list(runs))))
        time.sleep(_POLL_SECONDS)
    told.report_end()


def _try_here(
    config: dict[str, Any], *, runs_of: RunsOf, work: Work | None, settings: Mapping[str, Any]
) -> None:
    """Execute the runs of a trial and pass on what they say; executed in a process of Tune."""
    from attempt_ray.training.run import execute_together

    settle_worker(settings)
    runs, held = _runs(config, runs_of), Held()
    told = _Told(runs)
    with ending_when_hung(held, settings["stall_seconds"]):
        for key in runs:
            held.add(key, "")

        def teller(key: str) -> Callable[[Any], None]:
            def on_progress(progress: Any) -> None:
                held.hear(key)
                told.heard(key, progress_facts(progress))

            return on_progress

        tellers = [teller(key) for key in runs]
        if work is None:
            outcomes = execute_together(list(runs.values()), on_progress=tellers)
        else:
            outcomes = [_done(work, run, tell) for run, tell in zip(runs.values(), tellers, strict=True)]
        for key, outcome in zip(runs, outcomes, strict=True):
            if isinstance(outcome, Exception):
                told.failed(" ".join(describe_error(outcome)["message"].split()), again=is_mendable(outcome))
            else:
                told.finished(key, outcome.report)
    told.report_end()


def _done(work: Work, run: Config, tell: Callable[[Any], None]) -> Any:
    """Return what a work came to, or the error that ended it."""
    try:
        return work(run, on_progress=tell)
    except Exception as error:  # noqa: BLE001 - any failure belongs to the run
        return error


def _key(number: int, key: str) -> str:
    return f"{number}/{key}"


def _runs(config: Mapping[str, Any], runs_of: RunsOf) -> Mapping[str, Config]:
    return runs_of(json.loads(config["point"]))
