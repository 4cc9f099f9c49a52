from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from attempt_ray.config import Config
from attempt_ray.orchestration.search_here import search_here
from attempt_ray.orchestration.tuner import search_on_ray
from tests.ray.searching import opened

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
MakeSearch = Callable[..., Config]
TWO = {"workers": 2, "cpus_per_worker": 0.5, "attempts": 2}


def tried(config: Config, *, at_once: int, work: Any = None, here: bool = False) -> list[FrozenTrial]:
    """Try what a search asks for; return its trials."""
    plan, search = opened(config)
    ended: list[int] = []
    if here:
        search_here(search, plan.runs_of, trials_at_once=at_once, packed=True, on_end=ended.append)
    else:
        search_on_ray(
            search,
            plan.runs_of,
            cluster=config.cluster,
            trials_at_once=at_once,
            packed=config.search.packed,
            on_end=ended.append,
            work=work,
        )
    trials = list(search.study.trials)
    assert sorted(ended) == [trial.number for trial in trials]
    assert all(trial.state.is_finished() for trial in trials)
    return trials


def points(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.user_attrs["point"] for trial in trials if trial.state is not TrialState.FAIL]


def scores(trials: list[FrozenTrial]) -> dict[str, Any]:
    return {
        json.dumps(trial.user_attrs["point"]): (trial.user_attrs["scores"], trial.intermediate_values)
        for trial in trials
        if trial.state is TrialState.COMPLETE
    }


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "isolated"])
def test_a_search_on_ray_finds_what_one_in_this_process_finds(
    cluster: Path, make_search: MakeSearch, tmp_path: Path, packed: bool
) -> None:
    search = {"seeds": [1, 2], "sampler": "random", "pruner": "none", "trials": 6, "packed": packed}
    config = make_search(search=search, cluster=TWO | {"runs_per_worker": 4}, runs=str(tmp_path / "ray"))
    found = tried(config, at_once=3)
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 6
    alone = config.updated(runs=str(tmp_path / "here"), search={"directory": str(tmp_path / "here")})
    assert scores(found) == scores(tried(alone, at_once=1, here=True))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "isolated"])
def test_one_trial_at_a_time_tries_the_same_as_in_this_process(
    cluster: Path, make_search: MakeSearch, tmp_path: Path, packed: bool
) -> None:
    search = {"pruner": "asha", "trials": 5, "packed": packed}
    config = make_search(search=search, cluster=TWO | {"workers": 1}, runs=str(tmp_path / "ray"))
    found = tried(config, at_once=1)
    alone = config.updated(runs=str(tmp_path / "here"), search={"directory": str(tmp_path / "here")})
    expected = tried(alone, at_once=1, here=True)
    assert points(found) == points(expected)
    assert [trial.values for trial in found] == [trial.values for trial in expected]
    assert [trial.state for trial in found] == [trial.state for trial in expected]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "isolated"])
@pytest.mark.parametrize("fault", ["raises", "hangs", "dies", "diverges"])
def test_a_trial_that_goes_wrong_is_failed_alone(
    cluster: Path, make_search: MakeSearch, tmp_path: Path, packed: bool, fault: str
) -> None: ...
