from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from attempt_ray.config import Config, joined, load
from attempt_ray.errors import ConfigError, IntegrityError, StoppedError
from attempt_ray.training import directory as module
from attempt_ray.training.directory import RunDirectory, run_name

CONFIG = Config(tasks=("rte", "mrpc"), seed=3)


def test_name_tells_job_method_tasks_seed_and_digest():
    assert run_name(CONFIG, "0123456789ab") == "target-attempt-rte-mrpc-s3-0123456789ab"


def test_long_task_lists_are_cut_without_clashing():
    many = tuple(f"task-{number}" for number in range(30))
    assert len(joined(many)) <= 64
    assert joined(many) != joined((*many, "more"))


def test_config_is_written_and_reads_back(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "a")
    with run.leased(CONFIG):
        assert load([run.path / "config.json"]) == CONFIG


def test_second_holder_is_refused_and_told_who_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.1)
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    with (
        first.leased(CONFIG),
        pytest.raises(ConfigError, match=f"executed by process {os.getpid()}"),
        second.leased(CONFIG),
    ):
        pass
    with second.leased(CONFIG):
        pass


def hold(path: str) -> None:
    with RunDirectory(Path(path)).leased(CONFIG):
        os._exit(9)


def test_a_dead_holder_holds_nothing(tmp_path):
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(str(tmp_path),))
    holder.start()
    holder.join()
    assert holder.exitcode == 9
    with RunDirectory(tmp_path).leased(CONFIG):
        pass


def test_history_is_cut_back_to_the_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    history = run.history(through=0)
    for step in (1, 2, 2, 3):
        history.add({"step": step})
    history.sync()
    history.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')  # torn by a crash
    history = run.history(through=2)
    history.add({"step": 4})
    history.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2, 4]


def test_report_is_read_back_and_damage_is_no_report(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.report() is None
    run.write_report({"schema": 1, "steps": 3})
    assert run.report() == {"schema": 1, "steps": 3}
    (tmp_path / "report.json").write_text('{"schema": 1, "st')
    assert run.report() is None


def test_kept_states_are_checked_when_read(tmp_path):
    run = RunDirectory(tmp_path)
    digest = run.write_best({"5/prompts": torch.ones(2)})
    assert torch.equal(run.read_best(digest)["5/prompts"], torch.ones(2))
    data = bytearray((tmp_path / "best.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "best.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match=f"expected sha256 {digest}, found"):
        run.read_best(digest)
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(IntegrityError, match="expected a file, found none"):
        run.read_best(digest)


def test_state_tells_the_plan_and_what_ended_the_run(tmp_path):
    run = RunDirectory(tmp_path)
    read = lambda: json.loads((tmp_path / "state.json").read_text())  # noqa: E731
    run.note_plan(steps=40)
    assert read() == {"schema": 1, "steps": 40}
    run.note_end(StoppedError("asked to\nstop"))
    assert read() == {
        "schema": 1,
        "steps": 40,
        "ended": {"how": "stopped", "error": "StoppedError: asked to stop"},
    }
    run.note_plan(steps=40)
    assert "ended" not in read()


def test_an_end_before_the_plan_is_noted_too_and_a_refusing_disk_is_no_second_error(tmp_path):
    RunDirectory(tmp_path).note_end(KeyError())
    assert json.loads((tmp_path / "state.json").read_text())["ended"] == {
        "how": "failed",
        "error": "KeyError: KeyError",
    }
    RunDirectory(tmp_path / "gone").note_end(KeyError())
