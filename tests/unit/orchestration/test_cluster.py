from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from attempt_ray.config import ClusterConfig, parse
from attempt_ray.errors import ClusterError, ConfigError
from attempt_ray.orchestration import cluster
from attempt_ray.orchestration.cluster import _locked_file, _share, check_resources, connected


def test_more_workers_than_cores_are_refused_before_ray_starts() -> None:
    with pytest.raises(
        ClusterError,
        match=r"2 workers of 4096 CPU each do not fit: there is room for 0; the largest node has \d+ CPU; lower",
    ):
        with connected(ClusterConfig(workers=2, cpus_per_worker=4096)):
            pass


def test_the_refusal_names_how_many_fit() -> None:
    with pytest.raises(ClusterError, match=r"--set cluster.workers=[1-9]"):
        with connected(ClusterConfig(workers=4096, cpus_per_worker=1)):
            pass


def node(*, alive: bool = True, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Labels": labels or {}, "Resources": resources}


NODES = [
    node(CPU=8, GPU=2, labels={"zone": "a"}),
    node(CPU=2, labels={"zone": "b"}, licence=1),
    node(CPU=64, GPU=8, alive=False),
]


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        ({"workers": 10}, 10),
        ({"workers": 2, "gpus_per_worker": 1}, 2),
        ({"workers": 4, "gpus_per_worker": 0.5, "cpus_per_worker": 2}, 4),
        ({"workers": 1, "resources_per_worker": {"licence": 1}}, 1),
        ({"workers": 2, "labels": {"zone": "b"}}, 2),
        ({"workers": 8, "labels": {"zone": "!b"}}, 8),
        ({"workers": 10, "labels": {"zone": "in(a, b)"}}, 10),
    ],
    ids=str,
)
def test_what_fits_is_taken_and_one_more_refused(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], room: int
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    check_resources(ClusterConfig(**asked))
    with pytest.raises(ClusterError, match=f"there is room for {room}; --set cluster.workers={room}"):
        check_resources(ClusterConfig(**asked | {"workers": room + 1}))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus_per_worker": 4}, "the largest node has 2 GPU; lower cluster.gpus_per_worker"),
        (
            {"labels": {"zone": "c"}},
            "on nodes with zone=c do not fit: there is room for 0; change cluster.labels",
        ),
        (
            {"resources_per_worker": {"licence": 2}},
            "the largest node has 1 licence; lower cluster.resources_per_worker.licence",
        ),
    ],
    ids=str,
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    with pytest.raises(ClusterError, match=message):
        check_resources(ClusterConfig(**asked))


def test_fewer_workers_will_do_where_the_config_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    check_resources(ClusterConfig(workers=100, min_workers=3))
    with pytest.raises(ConfigError, match="min_workers 3 is more than workers 2"):
        parse([{"cluster": {"workers": 2, "min_workers": 3}}])


def test_nodes_that_an_autoscaler_brings_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    nodes = [node(CPU=1)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    def request(**given: Any) -> None:
        asked.append(given)
        nodes.append(node(CPU=1))

    monkeypatch.setattr(cluster, "request_resources", request)
    check_resources(ClusterConfig(workers=2, wait_seconds=5))
    assert asked == [{"bundles": [{"CPU": 1.0}] * 2, "bundle_label_selectors": [{}] * 2}]


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
