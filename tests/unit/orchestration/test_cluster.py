from __future__ import annotations

from pathlib import Path

import pytest

from attempt_ray.config import ClusterConfig
from attempt_ray.errors import ClusterError
from attempt_ray.orchestration.cluster import _locked_file, _share, connected


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


def test_a_node_tells_what_it_cannot_see_lock_or_read(tmp_path: Path) -> None:
    assert _share(str(tmp_path / "absent"), "marker", "answer") == "it cannot see it"
    assert _share(str(tmp_path), "marker", "answer") == "it cannot see it"
    marker = tmp_path / "marker"
    marker.write_bytes(b"else")
    assert "locks of other nodes do not bind it" in str(_share(str(tmp_path), "marker", "answer"))
    with _locked_file(marker):
        assert _share(str(tmp_path), "marker", "answer") == "it reads something else than was written"
        marker.write_bytes(b"seen")
        assert not (tmp_path / "answer").exists()
        assert _share(str(tmp_path), "marker", "answer") is None
    assert (tmp_path / "answer").exists()
