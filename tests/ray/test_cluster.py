from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from attempt_ray.bank.places import open_storage
from attempt_ray.config import ClusterConfig, Config
from attempt_ray.errors import ClusterError, StorageError
from attempt_ray.orchestration import cluster as module
from attempt_ray.orchestration.cluster import check_shared
from attempt_ray.orchestration.pool import run_pool

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def two_nodes(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the one node count twice, so that a disk has to be shared."""
    nodes = ray.nodes()
    monkeypatch.setattr(module.ray, "nodes", lambda: nodes * 2)


def test_what_all_nodes_share_is_left_as_it_was(two_nodes: None, tmp_path: Path, s3: str) -> None:
    for place in (str(tmp_path / "runs"), f"file://{tmp_path}/bank", s3):
        check_shared(place)
        assert open_storage(place).entries("") == []


def test_a_store_that_a_node_cannot_reach_is_refused_with_its_reason(
    cluster: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share, gone = module._share, s3.replace("s3://", "s3://no-such-")
    monkeypatch.setattr(module, "_share", lambda _, marker, answer: share(gone, marker, answer))
    with pytest.raises(
        ClusterError,
        match=r"s3://bucket-.*/attempt is not shared by every node: .*no-such-bucket.* not found",
    ):
        check_shared(s3)
    assert open_storage(s3).entries("") == []


def test_a_disk_whose_locks_do_not_bind_is_refused(
    two_nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @module.contextmanager
    def unlocked(_: Path):
        yield True

    monkeypatch.setattr(module, "_locked_file", unlocked)
    with pytest.raises(ClusterError, match="locks of other nodes do not bind it"):
        check_shared(str(tmp_path / "runs"))


def test_a_pool_whose_store_refuses_trains_nothing(
    cluster: Path, make_study: Callable[..., Config], s3: str
) -> None:
    with pytest.raises(StorageError, match="cannot write s3://no-such-bucket"):
        run_pool(
            [make_study(runs=s3.replace("s3://", "s3://no-such-"), tasks=["rte"])],
            cluster=ClusterConfig(workers=1, cpus_per_worker=0.5),
        )
