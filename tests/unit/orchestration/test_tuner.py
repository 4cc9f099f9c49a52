"""What Tune's hooks do in the driver, without Tune; with it, see tests/ray/test_tuner.py."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from attempt_ray.config import ClusterConfig, Config, SearchConfig
from attempt_ray.errors import ClusterError, ConfigError, StorageError
from attempt_ray.orchestration import tuner
from attempt_ray.orchestration.search import Outcome, Search
from attempt_ray.orchestration.tuner import _Driver, _End, _Suggestions, _Verdicts
from attempt_ray.training.stopping import ask_to_stop, withdraw_stop
from tune_spaces.space import Floats, Knob, Space

SPACE = Space(
    name="test",
    knobs=(Knob(key="rate", domain=Floats(low=0.01, high=1.0)),),
    known=({"rate": 0.3}, {"rate": 0.1}, {"rate": 0.2}),
)
MakeDriver = Callable[..., _Driver]


class Queue:
    """The part of a queue's actor that a driver speaks to."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.drop = self

    def remote(self, keys: Sequence[str]) -> None:
        self.dropped.extend(keys)


class Pool:
    def __init__(self) -> None:
        self.queue = Queue()
        self.trouble: str | None = None

    def problem(self) -> str | None:
        return self.trouble


@pytest.fixture(autouse=True)
def _not_stopped() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    withdraw_stop()


@pytest.fixture
def search() -> Search:
    settings = SearchConfig(trials=3, attempts=2, pruner="none")
    return Search.open(optuna.storages.InMemoryStorage(), settings, SPACE, name="test", facts={})


@pytest.fixture
def ended() -> list[int]:
    return []


@pytest.fixture
def make_driver(search: Search, ended: list[int]) -> MakeDriver:
    def runs_of(point: Mapping[str, Any]) -> Mapping[str, Config]:
        return {"rte/s1": Config(), "rte/s2": Config()}

    def make(**given: Any) -> _Driver:
        named = {"at_once": 1, "pool": None, "on_end": ended.append, **given}
        return _Driver(search, named.pop("runs_of", runs_of), **named)

    return make


OUTCOME = Outcome(scores={"rte/s1": 50.0}, spread=None, steps=8, tokens=10, seconds=1.0)
FINISHED = {"outcome": json.dumps(asdict(OUTCOME)), "steps": 8, "tokens": 360, "seconds": 1.0}


def test_tune_gets_a_trials_number_and_point_and_waits_while_enough_are_under_way(
    make_driver: MakeDriver, search: Search, ended: list[int]
) -> None:
    driver = make_driver(at_once=2)
    assert driver.suggest("a") == {"trial": 0, "point": '{"rate": 0.3}'}
    assert driver.suggest("b") == {"trial": 1, "point": '{"rate": 0.1}'}
    assert driver.suggest("c") is None
    driver.ended("a", FINISHED, died=False)
    assert driver.suggest("c") == {"trial": 2, "point": '{"rate": 0.2}'}
    driver.ended("b", FINISHED, died=False)
    assert driver.suggest("d") is None  # the last is under way, and may have to be tried again
    driver.ended("c", FINISHED, died=False)
    assert driver.suggest("d") == "FINISHED"
    assert ended == [0, 1, 2]
    assert [trial.values for trial in search.study.trials] == [[50.0]] * 3


def test_a_trial_whose_process_died_lets_go_of_its_runs_and_is_tried_again(
    make_driver: MakeDriver, search: Search
) -> None:
    pool = Pool()
    driver = make_driver(pool=pool)
    driver.suggest("a")
    driver.ended("a", {}, died=True)
    assert pool.queue.dropped == ["0/rte/s1", "0/rte/s2"]
    assert search.study.trials[0].user_attrs["reason"] == "its process died"
    assert driver.suggest("b") == {"trial": 1, "point": '{"rate": 0.3}'}


def test_a_point_that_the_config_refuses_is_failed_and_the_next_one_tried(
    make_driver: MakeDriver, search: Search, ended: list[int]
) -> None:
    def runs_of(point: Mapping[str, Any]) -> Mapping[str, Config]:
        if point["rate"] == 0.3:
            raise ConfigError("that cannot be; choose another")
        return {}

    driver = make_driver(runs_of=runs_of)
    assert driver.suggest("a") == {"trial": 1, "point": '{"rate": 0.1}'}
    assert search.study.trials[0].user_attrs["reason"] == "that cannot be; choose another"
    assert ended == [0]


def test_what_a_trial_says_of_its_end_is_kept(make_driver: MakeDriver, search: Search) -> None:
    driver = make_driver()
    driver.suggest("a")
    driver.ended("a", {"reason": "met loss nan", "again": False, "steps": 3}, died=False)
    first = search.study.trials[0]
    assert first.state is TrialState.FAIL
    assert (first.user_attrs["reason"], first.user_attrs["steps"]) == ("met loss nan", 3)
    assert driver.suggest("b") == {"trial": 1, "point": '{"rate": 0.1}'}


def test_a_trial_is_given_up_unless_it_is_at_its_end(
    make_driver: MakeDriver, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "report", lambda *_: True)
    driver = make_driver()
    driver.suggest("a")
    assert not driver.reported(
        "a", {"step": 4, "value": 50.0, "last": True, "steps": 4, "tokens": 180, "seconds": 1.0}
    )
    assert not driver.reported("a", FINISHED)
    driver.ended("a", FINISHED, died=False)
    driver.suggest("b")
    said = {"step": 1, "value": 50.0, "last": False, "steps": 2, "tokens": 90, "seconds": 1.0}
    assert driver.reported("b", said)
    driver.ended("b", said, died=False)
    assert [trial.state for trial in search.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert search.study.trials[1].user_attrs["steps"] == 2


def test_a_stop_leaves_every_trial_at_once_and_the_pools_runs_in_good_order(
    make_driver: MakeDriver, search: Search, ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Any] = []
    monkeypatch.setattr(tuner, "leave", left.append)
    pool = Pool()
    driver = make_driver(pool=pool)
    driver.suggest("a")
    assert not driver.must_end()
    ask_to_stop()
    assert driver.must_end() and driver.must_end()
    assert left == [pool.queue]
    assert search.under_way == ()
    driver.ended("a", {}, died=False)
    assert driver.suggest("b") == "FINISHED"
    assert [trial.user_attrs["charged"] for trial in search.study.trials] == [False]


def test_a_pool_that_is_lost_ends_the_search(make_driver: MakeDriver) -> None:
    pool = Pool()
    driver = make_driver(pool=pool)
    assert not driver.must_end()
    pool.trouble = "the pool lost its workers for good"
    assert driver.must_end()
    assert isinstance(driver.error, ClusterError)
    assert str(driver.error) == "the pool lost its workers for good; run the same command again"
    assert driver.suggest("a") == "FINISHED"


def test_the_first_refusal_of_the_storage_ends_the_search(
    make_driver: MakeDriver, search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = make_driver()
    driver.suggest("a")

    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full; free some space")

    monkeypatch.setattr(search, "finish", refuse)
    driver.ended("a", FINISHED, died=False)
    assert driver.must_end()
    assert str(driver.error) == "the disk is full; free some space"


@pytest.mark.parametrize("hook", [_Suggestions, _Verdicts, _End])
def test_what_tune_pickles_holds_no_study(make_driver: MakeDriver, hook: Any) -> None:
    data = pickle.dumps(hook(make_driver()))
    assert b"optuna" not in data and b"Search" not in data.replace(b"Searcher", b"")
    assert pickle.loads(data)._driver is None


def test_hooks_without_a_study_do_nothing() -> None:
    assert _Suggestions(None).suggest("a") is None
    _Suggestions(None).on_trial_complete("a")
    assert not _End(None).stop_all() and not _End(None)("a", {})


def test_a_place_that_a_node_does_not_share_is_told_before_any_trial(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(place: str) -> None:
        raise ClusterError(f"{place} is not shared")

    monkeypatch.setattr(tuner, "connected", lambda _: nullcontext(Path()))
    monkeypatch.setattr(tuner, "check_shared", refuse)
    with pytest.raises(ClusterError, match="bank is not shared"):
        tuner.search_on_ray(
            search,
            lambda _: {},
            cluster=ClusterConfig(),
            trials_at_once=1,
            packed=True,
            on_end=lambda _: None,
            places=["bank"],
        )
    assert search.study.trials == []
