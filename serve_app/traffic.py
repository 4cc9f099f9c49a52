"""What is kept of every request: a line of the access log and the counts of `/metrics`, without anything it carried."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

ACCESS_LOG = "attempt_ray.access"
"""Logger that has one record, of level INFO, for each request that has ended."""
UNKNOWN = "unknown"
"""Route of paths that lead nowhere, and method of words that are none."""
LEFT = 499
"""Status in log and metrics of a request whose caller went away before it was answered."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_access = logging.getLogger(ACCESS_LOG)


@dataclass
class Visit:
    """A request, as log and metrics know it."""

    request_id: str
    """Its id."""
    method: str
    """Its method, or `UNKNOWN`."""
    route: str = UNKNOWN
    """Template of its path, such as `/v1/tasks/{task}`."""
    key: str = ""
    """Id of its API key."""
    status: int = LEFT
    """Status of the answer."""
    duration_ms: float = 0.0
    """From its arrival to the end of the answer."""
    bytes_in: int = 0
    """Length of its body, as far as it was read."""
    bytes_out: int = 0
    """Length of the answer's body."""
    began: float = field(default_factory=time.perf_counter, repr=False)
    """When it arrived, on the clock of `time.perf_counter`."""


class Traffic:
    """Counts requests, and logs them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        """Where the metrics are."""
        self._requests = Counter(
            "attempt_http_requests",
            "Requests that have ended",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._refusals = Counter(
            "attempt_http_refusals",
            "Requests refused before they reached the application",
            ["code"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "attempt_http_request_seconds",
            "Time from a request's arrival to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._running = Gauge("attempt_http_requests_in_flight", "Requests under way", registry=self.registry)

    def began(self) -> None:
        """Count a request that has arrived."""
        self._running.inc()

    def refused(self, code: str) -> None:
        """Count a refusal by its code."""
        self._refusals.labels(code).inc()

    def ended(self, visit: Visit) -> None:
        """Count a request that is over, and log it."""
        seconds = time.perf_counter() - visit.began
        visit.duration_ms = round(1000 * seconds, 3)
        self._running.dec()
        self._requests.labels(visit.route, visit.method, str(visit.status)).inc()
        self._seconds.labels(visit.route).observe(seconds)
        _access.info("%s %s %d", visit.method, visit.route, visit.status, extra={"visit": visit})


class AccessFormatter(logging.Formatter):
    """Writes a record of `ACCESS_LOG` as one line of JSON: the time in UTC, and what a `Visit` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        visit: Visit = record.visit  # type: ignore[attr-defined]
        facts = asdict(visit)
        del facts["began"]
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when, **facts})
