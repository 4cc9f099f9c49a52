"""Train one target, or a group mixed: `python -m jobs.train_target --config embedded --set tasks=[rte]`."""

from __future__ import annotations

from typing import Any, Literal

from attempt_ray.config import Config
from attempt_ray.errors import ConfigError
from attempt_ray.orchestration.study import PoolEvent
from jobs import plan
from jobs.preflight import check_stores
from jobs.watch import Screen


def train_target(
    config: Config, *, steps: Literal["as_configured", "none"] = "as_configured"
) -> dict[str, Any]:
    """Train `tasks` by `method` in this process, and return what came of it.

    The run is the very one that `run_pipeline` makes for the same cell of its table.

    Args:
        config: The run, and the study whose prior it starts from.
        steps: `none` uses the prior as it is, for a task that has no training data.

    Raises:
        AttemptError: Something cannot be used, or training met non-finite values.
    """
    run = target_run(config)
    from attempt_ray.training.run import execute, mixture_without_training

    check_stores(config)
    name = "+".join(config.tasks)
    with Screen() as screen:
        result = (execute if steps == "as_configured" else mixture_without_training)(
            run, on_progress=screen.watcher(name)
        )
        screen.event(PoolEvent(kind="finished", key=name, facts=result.report))
    report = result.report
    return {
        "job": "train_target",
        "directory": str(result.directory),
        **{
            key: report[key]
            for key in ("label", "tasks", "seed", "digest", "steps", "scores", "bank", "seconds")
        },
    }


def target_run(config: Config) -> Config:
    """Return the run that `train_target` makes of a config.

    Raises:
        ConfigError: `tasks` is empty, or one of them is unknown.
    """
    if not config.tasks:
        raise ConfigError("tasks is empty; name at least one, such as --set tasks=[rte]")
    label = "attempt_mt" if config.method == "attempt" and len(config.tasks) > 1 else config.method
    return plan.target_config(config, label=label, tasks=config.tasks, seed=config.seed)


if __name__ == "__main__":
    from jobs.cli import run_job

    run_job("train-target")
