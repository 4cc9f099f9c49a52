from __future__ import annotations

import json

import pytest

from attempt_ray.errors import DataError
from attempt_ray.reporting.study.cells import join, read_study_file, scored
from attempt_ray.reporting.study.lines import Line, line_order


def joined(study):
    return join(read_study_file(study.write()), study.runs)


def test_cells_find_their_runs_and_others_say_why_not(study) -> None:
    study.add("attempt", 0.9, tasks=("rte",))
    study.add("attempt_mt", 0.9, tasks=("rte", "cb"))
    study.add("adapter", 0.9, status="failed", error="NonFiniteError: loss")
    study.add("mpt", 0.9, status="waiting")
    gone = study.add("dept", 0.9)
    (gone / "report.json").unlink()
    study.add("lora", 0.9)
    study.cells[-1]["tasks"] = ["wic"]
    study.add("spot", 0.9, job="source")
    found = joined(study)
    assert set(found.runs) == {Line("attempt", None, "nano"), Line("attempt_mt", None, "nano")}
    assert set(found.of(Line("attempt_mt", None, "nano"))) == {"rte", "cb"}
    why = {missing.cell.row: missing.why for missing in found.missing}
    assert why["adapter"] == "NonFiniteError: loss"
    assert why["mpt"] == "waiting"
    assert "no report.json" in why["dept"]
    assert "has no score of 'wic'" in why["lora"]
    assert "is a source run" in why["spot"]
    assert [run.report.label for run in found.finished(found.runs)] == ["attempt", "attempt_mt"]


def test_two_cells_may_have_one_run(study) -> None:
    study.add("attempt", 0.9)
    study.cells.append({**study.cells[0], "ablation": "no_prior", "key": "again"})
    found = joined(study)
    runs = [found.of(Line("attempt", ablation, "nano"))["rte"][1] for ablation in (None, "no_prior")]
    assert runs[0] == runs[1]


def test_the_tables_backbone_is_the_configs_or_the_one_of_most_cells(study) -> None:
    study.add("attempt", 0.9, backbone="small")
    for seed in (1, 2):
        study.add("attempt", 0.9, seed=seed, backbone="large")
    assert joined(study).backbone == "large"
    study.config["backbone"] = {"name": "google-t5/small"}
    assert joined(study).backbone == "small"


def test_lines_stand_in_the_order_of_the_rows_with_their_ablations_after_them() -> None:
    names = [
        "temperature_10",
        "temperature_-2",
        "no_prior",
        None,
        "no_target",
        "temperature_2",
        "without_qqp",
    ]
    lines = [Line("attempt", name) for name in names] + [Line("prompt_tuning"), Line("strange")]
    assert [(line.row, line.ablation) for line in line_order(lines)] == [
        ("prompt_tuning", None),
        ("attempt", None),
        ("attempt", "no_target"),
        ("attempt", "no_prior"),
        ("attempt", "temperature_-2"),
        ("attempt", "without_qqp"),
        ("attempt", "temperature_2"),
        ("attempt", "temperature_10"),
        ("strange", None),
    ]
    assert Line("attempt", "no_prior").name == "ATTEMPT: no prior transfer"
    assert Line("attempt", "without_qqp").name == "ATTEMPT: without qqp"
    assert Line("attempt", "brand_new").name == "ATTEMPT: brand new"


def test_scores_are_those_of_the_answers_or_have_no_interval(study) -> None:
    study.add("attempt", 0.9, tasks=("rte", "stsb", "nq"))
    study.add("spot", 0.9, examples=False)
    wrong = study.add("mpt", 0.9)
    report = json.loads((wrong / "report.json").read_text())
    report["scores"]["rte"]["test"]["metrics"]["accuracy"] += 1
    (wrong / "report.json").write_text(json.dumps(report))
    torn = study.add("dept", 0.9)
    (torn / "examples.jsonl").write_text("{}\n")
    scores, notes = scored(joined(study))
    by_row = {line.row: tasks for line, tasks in scores.items()}
    assert all(by_seed[1].resampled is not None for by_seed in by_row["attempt"].values())
    assert len(by_row["attempt"]["rte"][1].constants) == 2
    assert by_row["attempt"]["nq"][1].constants == ()
    assert [by_row[row]["rte"][1].resampled for row in ("spot", "mpt", "dept")] == [None] * 3
    assert any("no per-example answers" in note for note in notes)
    assert any("its answers score" in note for note in notes)
    assert any("does not hold what the run wrote" in note for note in notes)


def test_label_words_are_those_of_the_study(study) -> None:
    study.config["data"]["label_words"] = "words"
    study.add("attempt", 0.9)
    _, notes = scored(joined(study))
    assert "is none of the labels" in notes[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no .*study\.json; give the directory of a study"),
        ("{", "is not JSON; run the study again"),
        ('{"schema": 2, "name": "x", "cells": []}', "schema: input should be 1"),
        ('{"schema": 1, "name": "x", "cells": [{"row": "attempt"}]}', r"cells\.0\.tasks: field required"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, content, message) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_study_file(tmp_path)
