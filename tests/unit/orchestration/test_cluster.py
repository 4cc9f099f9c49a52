from __future__ import annotations

import pytest

from attempt_ray.config import ClusterConfig
from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.cluster import connected


def test_more_workers_than_cores_are_refused_before_ray_starts() -> None:
    with pytest.raises(
        ClusterError, match=r"2 workers of 4096 CPU each do not fit: there is room for 0; lower"
    ):
        with connected(ClusterConfig(workers=2, cpus_per_worker=4096)):
            pass


def test_the_refusal_names_how_many_fit() -> None:
    with pytest.raises(ClusterError, match=r"--set cluster.workers=[1-9]"):
        with connected(ClusterConfig(workers=4096, cpus_per_worker=1)):
            pass
