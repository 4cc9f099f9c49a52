from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from attempt_ray.config import SearchConfig
from attempt_ray.errors import ConfigError
from attempt_ray.orchestration.search import Outcome, Search
from tune_spaces.space import Choice, Floats, Integers, Knob, Space

SPACE = Space(
    name="test",
    knobs=(
        Knob(key="rate", domain=Floats(low=0.01, high=1.0, log=True)),
        Knob(key="prior", domain=Choice(values=(True, False))),
        Knob(key="width", domain=Integers(low=8, high=64, step=8), when={"prior": (False,)}),
    ),
    known=({"rate": 0.3, "prior": True}, {"rate": 0.1, "prior": False, "width": 16}),
)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def storage():
    return optuna.storages.InMemoryStorage()


def opened(storage, *, costs=lambda _: (), facts=None, space=SPACE, **settings):
    return Search.open(
        storage, SearchConfig(**settings), space, name="test", facts=facts or {"space": "test"}, costs=costs
    )


def outcome(value, steps=10):
    return Outcome(scores={"rte/s1": value}, spread=None, steps=steps, tokens=100, seconds=1.5)


def quality(point):
    return 100 * point["rate"] - (5 if point["prior"] else point["width"] / 8)


def run_all(search, *, stop_after=None):
    """Try one trial after the other; return their points."""
    points = []
    while (trial := search.next()) is not None:
        points.append(dict(trial.point))
        if len(points) == stop_after:
            return points
        search.finish(trial.number, outcome(quality(trial.point)))
    return points


def test_known_points_come_first_and_count(storage):
    points = run_all(opened(storage, trials=5))
    assert len(points) == 5
    assert points[:2] == [dict(point) for point in SPACE.known]
    for point in points:
        SPACE.check_point(point)


def test_the_same_seed_suggests_the_same_and_another_does_not(storage):
    points = run_all(opened(storage, trials=14))
    assert run_all(opened(optuna.storages.InMemoryStorage(), trials=14)) == points
    assert run_all(opened(optuna.storages.InMemoryStorage(), trials=14, seed=1))[2:] != points[2:]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("died_in", range(1, 13))
def test_a_search_that_died_goes_on_with_what_it_would_have_tried(storage, died_in, sampler):
    whole = run_all(opened(optuna.storages.InMemoryStorage(), trials=12, sampler=sampler, startup_trials=4))
    first = run_all(opened(storage, trials=12, sampler=sampler, startup_trials=4), stop_after=died_in)
    search = opened(storage, trials=12, sampler=sampler, startup_trials=4)
    assert storage.get_n_trials(search.study._study_id, TrialState.RUNNING) == 0
    second = run_all(search)
    assert [*first[:-1], *second] == whole
    states = [trial.state for trial in search.study.trials]
    assert states.count(TrialState.COMPLETE) == 12
    assert states.count(TrialState.FAIL) == 1


def test_a_search_that_died_between_two_knobs_asks_for_the_same_values(storage):
    whole = run_all(opened(optuna.storages.InMemoryStorage(), trials=6))
    search = opened(storage, trials=6)
    run_all(search, stop_after=4)
    search.finish(3, outcome(quality(search.study.trials[3].user_attrs["point"])))
    search._enqueue(search.study.trials)
    search.study.sampler = search._sampler(4)
    half = search.study.ask()
    half.suggest_float("rate", 0.01, 1.0, log=True)
    assert run_all(opened(storage, trials=6)) == whole[4:]


def test_a_trial_left_behind_is_tried_again_up_to_the_limit(storage):
    for attempt in range(3):
        trial = opened(storage, trials=1, attempts=3).next()
        assert trial.number == attempt
        assert trial.retry_of == (attempt - 1 if attempt else None)
        assert dict(trial.point) == SPACE.known[0]
    search = opened(storage, trials=1, attempts=3)
    assert search.next() is None
    assert search.standing().failed == 3


def test_attempts_that_are_not_charged_do_not_count(storage):
    for _ in range(5):
        search = opened(storage, trials=1, attempts=2)
        assert search.next() is not None
        search.release()
    assert opened(storage, trials=1, attempts=2).next() is not None


def test_a_failure_that_another_attempt_cannot_mend_is_final(storage):
    search = opened(storage, trials=2)
    trial = search.next()
    search.fail(trial.number, "rate too high", again=False, steps=3)
    assert dict(search.next().point) == SPACE.known[1]
    assert search.study.trials[0].user_attrs["reason"] == "rate too high"


def test_a_crash_is_tried_again_before_anything_new(storage):
    search = opened(storage, trials=2)
    first = search.next()
    search.fail(first.number, "RuntimeError: gone", again=True)
    again = search.next()
    assert again.retry_of == first.number
    assert again.point == first.point
    assert search.study.trials[again.number].user_attrs["known"]


def test_finished_trials_are_never_asked_again(storage):
    run_all(opened(storage, trials=4))
    search = opened(storage, trials=4)
    assert search.next() is None
    assert len(run_all(opened(storage, trials=6))) == 2


def test_trials_that_first_all_fail_end_the_search(storage):
    search = opened(storage, trials=30)
    for _ in range(5):
        search.fail(search.next().number, "no such prompt", again=False)
    assert search.next() is None
    assert search.over == "the first 5 trials failed, the last with: no such prompt"


def test_trials_that_first_all_crash_as_often_as_they_may_end_the_search(storage):
    search = opened(storage, trials=30, attempts=2)
    for _ in range(10):
        search.fail(search.next().number, "RuntimeError: boom", again=True)
    assert search.next() is None
    assert search.over == "the first 5 trials failed, the last with: RuntimeError: boom"


def test_trials_that_are_left_do_not_end_the_search(storage):
    search = opened(storage, trials=30, attempts=2)
    for _ in range(12):
        search.next()
        search.release()
    assert search.next() is not None


def test_steps_are_a_budget(storage):
    search = opened(storage, trials=30, max_steps=35)
    assert len(run_all(search)) == 4
    assert search.standing().steps == 40


def test_hours_are_a_budget(storage, monkeypatch):
    search = opened(storage, hours=0.5)
    assert search.next() is not None
    monkeypatch.setattr("attempt_ray.orchestration.search.time.monotonic", lambda: search._began + 1801)
    assert search.next() is None
    assert search.over == "0.5 h are over"


def test_asha_gives_up_the_worse_and_tells_so(storage):
    search = opened(storage, trials=30, pruner="asha", reduction_factor=3)
    verdicts = []
    for value in (90.0, 80.0, 70.0, 60.0, 95.0):
        trial = search.next()
        verdicts.append(search.report(trial.number, 2, value))
        if verdicts[-1]:
            search.prune(trial.number, outcome(value))
        else:
            search.finish(trial.number, outcome(value))
    assert verdicts == [False, True, True, True, False]
    assert search.study.user_attrs["first_rung"] == 2
    states = [trial.state for trial in search.study.trials]
    assert states == [TrialState.COMPLETE, *[TrialState.PRUNED] * 3, TrialState.COMPLETE]
    assert search.study.trials[1].user_attrs["steps"] == 10
    standing = search.standing()
    assert (standing.finished, standing.pruned, standing.failed, standing.ended) == (2, 3, 0, 5)
    assert standing.best.number == 4


def test_asha_goes_on_by_what_was_known_before_the_process_died(storage):
    search = opened(storage, trials=30)
    for value in (90.0, 80.0, 70.0):
        search.report((trial := search.next()).number, 2, value)
        search.finish(trial.number, outcome(value))
    again = opened(storage, trials=30)
    assert again.report(again.next().number, 2, 60.0)


def test_another_attempt_is_judged_as_the_first_was(storage):
    search = opened(storage, trials=30, pruner="asha", reduction_factor=3)
    for value in (90.0, 80.0, 70.0, 60.0):
        search.report((trial := search.next()).number, 2, value)
        search.finish(trial.number, outcome(value))
    first = search.next()
    assert search.report(first.number, 2, 85.0)
    search = opened(storage, trials=30, pruner="asha", reduction_factor=3)
    again = search.next()
    assert again.retry_of == first.number
    assert search.report(again.number, 2, 85.0)


def test_the_median_rule_waits_for_five_trials(storage):
    search = opened(storage, pruner="median")
    for value in (90.0, 80.0, 70.0, 60.0, 50.0):
        trial = search.next()
        assert not search.report(trial.number, 2, value)
        search.finish(trial.number, outcome(value))
    assert search.report(search.next().number, 2, 40.0)


def test_without_a_pruner_nothing_is_given_up(storage):
    search = opened(storage, pruner="none")
    for value in (90.0, 1.0, 1.0, 1.0):
        trial = search.next()
        assert not search.report(trial.number, 2, value)
        search.finish(trial.number, outcome(value))


def test_two_objectives_keep_both_values_and_prune_nothing(storage):
    search = opened(
        storage,
        trials=6,
        objectives=("dev", "parameters"),
        costs=lambda point: [point.get("width", 100)],
    )
    while (trial := search.next()) is not None:
        assert not search.report(trial.number, 2, 1.0)
        search.finish(trial.number, outcome(quality(trial.point)))
    assert search.study.trials[1].values == [pytest.approx(8.0), 16.0]
    assert search.standing().best.values[0] == max(trial.values[0] for trial in search.study.trials)


def test_a_study_of_other_settings_is_refused(storage):
    opened(storage, facts={"space": "test", "space_digest": "a"})
    with pytest.raises(ConfigError, match="begun with other settings: space_digest differs; go back"):
        opened(storage, facts={"space": "test", "space_digest": "b"})
    with pytest.raises(ConfigError, match="objectives differs"):
        opened(storage, objectives=("dev", "flops"))


def test_trials_at_once_have_different_points(storage):
    search = opened(storage, trials=12, startup_trials=2)
    run_all(search, stop_after=6)
    points = [dict(search.next().point) for _ in range(6)]
    assert len({str(point) for point in points}) == 6
    assert search.next() is None
    assert len(search.under_way) == 7


FEW = Space(name="few", knobs=(Knob(key="prior", domain=Choice(values=(True,))),))


def test_a_point_that_is_being_tried_waits_for_its_end(storage):
    search = opened(storage, space=FEW, trials=2)
    first = search.next()
    assert search.next() is None
    assert search.under_way == (0, 1)
    search.finish(first.number, outcome(50.0))
    assert search.next().number == 1
    assert search.next() is None


def test_a_point_that_waits_is_left_when_the_search_is_over(storage):
    search = opened(storage, space=FEW, trials=2)
    first = search.next()
    assert search.next() is None
    search.stop("enough")
    assert search.next() is None
    assert search.under_way == (first.number,)
    assert search.study.trials[1].user_attrs["charged"] is False
