"""The one local Ray cluster of the tests; only tests that ask for it pay for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attempt_ray.config import ClusterConfig
from attempt_ray.orchestration.cluster import connected


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """Hold a private cluster with all cores of the machine; yield its scratch directory."""
    with connected(ClusterConfig(workers=1, cpus_per_worker=1)) as scratch:
        yield scratch
