"""What answers: the present version with its batcher, and the change to another one."""

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
from visionpipe.errors import ImageError
from visionpipe.serving.batching import Batcher, Job, Queue
from visionpipe.serving.bodies import Refusal
from visionpipe.serving.metrics import Metrics
from visionpipe.serving.settings import Settings

RETRY_SECONDS = 60  # before a candidate that was refused is looked at again
QUICK_NUMBERS = 20_000  # probabilities that are sorted and written in a moment
READERS = 2  # threads that take large bodies apart and write large answers
STATUS = {"unsupported": 415, "broken": 422, "too_large": 413}  # of an image that cannot be decoded

log = logging.getLogger("visionpipe")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Live:
    """A version that answers. A request keeps the one that it began with, so its answers are of one model."""

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
        """Whether their answer is too long to be written between two others."""
        return len(jobs) * len(self.batcher.classifier.labels) > QUICK_NUMBERS


class Service:
    """The state of a server. `live` is replaced as a whole; everything else belongs to the event loop."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.metrics = Metrics()
        self.queue = Queue(settings)
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self.metrics.queue.set_function(lambda: self.queue.waiting)
        self.live: Live | None = None
        self.draining = False
        self.unfollowed: str | None = (
            None  # why the alias is not followed; "" where it is, None where there is none
        )
        self._said = ""

    @property
    def ready(self) -> bool:
        return self.live is not None and not self.draining

    def serve(self, version: Version) -> None:
        """Loads and verifies a version, and lets it answer from here on; raises ArtifactError."""
        classifier = load(version, self.settings.threads)
        batcher = Batcher(
            classifier, partial(load, version, 1), self.queue, self.settings, self.metrics.observe_batch
        )
        self.live = Live(version, batcher)
        self.metrics.now_serving(version.name, version.number)

    def follow(self, problem: str, details: str = "") -> None:
        """Notes whether the version that answers is the one that the alias is on, and logs a problem once."""
        self.unfollowed = problem
        if self.live is not None:
            self.metrics.following.labels(self.live.name).set(problem == "")
        if details and details != self._said:
            log.warning("%s", details)
        self._said = details

    def present(self) -> Live:
        if self.live is None:
            raise Refusal(503, "not_ready", "no model is loaded yet", **{"Retry-After": "1"})
        return self.live

    def make_room(self, images: int) -> None:
        """Refuses what the queue has no room for, or what would wait for half of the time that it has: a
        quick no is worth more than a late answer.
        """
        late = self.queue.waiting * self.queue.seconds_per_image > self.settings.request_seconds / 2
        if late or self.queue.waiting + images > self.queue.limit:
            raise Refusal(
                503,
                "overloaded",
                "too many images are waiting",
                **{"Retry-After": str(self.queue.retry_after())},
            )

    async def aside(self, large: bool, work: Callable[..., Result], *arguments: Any) -> Result:
        """What `work` returns; where it is large, from another thread, so that the event loop answers others
        meanwhile. Refuses after `request_seconds`.
        """
        if not large:
            return work(*arguments)
        running = asyncio.get_running_loop().run_in_executor(self.readers, work, *arguments)
        try:
            return await asyncio.wait_for(running, self.settings.request_seconds)
        except TimeoutError:
            raise self.late() from None

    async def answer(self, live: Live, images: list[bytes] | list[np.ndarray]) -> list[Job]:
        """Waits for all images, each with its own outcome in `future`; refuses after `request_seconds`."""
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
        """An image file as the model sees it, as a PNG file; refuses what cannot be decoded."""
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
        return Refusal(504, "timeout", f"not answered within {self.settings.request_seconds:g} seconds")


def as_png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


class Follower:
    """A thread that looks where the alias points, and changes the service to a version that verifies."""

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
        """One look. Whatever fails leaves the present version answering, and shows in the metrics and in /readyz."""
        metrics = self.service.metrics
        try:
            found = self.current()
        except Exception as error:  # whatever it is, the present version answers and the next look follows
            if not self._stop.is_set():
                metrics.store_errors.inc()
                self.service.follow("the registry does not answer", f"the registry does not answer: {error}")
            return
        metrics.store_answered.set_to_current_time()
        refused, since = self._refused
        live = self.service.live
        if live is not None and found.identity == live.version.identity:
            self.service.follow("")
            return
        if found.identity == refused and time.monotonic() - since < RETRY_SECONDS:
            return
        try:
            self.service.serve(found)
        except Exception as error:
            self._refused = (found.identity, time.monotonic())
            metrics.refused.labels(found.number).inc()
            what = f"version {found.number} is refused"
            self.service.follow(what, f"{what}, version {live and live.number} goes on: {error}")
            return
        metrics.swaps.inc()
        self.service.follow("")
        log.warning("version %s answers now", found.number)
