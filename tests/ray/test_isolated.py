"""Isolated runs: a trainer each, whose workers share every batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from attempt_ray.config import Config
from attempt_ray.orchestration.pool import Job, PoolEvent, run_jobs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def losses(directory: str) -> list[float]:
    import json

    lines = map(json.loads, (Path(directory) / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_two_workers_learn_what_one_learns_and_a_wrong_run_ends_alone(
    cluster: Path, make_study: Callable[..., Config], tmp_path: Path
) -> None:
    def config(name: str, task: str = "mnli", **places: Any) -> Config:
        return make_study(
            job="source",
            method="prompt_tuning",
            tasks=[task],
            bank=str(tmp_path / name / "bank"),
            runs=str(tmp_path / name / "runs"),
            training={"steps": 12, "eval_steps": 6, "checkpoint_steps": 4, "dropout": 0.0, "threads": 1},
            cluster=places,
        )

    shared = config("shared", mode="isolated", workers=2, cpus_per_worker=0.5)
    events: list[PoolEvent] = []
    jobs = [
        Job(key="mnli", config=shared),
        Job(key="wrong", config=shared.updated(tasks=["nothing"]), needs=("mnli",)),
    ]
    mnli, wrong = run_jobs(jobs, cluster=shared.cluster, on_event=events.append)
    assert (mnli.status, wrong.status) == ("finished", "failed")
    assert wrong.user_error and "no task 'nothing'" in wrong.error
    alone = config("alone")
    (expected,) = run_jobs([Job(key="mnli", config=alone)], cluster=alone.cluster, in_process=True)
    assert Path(mnli.directory).name == Path(expected.directory).name
    assert losses(mnli.directory) == pytest.approx(losses(expected.directory), rel=1e-4)
    learned, reference = (load_file(Path(run.directory) / "best.safetensors") for run in (mnli, expected))
    for name, tensor in reference.items():
        torch.testing.assert_close(learned[name], tensor, rtol=1e-3, atol=1e-4)
    assert {"started", "progress", "finished"} <= {event.kind for event in events if event.key == "mnli"}
