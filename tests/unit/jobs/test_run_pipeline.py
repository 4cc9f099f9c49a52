from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attempt_ray.bank.places import open_storage
from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.errors import DataError, StorageError
from jobs.evaluate import evaluate
from jobs.predict import predict
from jobs.report import report
from jobs.run_pipeline import choose, run_pipeline, worth_showing
from jobs.runs import run_rows, show_run
from jobs.train_target import train_target

MakeStudy = Callable[..., Config]


def test_a_study_ends_with_a_report_champions_and_what_to_type_next(
    make_study: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_study()
    result = run_pipeline(config, placement="here", configs=["embedded"])
    lines = capsys.readouterr().err.splitlines()
    assert result["runs"] == 2 + 1 + 2 * 4 + 1
    assert result["failed"] == []
    directory = Path(result["report"]["directory"])
    assert {path.name for path in directory.iterdir()} == {
        "report.md",
        "report.json",
        "results.png",
        "attention.png",
        "curves.png",
    }
    labels = {run["label"] for run in json.loads((directory / "report.json").read_text())["runs"]}
    assert labels == {"source", "prior", "prompt_tuning", "spot", "spot_similar", "attempt", "attempt_mt"}
    bank = Bank(config.bank)
    assert bank.resolve("target/rte").reference == result["champions"]["rte"]
    assert bank.aliases("target", "rte").current["candidate"] == bank.resolve("target/rte").number
    assert any(
        line.startswith("Learned 2 source prompts, 1 attention prior, prompts for 2 targets in 9 runs;")
        for line in lines
    )
    assert any("report.md" in line for line in lines)
    (typed,) = [line for line in lines if " --config embedded --field " in line]
    assert "--field 'sentence1=" in typed

    again = run_pipeline(config, placement="here")
    assert "finished before" not in capsys.readouterr().out
    assert again["champions"] == result["champions"]
    assert (
        len(bank.list()) == 2 + 1 + 8 + 2 + 2 + 1
    )  # sources, prior, prompts of single and mixed runs, their Gs

    # A run that is asked for alone is the run of the study, and a prompt scores from the bank what it scored in its run.
    alone = train_target(config.updated(tasks=("rte",), seed=1, method="attempt"))
    scores = evaluate(config.updated(tasks=("rte",)), prompt=alone["bank"]["rte"])["scores"]["rte"]
    assert len(bank.list()) == 16
    assert {"n": scores["n"], "metrics": scores["metrics"]} == alone["scores"]["rte"]["test"]
    told = predict(config, "rte", [{"sentence1": "w1 w2", "sentence2": "w3"}], prompt=alone["bank"]["rte"])
    (answer,) = told["answers"]
    assert answer["answer"] in ("0", "1")
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert list(answer["attention"]) == ["mnli", "sst2", "target"]
    assert report(config)["runs"] == result["runs"]


def test_newly_trained_sources_are_what_the_targets_start_from(make_study: MakeStudy) -> None:
    small = {"targets": ["rte"], "methods": ["spot"], "prior": False}
    run_pipeline(make_study(study=small), placement="here")
    bank = Bank(make_study().bank)
    assert bank.resolve("source/mnli").number == 1
    run_pipeline(make_study(study=small, seed=7), placement="here")
    assert bank.resolve("source/mnli").number == 2
    assert bank.show("target/rte@v2").parents == ("source/mnli@v2",)
    assert bank.resolve("target/rte").number == 1  # a champion that is there stays


def test_of_equal_prompts_the_mixture_is_chosen_and_shown(make_study: MakeStudy) -> None:
    config = make_study(study={"methods": ["prompt_tuning", "attempt"]})
    run_pipeline(config, placement="here")
    reports = [json.loads(path.read_text()) for path in Path(config.runs).glob("target-*/report.json")]
    for one in reports:
        for task in one["tasks"]:
            level = 90 if task == "rte" or one["method"] == "attempt" else 91
            one["scores"][task]["dev"]["metrics"][one["headline"][task]] = level
    champions = choose(config, sorted(reports, key=lambda one: one["method"], reverse=True))
    mixtures = {one["bank"].get("rte") for one in reports if one["method"] == "attempt"}
    candidate = Bank(config.bank).aliases("target", "rte").current["candidate"]
    assert f"target/rte@v{candidate}" in mixtures
    assert worth_showing(config, reports, champions | {"rte": f"target/rte@v{candidate}"}) == "rte"
    assert worth_showing(config, [], champions) == config.study.targets[0]


def test_missing_rows_are_found_before_any_training(make_study: MakeStudy, tmp_path: Path) -> None:
    config = make_study(study={"targets": ["rte", "boolq"]})
    with pytest.raises(DataError, match="boolq"):
        run_pipeline(config, placement="here")
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "bank").exists()


def test_a_study_on_a_store_ends_with_a_report_there_and_here(
    make_study: MakeStudy, s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_study(
        runs=s3, bank=s3.replace("/attempt", "/bank"), study={"targets": ["rte"], "methods": ["attempt"]}
    )
    result = run_pipeline(config, placement="here")
    assert result["failed"] == []
    storage, directory = open_storage(s3), Path(result["report"]["directory"])
    assert f"report.md (and {storage.place(directory.name)}/report.md)" in capsys.readouterr().err
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["attention.png", "curves.png", "report.json", "report.md", "results.png"]
    storage.replace(f"{directory.name}/old.png", b"")
    assert run_pipeline(config, placement="here")["champions"] == result["champions"]
    assert [entry.name for entry in storage.entries(directory.name)] == names
    report(config)
    rows = run_rows(s3)
    assert len(rows) == result["runs"] == 4
    (name,) = [row[0] for row in rows if row[2] == "attempt"]
    assert {row[1] for row in rows} == {"finished"}
    capsys.readouterr()
    show_run(s3, name[-12:], follow=False, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["report"]["label"]) == ("finished", "attempt")
    with pytest.raises(DataError, match="--follow got runs on a store"):
        show_run(s3, name, follow=True, as_json=False)
    assert Bank(config.bank).verify() == []


def test_a_store_that_refuses_is_found_before_anything_is_read(make_study: MakeStudy, s3: str) -> None:
    uri = s3.replace("s3://", "s3://no-such-")
    config = make_study(backbone={"name": "/nowhere"})
    with pytest.raises(StorageError, match=r"cannot write s3://no-such-bucket.* not found"):
        run_pipeline(config.updated(runs=uri), placement="here")
    with pytest.raises(StorageError, match=r"cannot write s3://no-such-bucket.* not found"):
        train_target(config.updated(bank=uri, tasks=["rte"]))
