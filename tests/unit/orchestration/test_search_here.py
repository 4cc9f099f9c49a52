from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.errors import ConfigError, NonFiniteError, StoppedError, StorageError
from attempt_ray.orchestration.search import Outcome, Search
from attempt_ray.orchestration.search_here import search_here
from attempt_ray.orchestration.study_storage import open_study_storage
from attempt_ray.training import course
from attempt_ray.training.stopping import ask_to_stop, withdraw_stop
from jobs.search_plan import SearchPlan, plan_search

MakeSearch = Callable[..., Config]
TWO_SEEDS = {"seeds": [1, 2], "sampler": "random", "pruner": "none"}


@pytest.fixture(autouse=True)
def _not_stopped() -> Iterator[None]:
    yield
    withdraw_stop()


@dataclass
class Tried:
    """A search and what was seen of it."""

    plan: SearchPlan
    search: Search
    ended: list[int] = field(default_factory=list)
    most: int = 0
    """Most trials that were under way at once."""

    @property
    def trials(self) -> list[FrozenTrial]:
        return list(self.search.study.trials)

    @property
    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.trials]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Distinct points that came to an end of their own, in order."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        return [trial.user_attrs["point"] for trial in self.trials if trial.state in ended]

    @property
    def scores(self) -> dict[str, Mapping[str, float]]:
        """What every point that finished scored."""
        return {
            json.dumps(trial.user_attrs["point"]): trial.user_attrs["scores"]
            for trial in self.trials
            if trial.state is TrialState.COMPLETE
        }

    @property
    def learned(self) -> dict[str, bytes]:
        """What every run learned, by the run's name."""
        root = Path(self.plan.config.runs) / f"search-{self.plan.name}"
        return {path.parent.name: path.read_bytes() for path in root.glob("*/best.safetensors")}

    def reports(self) -> list[dict[str, Any]]:
        root = Path(self.plan.config.runs) / f"search-{self.plan.name}"
        return [json.loads(path.read_text()) for path in sorted(root.glob("*/report.json"))]


def opened(config: Config) -> Tried:
    plan = plan_search(config)
    storage = open_study_storage(f"{plan.config.search.directory}/study.db")
    search = Search.open(
        storage, plan.config.search, plan.space, name=plan.name, facts=plan.facts(), costs=plan.costs
    )
    return Tried(plan, search)


def go_on(
    tried: Tried,
    *,
    at_once: int = 1,
    packed: bool = True,
    on_end: Callable[[int], None] | None = None,
    runs_of: Callable[..., Mapping[str, Config]] | None = None,
) -> Tried:
    def ended(number: int) -> None:
        tried.ended.append(number)
        if on_end is not None:
            on_end(number)

    def runs(point: Mapping[str, Any]) -> Mapping[str, Config]:
        tried.most = max(tried.most, len(tried.search.under_way))
        return (runs_of or tried.plan.runs_of)(point)

    search_here(tried.search, runs, trials_at_once=at_once, packed=packed, on_end=ended)
    return tried


@pytest.fixture
def make_tried(make_search: MakeSearch, tmp_path: Path) -> Callable[..., Tried]:
    """Return a function that opens a search whose runs and study are its own."""
    names = iter(range(100))

    def make(**changes: Any) -> Tried:
        place = tmp_path / f"{next(names)}"
        search = {"directory": str(place), **changes.pop("search", {})}
        return opened(make_search(**changes, runs=str(place / "runs"), search=search))

    return make


MakeTried = Callable[..., Tried]


def failing(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    *,
    times: int = 100,
    at_rate: float = 0.3,
    seed: int = 2,
) -> None:
    """Let runs of a seed and rate fail when they are evaluated."""
    genuine, left = course._select, [error] * times

    def select(run: Any, *arguments: Any, **named: Any) -> None:
        if (run.config.training.prompt_learning_rate, run.config.seed) == (at_rate, seed) and left:
            raise left.pop()
        genuine(run, *arguments, **named)

    monkeypatch.setattr(course, "_select", select)


def test_trials_run_to_their_ends_and_publish_nothing(make_tried: MakeTried) -> None:
    tried = make_tried(search={"seeds": [1, 2], "pruner": "none"})
    before = [version.reference for version in Bank(tried.plan.config.bank).list()]
    go_on(tried, at_once=3)
    assert tried.states == [TrialState.COMPLETE] * 3
    assert sorted(tried.ended) == [0, 1, 2]
    for trial in tried.trials:
        assert set(trial.user_attrs["scores"]) == {"rte/s1", "rte/s2"}
        assert trial.user_attrs["steps"] == 2 * trial.user_attrs["point"]["training.steps"]
        assert trial.user_attrs["spread"] >= 0
        assert trial.last_step == trial.user_attrs["point"]["training.steps"]
    assert [version.reference for version in Bank(tried.plan.config.bank).list()] == before
    assert not any(report["bank"] for report in tried.reports())


def test_trials_never_score_test_rows(make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, seen = course.evaluate, []

    def evaluate(method: Any, split: Any, **named: Any) -> Any:
        seen.append(split.split)
        return genuine(method, split, **named)

    monkeypatch.setattr(course, "evaluate", evaluate)
    tried = go_on(make_tried())
    assert set(seen) == {"dev"}
    for report in tried.reports():
        assert {split for scores in report["scores"].values() for split in scores} == {"dev"}


def test_packed_trials_learn_what_one_after_the_other_learns_bit_for_bit(make_tried: MakeTried) -> None:
    settings = {"seeds": [1, 2], "sampler": "random", "pruner": "none", "trials": 4}
    one_by_one = go_on(make_tried(search=settings))
    packed = go_on(make_tried(search=settings), at_once=3)
    apart = go_on(make_tried(search=settings), at_once=3, packed=False)
    assert (one_by_one.most, packed.most, apart.most) == (1, 3, 1)
    assert len(one_by_one.scores) == 4
    assert one_by_one.scores == packed.scores == apart.scores
    assert len(one_by_one.learned) == 8
    assert one_by_one.learned == packed.learned == apart.learned


def test_the_runs_of_a_trial_that_is_given_up_stop_early(
    make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Search.report
    monkeypatch.setattr(
        Search, "report", lambda self, number, *told: genuine(self, number, *told) or number == 1
    )
    tried = go_on(make_tried(search=TWO_SEEDS | {"pruner": "asha"}), at_once=2)
    assert tried.states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    given_up = tried.trials[1]
    assert list(given_up.intermediate_values) == [1]
    assert given_up.user_attrs["steps"] < 2 * given_up.user_attrs["point"]["training.steps"]
    assert len(tried.reports()) == 4


def test_a_trial_that_is_at_its_end_is_not_given_up(
    make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "report", lambda self, number, step, value: step >= 3)
    tried = go_on(make_tried(search={"trials": 1}), at_once=1)
    assert tried.states == [TrialState.PRUNED]  # of 4 steps
    plan = tried.plan
    three = {**plan.space.known[0], "training.steps": 3}
    runs_of = lambda _: plan.runs_of(three)  # noqa: E731
    assert go_on(make_tried(search={"trials": 1}), runs_of=runs_of).states == [TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("error", "attempts"), [(NonFiniteError("it met NaN; lower the rate"), 1), (RuntimeError("boom"), 2)]
)
def test_a_run_that_raises_fails_its_trial_alone(
    make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch, error: Exception, attempts: int
) -> None:
    settings = TWO_SEEDS | {"attempts": 2}
    clean = go_on(make_tried(search=settings))
    failing(monkeypatch, error)
    tried = go_on(make_tried(search=settings), at_once=2)
    failed = [trial for trial in tried.trials if trial.state is TrialState.FAIL]
    assert len(failed) == attempts
    assert all(trial.user_attrs["point"] == tried.plan.space.known[0] for trial in failed)
    assert all(str(error) in trial.user_attrs["reason"] for trial in failed)
    assert len(tried.scores) == 2
    assert tried.scores.items() < clean.scores.items()
    assert len(tried.reports()) == 4  # its other run was dropped, too


def test_what_crashed_once_is_tried_again_and_comes_to_the_same(
    make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = go_on(make_tried(search=TWO_SEEDS))
    failing(monkeypatch, RuntimeError("once"), times=1)
    tried = go_on(make_tried(search=TWO_SEEDS))
    assert tried.states == [TrialState.FAIL, *[TrialState.COMPLETE] * 3]
    assert tried.trials[1].user_attrs["retry_of"] == 0
    assert tried.trials[0].user_attrs["steps"] > 0
    assert (tried.points, tried.scores, tried.learned) == (clean.points, clean.scores, clean.learned)


def test_a_point_that_the_config_refuses_fails_and_the_search_goes_on(make_tried: MakeTried) -> None:
    tried = make_tried(search={"pruner": "none"})

    def runs_of(point: Mapping[str, Any]) -> Mapping[str, Config]:
        if point == tried.plan.space.known[0]:
            raise ConfigError("that cannot be; choose another")
        return tried.plan.runs_of(point)

    go_on(tried, at_once=2, runs_of=runs_of)
    assert tried.states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert tried.trials[0].user_attrs["reason"] == "that cannot be; choose another"
    assert 0 in tried.ended


@pytest.mark.parametrize("between", [True, False], ids=["between trials", "within a trial"])
@pytest.mark.parametrize("pruner", ["asha", "none"])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch, between: bool, pruner: str
) -> None:
    settings = {"trials": 6, "startup_trials": 2, "attempts": 1, "pruner": pruner}
    whole = go_on(make_tried(search=settings))
    stopped = make_tried(search=settings)
    genuine = Search.report

    def report(self: Search, number: int, step: int, value: float) -> bool:
        if number == 2:
            ask_to_stop()
        return genuine(self, number, step, value)

    with monkeypatch.context() as patched:
        if not between:
            patched.setattr(Search, "report", report)
        with pytest.raises(StoppedError):
            go_on(stopped, on_end=lambda number: ask_to_stop() if between and number == 1 else None)
    left = [trial for trial in stopped.trials if trial.state is TrialState.FAIL]
    assert TrialState.RUNNING not in stopped.states
    assert len(left) == (0 if between else 1)
    assert not any(trial.user_attrs["charged"] for trial in left)
    assert len(stopped.points) == 2

    withdraw_stop()
    resumed = go_on(opened(stopped.plan.config))
    assert (resumed.points, resumed.scores) == (whole.points, whole.scores)
    assert resumed.states.count(TrialState.FAIL) == len(left)


def test_two_trials_at_once_of_one_point_do_not_get_in_each_others_way(
    make_tried: MakeTried, tmp_path: Path
) -> None:
    space = {
        "name": "few",
        "knobs": [{"key": "attention.start", "domain": {"kind": "choice", "values": ["source"]}}],
    }
    (tmp_path / "few.yaml").write_text(json.dumps(space))
    settings = {"space": str(tmp_path / "few.yaml"), "trials": 3, "pruner": "none"}
    tried = go_on(make_tried(search=settings), at_once=3)
    assert tried.states == [TrialState.COMPLETE] * 3
    assert len(tried.learned) == 1


@pytest.mark.parametrize("first", ["set_trial_intermediate_value", "set_trial_state_values"])
def test_a_storage_that_refuses_ends_the_search(
    make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    tried = make_tried(search={"pruner": "none"})
    storage, refusing = tried.search.study._storage, []

    def refuse(name: str) -> Callable[..., Any]:
        genuine = getattr(storage, name)

        def write(*arguments: Any, **named: Any) -> Any:
            refusing.extend([True] if name == first and tried.ended else [])
            if refusing:
                raise StorageError("the disk is full; free some space")
            return genuine(*arguments, **named)

        return write

    for name in ("set_trial_intermediate_value", "set_trial_state_values", "set_trial_user_attr"):
        monkeypatch.setattr(storage, name, refuse(name))
    with pytest.raises(StorageError, match="the disk is full"):
        go_on(tried)
    assert tried.ended == [0]


def test_no_runs_are_taken_up_once_the_budget_is_spent(make_tried: MakeTried) -> None:
    tried = make_tried(search={"trials": 30, "max_steps": 5, "pruner": "none"})
    go_on(tried)
    assert tried.search.standing().steps >= 5
    assert len(tried.trials) == 2
    assert go_on(opened(tried.plan.config)).ended == []


def test_what_one_run_of_a_given_up_trial_scored_is_kept(
    make_tried: MakeTried, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[Outcome] = []
    genuine = Search.prune

    def prune(self: Search, number: int, outcome: Outcome) -> None:
        outcomes.append(outcome)
        genuine(self, number, outcome)

    monkeypatch.setattr(Search, "prune", prune)
    monkeypatch.setattr(Search, "report", lambda self, number, step, value: step >= 2)
    tried = go_on(make_tried(search=TWO_SEEDS | {"trials": 1}))
    assert [trial.user_attrs["steps"] for trial in tried.trials] == [outcomes[0].steps]
    assert outcomes[0].scores == {}
    assert 0 < outcomes[0].steps < 8
