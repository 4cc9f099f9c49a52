from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.config import Config
from attempt_ray.errors import ConfigError, DataError
from attempt_ray.reporting.states import holder
from attempt_ray.reporting.study.cells import FILE
from jobs import plan
from jobs import run_study as module
from jobs.run_study import report_study, row_lines, run_study, status_lines
from jobs.study_plan import ABLATIONS
from jobs.study_state import held, read_study, standing, study_directory

MakeStudy = Callable[..., Config]

KILLS = int(os.environ.get("ATTEMPT_KILLS", "3"))
SEED = int(os.environ.get("ATTEMPT_KILLS_SEED", "0"))

ROWS = {"methods": ["prompt_tuning", "attempt"], "ablations": ["no_prior"], "seeds": [1], "name": "small"}


@pytest.fixture
def make(make_study: MakeStudy, tmp_path: Path) -> MakeStudy:
    """A study of two rows and one ablation in `tmp_path`."""

    def make(**changes: Any) -> Config:
        study = {**ROWS, "directory": str(tmp_path / "studies"), **changes.pop("study", {})}
        return make_study(study=study, **changes)

    return make


def outcome(config: Config) -> dict[str, Any]:
    """Everything of a study that must be alike: its cells, the bytes that its runs learned, and its report."""
    directory = study_directory(config, "small")
    cells = json.loads((directory / FILE).read_text())["cells"]
    kept = {path.parent.name: path.read_bytes() for path in Path(config.runs).glob("*/best.safetensors")}
    report = json.loads((directory / "report" / "report.json").read_text())
    for line in report["lines"]:
        del line["seconds"]
    return {"cells": cells, "runs": kept, "report": report}


def test_a_study_is_done_written_down_and_done_again_at_once(
    make: MakeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make()
    result = run_study(config, placement="here")
    assert result["cells"] == {"finished": 6}
    assert result["failed"] == []
    directory = Path(result["directory"])
    record = read_study(directory)
    assert record.name == "small"
    assert {cell.status for cell in record.cells} == {"finished"}
    for cell in record.cells:
        assert cell.run is not None
        report = json.loads((Path(config.runs) / cell.run / "report.json").read_text())
        assert (report["tasks"], report["seed"]) == (list(cell.tasks), cell.seed)
    first = outcome(config)
    capsys.readouterr()
    again = run_study(config, placement="here")
    assert again["cells"] == {"finished": 6}
    assert outcome(config) == first
    assert "6 of 6 cells done" in capsys.readouterr().err

    found = standing(directory)
    assert {row: (counts.done, counts.total) for row, counts in found.rows.items()} == {
        "prompt_tuning": (2, 2),
        "attempt": (2, 2),
        "attempt-no_prior": (2, 2),
    }
    assert (found.before.done, found.before.total) == (3, 3)
    assert found.process is None
    assert status_lines(found)[-1] == "small: 6 of 6 cells done; nobody is at it"
    assert report_study("small", directory=str(directory.parent))["files"] == result["report"]


def test_a_study_that_is_killed_goes_on_and_ends_with_the_same_report(
    make: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    seeds = list(range(1, max(2, KILLS // 2)))
    whole = make(runs=str(tmp_path / "whole-runs"), bank=str(tmp_path / "whole-bank"), study={"seeds": seeds})
    whole = whole.updated(study={"directory": str(tmp_path / "whole-studies")})
    run_study(whole, placement="here")

    config = make(study={"seeds": seeds})
    told = subprocess.run(
        [
            sys.executable,
            Path(__file__).parent / "kill_studies.py",
            *(str(rng.uniform(0.5, 2.5)) for _ in range(KILLS)),
        ],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    after = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(after) == KILLS
    killed = sum(one["end"] == -signal.SIGKILL for one in after)
    assert killed
    for one in after:
        if one["end"] and one["stands"] is not None:
            assert one["stands"]["process"] is None
            assert sum(sum(counts.values()) for counts in one["stands"]["rows"].values()) == 6 * len(seeds)
    run_study(config, placement="here")
    assert outcome(config) == outcome(whole)
    with capsys.disabled():
        if KILLS > 3:
            print(f"\n{killed} of {KILLS} SIGKILLs found the study under way")  # noqa: T201


def test_where_a_study_stands_is_told_while_it_is_done(
    make: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()
    directory = study_directory(config, "small")
    seen = []
    plain = module._Board.event

    def event(self: Any, event: Any) -> None:
        plain(self, event)
        if event.kind == "progress" and event.key.startswith("attempt/"):
            seen.append(standing(directory))

    monkeypatch.setattr(module._Board, "event", event)
    run_study(config, placement="here")
    now = seen[0]
    assert now.process == str(os.getpid())
    assert now.rows["attempt"].running == 1
    assert now.rows["prompt_tuning"].done == 2
    assert now.rows["attempt-no_prior"].waiting == 2
    assert f"process {os.getpid()} is at it" in status_lines(now)[-1]


def test_what_failed_is_told_with_its_reason_and_tried_again(
    make: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(prompt={"init": "text", "init_text": ""})
    result = run_study(config, placement="here")
    assert result["cells"] == {"skipped": 4, "failed": 2}
    assert all(item["user_error"] for item in result["failed"])
    found = standing(Path(result["directory"]))
    assert found.rows["attempt"].failed == 2
    assert "it needs 'source/" in found.errors["attempt/rte/s1"]


def test_who_looks_at_a_study_does_not_keep_others_from_it(tmp_path: Path) -> None:
    directory = tmp_path / "small"
    with held(directory):
        pass
    looking = (directory / ".lease").open("rb")
    fcntl.flock(looking.fileno(), fcntl.LOCK_SH)
    leaving = threading.Timer(0.3, looking.close)
    leaving.start()
    with held(directory):
        assert holder(directory) == str(os.getpid())
    leaving.join()
    assert holder(directory) is None


def test_two_processes_do_not_do_one_study(make: MakeStudy) -> None:
    config = make()
    with (
        held(study_directory(config, "small")),
        pytest.raises(ConfigError, match=rf"is being done by process {os.getpid()}; wait for it"),
    ):
        run_study(config, placement="here")


def test_what_is_wrong_is_found_before_anything_is_written(make: MakeStudy, tmp_path: Path) -> None:
    for changes, message in (
        ({"ablations": ["no_priro"]}, "no ablation"),
        ({"targets": ["rte", "boolq"]}, "boolq"),
        ({"backbones": ["no/such-backbone-here"]}, "no/such-backbone-here"),
    ):
        with pytest.raises(Exception, match=message):
            run_study(make(study=changes), placement="here")
    assert not (tmp_path / "studies").exists()
    assert not (tmp_path / "runs").exists()


def test_a_study_that_is_not_there_or_damaged_is_told_in_a_line(make: MakeStudy, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="attempt study run"):
        standing(tmp_path / "nothing")
    (tmp_path / FILE).write_text('{"schema": 2}')
    with pytest.raises(DataError, match=r"study.json, schema: .*run the study again"):
        standing(tmp_path)


def test_every_row_and_ablation_is_listed() -> None:
    names = [name for name, _, _ in row_lines()]
    assert {"finetune", "mpt_mt", "no_target", "without_<source>"} <= set(names)
    assert len(set(names)) == len(names)


def test_every_row_and_every_ablation_can_be_done(make: MakeStudy) -> None:
    names = [name for name in ABLATIONS if "<" not in name]
    config = make(
        attention={"sources": ["mnli", "sst2"], "bottleneck": 4, "center": True},
        study={
            "methods": list(plan.METHODS),
            "ablations": [*names, "temperature_0", "attempt_mt/no_prior"],
            "ablation_targets": ["rte"],
            "leave_one_out": ["mrpc"],
        },
    )
    result = run_study(config, placement="here")
    assert result["failed"] == []
    assert list(result["cells"]) == ["finished"]
    record = read_study(Path(result["directory"]))
    for cell in record.cells:
        assert cell.run is not None
        report = json.loads((Path(config.runs) / cell.run / "report.json").read_text())
        assert report["label"] == cell.row, cell.key
        assert report["steps"] == 2
