"""Holds the live version and the state of the server, and replaces the live version when the alias moves."""

import asyncio
import io
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from visionpipe.artifact.versions import Version, load
from visionpipe.data.form import as_rgb
from visionpipe.errors import ImageError
from visionpipe.serving.batching import Batcher, Job, Queue
from visionpipe.serving.bodies import Refusal
from visionpipe.serving.metrics import Metrics
from visionpipe.serving.settings import QUICK_ANSWER, READERS, RETRY_SECONDS, Settings

STATUS = {"unsupported": 415, "broken": 422, "too_large": 413}  # HTTP status by ImageError.code

log = logging.getLogger("visionpipe")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Live:
    """The version that answers. A request uses one Live object from start to end, so its answers are of one model."""

    version: Version
    batcher: Batcher
    since: float = field(default_factory=time.time)

    @property
    def name(self) -> str:
        return self.version.name

    @property
    def number(self) -> str:
        return self.version.number

    def is_large(self, jobs: list[Job]) -> bool:
        """Whether writing the answer to these jobs would block the event loop for too long."""
        return len(jobs) * len(self.batcher.classifier.labels) > QUICK_ANSWER


class Service:
    """The state of a server.

    Another thread may replace `live`, in one assignment. All other methods and attributes belong to the event loop.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self.metrics = Metrics()
        self.queue = Queue(settings)
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self.metrics.queue.set_function(lambda: self.queue.waiting)
        self.live: Live | None = None
        self.draining = False
        # Why the alias's version is not live: "" if it is live, None if no alias is followed.
        self.unfollowed: str | None = None
        self._last_warning = ""

    @property
    def ready(self) -> bool:
        return self.live is not None and not self.draining

    def serve(self, version: Version) -> None:
        """Loads and verifies a version, and makes it the live one; raises ArtifactError."""
        classifier = load(version, self.settings.threads)
        batcher = Batcher(
            classifier, partial(load, version, 1), self.queue, self.settings, self.metrics.observe_batch
        )
        self.live = Live(version, batcher)
        self.metrics.now_serving(version.name, version.number)

    def follow(self, problem: str, details: str = "") -> None:
        """Records why the alias's version is not live, or "" if it is. Logs the details, but not twice in a row."""
        self.unfollowed = problem
        if self.live is not None:
            self.metrics.following.labels(self.live.name).set(problem == "")
        if details and details != self._last_warning:
            log.warning("%s", details)
        self._last_warning = details

    def present(self) -> Live:
        """Returns the live version; raises Refusal before the first one is loaded."""
        if self.live is None:
            raise Refusal(503, "not_ready", "no model is loaded yet", **{"Retry-After": "1"})
        return self.live

    def count(self, live: Live, probabilities: np.ndarray) -> None:
        """Counts the classes that an answer names in the metrics. `probabilities`: float (classes,)."""
        classifier = live.batcher.classifier
        for place in classifier.task.named(probabilities):
            self.metrics.predictions.labels(classifier.labels[place], live.number).inc()

    def make_room(self, images: int) -> None:
        """Raises Refusal if the queue has no room for `images` more, or if they would wait too long.

        Too long is half of `request_seconds`: an early refusal is better for a client than a late answer.
        """
        late = self.queue.waiting * self.queue.seconds_per_image > self.settings.request_seconds / 2
        if late or self.queue.waiting + images > self.queue.limit:
            raise Refusal(
                503,
                "overloaded",
                "too many images are waiting: try again later",
                **{"Retry-After": str(self.queue.retry_after())},
            )

    async def aside(self, large: bool, work: Callable[..., Result], *arguments: Any) -> Result:
        """Returns the result of `work`. Large work runs in a reader thread, so that the event loop is not blocked.

        Raises Refusal after `request_seconds`.
        """
        if not large:
            return work(*arguments)
        running = asyncio.get_running_loop().run_in_executor(self.readers, work, *arguments)
        try:
            return await asyncio.wait_for(running, self.settings.request_seconds)
        except TimeoutError:
            raise self.late() from None

    async def answer(self, live: Live, images: list[bytes] | list[np.ndarray]) -> list[Job]:
        """Submits images and waits until all are answered; each job's `future` has a result or an ImageError.

        Raises Refusal if the queue is full, and after `request_seconds`; raises the model's errors.
        """
        self.make_room(len(images))
        jobs = [live.batcher.submit(image) for image in images]
        _, late = await asyncio.wait([job.future for job in jobs], timeout=self.settings.request_seconds)
        for future in late:
            future.cancel()
        if late:
            raise self.late()
        for job in jobs:
            error = job.future.exception()
            if isinstance(error, ImageError):
                self.metrics.bad_images.labels(error.code).inc()
            elif error is not None:
                raise error
        return jobs

    async def view(self, live: Live, data: bytes) -> bytes:
        """Preprocesses an image file for the model; returns it as a PNG file. Raises Refusal."""
        loop, classifier = asyncio.get_running_loop(), live.batcher.classifier
        work = loop.run_in_executor(
            self.queue.pool, lambda: as_png(classifier.preprocess(data, self.settings.max_pixels))
        )
        self.queue.waiting += 1
        work.add_done_callback(self.queue.answered)
        done, _ = await asyncio.wait([work], timeout=self.settings.request_seconds)
        if not done:
            raise self.late()
        try:
            return work.result()
        except ImageError as error:
            raise Refusal(STATUS[error.code], error.code, error.reason) from None

    def late(self) -> Refusal:
        """Makes the refusal of a request that took too long."""
        return Refusal(504, "timeout", f"not answered within {self.settings.request_seconds:g} seconds")


def as_png(pixels: np.ndarray) -> bytes:
    """Encodes prepared pixels (height, width, channels) as a PNG file in RGB, fast rather than small."""
    file = io.BytesIO()
    Image.fromarray(as_rgb(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


class Follower:
    """A thread that checks the alias regularly, and makes its version live if it passes the verification."""

    def __init__(self, service: Service, current: Callable[[], Version]):
        self.service, self.current = service, current
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._refused: tuple[tuple[str, str | None] | None, float] = (None, 0.0)

    def start(self) -> None:
        self.service.follow("")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self.service.settings.follow_seconds):
            self.look()

    def look(self) -> None:
        """Checks the alias once. After a failure the live version remains, and the metrics and /readyz report it."""
        metrics = self.service.metrics
        try:
            version = self.current()
        except Exception as error:  # of any kind: the live version must go on answering
            if not self._stop.is_set():
                metrics.store_errors.inc()
                self.service.follow("the registry does not answer", f"the registry does not answer: {error}")
            return
        metrics.store_answered.set_to_current_time()
        refused, since = self._refused
        live = self.service.live
        if live is not None and version.identity == live.version.identity:
            self.service.follow("")
            return
        if version.identity == refused and time.monotonic() - since < RETRY_SECONDS:
            return
        try:
            self.service.serve(version)
        except Exception as error:
            self._refused = (version.identity, time.monotonic())
            metrics.refused.labels(version.number).inc()
            what = f"version {version.number} is refused"
            self.service.follow(what, f"{what}, version {live and live.number} still answers: {error}")
            return
        metrics.swaps.inc()
        self.service.follow("")
        log.warning("version %s answers now", version.number)
