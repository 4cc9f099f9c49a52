"""A TorchTrainer as this package uses it: asked for by a ClusterConfig, fitted in a thread, left in good order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from attempt_ray.config import ClusterConfig
from attempt_ray.training.stopping import leave_on_sigterm


def new_trainer(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    name: str,
    cluster: ClusterConfig,
    scratch: Path,
    most_failures: int,
    callbacks: Sequence[Any] = (),
) -> TorchTrainer:
    """Return a trainer.

    Args:
        loop: What every worker does.
        settings: What it is given.
        name: The trainer's name, a new one.
        cluster: How many workers, and what each needs.
        scratch: Where Ray Train keeps its own files.
        most_failures: Deaths of workers after which it gives up.
        callbacks: Ray Train's user callbacks.
    """
    elastic = cluster.min_workers is not None and cluster.min_workers < cluster.workers
    return TorchTrainer(
        loop,
        train_loop_config=settings,
        torch_config=_LeavingConfig(backend="nccl" if _shares_gpus(cluster) else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if elastic else cluster.workers,
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker=cluster.bundle(),
            placement_strategy="SPREAD" if cluster.spread else "PACK",
            label_selector=dict(cluster.labels) or None,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(scratch / "train"),
            failure_config=ray.train.FailureConfig(max_failures=most_failures),
            callbacks=list(callbacks),
            logging_config=ray.train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def threads_of(cluster: ClusterConfig) -> int:
    """Return the torch threads of a worker."""
    return max(1, int(cluster.cpus_per_worker))


def _shares_gpus(cluster: ClusterConfig) -> bool:
    """Whether workers exchange gradients between GPUs; those of a pool exchange nothing."""
    return cluster.mode == "isolated" and cluster.gpus_per_worker >= 1


class Fit(threading.Thread):
    """A trainer, in a thread of its own: its `fit` returns when the last worker has left."""

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="attempt-fit", daemon=True)
        self._trainer = trainer
        self._error: BaseException | None = None

    def run(self) -> None:
        """Fit, keeping the error for the driver's thread."""
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - the driver's thread tells of it
            self._error = error

    def reason(self) -> str | None:
        """Return one line on why the workers left, None where they did in good order."""
        return None if self._error is None else " ".join(str(self._error).split())[:300]


_LEAVE_SECONDS = 4.5
"""Longest that a worker which got SIGTERM takes to keep its state; then it is gone."""


class _LeavingBackend(TorchConfig(backend="gloo").backend_cls):  # type: ignore[misc]
    """Torch's backend, whose workers leave in good order on SIGTERM."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Set up the workers; what a worker group executes runs in each worker's main thread, which gets signals."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(leave_on_sigterm, _LEAVE_SECONDS)


class _LeavingConfig(TorchConfig):  # type: ignore[misc]
    """Names the backend above."""

    @property
    def backend_cls(self) -> type:
        """Return the backend's class."""
        return _LeavingBackend
