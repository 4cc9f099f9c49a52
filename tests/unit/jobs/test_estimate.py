from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attempt_ray.config import Config, parse
from attempt_ray.model import backbone
from attempt_ray.reporting.costs import step_memory, training_flops
from attempt_ray.reporting.parameters import backbone_shape
from attempt_ray.tasks import get_task
from jobs import estimate as estimates
from jobs import plan
from jobs.estimate import estimate
from jobs.run_pipeline import all_jobs

BASE = parse(
    [
        {
            "runs": "nowhere",
            "backbone": {"name": "t5-small", "dtype": "float32"},
            "training": {"steps": 10},
            "data": {"batch_rows": 4, "max_source_tokens": 60},
            "prompt": {"length": 20},
            "attention": {"sources": ["mnli", "qqp"]},
            "study": {"targets": ["rte"], "methods": ["attempt", "spot_similar"], "source_steps": 5},
        }
    ]
)


def test_work_and_memory_are_those_of_the_longest_inputs() -> None:
    found = estimate(plan.source_jobs(BASE), BASE, workers=1, flops=1e12)
    shape = backbone_shape("t5-small")
    targets = get_task("mnli").max_target_tokens
    assert (found.runs, found.steps) == (2, 10)
    assert found.flops == 10 * training_flops(shape, [(80, targets)] * 4)
    assert found.seconds == pytest.approx((found.flops or 0) / 1e12)
    wanted = step_memory(shape, rows=4, tokens=80, targets=targets, weight_bytes=4, dropout=True)
    assert found.peak_bytes == wanted.peak


def test_runs_that_need_others_wait_for_them_and_the_rest_run_side_by_side() -> None:
    def seconds(workers: int) -> float:
        return estimate(all_jobs(BASE), BASE, workers=workers, flops=1e12).seconds or 0.0

    assert seconds(2) < seconds(1) < 2 * seconds(2)
    # A chain of source, prior, target is never cut by more workers.
    assert seconds(50) == seconds(51) > 0.3 * seconds(1)


def test_budgets_in_epochs_leave_the_time_open() -> None:
    config = BASE.updated(training={"steps": None}, study={"source_steps": None})
    found = estimate(plan.source_jobs(config), config, workers=1)
    assert (found.steps, found.seconds) == (None, None)
    assert "set training.steps" in "\n".join(found.describe())


def test_an_unknown_backbone_leaves_memory_and_time_open() -> None:
    config = BASE.updated(backbone={"name": "google/flan-t5-nowhere"})
    found = estimate(plan.source_jobs(config), config, workers=1)
    assert (found.steps, found.peak_bytes, found.seconds) == (10, None, None)
    assert "shape of backbone 'google/flan-t5-nowhere' is not known here" in found.basis


def test_a_gpu_needs_a_finished_run_or_a_rate() -> None:
    config = BASE.updated(device="cuda", cluster={"gpus_per_worker": 1})
    unknown = estimate(plan.source_jobs(config), config, workers=1)
    assert unknown.seconds is None and "give a rate with --tflops" in unknown.basis
    assert estimate(plan.source_jobs(config), config, workers=1, flops=1e13).seconds is not None


def test_runs_that_share_a_pass_share_its_memory() -> None:
    def peak(runs: int) -> int:
        config = BASE.updated(device="cuda", cluster={"gpus_per_worker": 1, "runs_per_worker": runs})
        return estimate(plan.source_jobs(config), config, workers=1).peak_bytes or 0

    assert peak(1) < peak(8) < peak(100) <= peak(1000) == peak(10_000)


def test_the_bounds_of_a_shared_pass_are_the_loops() -> None:
    assert {"cpu": backbone.MOST_TOKENS_CPU, "gpu": backbone.MOST_TOKENS_GPU} == estimates.PASS_TOKENS


def test_finished_runs_tell_the_rate(make_study: Callable[..., Config], tmp_path: Path) -> None:
    from jobs.train_sources import train_sources

    config = make_study(attention={"sources": ["sst2"]})
    assumed = estimate(plan.source_jobs(config), config, workers=1)
    assert "assumed" in assumed.basis
    train_sources(config, placement="here")
    (report,) = tmp_path.glob("runs/*/report.json")
    measured = estimate(plan.source_jobs(config), config, workers=1)
    assert "the median of 1 finished runs" in measured.basis
    assert measured.seconds == pytest.approx(json.loads(report.read_text())["seconds"])
