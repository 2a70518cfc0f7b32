"""Figures for Prometheus: requests, acknowledgements, bundles, jobs, bytes; labels are routes, kinds and codes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from slideway.core.errors import SlidewayError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
Gauges = Callable[[], dict[tuple[str, str], dict[str, float]]]
"""Gives (name, label) to values by the label's value."""


class Metrics:
    """All figures of one process, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter(
            "slideway_requests_total", "Requests by route and status", ["route", "method", "status"], registry=own
        )
        self.seconds = Histogram(
            "slideway_request_seconds", "Time to answer", ["route"], buckets=_SECONDS, registry=own
        )
        self.acknowledgements = Counter(
            "slideway_acknowledgements_total", "Receipts for what is durably here", ["kind", "tier"], registry=own
        )
        self.acknowledge_seconds = Histogram(
            "slideway_acknowledge_seconds",
            "Time to make a tier durable and known",
            ["kind"],
            buckets=_SECONDS,
            registry=own,
        )
        self.bytes = Counter("slideway_body_bytes_total", "Bytes of bodies", ["direction"], registry=own)
        self.bundles = Counter("slideway_bundles_total", "Whole bundles that were taken", registry=own)
        self.refusals = Counter(
            "slideway_refusals_total", "Requests and bundles refused, by code", ["code"], registry=own
        )
        self.opinions = Counter("slideway_opinions_total", "Opinions put on their way", ["kind"], registry=own)
        self.job_seconds = Histogram(
            "slideway_job_seconds", "Time to diagnose", buckets=(*_SECONDS, 300.0, 900.0), registry=own
        )
        self.job_failures = Counter("slideway_job_failures_total", "Jobs that failed, by code", ["code"], registry=own)

    def watch(self, gauges: Gauges) -> None:
        """Ask for gauges, such as queue lengths, whenever somebody scrapes."""
        self._registry.register(_OnScrape(gauges))

    def render(self) -> bytes:
        """All figures as Prometheus reads them."""
        return generate_latest(self._registry)


class _OnScrape(Collector):
    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing is asked at registration: the store may not be there yet."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up = GaugeMetricFamily("slideway_store_up", "1 while the store answers")
        try:
            gauges = self._gauges()
        except (SlidewayError, OSError):  # this process's own figures are wanted most when the store is away
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        for (name, label), values in gauges.items():
            family = GaugeMetricFamily(name, name.replace("_", " "), labels=[label])
            for value, count in values.items():
                family.add_metric([value], count)
            yield family
