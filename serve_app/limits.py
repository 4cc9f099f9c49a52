"""How much each API key may ask at once and in the mean."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from attempt_ray.config import HttpConfig


@dataclass
class _Share:
    """A key's token bucket, and its requests under way."""

    tokens: float
    filled: float
    running: int = 0


@dataclass(frozen=True)
class Excess:
    """A request that is too much."""

    code: str
    """What `serve_app.problems` calls it."""
    message: str
    """Got; wanted; what to do."""
    retry_after: int
    """Whole seconds after which there may be room."""


class Limits:
    """Counts the requests of each key, for one event loop."""

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._shares: dict[str, _Share] = {}
        self._running = 0

    @contextmanager
    def admitted(self, key: str) -> Iterator[Excess | None]:
        """Count a request of a key while the block runs; give what is too much about it, if it is not to run.

        A request that is refused costs nothing.
        """
        share = self._share(key)
        excess = self._excess(share)
        if excess is not None:
            yield excess
            return
        share.tokens -= 1
        share.running += 1
        self._running += 1
        try:
            yield None
        finally:
            share.running -= 1
            self._running -= 1

    def _share(self, key: str) -> _Share:
        """Return a key's share, its bucket filled up to now."""
        now = time.monotonic()
        share = self._shares.setdefault(key, _Share(self._config.burst_requests, now))
        grown = share.tokens + (now - share.filled) * self._config.requests_per_second
        share.tokens = min(grown, self._config.burst_requests)
        share.filled = now
        return share

    def _excess(self, share: _Share) -> Excess | None:
        limits = self._config
        if share.running >= limits.concurrent_requests:
            return Excess(
                "too_many_requests_at_once",
                f"got more than {limits.concurrent_requests} requests at once; wait for an answer before you send the next",
                1,
            )
        if self._running >= limits.concurrent_requests_in_all:
            return Excess("overloaded", "all places for requests are taken; send it again later", 1)
        if share.tokens < 1:
            return Excess(
                "rate_limit_exceeded",
                f"got more than {limits.requests_per_second:g} requests a second; send fewer, with more rows each",
                max(1, math.ceil((1 - share.tokens) / limits.requests_per_second)),
            )
        return None
