from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from attempt_ray.reporting.checks import newest, warnings
from attempt_ray.reporting.runs import read_runs

WriteRun = Callable[..., Path]


def test_the_newest_of_equal_runs_is_kept_and_the_other_named(write_run: WriteRun, tmp_path: Path) -> None:
    old = write_run("attempt", {"rte": 50.0}, steps=10, warmup_steps=1)
    new = write_run("attempt", {"rte": 80.0})
    os.utime(old / "report.json", (1, 1))
    kept, notes = newest(read_runs(tmp_path / "runs").runs)
    assert [run.directory for run in kept] == [new]
    assert len(notes) == 1
    assert old.name in notes[0]


def test_clean_runs_give_no_warning(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run("attempt", seed=seed)
        write_run("prompt_tuning", seed=seed)
    assert warnings(read_runs(tmp_path / "runs").runs) == ()


def test_what_spoils_a_comparison_is_said(write_run: WriteRun, tmp_path: Path) -> None:
    write_run("prompt_tuning", constant_prediction={"rte": True}, warmup_steps=300)
    write_run(
        "attempt",
        steps=600,
        backbone_unchanged=False,
        data_sha256={"rte": "other"},
        backbone={"name": "t5-base", "weights_sha256": "ef" * 32},
    )
    found = "\n".join(warnings(read_runs(tmp_path / "runs").runs))
    assert "prompt_tuning answers rte with one and the same answer (seeds 1)" in found
    assert "prompt_tuning on rte: warm-up never ended (seeds 1)" in found
    assert "rte: methods took unequal steps (attempt 600, prompt_tuning 300)" in found
    assert "the backbone changed during the run" in found
    assert "rte: runs saw 2 different data sets" in found
    assert "runs use different backbones: nano (abababab), t5-base (efefefef)" in found
    assert "attempt, prompt_tuning: 1 seed only on rte (at least 3 wanted)" in found


def test_fine_tuning_may_change_the_backbone(write_run: WriteRun, tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run("finetune", seed=seed, backbone_unchanged=False)
    assert warnings(read_runs(tmp_path / "runs").runs) == ()
