"""A search: which settings to try next, when to give a trial up, and what came of each; kept in an Optuna study.

A plain class without Ray. All that must outlive the process is in the study's storage and written before anybody is
told: a search is opened again on the same storage and goes on. What is suggested depends on the seed, on how many trials
there were and on what came of them alone, so that a search with one trial at a time goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from attempt_ray.config import SearchConfig
from attempt_ray.errors import ConfigError

_HOPELESS = 5
"""Trials that fail before any succeeds, after which the search ends: what they share is to be mended."""

Point = Mapping[str, Any]
"""A value for each knob that is asked."""


class Knob(Protocol):
    """What a search asks of a knob of `tune_spaces`."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def domain(self) -> Any:
        """`kind` floats or integers with `low`, `high`, `log` and `step`, or choice with `values`."""


class Space(Protocol):
    """What a search asks of a space of `tune_spaces`."""

    @property
    def known(self) -> Sequence[Point]:
        """Points that are tried first."""

    def draw(self, pick: Callable[[Any], Any]) -> dict[str, Any]:
        """Return a point, `pick` giving the value of each knob that is asked."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A point that is to be tried."""

    number: int
    """Its number in the study; another attempt has another."""
    point: Point
    """What to try."""
    retry_of: int | None = None
    """The trial that it repeats, which a crash ended or left behind."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a trial came to."""

    scores: Mapping[str, float]
    """Dev score in percent by `task/s<seed>`."""
    spread: float | None
    """Standard deviation over seeds of the mean over tasks; None with one seed."""
    steps: int
    """Optimizer steps of all its runs."""
    tokens: int
    """Tokens they trained on."""
    seconds: float
    """Time of all its runs, added up."""

    @property
    def value(self) -> float:
        """The mean dev score."""
        return sum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a search stands."""

    finished: int
    """Trials that came to a value."""
    pruned: int
    """Trials that were given up early."""
    failed: int
    """Trials that came to nothing, other attempts at them included."""
    under_way: int
    steps: int
    """Optimizer steps of all trials that ended."""
    tokens: int
    """Tokens of those steps."""
    best: FrozenTrial | None
    """The finished trial with the highest dev score; the first of equal ones."""

    @property
    def ended(self) -> int:
        """Trials that are over."""
        return self.finished + self.pruned + self.failed


@dataclass(frozen=True, eq=False)
class _Live:
    """A trial under way."""

    trial: optuna.Trial
    point: Point
    reported: set[int] = field(default_factory=set)
    """Optimizer steps after which a value was reported."""


class Search:
    """A study of Optuna that one process drives.

    Args:
        study: The study.
        settings: How to search.
        space: What to search.
        costs: What the objectives beside `dev` come to at a point, in their order.
    """

    def __init__(
        self,
        study: optuna.Study,
        settings: SearchConfig,
        space: Space,
        *,
        costs: Callable[[Point], Sequence[float]] = lambda _: (),
    ) -> None:
        self.study = study
        self._settings = settings
        self._space = space
        self._costs = costs
        self._live: dict[int, _Live] = {}
        self._set_aside: Trial | None = None
        self._over: str | None = None
        self._nothing_to_ask = False
        self._began = time.monotonic()

    @classmethod
    def open(
        cls,
        storage: BaseStorage,
        settings: SearchConfig,
        space: Space,
        *,
        name: str,
        facts: Mapping[str, Any],
        costs: Callable[[Point], Sequence[float]] = lambda _: (),
    ) -> Search:
        """Open a search, or go on with it: trials that a dead process left behind are failed, to be tried again.

        Args:
            storage: Where the study is.
            settings: How to search.
            space: What to search.
            name: Name of the study.
            facts: What decides its trials, as plain JSON; kept in the study.
            costs: As for the class.

        Raises:
            ConfigError: A study of this name searches something else.
            StorageError: The storage refused.
        """
        directions = [StudyDirection.MAXIMIZE, *[StudyDirection.MINIMIZE] * (len(settings.objectives) - 1)]
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, load_if_exists=True
        )
        if study.directions != directions:
            raise ConfigError(_other(name, "objectives"))
        found = study.user_attrs
        for key, wanted in facts.items():
            if key not in found:
                study.set_user_attr(key, wanted)
            elif found[key] != wanted:
                raise ConfigError(_other(name, key))
        for orphan in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(orphan.number, state=TrialState.FAIL)
        return cls(study, settings, space, costs=costs)

    def next(self) -> Trial | None:
        """Return what to try now, None where there is nothing: the budget is spent, or what is left is under way.

        Trials that are to be tried again come first, then the known points of the space, then what the sampler
        suggests. A point that another trial is trying waits for its end.

        Raises:
            StorageError: The storage refused.
        """
        hours = self._settings.hours
        if hours is not None and time.monotonic() - self._began > hours * 3600:
            self.stop(f"{hours:g} h are over")
        if self._over is not None:
            if self._set_aside is not None:
                self._leave(self._set_aside.number)
                self._set_aside = None
            return None
        trial, self._set_aside = self._set_aside or self._ask(), None
        if trial is None:
            return None
        if any(live.point == trial.point for number, live in self._live.items() if number != trial.number):
            # Its runs would be those of the other, which one process writes at a time.
            self._set_aside = trial
            return None
        return trial

    def report(self, number: int, step: int, value: float) -> bool:
        """Note the best dev score of a trial after `step` optimizer steps; return whether to give the trial up.

        Raises:
            StorageError: The storage refused.
        """
        live = self._live[number]
        if len(self._settings.objectives) > 1 or step in live.reported:
            return False
        live.reported.add(step)
        if "first_rung" not in self.study.user_attrs:
            self.study.set_user_attr("first_rung", self._settings.first_rung or step)
        self.study.pruner = self._pruner()
        live.trial.report(value, step)
        return live.trial.should_prune()

    def finish(self, number: int, outcome: Outcome) -> None:
        """Note what a trial came to.

        Raises:
            StorageError: The storage refused.
        """
        values = [outcome.value, *self._costs(self._live[number].point)]
        self._end(number, TrialState.COMPLETE, values=values, **_attributes(outcome))

    def prune(self, number: int, outcome: Outcome) -> None:
        """Note that a trial was given up, what it came to until then included.

        Raises:
            StorageError: The storage refused.
        """
        self._end(number, TrialState.PRUNED, **_attributes(outcome))

    def fail(self, number: int, reason: str, *, again: bool, charged: bool = True, steps: int = 0) -> None:
        """Note that a trial came to nothing.

        Args:
            number: The trial.
            reason: Why, in one line.
            again: Whether another attempt may come to something.
            charged: Whether this attempt counts among `SearchConfig.attempts`.
            steps: Optimizer steps that it took.

        Raises:
            StorageError: The storage refused.
        """
        self._end(number, TrialState.FAIL, reason=reason, again=again, charged=charged, steps=steps)
        trials = self._all()
        if any(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials):
            return
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        failed = [trial for trial in trials if trial.state is TrialState.FAIL and trial.number not in retried]
        lost = sum(not self._may_mend(trial, trials) for trial in failed)
        if lost >= _HOPELESS:
            self._over = f"the first {lost} trials failed, the last with: {reason}"

    def release(self) -> None:
        """Fail the trials under way, which are tried again when the search goes on, without being charged for it.

        Raises:
            StorageError: The storage refused.
        """
        for number in self.under_way:
            self._leave(number)

    def stop(self, reason: str) -> None:
        """Ask for no more trials."""
        self._over = self._over or reason

    @property
    def over(self) -> str | None:
        """Why no more trials are asked for, where it is not that all were."""
        return self._over

    @property
    def under_way(self) -> tuple[int, ...]:
        """Numbers of the trials that were returned by `next` and have not ended."""
        return tuple(self._live)

    def standing(self) -> Standing:
        """Return where the search stands.

        Raises:
            StorageError: The storage refused.
        """
        trials = self._all()
        counts = {state: sum(trial.state is state for trial in trials) for state in TrialState}
        finished = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        return Standing(
            finished=counts[TrialState.COMPLETE],
            pruned=counts[TrialState.PRUNED],
            failed=counts[TrialState.FAIL],
            under_way=counts[TrialState.RUNNING],
            steps=_sum(trials, "steps"),
            tokens=_sum(trials, "tokens"),
            best=max(finished, key=lambda trial: trial.values[0], default=None),
        )

    def _ask(self) -> Trial | None:
        if self._nothing_to_ask:
            return None
        self._enqueue(self._all())
        trials = self._all()
        waiting = next((trial for trial in trials if trial.state is TrialState.WAITING), None)
        if waiting is None and self._spent(trials):
            self._nothing_to_ask = True
            return None
        self.study.sampler = self._sampler(_index(waiting, trials))
        asked = self.study.ask()
        point = self._space.draw(lambda knob: _suggest(asked, knob))
        asked.set_user_attr("point", point)
        self._live[asked.number] = _Live(asked, point)
        return Trial(number=asked.number, point=point, retry_of=asked.user_attrs.get("retry_of"))

    def _leave(self, number: int) -> None:
        self.fail(number, "the search was stopped", again=True, charged=False)

    def _all(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _enqueue(self, trials: Sequence[FrozenTrial]) -> None:
        """Let `ask` return another attempt or a known point, where one is due."""
        if any(trial.state is TrialState.WAITING for trial in trials):
            return
        retried = {trial.user_attrs.get("retry_of") for trial in trials}
        for trial in trials:
            failed = trial.state is TrialState.FAIL
            if failed and trial.number not in retried and self._may_mend(trial, trials):
                # One that died between two knobs is asked all of them again, from the same seed.
                point = trial.user_attrs.get("point") or trial.user_attrs.get("wanted", {})
                known = {"known": True} if "known" in trial.user_attrs else {}
                self._want(point, retry_of=trial.number, **known)
                return
        tried = sum("known" in trial.user_attrs and not _is_retry(trial) for trial in trials)
        if tried < len(self._space.known) and not self._spent(trials):
            self._want(self._space.known[tried], known=True)

    def _want(self, point: Point, **attributes: Any) -> None:
        self.study.enqueue_trial(dict(point), user_attrs={"wanted": dict(point), **attributes})

    def _may_mend(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether a failed trial is to be tried again."""
        charged = sum(each.user_attrs.get("charged", True) for each in _attempts_at(trial, trials))
        return bool(trial.user_attrs.get("again", True)) and charged < self._settings.attempts

    def _spent(self, trials: Sequence[FrozenTrial]) -> bool:
        asked = sum(not _is_retry(trial) for trial in trials)
        most = self._settings.max_steps
        return asked >= self._settings.trials or (most is not None and _sum(trials, "steps") >= most)

    def _sampler(self, index: int) -> BaseSampler:
        """Return the sampler of the trial that `index` others came before."""
        text = f"{self._settings.seed}/{index}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        if self._settings.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            # Without groups, a multivariate TPE draws conditional knobs independently.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(
                n_startup_trials=self._settings.startup_trials,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=seed,
            )

    def _pruner(self) -> BasePruner:
        if self._settings.pruner == "asha":
            return _Asha(
                min_resource=self.study.user_attrs.get("first_rung", 1),
                reduction_factor=self._settings.reduction_factor,
            )
        return MedianPruner() if self._settings.pruner == "median" else NopPruner()

    def _end(
        self, number: int, state: TrialState, *, values: Sequence[float] | None = None, **attributes: Any
    ) -> None:
        trial = self._live[number].trial
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        self.study.tell(trial, values, state=state)
        del self._live[number]
        self._nothing_to_ask = False


class _Asha(SuccessiveHalvingPruner):
    """Optuna's ASHA, which would count what another attempt repeats twice."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether to give a trial up."""
        return super().prune(cast("optuna.Study", _WithoutFailed(study)), trial)


class _WithoutFailed:
    """A study as if no trial had failed."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *, deepcopy: bool) -> list[FrozenTrial]:
        """Return the trials that have not failed."""
        return [
            trial for trial in self._study.get_trials(deepcopy=deepcopy) if trial.state is not TrialState.FAIL
        ]


def _suggest(trial: optuna.Trial, knob: Knob) -> Any:
    domain = knob.domain
    kind: Literal["floats", "integers", "choice"] = domain.kind
    if kind == "floats":
        return trial.suggest_float(knob.key, domain.low, domain.high, log=domain.log)
    if kind == "integers":
        return trial.suggest_int(knob.key, domain.low, domain.high, step=domain.step, log=domain.log)
    return trial.suggest_categorical(knob.key, domain.values)


def _attributes(outcome: Outcome) -> dict[str, Any]:
    found = {
        "scores": dict(outcome.scores),
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": round(outcome.seconds, 3),
    }
    return found if outcome.spread is None else found | {"spread": outcome.spread}


def _index(waiting: FrozenTrial | None, trials: Sequence[FrozenTrial]) -> int:
    """Return how many trials came before the one that `ask` will return; attempts at one trial have one index."""
    asked = waiting
    if waiting is not None:
        *_, asked = _attempts_at(waiting, trials)
    before = trials if asked is None or asked.state is TrialState.WAITING else trials[: asked.number]
    return sum(not _is_retry(trial) and trial is not asked for trial in before)


def _attempts_at(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    """Yield a trial, the one that it repeats, and so on to the first attempt."""
    yield trial
    while _is_retry(trial):
        trial = trials[trial.user_attrs["retry_of"]]
        yield trial


def _other(name: str, key: str) -> str:
    return (
        f"search '{name}' was begun with other settings: {key} differs; go back to those, or set search.study to another "
        "name"
    )


def _is_retry(trial: FrozenTrial) -> bool:
    return "retry_of" in trial.user_attrs


def _sum(trials: Sequence[FrozenTrial], attribute: str) -> int:
    return sum(trial.user_attrs.get(attribute, 0) for trial in trials)
