"""What a replica's queue, table of prompts and view of the bank look like at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from serve_app.batcher import Batcher
from serve_app.engine import Engine
from serve_app.follower import Follower


class Gauges(Collector):
    """Reads everything when it is asked, so that nothing has to be kept in step."""

    def __init__(self, engine: Engine, batcher: Batcher[Any, Any], follower: Follower) -> None:
        self._engine = engine
        self._batcher = batcher
        self._follower = follower

    def describe(self) -> list[Metric]:
        """Return nothing: the values are not read before they are asked for."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        counts, follower = self._batcher.snapshot(), self._follower
        gauges = {
            "attempt_queued_rows": ("Rows that wait", counts.queued_rows),
            "attempt_queued_tokens": ("Tokens that wait", counts.queued_tokens),
            "attempt_running_rows": ("Rows of the batch under way", counts.running_rows),
            "attempt_running_batch_seconds": (
                "How long the batch under way has been computed",
                self._batcher.oldest_running_seconds(),
            ),
            "attempt_loaded_prompts": ("Versions on the device", self._engine.loaded_prompts),
            "attempt_loaded_bytes": ("Bytes they take", self._engine.loaded_bytes),
            "attempt_bank_revision": ("Changes of the bank seen", follower.view.revision),
            "attempt_bank_age_seconds": ("Time since the bank was read", follower.age_seconds),
            "attempt_refused_versions": ("Versions that cannot be used", len(follower.view.refused)),
        }
        counters = {
            "attempt_batches": ("Batches computed", counts.batches),
            "attempt_batch_rows": ("Rows of all batches", counts.batch_rows),
            "attempt_batch_tokens": ("Tokens of all batches", counts.batch_tokens),
            "attempt_batch_fill": ("Sum of the shares of its budget that each batch used", counts.batch_fill),
            "attempt_row_wait_seconds": ("Sum of all rows' time in the queue", counts.wait_seconds),
            "attempt_engine_busy_seconds": ("Time that the engine has computed", counts.busy_seconds),
            "attempt_refused_rows": ("Rows that found no room", counts.refused),
            "attempt_expired_rows": ("Rows whose time was over", counts.expired),
            "attempt_cancelled_rows": ("Rows whose caller went away", counts.cancelled),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(name, text, value=value)
