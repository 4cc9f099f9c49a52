from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from attempt_ray.errors import DataError
from attempt_ray.reporting.states import read_state, run_directories

CONFIG = {"job": "target", "method": "attempt", "tasks": ["rte"]}


def step(number: int, **more: float) -> dict[str, Any]:
    return {"step": number, "loss": 1.0 / number, "tokens": 100 * number, "seconds": number / 4, **more}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 steps that stands after step 20, with a checkpoint at 16."""
    directory = tmp_path / "runs" / "target-attempt-rte-s1-0123456789ab"
    checkpoint = directory / "checkpoints" / "step-00000016"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text('{"step": 16}')
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "state.json").write_text('{"schema": 1, "steps": 40}')
    lines = [*(step(number) for number in range(1, 21)), {"step": 8, "dev/mean": 61.0}]
    lines.append({"step": 16, "dev/mean": 58.5})
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return directory


@contextmanager
def held(directory: Path) -> Iterator[None]:
    with (directory / ".lease").open("w") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        lease.write(f"{os.getpid()}\n")
        lease.flush()
        yield


def test_a_held_run_is_running_with_rate_and_time_left(run: Path) -> None:
    with held(run):
        state = read_state(run)
    assert (state.state, state.process) == ("running", str(os.getpid()))
    assert (state.step, state.steps, state.label, state.tasks) == (20, 40, "attempt", ("rte",))
    assert state.steps_per_second == pytest.approx(4.0)
    assert state.eta_seconds == pytest.approx(5.0)
    assert (state.dev, state.best) == ((16, 58.5), (8, 61.0))
    assert (state.tokens, state.seconds, state.loss) == (2000, 5.0, 0.05)
    assert state.checkpoint is not None and state.checkpoint[0] == 16
    assert state.as_dict()["dev"] == {"step": 16, "mean": 58.5}
    json.dumps(state.as_dict(), allow_nan=False)


def test_a_run_that_nobody_holds_is_interrupted(run: Path) -> None:
    with held(run):
        pass
    state = read_state(run)
    assert (state.state, state.process, state.reason, state.eta_seconds) == ("interrupted", None, None, None)


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_what_ended_a_run_is_told_until_it_runs_again(run: Path, how: str) -> None:
    ended = {"how": how, "error": "NonFiniteError: loss is NaN"}
    (run / "state.json").write_text(json.dumps({"schema": 1, "steps": 40, "ended": ended}))
    assert (read_state(run).state, read_state(run).reason) == (how, "NonFiniteError: loss is NaN")
    with held(run):
        assert (read_state(run).state, read_state(run).reason) == ("running", None)


def test_a_line_under_way_is_passed_over(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    state = read_state(run)
    assert (state.step, state.unreadable_lines) == (20, 1)


def test_a_run_before_its_first_step_has_no_numbers(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "state.json").unlink()
    (run / "checkpoints" / "step-00000016" / "manifest.json").unlink()
    state = read_state(run)
    assert (state.step, state.steps, state.steps_per_second, state.dev, state.best) == (
        0,
        None,
        None,
        None,
        None,
    )
    assert state.checkpoint is None


def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(run: Path) -> None:
    newer = run / "checkpoints" / "step-00000020"
    newer.mkdir()
    (newer / "manifest.json").write_text("torn")
    state = read_state(run)
    assert state.checkpoint is not None and state.checkpoint[0] == 16


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "torn {", "config.json is not a JSON object"),
        ("config.json", "[]", "config.json is not a JSON object"),
        ("state.json", "\x00", "state.json is not a JSON object"),
        ("metrics.jsonl", "\x00\n\x01\n", "metrics.jsonl holds no line of a run's history"),
        ("report.json", "{}", "report.json, schema: field required"),
        ("report.json", "torn", "report.json is not JSON"),
    ],
)
def test_garbage_is_named(run: Path, name: str, content: str, message: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_state(run)


def test_a_bad_report_does_not_hide_a_run_that_replaces_it(run: Path) -> None:
    (run / "report.json").write_text("torn")
    with held(run):
        assert read_state(run).state == "running"


def test_a_finished_run_brings_its_report(write_run: Any) -> None:
    directory = write_run("attempt", {"rte": 71.0})
    state = read_state(directory)
    assert (state.state, state.step, state.label) == ("finished", 300, "attempt")
    assert state.report is not None and state.report["tasks"] == ["rte"]


def test_directories_without_a_run_are_passed_over_and_refused(run: Path, tmp_path: Path) -> None:
    (run.parent / "notes").mkdir()
    (run.parent / ".hidden").mkdir()
    assert run_directories(run.parent) == [run]
    with pytest.raises(DataError, match=r"notes holds neither config\.json nor report\.json"):
        read_state(run.parent / "notes")
    with pytest.raises(DataError, match="no directory"):
        run_directories(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no run"):
        run_directories(run.parent / "notes")
