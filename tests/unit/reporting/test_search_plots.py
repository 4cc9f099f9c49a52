from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from attempt_ray.reporting import search_plots
from attempt_ray.reporting.search_plots import SearchPictures, draw, labels
from attempt_ray.reporting.search_study import read_search

MakeSearch = Callable[..., optuna.Study]
_ALL = {
    "history",
    "importances",
    "slices",
    "contours",
    "parallel-coordinates",
    "intermediate-values",
    "pareto-front",
}


def inches(png: bytes) -> tuple[float, float]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width / 150, height / 150


def scores(count: int) -> list[dict[str, Any]]:
    return [
        {"value": 60.0 + 7 * (n % 5) + n / 10, "reports": {10: 50.0 + n, 20: 60.0 + n}} for n in range(count)
    ]


@pytest.fixture(scope="module")
def one(make_search: MakeSearch) -> SearchPictures:
    trials = [*scores(16), {"state": TrialState.PRUNED, "reports": {10: 40.0}}, {"state": TrialState.RUNNING}]
    return draw(read_search(make_search([*trials, {"state": TrialState.FAIL}])))


@pytest.fixture(scope="module")
def two(make_search: MakeSearch) -> SearchPictures:
    values = [{"values": [60.0 + 7 * (n % 5) + n / 10, 1000.0 * (n % 3) + n]} for n in range(8)]
    return draw(read_search(make_search(values, objectives=("dev", "parameters"))))


def test_one_objective_has_every_picture_but_the_front(one: SearchPictures) -> None:
    assert one.left_out == {"pareto-front": "the search has one objective"}
    assert set(one.titles) == _ALL - {"pareto-front"}
    assert set(one.contents) == {f"{name}.{end}" for name in one.titles for end in ("png", "html")} | {
        "plotly.min.js"
    }


def test_two_objectives_have_a_front_and_no_pruning(two: SearchPictures) -> None:
    assert set(two.left_out) == {"intermediate-values", "contours"}
    assert "several objectives" in two.left_out["intermediate-values"]
    assert two.left_out["contours"] == "8 trials have finished, and it takes 10"


def test_pictures_are_of_a_size_to_be_read(one: SearchPictures, two: SearchPictures) -> None:
    for pictures in (one, two):
        for name in pictures.titles:
            width, height = inches(pictures.contents[f"{name}.png"])
            assert 5 <= width <= 20
            assert 2 <= height <= 12


def test_pages_take_plotly_from_beside_them(one: SearchPictures) -> None:
    assert len(one.contents["plotly.min.js"]) > 1_000_000
    for name in one.titles:
        page = one.contents[f"{name}.html"].decode()
        assert 'src="plotly.min.js"' in page
        assert 'src="http' not in page
        assert len(page) < 500_000


def test_conditional_parameters_are_drawn_under_short_names(one: SearchPictures) -> None:
    page = one.contents["slices.html"].decode()
    assert "attention temperature" in page
    assert "training.rate" not in page
    assert set(one.importances) == {"training.rate", "prompt.rate", "temperature", "attention.temperature"}
    assert sum(one.importances.values()) == pytest.approx(1.0)


def test_the_same_study_gives_the_same_files(make_search: MakeSearch) -> None:
    search = read_search(make_search(scores(3)))
    assert draw(search).contents == draw(search).contents


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ([], {"history": "no trials have finished, and it takes 1"}),
        (
            [70.0],
            {"slices": "1 trial has finished, and it takes 2", "intermediate-values": "no trial reported"},
        ),
        ([70.0] * 6, {"importances": "every finished trial has the same dev"}),
        ([{"value": 70.0, "reports": {10: 1.0}}], {"intermediate-values": "no trial reported twice"}),
    ],
)
def test_a_plot_that_a_study_cannot_have_is_left_out_with_its_reason(
    make_search: MakeSearch, values: list[Any], reasons: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_plots, "_png", lambda picture, title: picture() and b"")
    found = draw(read_search(make_search(values))).left_out
    for name, reason in reasons.items():
        assert found[name].startswith(reason)


def test_one_parameter_has_slices_and_neither_importance_nor_contours() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=12)
    pictures = draw(read_search(study))
    assert pictures.left_out["importances"] == pictures.left_out["contours"] == "only one parameter varies, x"
    assert {"slices", "parallel-coordinates"} <= set(pictures.titles)


def test_parameters_that_do_not_vary_are_named() -> None:
    study = optuna.create_study()
    study.optimize(lambda trial: trial.suggest_categorical("x", [1]) + trial.number, n_trials=6)
    left_out = draw(read_search(study)).left_out
    assert left_out["slices"] == "no parameter has two values among the finished trials"


def test_three_objectives_are_a_front_too() -> None:
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.number, -trial.number), n_trials=4)
    assert "pareto-front" in draw(read_search(study)).titles


def test_what_optuna_fails_at_leaves_the_others(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any, **named: Any) -> None:
        raise RuntimeError("no\n luck")

    monkeypatch.setattr("optuna.visualization.matplotlib.plot_slice", failing)
    pictures = draw(read_search(make_search(scores(3))))
    assert pictures.left_out["slices"] == "Optuna cannot draw it: no luck"
    assert "history" in pictures.titles
    assert "slices.png" not in pictures.contents


def test_pyplot_and_optuna_are_left_as_they_were(make_search: MakeSearch) -> None:
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    plt.switch_backend("svg")
    own = plt.figure()
    before, level = dict(mpl.rcParams), optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(read_search(make_search(scores(2))))
    assert plt.get_fignums() == [own.number]
    assert dict(mpl.rcParams) == before
    assert plt.get_backend() == "svg"
    assert optuna.logging.get_verbosity() == level
    plt.close(own)
    plt.switch_backend("agg")


def test_labels_are_as_short_as_they_can_be_told_apart() -> None:
    assert labels(["training.steps", "temperature", "attention.temperature", "a.x_y", "b.x_y"]) == {
        "training.steps": "steps",
        "temperature": "temperature",
        "attention.temperature": "attention temperature",
        "a.x_y": "a x y",
        "b.x_y": "b x y",
    }


def test_very_long_names_lose_their_middle_and_stay_apart() -> None:
    long = [f"section.{'a' * 20}{middle}{'b' * 20}" for middle in "xy"]
    short = labels(long)
    assert len(short[long[0]]) == 30
    assert len(set(short.values())) == 2


def test_contours_are_of_parameters_that_were_asked_together() -> None:
    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        value: float = trial.suggest_float(f"only_{kind}", 0, 1)
        return value * (2 if kind == "a" else 1)

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=30)
    pictures = draw(read_search(study))
    assert {"only_a", "only_b"} <= set(pictures.importances)
    # Either goes with neither `kind`, which does not vary where it is asked, nor the other.
    assert pictures.left_out["contours"] == "no two parameters were asked together often enough"
