from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.parser import text_string_to_metric_families

from attempt_ray.errors import StorageError
from serve_app.exposition import exposition
from tests.unit.serve_app.api.conftest import Scripted


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def registry() -> tuple[CollectorRegistry, list[Metric]]:
    found = CollectorRegistry()
    rows = Counter("rows", "Rows", ["task"], registry=found)
    rows.labels("rte").inc(3)
    Gauge("depth", "Rows that wait", registry=found).set(2)
    Histogram("wait_seconds", "Time in the queue", buckets=(0.1, 1), registry=found).observe(0.5)
    return found, list(found.collect())


def test_families_of_all_processes_are_told_once_with_who_counted() -> None:
    own, metrics = registry()
    text = exposition({"a": metrics, "b": registry()[1]}, [own, CollectorRegistry()], ingress="i").decode()
    for name in ("rows_total", "depth", "wait_seconds", "attempt_engine_replicas"):
        assert text.count(f"# HELP {name} ") == text.count(f"# TYPE {name} ") == 1
    found = samples(text)
    for label in (("replica", "a"), ("replica", "b"), ("ingress", "i")):
        assert found["rows_total", tuple(sorted([label, ("task", "rte")]))] == 3
        assert found["depth", (label,)] == 2
        assert found["wait_seconds_count", (label,)] == 1
        assert found["wait_seconds_bucket", tuple(sorted([label, ("le", "1.0")]))] == 1
    assert found["attempt_engine_replicas", (("ingress", "i"),)] == 2


def test_a_family_that_changed_its_type_is_told_as_the_first_has_it() -> None:
    other = CollectorRegistry()
    Gauge("rows", "Rows", registry=other).set(9)
    text = exposition({"new": registry()[1], "old": other.collect()}, [], ingress="i").decode()
    assert ("rows", (("replica", "old"),)) not in samples(text)
    assert ("rows_total", (("replica", "new"), ("task", "rte"))) in samples(text)


def test_the_page_has_the_engines_and_the_guards_metrics(on_host: Callable[..., Any]) -> None:
    async def scenario(client: httpx2.AsyncClient) -> httpx2.Response:
        await client.post("/v1/predict", json={"rows": [{"task": "rte", "text": "rte"}]})
        return await client.get("/metrics")

    found = on_host(scenario)
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    told = samples(found.text)
    labels = {"task": "rte", "prompt": "target/rte@v1", "role": "champion", "outcome": "answered"}
    assert told["attempt_rows_total", tuple(sorted({**labels, "replica": "local"}.items()))] == 1
    assert any(("ingress", "here") in labels for name, labels in told if name != "attempt_engine_replicas")


def test_this_process_tells_its_metrics_where_the_engines_tell_none(on_script: Callable[..., Any]) -> None:
    for error in (StorageError("away"), RuntimeError("no cluster")):
        found = on_script(lambda client: client.get("/metrics"), Scripted(error))
        assert found.status_code == 200
        assert samples(found.text)["attempt_engine_replicas", (("ingress", "here"),)] == 0
