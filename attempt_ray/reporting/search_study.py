"""What a hyper-parameter search has written into its Optuna study, typed; what is missing or odd is unknown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

STATES = ("finished", "pruned", "failed", "running", "waiting")
_STATES = dict(
    zip(
        (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING),
        STATES,
        strict=True,
    )
)

EDGE = 0.02
"""Share of a domain, on its scale, within which a value stands at its end."""


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """One point that was tried."""

    number: int
    state: str
    """One of `STATES`."""
    values: tuple[float, ...]
    """One for each objective; empty unless the trial is finished."""
    point: Mapping[str, Any]
    """The knobs that were asked, and their values."""
    domains: Mapping[str, BaseDistribution]
    reports: Mapping[int, float]
    """Dev mean by optimizer step."""
    known: bool
    retry_of: int | None
    scores: Mapping[str, Mapping[str, float]]
    """Dev score by task, then by seed."""
    spread: float | None
    """Standard deviation over seeds of the mean over tasks."""
    steps: int | None
    tokens: int | None
    seconds: float | None
    reason: str | None
    """Why it failed."""

    def edge(self, knob: str) -> str | None:
        """Return which end of its domain a knob stands at, ``"lower"`` or ``"upper"``; None inside.

        Of choices only three or more numbers have ends.
        """
        value: Any = self.point.get(knob)
        domain: Any = self.domains.get(knob)
        if not is_number(value):
            return None
        if isinstance(domain, CategoricalDistribution):
            choices: tuple[Any, ...] = domain.choices
            numbers = {choice for choice in choices if is_number(choice)}
            if len(numbers) < max(3, len(choices)):
                return None
            return {min(numbers): "lower", max(numbers): "upper"}.get(value)
        if not isinstance(domain, FloatDistribution | IntDistribution) or domain.low >= domain.high:
            return None
        low, high, here = (math.log(x) if domain.log else x for x in (domain.low, domain.high, value))
        share = (here - low) / (high - low)
        return "lower" if share <= EDGE else "upper" if share >= 1 - EDGE else None


@dataclass(frozen=True, kw_only=True)
class Final:
    """The chosen point, trained again with fresh seeds and tested."""

    trial: int | None
    seeds: tuple[int, ...]
    test: Mapping[str, tuple[float, ...]]
    """Test score of every seed, by task."""
    mean: float | None
    std: float | None
    bank: Mapping[str, str]
    """Reference of the prompt in the bank, by task."""


@dataclass(frozen=True, kw_only=True)
class SearchStudy:
    """A search, read once."""

    name: str
    space: Mapping[str, Any]
    """The space as data; empty where it is unknown."""
    space_digest: str | None
    objectives: tuple[str, ...]
    maximize: tuple[bool, ...]
    """Whether more is better, for each objective."""
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    method: str | None
    sampler: str | None
    pruner: str | None
    config_digest: str | None
    final: Final | None
    trials: tuple[SearchTrial, ...] = field(repr=False)

    @property
    def primary(self) -> int:
        """Index of the objective that decides which trial is best: the dev score, or else the first."""
        return self.objectives.index("dev") if "dev" in self.objectives else 0

    def value(self, trial: SearchTrial) -> float:
        """Return the primary objective of a finished trial."""
        return trial.values[self.primary]

    @cached_property
    def ranked(self) -> tuple[SearchTrial, ...]:
        """The finished trials, the best first: by primary objective, then by the others, then by number."""
        return tuple(sorted((trial for trial in self.trials if trial.values), key=self._rank))

    @property
    def best(self) -> SearchTrial | None:
        """The best finished trial."""
        return self.ranked[0] if self.ranked else None

    @cached_property
    def front(self) -> tuple[SearchTrial, ...]:
        """The finished trials that no other beats in one objective without losing in another, the best first."""
        costs = {trial.number: self._costs(trial) for trial in self.ranked}
        return tuple(
            trial
            for trial in self.ranked
            if not any(_dominates(other, costs[trial.number]) for other in costs.values())
        )

    @property
    def paper_point(self) -> Mapping[str, Any] | None:
        """The paper's settings, which are the first known point of a space."""
        known = self.space.get("known")
        first = known[0] if isinstance(known, list) and known else None
        return first if isinstance(first, dict) else None

    @cached_property
    def paper(self) -> SearchTrial | None:
        """The trial of the paper's settings, the first finished one of several; None where it was not tried."""
        wanted = self.paper_point
        tried = [trial for trial in self.trials if wanted is not None and _same(trial.point, wanted)]
        return min(tried, key=lambda trial: (not trial.values, trial.number), default=None)

    @cached_property
    def knobs(self) -> tuple[str, ...]:
        """Every knob, in the order of the space; then those of trials that it does not have."""
        named = [knob["key"] for knob in self._knobs]
        return tuple(dict.fromkeys([*named, *(key for trial in self.trials for key in trial.point)]))

    def domain(self, knob: str) -> BaseDistribution | None:
        """Return what a knob was drawn from; None where no trial was asked it."""
        return next((trial.domains[knob] for trial in self.trials if knob in trial.domains), None)

    def counts(self) -> dict[str, int]:
        """Return the number of trials in each of `STATES`, of `retries` among them, and of `all`."""
        found = Counter(trial.state for trial in self.trials)
        retries = sum(trial.retry_of is not None for trial in self.trials)
        return {**{state: found[state] for state in STATES}, "retries": retries, "all": len(self.trials)}

    def settings(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config keys that a point sets, those that every trial sets included."""
        found = dict(_mapping(self.space.get("fixed")))
        sets = {knob["key"]: _mapping(knob.get("sets")) for knob in self._knobs}
        for key, value in point.items():
            by_value = sets.get(key)
            found |= _mapping(by_value.get(str(value))) if by_value else {key: value}
        return found

    @property
    def _knobs(self) -> list[Mapping[str, Any]]:
        knobs = self.space.get("knobs")
        found = [_mapping(knob) for knob in knobs] if isinstance(knobs, list) else []
        return [knob for knob in found if isinstance(knob.get("key"), str)]

    def _rank(self, trial: SearchTrial) -> tuple[float, ...]:
        costs = list(self._costs(trial))
        return (costs.pop(self.primary), *costs, trial.number)

    def _costs(self, trial: SearchTrial) -> tuple[float, ...]:
        return tuple(-value if up else value for value, up in zip(trial.values, self.maximize, strict=True))


def read_search(study: optuna.Study) -> SearchStudy:
    """Return what a study holds. Nothing is required of it: it may be empty, or made by hand."""
    attrs = study.user_attrs
    count = len(study.directions)
    names = _texts(attrs.get("objectives"))
    if len(names) != count:
        names = tuple(study.metric_names or ())
    if len(names) != count:
        names = ("value",) if count == 1 else tuple(f"value {number + 1}" for number in range(count))
    space = _mapping(attrs.get("space"))
    return SearchStudy(
        name=study.study_name,
        space=space,
        space_digest=_text(attrs.get("space_digest")),
        objectives=names,
        maximize=tuple(way == optuna.study.StudyDirection.MAXIMIZE for way in study.directions),
        seeds=_wholes(attrs.get("seeds")),
        tasks=_texts(attrs.get("tasks")),
        method=_text(attrs.get("method")),
        sampler=_text(attrs.get("sampler")),
        pruner=_text(attrs.get("pruner")),
        config_digest=_text(attrs.get("config_digest")),
        final=_final(attrs.get("final")),
        trials=tuple(_trial(trial) for trial in study.get_trials(deepcopy=False)),
    )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, which truth values are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _trial(trial: FrozenTrial) -> SearchTrial:
    attrs = trial.user_attrs
    state, values, reason = _STATES[trial.state], tuple(trial.values or ()), _text(attrs.get("reason"))
    if state != "finished":
        values = ()
    elif not values or not all(map(is_number, values)):
        # A value that is no number cannot be compared with any other.
        state, reason, values = "failed", reason or f"its value is {', '.join(map(str, values))}", ()
    asked = _mapping(attrs.get("point")) or trial.params
    return SearchTrial(
        number=trial.number,
        state=state,
        values=values,
        point={key: trial.params.get(key, value) for key, value in asked.items()},
        domains=trial.distributions,
        reports={step: value for step, value in trial.intermediate_values.items() if is_number(value)},
        known=attrs.get("known") is True,
        retry_of=_whole(attrs.get("retry_of")),
        scores=_scores(attrs.get("scores")),
        spread=_number(attrs.get("spread")),
        steps=_whole(attrs.get("steps")),
        tokens=_whole(attrs.get("tokens")),
        seconds=_number(attrs.get("seconds")),
        reason=reason,
    )


def _scores(value: Any) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for key, score in _mapping(value).items():
        task, found, seed = key.rpartition("/s")
        if found and is_number(score):
            scores.setdefault(task, {})[seed] = float(score)
    return scores


def _final(value: Any) -> Final | None:
    found = _mapping(value)
    if not found:
        return None
    test = {task: _numbers(scores) for task, scores in _mapping(found.get("test")).items()}
    return Final(
        trial=_whole(found.get("trial")),
        seeds=_wholes(found.get("seeds")),
        test={task: scores for task, scores in test.items() if scores},
        mean=_number(found.get("mean")),
        std=_number(found.get("std")),
        bank={task: place for task, place in _mapping(found.get("bank")).items() if _text(place)},
    )


def _dominates(costs: Sequence[float], others: Sequence[float]) -> bool:
    return costs != others and all(a <= b for a, b in zip(costs, others, strict=True))


def _same(point: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return point.keys() == other.keys() and all(_equal(point[key], other[key]) for key in point)


def _equal(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=1e-9) if is_number(one) and is_number(other) else one == other


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else {}


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else ()


def _text(value: Any) -> str | None:
    return " ".join(value.split()) or None if isinstance(value, str) else None


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(item for item in _items(value) if isinstance(item, str))


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _wholes(value: Any) -> tuple[int, ...]:
    return tuple(item for item in _items(value) if _whole(item) is not None)


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(item) for item in _items(value) if is_number(item))
