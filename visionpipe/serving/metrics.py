"""Defines the metrics of `/metrics`, in a separate registry, so that one process can hold several servers."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from visionpipe.serving.settings import VERSIONS_IN_METRICS

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # buckets


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.versions: list[str] = []  # live and earlier versions, the live one last
        disable_created_metrics()  # they would double the number of lines
        ProcessCollector(registry=self.registry)
        common: dict[str, Any] = {"namespace": "visionpipe", "registry": self.registry}
        self.requests = Counter("requests", "Answered requests", ["route", "status"], **common)
        self.seconds = Histogram(
            "request_seconds", "From headers to the end of the answer", ["route"], buckets=SECONDS, **common
        )
        self.batches = Histogram(
            "batch_images", "Images per model run", buckets=(1, 2, 4, 8, 16, 32, 64), **common
        )
        self.batch_seconds = Histogram("batch_seconds", "Duration of model runs", buckets=SECONDS, **common)
        self.queue = Gauge("queue_images", "Images that wait for an answer", **common)
        self.predictions = Counter("predictions", "Images by predicted label", ["label", "version"], **common)
        self.bad_images = Counter("bad_images", "Images that could not be decoded", ["code"], **common)
        self.version = Gauge("model_version", "1 for the live version", ["name", "version"], **common)
        self.swaps = Counter("model_swaps", "Changes of the live version", **common)
        self.refused = Counter(
            "model_refused", "Versions that failed the verification", ["version"], **common
        )
        self.store_errors = Counter("registry_errors", "Checks of the alias that failed", **common)
        self.store_answered = Gauge(
            "registry_answered_timestamp_seconds",
            "Time of the last check of the alias that succeeded",
            **common,
        )
        self.following = Gauge("following", "1 if the alias's version is live, 0 if not", ["name"], **common)

    def observe_batch(self, images: int, seconds: float) -> None:
        """Counts one model run."""
        self.batches.observe(images)
        self.batch_seconds.observe(seconds)

    def now_serving(self, name: str, number: str) -> None:
        """Sets the live version, and removes the predictions of old versions."""
        self.version.clear()
        self.version.labels(name, number).set(1)
        self.versions = [*(other for other in self.versions if other != number), number]
        for old in self.versions[:-VERSIONS_IN_METRICS]:
            self.predictions.remove_by_labels({"version": old})
        self.versions = self.versions[-VERSIONS_IN_METRICS:]

    def text(self) -> bytes:
        """Formats all metrics for Prometheus."""
        return bytes(generate_latest(self.registry))
