"""SIGKILL of a search's driver: no trial that was told of is lost, none is tried twice, and the search goes on as it would.

`make kills` sets how many; `make test` kills a search without Ray once.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from attempt_ray.config import Config
from attempt_ray.orchestration.study_storage import integrity_problem
from jobs.search_plan import plan_search
from jobs.tune import storage_place
from tests.ray.searching import by_hash, came_to, opened, quality

KILLS = int(os.environ.get("ATTEMPT_KILLS", "1"))
RAY_KILLS = int(os.environ.get("ATTEMPT_RAY_KILLS", "1"))
SEED = int(os.environ.get("ATTEMPT_KILLS_SEED", "0"))
SCRIPT = Path(__file__).with_name("searching.py")
TOLD = re.compile(r"\[\d+/\d+\] trial (\d+): (.+)")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
TWO = {"workers": 2, "cpus_per_worker": 0.5, "attempts": 3}

on_demand = pytest.mark.skipif("ATTEMPT_RAY_KILLS" not in os.environ, reason="minutes each: make kills")
pytestmark = [pytest.mark.timeout(240 + 60 * (KILLS + 2 * RAY_KILLS))]
MakeSearch = Callable[..., Config]


@dataclass
class Driver:
    """A driver in a process of its own, and what it has told."""

    process: subprocess.Popen[str]
    told: dict[int, str] = field(default_factory=dict)
    """What every trial came to that it said had ended, by number."""
    first: float | None = None
    """When it said so the first time."""
    other: list[str] = field(default_factory=list)

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if (found := TOLD.match(line)) is not None:
                self.told[int(found[1])] = found[2]
                self.first = self.first or time.monotonic()
            else:
                self.other.append(line)


def drive(
    config: Config,
    *,
    here: bool,
    at_once: int = 1,
    kill_after: float | None = None,
    toy: dict[str, Any] | None = None,
) -> Driver:
    """Run a search to its end, or kill it so many seconds after it told of its first trial or began."""
    given = {"page": config.model_dump(mode="json"), "here": here, "at_once": at_once, "toy": toy}
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "RAY_worker_niceness": "0"}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT)],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        driver = Driver(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(given))
        process.stdin.close()
        reader = threading.Thread(target=driver.read)
        reader.start()
        try:
            if kill_after is not None:
                while driver.first is None and process.poll() is None:
                    time.sleep(0.005)
                time.sleep(kill_after)
                process.kill()
            process.wait(600)
        finally:
            process.kill()
            reader.join(60)
    return driver


def trials_of(config: Config) -> list[FrozenTrial]:
    """Return the trials of a search as they are, without going on with it."""
    import optuna

    from attempt_ray.orchestration.study_storage import open_study_storage

    plan = plan_search(config)
    storage = open_study_storage(storage_place(plan.config))
    return list(optuna.load_study(study_name=plan.name, storage=storage).trials)


def first_attempt(trial: FrozenTrial, trials: list[FrozenTrial]) -> int:
    while "retry_of" in trial.user_attrs:
        trial = trials[trial.user_attrs["retry_of"]]
    return trial.number


def check_told(driver: Driver, before: dict[int, Any], config: Config) -> dict[int, Any]:
    """Check that the study holds what was told, as it was told before; return that."""
    trials = trials_of(config)
    known = {trial.number: came_to(trial) for trial in trials}
    assert {number: known[number] for number in driver.told} == driver.told
    assert {number: known[number] for number in before} == before
    ended = {trial.number: known[trial.number] for trial in trials if trial.state in FINISHED}
    assert set(before) <= set(ended)
    whole = [first_attempt(trial, trials) for trial in trials if trial.state in FINISHED]
    assert len(whole) == len(set(whole)), "a finished trial was tried again"
    assert integrity_problem(storage_place(plan_search(config).config)) is None
    return ended


def kill_until_it_ends(
    config: Config, *, kills: int, here: bool, at_once: int, rng: random.Random, longest: float
) -> tuple[list[FrozenTrial], int, int]:
    """Kill a search's driver again and again; return its trials, how many were told of, and how often it was killed."""
    told: dict[int, str] = {}
    ended: dict[int, Any] = {}
    killed = 0
    for _ in range(kills):
        driver = drive(config, here=here, at_once=at_once, kill_after=rng.random() * longest)
        killed += driver.process.returncode < 0
        told |= driver.told
        ended = check_told(driver, ended, config)
    driver = drive(config, here=here, at_once=at_once)
    assert driver.process.returncode == 0, "".join(driver.other)
    told |= driver.told
    check_told(driver, ended, config)
    trials = trials_of(config)
    assert not [trial for trial in trials if not trial.state.is_finished()]
    assert sum(trial.state in FINISHED for trial in trials) == config.search.trials
    assert {number: came_to(trials[number]) for number in told} == told
    return trials, len(told), killed


def shown(trials: list[FrozenTrial]) -> list[tuple[str, str, Any]]:
    """Return the trials that came to something, as distinct points in order."""
    return [
        (json.dumps(trial.user_attrs["point"]), trial.state.name, trial.values)
        for trial in trials
        if trial.state in FINISHED
    ]


def settings(kills: int) -> dict[str, Any]:
    # Every kill costs the trial under way an attempt, and may hit the same one again.
    return {"trials": max(8, 2 * kills), "startup_trials": 4, "attempts": kills + 3}


@on_demand
@pytest.mark.parametrize(
    ("at_once", "kills"),
    [
        pytest.param(1, -(-KILLS // 2), id="one trial at a time"),
        pytest.param(
            3, KILLS // 2, id="three at once", marks=pytest.mark.skipif(KILLS < 2, reason="make kills")
        ),
    ],
)
def test_a_killed_search_loses_nothing(
    make_search: MakeSearch, tmp_path: Path, at_once: int, kills: int
) -> None:
    config = make_search(search=settings(kills))
    trials, told, killed = kill_until_it_ends(
        config,
        kills=kills,
        here=True,
        at_once=at_once,
        rng=random.Random(f"{SEED}here{at_once}"),
        longest=0.6,
    )
    tell(f"{killed} kills without Ray, {at_once} at once: {told} told, {len(trials)} attempts")
    if at_once == 1:
        alone = config.updated(runs=str(tmp_path / "alone"), search={"directory": str(tmp_path / "alone")})
        assert drive(alone, here=True).process.returncode == 0
        assert shown(trials) == shown(trials_of(alone))


@on_demand
@pytest.mark.ray
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "isolated"])
def test_a_search_killed_on_ray_loses_nothing(make_search: MakeSearch, tmp_path: Path, packed: bool) -> None:
    kills = -(-RAY_KILLS // 2) if packed else RAY_KILLS // 2
    config = make_search(search=settings(kills) | {"packed": packed}, cluster={**TWO, "workers": 1})
    trials, told, killed = kill_until_it_ends(
        config, kills=kills, here=False, at_once=1, rng=random.Random(f"{SEED}ray{packed}"), longest=3.0
    )
    tell(
        f"{killed} kills under Ray, {'packed' if packed else 'isolated'}: {told} told, {len(trials)} attempts"
    )
    alone = config.updated(runs=str(tmp_path / "alone"), search={"directory": str(tmp_path / "alone")})
    assert drive(alone, here=True).process.returncode == 0
    assert shown(trials) == shown(trials_of(alone))


@on_demand
@pytest.mark.ray
def test_a_search_whose_trials_often_fail_finds_what_it_would_find(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    """30 % of the trials crash, hang, die or diverge at their first attempt."""
    faults, took, best = ["raises", "hangs", "dies", "diverges"], {}, {}
    search = {"sampler": "random", "pruner": "none", "packed": False, "trials": 24, "attempts": 3}
    for share in (0.0, 0.3):
        place = tmp_path / f"{share}"
        place.mkdir()
        config = make_search(
            search=search | {"directory": str(place)},
            cluster=TWO | {"stall_seconds": 5.0},
            runs=str(place / "runs"),
        )
        began = time.monotonic()
        toy = {"directory": str(place), "share": share, "faults": faults, "seconds": 10.0}
        driver = drive(config, here=False, at_once=2, toy=toy)
        took[share] = time.monotonic() - began
        assert driver.process.returncode == 0, "".join(driver.other)
        trials = trials_of(config)
        assert all(trial.state.is_finished() for trial in trials)
        befallen, fault_at = 0, by_hash(share, faults)
        for trial in trials:
            rate = trial.user_attrs["point"]["training.prompt_learning_rate"]
            befallen += fault_at(rate) is not None and "retry_of" not in trial.user_attrs
            if trial.state is TrialState.COMPLETE:
                assert trial.values == [quality(rate)]
            else:
                assert fault_at(rate) is not None and trial.user_attrs["reason"]
        points = {
            trial.user_attrs["point"]["training.prompt_learning_rate"]: fault_at(
                trial.user_attrs["point"]["training.prompt_learning_rate"]
            )
            for trial in trials
        }
        # What diverges does so whatever one does, so it is no candidate.
        whole = [rate for rate, fault in points.items() if fault != "diverges"]
        finished = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        best[share] = max(trial.values[0] for trial in finished)
        assert best[share] == max(map(quality, whole))
        assert len(finished) == len(whole)
        load = os.getloadavg()[0]
        tell(
            f"{befallen} of {len(points)} trials befallen, {len(trials)} attempts, {took[share]:.1f} s, load {load:.1f}"
        )
    tell(f"wall with faults / without: {took[0.3] / took[0.0]:.2f}")


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def test_the_search_of_the_tests_is_opened_as_the_command_opens_it(make_search: MakeSearch) -> None:
    plan, search = opened(make_search())
    assert search.study.study_name == plan.name
