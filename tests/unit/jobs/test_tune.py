from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from typer.testing import CliRunner, Result

from attempt_ray.bank.manifest import Facts
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.errors import BankError, ConfigError
from attempt_ray.orchestration import study_storage
from attempt_ray.orchestration.study_storage import held, open_study_storage
from attempt_ray.training import course
from jobs import tune as tune_module
from jobs.cli import app
from jobs.search_plan import plan_search
from jobs.tune import search_directory, shown_point, storage_place, trials_at_once, tune
from jobs.tune_report import tune_report
from tests.conftest import ROOT

MakeSearch = Callable[..., Config]


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Callable[..., Result]]:
    """Return a function that runs the command with a config."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str, config: Config | None = None) -> Result:
        given: tuple[str, ...] = ()
        if config is not None:
            page = tmp_path / "config.yaml"
            page.write_text(json.dumps(config.model_dump(mode="json", exclude_defaults=True)))
            given = ("--config", str(page), "--no-ray")
        return CliRunner().invoke(app, ["tune", *given, *arguments])

    yield call
    signal.signal(signal.SIGTERM, before)


Attempt = Callable[..., Result]


def study_of(config: Config) -> optuna.Study:
    config = plan_search(config).config
    storage = open_study_storage(storage_place(config))
    return optuna.load_study(study_name=str(config.search.study), storage=storage)


def is_one_line_error(result: Result, *words: str) -> bool:
    """Whether a command ended with 2 and one line that tells of all words, besides what it did before."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 2, result.stderr
    assert (result.stdout, len(errors)) == ("", 1)
    assert result.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.stderr
    return all(word in errors[0] for word in words)


def test_a_search_ends_with_a_tested_candidate_and_a_report(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    genuine, seen = course.evaluate, []

    def evaluate(method: Any, split: Any, *, config: Config, **named: Any) -> Any:
        seen.append((split.split, config.trial, config.seed))
        return genuine(method, split, config=config, **named)

    monkeypatch.setattr(course, "evaluate", evaluate)
    config = make_search(search={"seeds": [1, 2]})
    result = tune(config, placement="here")
    told = capsys.readouterr().err
    assert result == json.loads(json.dumps(result))
    assert (result["job"], result["finished"], result["failed_trials"]) == ("tune", 3, 0)
    assert result["failed"] == []
    assert all(f"/3] trial {number}: dev " in told for number in range(3))
    assert "test " in told and "best: trial " in told and "report: " in told

    # Test rows are for the final runs alone, whose seeds no trial has seen.
    assert {(trial, seed) for split, trial, seed in seen if split == "test"} == {
        (False, seed) for seed in (101, 102, 103)
    }
    assert {seed for _, trial, seed in seen if trial} == {1, 2}

    study, final = study_of(config), result["final"]
    assert study.user_attrs["final"] == final
    assert final["trial"] == result["best"]["trial"]
    assert final["seeds"] == [101, 102, 103] and len(final["test"]["rte"]) == 3
    assert final["mean"] == pytest.approx(sum(final["test"]["rte"]) / 3)
    best = study.trials[final["trial"]]
    assert best.values[0] == result["best"]["dev"] == max(trial.values[0] for trial in study.trials)
    assert (Path(result["report"]) / "report.md").is_file()

    bank = Bank(config.bank)
    for kind in ("target", "attention"):
        (version,) = {
            version
            for version in bank.list()
            if version.kind == kind and "candidate" in aliases(bank, version)
        }
        recipe = bank.show(version.reference).recipe
        assert recipe["config"]["search"]["study"] == result["study"]
        assert recipe["config"]["training"]["prompt_learning_rate"] == pytest.approx(
            result["best"]["point"]["training.prompt_learning_rate"]
        )
        if kind == "target":
            assert final["bank"] == {"rte": version.reference}


def aliases(bank: Bank, version: Any) -> list[str]:
    current = bank.aliases(version.kind, version.name).current
    return [alias for alias, number in current.items() if number == version.number]


def test_the_same_command_does_nothing_new_and_more_trials_go_on(make_search: MakeSearch) -> None:
    config = make_search()
    first = tune(config, placement="here")
    known = study_of(config).trials
    versions = [version.reference for version in Bank(config.bank).list()]
    again = tune(config, placement="here")
    same = ("study", "storage", "finished", "pruned", "steps", "best", "final")
    assert {key: again[key] for key in same} == {key: first[key] for key in same}
    assert study_of(config).trials == known
    assert [version.reference for version in Bank(config.bank).list()] == versions

    more = tune(config.updated(search={"trials": 5}), placement="here")
    assert more["study"] == first["study"]
    assert study_of(config).trials[:3] == known
    assert more["finished"] + more["pruned"] == 5


def test_other_final_seeds_are_tested_anew(make_search: MakeSearch) -> None:
    config = make_search(search={"final_seeds": [7]})
    first = tune(config, placement="here")
    assert (first["final"]["seeds"], first["final"]["std"]) == ([7], None)
    again = tune(config.updated(search={"final_seeds": (8, 9)}), placement="here")
    assert again["study"] == first["study"]
    assert again["final"]["seeds"] == [8, 9]
    assert study_of(config).user_attrs["final"] == again["final"]


def test_a_final_run_that_fails_is_told_and_taken_up_again(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = course.publish

    def publish(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("boom")

    config = make_search(cluster={"attempts": 1}, search={"trials": 1})
    monkeypatch.setattr(
        course, "publish", lambda *a, **n: genuine(*a, **n) if a[0].config.trial else publish()
    )
    broken = tune(config, placement="here")
    assert broken["final"] is None
    assert {failure["run"] for failure in broken["failed"]} == {f"final/rte/s{n}" for n in (101, 102, 103)}
    assert "final" not in study_of(config).user_attrs
    monkeypatch.setattr(course, "publish", genuine)
    assert tune(config, placement="here")["final"]["seeds"] == [101, 102, 103]


def test_a_multi_task_search_has_one_candidate_for_each_task(make_search: MakeSearch) -> None:
    study = {"targets": ["rte", "mrpc"], "prior": False}
    result = tune(
        make_search(study=study, search={"method": "attempt_mt", "trials": 1, "final_seeds": [7]}),
        placement="here",
    )
    assert set(result["final"]["bank"]) == {"rte", "mrpc"}
    assert result["final"]["mean"] == pytest.approx(
        sum(scores[0] for scores in result["final"]["test"].values()) / 2
    )


def test_two_objectives_are_both_kept(make_search: MakeSearch) -> None:
    config = make_search(search={"objectives": ["dev", "flops"], "final_seeds": [7]})
    result = tune(config, placement="here")
    assert result["pruned"] == 0
    assert all(len(trial.values) == 2 for trial in study_of(config).trials)


def test_a_search_without_a_finished_trial_ends_with_the_reason(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select(*_: Any, **__: Any) -> None:
        raise ConfigError("nothing can be scored; mend it")

    monkeypatch.setattr(course, "_select", select)
    with pytest.raises(ConfigError, match="no trial came to a value; run the same command again"):
        tune(make_search(), placement="here")
    config = make_search(search={"trials": 9, "seed": 1})
    with pytest.raises(ConfigError, match="the first 5 trials failed, the last with: nothing can be scored"):
        tune(config, placement="here")
    assert [trial.state for trial in study_of(config).trials] == [TrialState.FAIL] * 5


def test_the_command_prints_the_result_and_takes_its_options(
    make_search: MakeSearch, attempt: Attempt
) -> None:
    config = make_search(search={"final_seeds": [7]})
    result = attempt("--trials", "2", "--study", "mine", config=config)
    assert result.exit_code == 0, result.stderr
    page = json.loads(result.stdout)
    assert (page["study"], page["finished"]) == ("mine", 2)
    assert attempt("--study", "mine", "--max-steps", "1", "--hours", "1", config=config).exit_code == 0

    reported = attempt("report", "mine", "--directory", config.search.directory)
    assert reported.exit_code == 0, reported.stderr
    page = json.loads(reported.stdout)
    assert page["counts"]["all"] == 2
    assert all(Path(path).is_file() for path in page["files"])


def test_a_report_can_be_written_while_the_search_goes_on(make_search: MakeSearch, tmp_path: Path) -> None:
    config = make_search(search={"final_seeds": [7], "study": "mine"})
    tune(config, placement="here")
    place, elsewhere = storage_place(config), tmp_path / "elsewhere"
    with held(place, "mine"):
        assert tune_report("mine", storage=None, directory=config.search.directory)["counts"]["all"] == 3
        assert tune_report("mine", storage=place, directory=str(elsewhere))["counts"]["all"] == 3
    assert (elsewhere / "mine" / "report.md").is_file()


def test_reports_of_what_is_not_there_are_refused(
    make_search: MakeSearch, attempt: Attempt, tmp_path: Path
) -> None:
    config = make_search(search={"study": "mine", "final_seeds": [7], "trials": 1})
    where = ("--directory", config.search.directory)
    assert is_one_line_error(attempt("report", "mine", *where), "no search 'mine'", "looked in")
    tune(config, placement="here")
    assert is_one_line_error(attempt("report", "mien", *where), "no search 'mien'; did you mean 'mine'?")
    found = attempt("report", "other", "--storage", str(tmp_path / "searches" / "mine" / "study.db"))
    assert is_one_line_error(found, "no search 'other'", "study.db")
    (tmp_path / "text.db").write_text("no database at all " * 100)
    damaged = attempt("report", "mine", "--storage", str(tmp_path / "text.db"))
    assert is_one_line_error(damaged, "is not a whole SQLite database")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"name": "own", "knobs": []}, ("has no knobs", "give it at least one")),
        ({"name": "own"}, ("knobs: Field required",)),
        (
            {"name": "own", "knobs": [{"key": "training.step", "domain": {"kind": "choice", "values": [2]}}]},
            ("space 'own', knob 'training.step'", "did you mean"),
        ),
        (
            {"name": "own", "knobs": [{"key": "seed", "domain": {"kind": "choice", "values": [2]}}]},
            ("space 'own' sets 'seed'",),
        ),
        (
            {
                "name": "own",
                "knob": [],
                "knobs": [{"key": "a", "domain": {"kind": "floats", "low": 2, "high": 1}}],
            },
            ("own.yaml: ",),
        ),
    ],
    ids=["empty", "without knobs", "wrong key", "key of the score", "empty interval"],
)
def test_a_space_that_cannot_be_used_is_one_line(
    make_search: MakeSearch, attempt: Attempt, tmp_path: Path, space: dict[str, Any], words: tuple[str, ...]
) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps(space))
    result = attempt("--space", str(tmp_path / "own.yaml"), config=make_search())
    assert is_one_line_error(result, *words)
    assert not (tmp_path / "searches").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["search.objectives=[dev,size]"], ("search.objectives",)),
        (["search.objectives=[flops]"], ("objectives got ['flops']; name dev first",)),
        (["search.sampler=grid"], ("search.sampler",)),
        (["search.trials=0"], ("search.trials",)),
        (["search.final_seeds=[1]"], ("final_seeds shares [1] with seeds",)),
        (["search.trails=3"], ("trails", "did you mean", "trials")),
        (["study.targets=[]"], ("a search needs tasks",)),
        (["study.targets=[rtee]"], ("no task 'rtee'; did you mean 'rte'?",)),
        (["search.space=none"], ("no search space or file 'none'",)),
        (["search.study=a/b"], ("a/b",)),
        (["search.storage=mysql://x/y"], ("got a 'mysql' URL as study storage",)),
        (["search.storage=postgresql://user:secret@host/db"], ("carries a password",)),
        (
            ["search.storage=postgresql://user:secret@host/db", "search.objectives=[flops]"],
            ("name dev first",),
        ),
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_one_line(
    make_search: MakeSearch, attempt: Attempt, tmp_path: Path, settings: list[str], words: tuple[str, ...]
) -> None:
    given = [text for setting in settings for text in ("--set", setting)]
    result = attempt(*given, config=make_search())
    assert is_one_line_error(result, *words)
    assert "secret" not in result.stderr
    assert not (tmp_path / "searches").exists()


def test_tasks_of_two_groups_without_a_space_are_one_line(make_search: MakeSearch, attempt: Attempt) -> None:
    config = make_search(study={"targets": ["rte", "mrpc", "nq"], "prior": False})
    page = config.updated(search={"space": None})
    assert is_one_line_error(attempt(config=page), "share no search space; name one in search.space")


def test_a_study_on_a_network_disk_is_one_line(
    make_search: MakeSearch, attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        f"27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 0:50 / {tmp_path / 'searches'} rw - nfs4 server:/ rw\n"
    )
    monkeypatch.setattr(study_storage, "_MOUNT_TABLE", table)
    result = attempt(config=make_search())
    assert is_one_line_error(result, "is on a network file system (nfs4)", "postgresql://user@host")
    assert not (tmp_path / "searches").exists()


def test_a_missing_source_prompt_is_one_line(
    make_search: MakeSearch, attempt: Attempt, tmp_path: Path
) -> None:
    config = make_search(bank=str(tmp_path / "empty"))
    assert is_one_line_error(attempt(config=config), "source/mnli", "make it first: attempt train-sources")
    assert not (tmp_path / "searches").exists()


def test_a_missing_prior_is_told_before_any_trial(make_search: MakeSearch, tmp_path: Path) -> None:
    space = {
        "name": "own",
        "knobs": [{"key": "study.prior", "domain": {"kind": "choice", "values": [False, True]}}],
    }
    (tmp_path / "own.yaml").write_text(json.dumps(space))
    with pytest.raises(BankError, match=r"attention/prior-text.*make it first: attempt train-prior"):
        tune(make_search(search={"space": str(tmp_path / "own.yaml")}), placement="here")
    assert not (tmp_path / "searches").exists()


_HOLD = """
import sys
from attempt_ray.orchestration.study_storage import held, open_study_storage
storage = open_study_storage(sys.argv[1])
with held(sys.argv[1], sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_study_that_another_process_searches_is_refused(
    make_search: MakeSearch,
    attempt: Attempt,
    tmp_path: Path,
    kind: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = str(tmp_path / "study.db")
    if kind == "postgresql":
        server = request.getfixturevalue("postgres")
        monkeypatch.setenv("PGPASSWORD", server.password)
        place = server.new_database()
    config = make_search(search={"storage": place, "study": "mine", "final_seeds": [7], "trials": 1})
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, place, "mine"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "held\n"
        result = attempt(config=config)
        assert is_one_line_error(result, "study 'mine' in", "is being searched by another process")
        other.stdin.close()
    assert study_names(place) == []
    assert attempt(config=config).exit_code == 0


def study_names(place: str) -> list[str]:
    return optuna.get_all_study_names(open_study_storage(place))


def test_a_search_of_another_name_shares_the_storage(make_search: MakeSearch, tmp_path: Path) -> None:
    place = str(tmp_path / "study.db")
    config = make_search(search={"storage": place, "study": "one", "final_seeds": [7], "trials": 1})
    open_study_storage(place)
    with held(place, "other"):
        tune(config, placement="here")
    with pytest.raises(ConfigError, match="begun with other settings: config_digest differs; go back"):
        tune(config.updated(attention={"bottleneck": 8}), placement="here")


def test_as_many_trials_are_under_way_as_there_are_places(make_search: MakeSearch) -> None:
    def at_once(workers: int = 2, **changes: Any) -> int:
        return trials_at_once(plan_search(make_search(**changes)), workers=workers)

    eight = {"workers": 2, "runs_per_worker": 8}
    assert at_once(cluster=eight) == 16
    assert at_once(cluster=eight, search={"seeds": [1, 2, 3]}) == 6
    assert at_once(cluster={"runs_per_worker": 1}, search={"seeds": [1, 2, 3]}) == 1
    assert at_once(cluster=eight, search={"packed": False}) == 2
    assert at_once(cluster=eight, search={"trials_at_once": 3}) == 3


def test_a_point_is_shown_on_one_line() -> None:
    point = {"training.prompt_learning_rate": 0.12345, "attention.start": "source", "training.steps": 40}
    assert shown_point(point) == "prompt_learning_rate 0.123, start source, steps 40"


def test_a_job_refuses_a_search_that_would_be_lost_with_its_upload(
    make_search: MakeSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(tune_module, "check_places", lambda *a, **n: asked.append(n))
    tune(make_search(search={"final_seeds": [7], "trials": 1}), placement="here")
    assert asked == [{"search": True}]


def test_the_directory_of_a_search_has_its_name(make_search: MakeSearch) -> None:
    config = plan_search(make_search()).config
    assert search_directory(config).name == config.search.study
    assert storage_place(config) == str(search_directory(config) / "study.db")


def test_a_search_whose_sources_have_changed_is_refused(make_search: Callable[..., Config]) -> None:
    config = make_search(search={"trials": 1, "study": "own"})
    tune(config, placement="here")
    bank = Bank(config.bank)
    loaded = bank.load("source/mnli")
    changed = {name: array + 1 for name, array in loaded.tensors.items()}
    facts = {name: getattr(loaded.manifest, name) for name in Facts.model_fields} | {
        "config_digest": "0" * 12
    }
    bank.promote(bank.publish("source", "mnli", changed, Facts(**facts)).reference)
    with pytest.raises(ConfigError, match=r"search 'own' was begun with other settings: starts_from differs"):
        tune(config, placement="here")
