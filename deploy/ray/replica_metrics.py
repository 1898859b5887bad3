"""The metrics of all replicas in one answer, because Ray's proxy sends a scrape to any of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class ReplicaMetrics:
    """The families of one replica's registry, as they travel between processes."""

    instance: str
    families: list[Metric]


def exposition(replicas: Iterable[ReplicaMetrics]) -> bytes:
    """Prometheus' text format; every series has its replica as the label `instance`.

    A job that scrapes it needs `honor_labels: true`, or the label becomes `exported_instance`.
    """
    registry = CollectorRegistry()
    registry.register(_Merged(replicas))
    return generate_latest(registry)


class _Merged(Collector):
    """Each family once, with the samples of every replica."""

    def __init__(self, replicas: Iterable[ReplicaMetrics]) -> None:
        self._families: dict[str, Metric] = {}
        for replica in replicas:
            for family in replica.families:
                merged = self._families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {**sample.labels, "instance": replica.instance}
                    merged.add_sample(sample.name, labels, sample.value)

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()
