from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from attempt_ray.reporting import search
from attempt_ray.reporting.search import SearchSummary, write_search_report
from attempt_ray.reporting.search_plots import SearchPictures

MakeSearch = Callable[..., optuna.Study]
Warn = Callable[..., tuple[str, ...]]
_FINAL = {
    "trial": 2,
    "seeds": [11, 12],
    "test": {"rte": [80.0, 82.0], "cb": [90.0, 91.0]},
    "mean": 85.75,
    "std": 1.25,
    "bank": {"rte": "target/rte@3"},
}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = SearchPictures(contents={}, titles={}, importances={}, left_out={"history": "not now"})
    monkeypatch.setattr(search, "draw", lambda study: nothing)


@pytest.fixture
def warn(make_search: MakeSearch, tmp_path: Path, undrawn: None) -> Warn:
    """Return the warnings of a search that hold a word."""

    def warnings(trials: list[Any], word: str, **named: Any) -> tuple[str, ...]:
        summary = write_search_report(make_search(trials, **named), tmp_path)
        text = (tmp_path / "report.md").read_text()
        assert all(f"- {warning}" in text for warning in summary.warnings)
        return tuple(warning for warning in summary.warnings if word in warning)

    return warnings


@pytest.fixture(scope="module")
def written(make_search: MakeSearch, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchSummary, str]:
    study = make_search(
        [
            {"value": 70.0, "spread": 0.5, "scores": {"rte/s1": 60.0, "rte/s2": 62.0, "cb/s1": 79.0}},
            {"state": TrialState.FAIL, "reason": "NaN at step 31 <a|b>"},
            {
                "value": 74.0,
                "spread": 0.25,
                "scores": {"rte/s1": 65.0, "rte/s2": 67.0, "cb/s1": 82.0},
                "retry_of": 1,
            },
            {"state": TrialState.FAIL, "reason": "NaN at step 77 <a|b>"},
            {"state": TrialState.FAIL},
            {"state": TrialState.PRUNED, "reports": {10: 50.0}},
            {"state": TrialState.RUNNING, "steps": None, "tokens": None, "seconds": None},
            *(60.0 + n for n in range(10)),
        ],
        attrs={"final": _FINAL},
    )
    out = tmp_path_factory.mktemp("report") / "new"
    summary = write_search_report(study, out, commands=["attempt more"])
    return summary, (out / "report.md").read_text()


def test_a_report_says_what_was_searched_and_spent(written: tuple[SearchSummary, str]) -> None:
    _, text = written
    assert text.startswith("# Search glue-1\n")
    for line in (
        "- objective: dev (maximized)",
        "- space: tiny (0123456789ab)",
        "- tasks: rte, cb",
        "- seeds of a trial: 1, 2",
        "- pruner: asha",
        "17 trials: 12 finished, 1 pruned, 3 failed, 1 running, 0 waiting; 1 of them repeat another.",
        "Spent: 3,200 optimizer steps, 80,000 tokens, 1.60 hours of training, without 1 trial that did not tell.",
    ):
        assert f"{line}\n" in text


def test_a_report_sets_the_best_beside_the_paper(written: tuple[SearchSummary, str]) -> None:
    summary, text = written
    assert "Trial 2: dev 74.00 ± 0.25 over 2 seeds. " in text
    assert "The paper's point, trial 0: 70.00 ± 0.50; a difference of +4.00." in text
    assert "| `training.steps` | 200 | 200 | 100, 200, 400 |" in text
    assert "| rte | 65.00 | 67.00 | 66.00 | 61.00 |" in text
    assert "| cb | 82.00 | - | 82.00 | 79.00 |" in text
    assert (summary.best_trial, summary.best_value, summary.best_spread, summary.paper_value) == (
        2,
        74.0,
        0.25,
        70.0,
    )
    assert summary.best_point["training.steps"] == 200


def test_a_report_ranks_ten_trials_and_marks_the_papers(written: tuple[SearchSummary, str]) -> None:
    _, text = written
    ranking = text.split("## The best 10 of 12 finished trials")[1].split("##")[0]
    rows = [line for line in ranking.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 10
    assert rows[0].startswith("| 2 | 74.00 ± 0.25 | 200 |")
    assert rows[1].startswith("| 0 (paper) | 70.00 ± 0.50 |")


def test_a_report_groups_failures_that_differ_in_numbers_alone(written: tuple[SearchSummary, str]) -> None:
    _, text = written
    assert "| `NaN at step 31 <a\\|b>` | 2 | 1, 3 | 1 |" in text
    assert "| `unknown` | 1 | 4 | 0 |" in text


def test_a_report_has_the_final_result_and_how_to_go_on(written: tuple[SearchSummary, str]) -> None:
    _, text = written
    assert "Trial 2, trained again with fresh seeds (11, 12): mean test score 85.75 ± 1.25." in text
    assert "| rte | `target/rte@3` | 81.00 | 80.00, 82.00 |" in text
    assert "| cb | - | 90.50 | 90.00, 91.00 |" in text
    assert "```\nattempt more\n```" in text
    assert "training.warmup_steps=3\n" in text


def test_a_report_shows_its_pictures_and_importances(written: tuple[SearchSummary, str]) -> None:
    summary, text = written
    names = {path.name for path in summary.files}
    assert all(path.stat().st_size > 100 for path in summary.files)
    for name in ("history", "importances", "slices", "contours", "parallel-coordinates"):
        assert f"]({name}.png)" in text
        assert f"]({name}.html)" in text
        assert {f"{name}.png", f"{name}.html"} <= names
    assert "- pareto-front: the search has one objective" in text
    assert "| `training.rate` | 0." in text
    assert "12 finished trials that is few" in text
    assert not [path for path in summary.directory.iterdir() if path.name not in names]
    json.dumps(summary.as_dict(), allow_nan=False)


@pytest.mark.usefixtures("undrawn")
def test_a_new_report_drops_pictures_that_it_does_not_have(make_search: MakeSearch, tmp_path: Path) -> None:
    for name in ("slices.png", "history.html", "plotly.min.js", "mine.png"):
        (tmp_path / name).write_bytes(b"old")
    write_search_report(make_search([70.0]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "mine.png"}


@pytest.mark.usefixtures("undrawn")
def test_two_objectives_have_a_front_and_its_costs(make_search: MakeSearch, tmp_path: Path) -> None:
    trials = [{"values": [70.0, 2560.0]}, {"values": [80.0, 160000.0]}, {"values": [60.0, 9000.0]}]
    summary = write_search_report(make_search(trials, objectives=("dev", "parameters")), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- objectives: dev (maximized), parameters (minimized)" in text
    assert "Trial 1: dev 80.00, parameters 160,000." in text
    front = text.split("## Pareto front")[1].split("##")[0]
    assert "| 0 (paper) | 70.00 | 2,560 |" in front
    assert "| 2 |" not in front
    assert summary.best_trial == 1


def test_a_study_without_trials_has_a_report(tmp_path: Path) -> None:
    summary = write_search_report(optuna.create_study(study_name="none"), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "There is no trial yet." in text
    assert "No trial has finished." in text
    assert (summary.best_trial, summary.best_point, summary.warnings) == (None, {}, ())
    assert [path.name for path in summary.files] == ["report.md"]
    json.dumps(summary.as_dict(), allow_nan=False)


@pytest.mark.usefixtures("undrawn")
def test_a_study_made_by_hand_has_a_report(tmp_path: Path) -> None:
    study = optuna.create_study(direction="minimize")
    study.optimize(lambda trial: 1e-5 * trial.suggest_float("x", 1e-6, 1, log=True), n_trials=3)
    write_search_report(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- space: unknown" in text
    assert "- objective: value (minimized)" in text
    assert "Spent: unknown." in text
    assert "The value of trial" in text
    assert "paper" not in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("value", "setting"),
    [(0.00001, "1.0e-05"), ("yes", '"yes"'), ("auto", "auto"), (True, "true"), (None, "null")],
)
def test_settings_are_read_back_as_they_were(value: Any, setting: str, tmp_path: Path) -> None:
    import yaml

    study = optuna.create_study()
    study.optimize(lambda trial: len(str(trial.suggest_categorical("x", [value]))), n_trials=1)
    write_search_report(study, tmp_path)
    assert f"\nx={setting}\n" in (tmp_path / "report.md").read_text()
    assert yaml.safe_load(setting) == value


def test_the_best_of_several_is_told_to_flatter(warn: Warn) -> None:
    (warning,) = warn([70.0, 71.0, 72.0], "flatters")
    assert "chosen as the largest of 3" in warning
    assert "fresh seeds before quoting" in warning
    assert warn([70.0], "flatters") == ()
    (warning,) = warn([70.0, 71.0, 72.0], "flatters", attrs={"final": _FINAL})
    assert "final result below" in warning


def test_a_search_that_tpe_never_steered_is_told(warn: Warn) -> None:
    tpe = {"sampler": "tpe"}
    pruned = {"state": TrialState.PRUNED}
    (warning,) = warn([70.0, pruned, *[{"state": TrialState.FAIL}] * 9], "TPE", attrs=tpe)
    assert warning.startswith("Only 2 of the 10 trials")
    assert warn([70.0, *[pruned] * 9], "TPE", attrs=tpe) == ()
    assert warn([70.0], "TPE") == ()


def test_tpe_starts_with_as_many_trials_as_the_report_thinks() -> None:
    assert optuna.samplers.TPESampler()._n_startup_trials == search.TPE_STARTUP_TRIALS


def test_a_gain_within_the_spread_over_seeds_is_told(warn: Warn) -> None:
    (warning,) = warn([{"value": 70.0, "spread": 0.2}, {"value": 70.5, "spread": 0.5}], "chance")
    assert "by 0.5, which is no more than the spread over seeds (0.5)" in warning
    assert len(warn([{"value": 70.0, "spread": 0.6}, {"value": 70.5, "spread": 0.1}], "chance")) == 1
    assert warn([{"value": 70.0, "spread": 0.2}, {"value": 70.51, "spread": 0.5}], "chance") == ()


def test_a_gain_without_a_spread_is_told(warn: Warn) -> None:
    (warning,) = warn([70.0, 75.0], "chance")
    assert "no spread over seeds is known" in warning
    assert warn([70.0, {"value": 75.0, "spread": 1.0}], "chance") == ()


def test_a_search_that_did_not_beat_the_paper_is_told(warn: Warn) -> None:
    assert warn([70.0, 60.0], "better than the paper") == (
        "None of 2 finished trials is better than the paper's point.",
    )
    assert warn([70.0, {"value": 80.0, "spread": 0.1}], "better than the paper") == ()


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"state": TrialState.FAIL}, "The paper's point is failed (trial 0)"),
        ({"state": TrialState.PRUNED}, "The paper's point is pruned (trial 0)"),
        ({"value": 60.0, "point": {"training.steps": 100}}, "The paper's point was not tried"),
    ],
)
def test_a_paper_that_did_not_finish_is_told(warn: Warn, first: Any, words: str) -> None:
    (warning,) = warn([first, 70.0], "nothing to compare")
    assert warning.startswith(words)
    assert warn([70.0, 71.0], "nothing to compare") == ()
    assert warn([first, 70.0], "paper", attrs={"space": {}}) == ()


def test_a_best_value_at_the_end_of_its_domain_is_told(warn: Warn) -> None:
    (warning,) = warn([70.0, {"value": 80.0, "point": {"training.rate": 0.95}}], "end of its domain")
    assert (
        "`training.rate` of trial 1 is 0.95, at the upper end of its domain (0.001 to 1, logarithmic)"
        in warning
    )
    assert warn([70.0, {"value": 60.0, "point": {"training.rate": 0.95}}], "end of its domain") == ()
    assert warn([70.0, {"value": 80.0, "point": {"training.rate": 0.5}}], "end of its domain") == ()


def test_a_final_result_that_was_overtaken_is_told(warn: Warn) -> None:
    assert warn([70.0, 75.0, 72.0], "by now", attrs={"final": _FINAL}) == (
        "The final result is of trial 2, and trial 1 is better by now.",
    )
    assert warn([70.0, 71.0, 72.0], "by now", attrs={"final": _FINAL}) == ()
    several = [{"values": [70.0 + n % 2, 1.0]} for n in range(3)]
    assert warn(several, "by now", objectives=("dev", "flops"), attrs={"final": _FINAL}) == ()


def test_plotting_libraries_are_imported_only_to_draw() -> None:
    code = (
        "import sys, attempt_ray.reporting.search\n"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'plotly', 'torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
