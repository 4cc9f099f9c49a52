"""Train all source prompts in parallel: `python -m jobs.train_sources --config embedded`."""

from __future__ import annotations

from typing import Any

from attempt_ray.config import Config
from jobs import plan
from jobs.pooled import Placement, run_study
from jobs.preflight import preflight


def train_sources(config: Config, *, placement: Placement = "pool") -> dict[str, Any]:
    """Train the prompt of every source task of `attention.sources`, and return what came of it.

    Args:
        config: Sources, budget and data.
        placement: A pool of Ray workers, or `here`: one after the other in this process.

    Raises:
        AttemptError: Something cannot be used; nothing was trained.
    """
    tasks = plan.check(config)
    preflight(config, [tasks[name] for name in config.attention.sources])
    study = run_study(plan.source_jobs(config), config, placement=placement)
    return {"job": "train_sources", **study.summary()}


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("train-sources")
