"""Train the attention prior on the source tasks: `python -m jobs.train_prior --config embedded`."""

from __future__ import annotations

from typing import Any

from attempt_ray.bank.store import Bank
from attempt_ray.config import Config
from attempt_ray.errors import ConfigError
from jobs import plan
from jobs.pooled import Placement, run_study
from jobs.preflight import preflight


def train_prior(config: Config, *, placement: Placement = "pool") -> dict[str, Any]:
    """Train one G per prior group over the source prompts in the bank (paper section 3.3).

    Args:
        config: Prior groups, budget and data.
        placement: A pool of Ray workers, or `here`: one after the other in this process.

    Raises:
        AttemptError: Something cannot be used, or a source prompt is not in the bank; nothing was trained.
    """
    tasks = plan.check(config)
    jobs = plan.prior_jobs(config)
    if not jobs:
        raise ConfigError(
            "there is no prior to train: set study.prior=true and study.prior_groups to source tasks"
        )
    bank = Bank(config.bank)
    for name in config.attention.sources:
        bank.resolve(f"source/{name}")
    preflight(config, [tasks[name] for name in config.attention.sources])
    return {"job": "train_prior", **run_study(jobs, config, placement=placement).summary()}


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("train-prior")
