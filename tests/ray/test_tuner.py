from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState

from attempt_ray.config import Config
from attempt_ray.errors import StoppedError
from attempt_ray.orchestration.search_here import search_here
from attempt_ray.orchestration.tuner import search_on_ray
from attempt_ray.training.stopping import ask_to_stop, withdraw_stop
from tests.ray.searching import opened, quality, toy

on_demand = pytest.mark.skipif("ATTEMPT_RAY_KILLS" not in os.environ, reason="half a minute each: make kills")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
SCRIPT = Path(__file__).with_name("searching.py")
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


def test_packed_trials_one_at_a_time_are_those_of_a_search_in_this_process(
    cluster: Path, make_search: MakeSearch, tmp_path: Path
) -> None:
    config = make_search(search={"trials": 6}, cluster=TWO | {"workers": 1}, runs=str(tmp_path / "ray"))
    found, expected = tried(config, at_once=1), tried(alone(config, tmp_path), at_once=1, here=True)
    assert points(found) == points(expected)
    assert [trial.state for trial in found] == [trial.state for trial in expected]
    assert scores(found) == scores(expected)


def test_trials_in_processes_of_their_own_score_what_they_do_in_this_process(
    cluster: Path, make_search: MakeSearch, tmp_path: Path
) -> None:
    search = {"seeds": [1, 2], "sampler": "random", "pruner": "none", "trials": 6, "packed": False}
    config = make_search(search=search, cluster=TWO, runs=str(tmp_path / "ray"))
    found = tried(config, at_once=2)
    assert len(scores(found)) == 6
    assert scores(found) == scores(tried(alone(config, tmp_path), at_once=1, here=True))


def alone(config: Config, directory: Path) -> Config:
    """Return the same search with a study and runs of its own."""
    return config.updated(runs=str(directory / "alone"), search={"directory": str(directory / "alone")})


FAULTS = {0.3: "raises", 0.2: "hangs", 0.15: "dies", 0.4: "diverges", 0.1: None}


@pytest.mark.parametrize(
    "packed", [pytest.param(True, id="packed", marks=on_demand), pytest.param(False, id="isolated")]
)
def test_trials_that_go_wrong_are_tried_again_and_the_best_is_found(
    cluster: Path, make_search: MakeSearch, tmp_path: Path, packed: bool
) -> None:
    search = {"space": space_of(tmp_path, *FAULTS), "trials": len(FAULTS), "packed": packed, "pruner": "none"}
    config = make_search(search=search, cluster=TWO | {"stall_seconds": 2.0})
    (tmp_path / "begun").mkdir()
    trials = tried(config, at_once=2, work=toy(tmp_path / "begun", fault_at=FAULTS.get))
    finished = {rate_of(trial): trial.values[0] for trial in trials if trial.state is TrialState.COMPLETE}
    assert finished == {rate: quality(rate) for rate, fault in FAULTS.items() if fault != "diverges"}
    assert max(finished, key=finished.__getitem__) == 0.1
    failed = {FAULTS[rate_of(trial)]: trial for trial in trials if trial.state is TrialState.FAIL}
    assert "met loss nan" in failed["diverges"].user_attrs["reason"]
    if packed:  # the pool tries the others again itself
        assert set(failed) == {"diverges"}
        return
    assert set(failed) == {"diverges", "raises", "hangs", "dies"}
    assert failed["raises"].user_attrs["reason"] == "RuntimeError: out of luck"
    assert "its process died" in failed["dies"].user_attrs["reason"]
    retried = {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}
    assert retried == {trial.number for fault, trial in failed.items() if fault != "diverges"}


def space_of(directory: Path, *rates: float) -> str:
    """Write a space that knows these rates."""
    rate = {"key": "training.prompt_learning_rate", "domain": {"kind": "floats", "low": 0.01, "high": 1.0}}
    steps = {"key": "training.steps", "domain": {"kind": "choice", "values": [4]}}
    known = [{"training.prompt_learning_rate": rate, "training.steps": 4} for rate in rates]
    path = directory / "rates.yaml"
    path.write_text(json.dumps({"name": "rates", "knobs": [rate, steps], "known": known}))
    return str(path)


def rate_of(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["point"]["training.prompt_learning_rate"])


@on_demand
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "isolated"])
def test_a_search_that_is_stopped_leaves_no_trial_behind(
    cluster: Path, make_search: MakeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    config = make_search(search={"packed": packed, "pruner": "none"}, cluster=TWO)
    plan, search = opened(config)

    def report(*_: Any) -> bool:
        ask_to_stop()
        return False

    def long(point: Any) -> Any:
        training = {"steps": 100_000, "eval_steps": 20, "checkpoint_steps": 100_000}
        return {key: run.updated(training=training) for key, run in plan.runs_of(point).items()}

    monkeypatch.setattr(search, "report", report)
    try:
        with pytest.raises(StoppedError):
            search_on_ray(
                search,
                long,
                cluster=config.cluster,
                trials_at_once=1,
                packed=packed,
                on_end=lambda _: None,
            )
    finally:
        withdraw_stop()
    assert [trial.state for trial in search.study.trials] == [TrialState.FAIL]
    assert search.study.trials[0].user_attrs["charged"] is False
    checkpoints = list(Path(config.runs).glob("*/*/checkpoints/step-*"))
    assert len(checkpoints) == (1 if packed else 0)  # the pool's workers keep what they have reached


_AUDITED = """
import os, runpy, shutil, sys

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        opened[:] = [os.fsdecode(arguments[0])]
    if event == "pickle.find_class":
        found.update(opened)

def remove(path, *arguments, **named):
    if os.path.isdir(f"{path}/tune"):
        shutil.copytree(f"{path}/tune", os.environ["KEPT"])
    genuine(path, *arguments, **named)

opened, found, genuine = [], set(), shutil.rmtree
shutil.rmtree = remove
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
with open(os.environ["FOUND"], "w") as file:
    file.write("\\n".join(sorted(found)))
"""


@on_demand
def test_no_pickle_is_read_and_no_password_is_kept(
    make_search: MakeSearch, tmp_path: Path, postgres: Any
) -> None:
    """What Tune writes does not name the study's place either."""
    (tmp_path / "begun").mkdir()
    place = postgres.new_database()
    config = make_search(search={"storage": place, "pruner": "none", "packed": False}, cluster=TWO)
    toy = {"directory": str(tmp_path / "begun"), "share": 0.0, "faults": [], "seconds": 0.0}
    given = {"page": config.model_dump(mode="json"), "here": False, "at_once": 2, "toy": toy}
    environment = {
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "PGPASSWORD": postgres.password,
        "FOUND": str(tmp_path / "found"),
        "KEPT": str(tmp_path / "kept"),
    }
    done = subprocess.run(
        [sys.executable, "-c", _AUDITED, str(SCRIPT)],
        input=json.dumps(given),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("COMPLETE") == 3
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert any("experiment_state" in name for name in kept)
    for secret in (postgres.password, place, place.rpartition("@")[2]):
        assert not [name for name, data in kept.items() if secret.encode() in data]
        assert secret not in done.stdout + done.stderr
    ours = tuple(str(tmp_path / name) for name in ("searches", "runs", "bank"))
    assert not [path for path in (tmp_path / "found").read_text().splitlines() if path.startswith(ours)]


def test_no_pickle_is_written(make_search: MakeSearch, tmp_path: Path) -> None:
    tried(make_search(search={"trials": 2}), at_once=2, here=True)
    written = [path for name in ("searches", "runs") for path in (tmp_path / name).rglob("*")]
    assert written
    assert not [path for path in written if path.is_file() and path.read_bytes()[:1] == b"\x80"]
