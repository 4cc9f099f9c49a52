"""Metrics of several processes on one page, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

MEDIA_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format."""


def exposition(
    engines: Mapping[str, Iterable[Metric]], registries: Sequence[CollectorRegistry], *, ingress: str
) -> bytes:
    """Return metrics of engine replicas, by their id, and of this process, each family once.

    Samples get the label `replica` or `ingress`. Where processes disagree on a family's type, as while a new version of the
    program is rolled out, the first one's counts and the others' samples are left out.

    Args:
        engines: Metrics of each engine replica.
        registries: Metrics of this process.
        ingress: Name of this process.
    """
    families: dict[str, Metric] = {}
    up = GaugeMetricFamily(
        "attempt_engine_replicas", "Engine replicas that told their metrics.", value=len(engines)
    )
    sources = [({"replica": replica}, metrics) for replica, metrics in engines.items()]
    sources += [({"ingress": ingress}, registry.collect()) for registry in registries]
    for label, metrics in [*sources, ({"ingress": ingress}, [up])]:
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            if family.type == metric.type:
                family.samples += [
                    sample._replace(labels={**sample.labels, **label}) for sample in metric.samples
                ]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
