"""What `/metrics` says, in a registry of its own so that several servers fit into one process."""

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

KEPT = 2  # versions whose predictions by class are told
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.versions: list[str] = []  # that answer or did, the last one now
        disable_created_metrics()  # twice the lines, and no use
        ProcessCollector(registry=self.registry)
        common: dict[str, Any] = {"namespace": "visionpipe", "registry": self.registry}
        self.requests = Counter("requests", "Answered requests", ["route", "status"], **common)
        self.seconds = Histogram(
            "request_seconds", "First byte to last byte", ["route"], buckets=SECONDS, **common
        )
        self.batches = Histogram(
            "batch_images", "Images in one model run", buckets=(1, 2, 4, 8, 16, 32, 64), **common
        )
        self.batch_seconds = Histogram("batch_seconds", "One model run", buckets=SECONDS, **common)
        self.queue = Gauge("queue_images", "Images accepted and not answered yet", **common)
        self.predictions = Counter("predictions", "Images by label", ["label", "version"], **common)
        self.bad_images = Counter("bad_images", "Images that could not be decoded", ["code"], **common)
        self.version = Gauge("model_version", "1 for the version that answers", ["name", "version"], **common)
        self.swaps = Counter("model_swaps", "Versions that took over", **common)
        self.refused = Counter("model_refused", "Candidates that did not verify", ["version"], **common)
        self.store_errors = Counter("registry_errors", "Looks at the alias that failed", **common)
        self.store_answered = Gauge(
            "registry_answered_timestamp_seconds", "The last look at the alias that did not fail", **common
        )
        self.following = Gauge(
            "following",
            "1 while the version that the alias is on answers, 0 while that fails",
            ["name"],
            **common,
        )

    def observe_batch(self, images: int, seconds: float) -> None:
        self.batches.observe(images)
        self.batch_seconds.observe(seconds)

    def now_serving(self, name: str, number: str) -> None:
        self.version.clear()
        self.version.labels(name, number).set(1)
        self.versions = [*(other for other in self.versions if other != number), number]
        for old in self.versions[:-KEPT]:
            self.predictions.remove_by_labels({"version": old})
        self.versions = self.versions[-KEPT:]

    def text(self) -> bytes:
        return bytes(generate_latest(self.registry))
