"""What Prometheus reads from ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .describe import LAYERS, bits
from .registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds."""

LABELS = ["model", "version"]


@final
class Metrics:
    """Counts requests as they end; the rest is read from the models when it is asked for."""

    def __init__(self, registry: Registry, ready: Callable[[], bool]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fimaq_requests", "Requests answered.", ["protocol", "operation", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "fimaq_request_seconds",
            "Time of a request from its header to its answer.",
            ["protocol", "operation"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_Models(registry, ready))

    def answered(self, protocol: str, operation: str, status: str, seconds: float) -> None:
        """One request is over."""
        self._requests.labels(protocol, operation, status).inc()
        self._seconds.labels(protocol, operation).observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)


@final
class _Models(Collector):
    def __init__(self, registry: Registry, ready: Callable[[], bool]) -> None:
        self._models, self._ready = registry, ready

    def collect(self) -> Iterator[Metric]:
        """Read the counters of every model."""
        yield GaugeMetricFamily("fimaq_ready", "Whether requests are taken.", value=float(self._ready()))
        yield GaugeMetricFamily(
            "fimaq_repository_unreadable",
            "Whether the last reload could not read the repository.",
            value=float(self._models.unreadable),
        )
        failed = GaugeMetricFamily(
            "fimaq_load_failed", "A version on disk that could not be loaded; 1 while that is so.", labels=LABELS
        )
        for called in self._models.failed:
            failed.add_metric(called, 1)
        yield failed
        held = GaugeMetricFamily("fimaq_requests_held", "Requests read, waiting or running.", labels=LABELS)
        images = CounterMetricFamily("fimaq_images", "Images computed.", labels=LABELS)
        runs = CounterMetricFamily("fimaq_runs", "Times the model ran.", labels=LABELS)
        waited = CounterMetricFamily("fimaq_queue_seconds", "Time requests waited for the model.", labels=LABELS)
        computed = CounterMetricFamily("fimaq_compute_seconds", "Time the model ran.", labels=LABELS)
        info = GaugeMetricFamily("fimaq_model_info", "What is served; always 1.", labels=[*LABELS, "sha256", "bits"])
        for model in self._models:
            labels, found = [model.name, model.version], model.statistics
            held.add_metric(labels, model.held)
            images.add_metric(labels, found.images)
            runs.add_metric(labels, sum(size.compute_infer.count for size in found.runs.values()))
            waited.add_metric(labels, found.queue.ns / 1e9)
            computed.add_metric(labels, sum(size.compute_infer.ns for size in found.runs.values()) / 1e9)
            info.add_metric([*labels, model.predictor.sha256, bits(model.predictor.metadata.get(LAYERS))], 1)
        yield from (held, images, runs, waited, computed, info)
