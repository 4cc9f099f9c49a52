from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from attempt_ray.reporting.search_study import read_search

MakeSearch = Callable[..., optuna.Study]


def test_trials_are_ranked_by_dev_and_counted_by_state(make_search: MakeSearch) -> None:
    search = read_search(
        make_search(
            [
                70.0,
                {"state": TrialState.PRUNED, "reports": {10: 50.0}},
                {"state": TrialState.FAIL, "reason": "it\n broke"},
                {"value": 75.0, "retry_of": 2},
                {"state": TrialState.RUNNING},
                {"state": TrialState.WAITING},
            ]
        )
    )
    assert [trial.number for trial in search.ranked] == [3, 0]
    assert search.counts() == {
        "finished": 2,
        "pruned": 1,
        "failed": 1,
        "running": 1,
        "waiting": 1,
        "retries": 1,
        "all": 6,
    }
    assert search.trials[2].reason == "it broke"
    assert search.paper is not None
    assert search.paper.number == 0


def test_the_front_holds_what_no_other_trial_beats(make_search: MakeSearch) -> None:
    points = [[70.0, 5.0], [80.0, 9.0], [75.0, 9.0], [80.0, 8.0], [60.0, 4.0]]
    search = read_search(
        make_search([{"values": values} for values in points], objectives=("dev", "parameters"))
    )
    assert [trial.number for trial in search.front] == [3, 0, 4]
    assert search.best is not None
    assert search.best.number == 3


def test_dev_decides_wherever_it_stands_among_the_objectives() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.set_user_attr("objectives", ["flops", "dev"])
    for values in ([1.0, 10.0], [9.0, 20.0]):
        study.add_trial(create_trial(values=values))
    best = read_search(study).best
    assert best is not None
    assert best.number == 1


def test_the_papers_point_is_a_finished_trial_where_there_is_one(make_search: MakeSearch) -> None:
    paper = {"training.rate": 0.1, "prompt.rate": 0.1, "training.steps": 200, "temperature": "auto"}
    again = {"value": 71.0, "retry_of": 0}
    study = make_search([{"state": TrialState.FAIL}, 90.0])
    study.add_trial(make_search([again]).trials[0])
    search = read_search(study)
    assert dict(search.paper_point or {}) == paper
    assert search.paper is not None
    assert search.paper.number == 2


def test_a_value_that_is_no_number_is_a_failure(make_search: MakeSearch) -> None:
    search = read_search(make_search([70.0, float("inf")]))
    assert [trial.state for trial in search.trials] == ["finished", "failed"]
    assert search.trials[1].reason == "its value is inf"


def test_a_point_sets_what_its_choices_stand_for(make_search: MakeSearch) -> None:
    search = read_search(make_search([70.0]))
    assert search.best is not None
    assert search.settings(search.best.point) == {
        "training.warmup_steps": 3,
        "training.rate": 0.1,
        "prompt.rate": 0.1,
        "training.steps": 200,
        "attention.temperature": "auto",
    }


@pytest.mark.parametrize(
    ("domain", "value", "end"),
    [
        (FloatDistribution(0.0, 1.0), 0.019, "lower"),
        (FloatDistribution(0.0, 1.0), 0.021, None),
        (FloatDistribution(0.0, 1.0), 0.981, "upper"),
        (FloatDistribution(0.001, 1.0, log=True), 0.00114, "lower"),
        (FloatDistribution(0.001, 1.0, log=True), 0.00116, None),
        (FloatDistribution(0.001, 1.0, log=True), 0.88, "upper"),
        (IntDistribution(1, 4), 4, "upper"),
        (IntDistribution(1, 4), 3, None),
        (IntDistribution(3, 3), 3, None),
        (CategoricalDistribution((25, 50, 100)), 25, "lower"),
        (CategoricalDistribution((25, 50, 100)), 50, None),
        (CategoricalDistribution((25, 50)), 50, None),
        (CategoricalDistribution((True, False)), True, None),
        (CategoricalDistribution(("a", "b", "c")), "a", None),
        (CategoricalDistribution((1, 2, None)), 2, None),
    ],
)
def test_a_value_stands_at_an_end_of_its_domain_on_the_domains_scale(
    domain: Any, value: Any, end: str | None
) -> None:
    study = optuna.create_study()
    study.add_trial(create_trial(value=1.0, params={"x": value}, distributions={"x": domain}))
    assert read_search(study).trials[0].edge("x") == end


@pytest.mark.parametrize("odd", [None, 7, "text", [None, 1, {}], {"a": 1}, {"x": {"y": [None]}}, True])
def test_odd_attributes_are_unknown(odd: Any) -> None:
    study = optuna.create_study()
    for key in (
        "space",
        "space_digest",
        "objectives",
        "seeds",
        "tasks",
        "method",
        "sampler",
        "pruner",
        "final",
    ):
        study.set_user_attr(key, odd)
    keys = ("point", "known", "retry_of", "scores", "spread", "steps", "tokens", "seconds", "reason")
    study.add_trial(create_trial(value=1.0, user_attrs=dict.fromkeys(keys, odd)))
    study.add_trial(create_trial(value=2.0))
    search = read_search(study)
    assert search.objectives == ("value",)
    assert search.paper is None
    assert [trial.number for trial in search.ranked] == [0, 1]
    assert search.trials[0].scores == {}


def test_a_point_has_the_values_that_optuna_gave(make_search: MakeSearch) -> None:
    trial = make_search([70.0]).trials[0]
    study = optuna.create_study(direction="maximize")
    told = {"point": {"training.rate": "0.1", "training.steps": 200}}
    study.add_trial(
        create_trial(value=1.0, params=trial.params, distributions=trial.distributions, user_attrs=told)
    )
    assert read_search(study).trials[0].point == {"training.rate": 0.1, "training.steps": 200}


def test_a_study_made_by_hand_has_its_parameters_and_no_more() -> None:
    study = optuna.create_study(direction="minimize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    search = read_search(study)
    assert (search.objectives, search.knobs, search.paper, search.final) == (("value",), ("x",), None, None)
    assert search.best is not None
    assert search.best.values == (study.best_value,)
