"""Where the runs of a study are handed to the queue of a pool."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import ray

from attempt_ray.config import Config
from attempt_ray.orchestration.cluster import check_shared
from attempt_ray.orchestration.study import Study

_BEATS_SECONDS = 1.5
"""Within this time every worker tells a new queue what it holds."""


class Desk:
    """Where a driver submits the runs of a study to the queue, again after the queue has died.

    Args:
        queue: The queue's actor.
        study: The runs.
        after: Runs of other studies that go before these.
        checked: Places that are known to be shared by all nodes.
    """

    def __init__(self, queue: Any, study: Study, *, after: int = 0, checked: Iterable[str] = ()) -> None:
        self._queue = queue
        self._study = study
        self._after = after
        self._generation = ray.get(queue.generation.remote())
        self._checked = set(checked)

    def submit_what_is_ready(self) -> None:
        """Submit every run whose needs have finished since the last call.

        Raises:
            ClusterError: A node does not share its `runs` or `bank`.
        """
        if (found := ray.get(self._queue.generation.remote())) != self._generation:
            time.sleep(_BEATS_SECONDS)  # until all workers have told what they hold
            for job in self._study.unfinished():
                self._submit(*job)
            self._generation = found
        for key, config, order in self._study.ready():
            for place in {config.runs, config.bank} - self._checked:
                check_shared(place)
                self._checked.add(place)
            self._submit(key, config, order)

    def _submit(self, key: str, config: Config, order: int) -> None:
        dump = config.model_dump(mode="json")
        ray.get(self._queue.submit.remote(key, dump, self._after + order, company_of(config)))


def company_of(config: Config) -> str | None:
    """Return what runs that share a worker agree on; None for one that wants a worker to itself."""
    common = config.common()
    return None if common is None else repr(common)
