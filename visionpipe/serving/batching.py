"""Micro-batches: what waits is answered together, and nothing waits while the model is idle.

Worker threads decode. Whoever has decoded an image and finds the model idle runs it, on that image and all
others that are ready by then; whoever finds it busy goes on decoding. So an idle server adds no delay at
all, and under load the batches grow by themselves to the size that the model's speed asks for.
"""

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from visionpipe.serving.classifier import Classifier
from visionpipe.serving.settings import Settings

SMALL = 16 * 2**10  # bytes of a file that is decoded in a fraction of a millisecond
PATIENCE = 0.001  # seconds that the idle model waits for images that are being decoded: less than they gain


class Job:
    """One image on its way.

    `data`: a file's bytes, or uint8 or float32 (height, width, 3) as the model takes it. `future` gets the
    probabilities, float64 (classes,), or an ImageError. The times are those of `time.perf_counter`.
    """

    __slots__ = ("data", "decoded", "finished", "future", "image", "started", "submitted")

    def __init__(self, data: bytes | np.ndarray, future: "asyncio.Future[np.ndarray]"):
        self.data, self.future = data, future
        self.image: np.ndarray | None = None
        self.submitted = self.decoded = self.started = self.finished = time.perf_counter()


class Queue:
    """How many images were accepted and are not answered yet, over all versions, and the threads for them."""

    def __init__(self, settings: Settings):
        self.workers = settings.decoders or (os.cpu_count() or 1) + 1
        self.pool = ThreadPoolExecutor(self.workers, thread_name_prefix="worker")
        self.limit = settings.max_queue
        self.waiting = 0
        self.seconds_per_image = 0.0  # of late, with what batching gains

    def answered(self, future: "asyncio.Future[Any]") -> None:
        """To be called when a future that was counted in `waiting` is done."""
        self.waiting -= 1
        if not future.cancelled():
            future.exception()  # seen: a request that has given up does not ask for it

    def retry_after(self) -> int:
        """Whole seconds until what waits now should be answered, at least one."""
        return max(1, round(self.waiting * self.seconds_per_image + 0.5))


class Batcher:
    """Answers images with one classifier. `submit` belongs to the event loop's thread.

    observe: called in a worker with the number of images of each batch.
    """

    def __init__(
        self, classifier: Classifier, queue: Queue, settings: Settings, observe: Callable[[int], Any]
    ):
        self.classifier, self.queue, self.observe = classifier, queue, observe
        self.max_batch = batch_limit(classifier, settings)
        self._undecoded: deque[Job] = deque()
        self._decoders = 0  # at work; guarded, like what they take, by _lock
        self._lock = threading.Lock()
        self._ready: deque[Job] = deque()
        self._model = threading.Lock()

    def submit(self, data: bytes | np.ndarray) -> Job:
        loop = asyncio.get_running_loop()
        job = Job(data, loop.create_future())
        self.queue.waiting += 1
        job.future.add_done_callback(self.queue.answered)
        # Small files are decoded by one thread: almost all of that is Python, which several only hinder.
        most = 1 if len(data) <= SMALL else self.queue.workers
        with self._lock:
            self._undecoded.append(job)
            needed = self._decoders < most
            self._decoders += needed
        if needed:
            self.queue.pool.submit(self._work, loop)
        return job

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Decodes until nothing waits; then, or once the model could have begun, runs it if it is idle."""
        begin = time.perf_counter()
        while True:
            with self._lock:
                if not self._undecoded:
                    self._decoders -= 1
                    break
                job = self._undecoded.popleft()
            self._decode(job, loop)
            enough = len(self._ready) >= self.max_batch or time.perf_counter() - begin > PATIENCE
            if enough and not self._model.locked():
                self.queue.pool.submit(self._work, loop)  # another one goes on decoding
                break
        # Asked again after the lock is free: what came between the last look and that has no runner yet.
        while self._ready and self._model.acquire(blocking=False):
            try:
                self._run(loop)
            finally:
                self._model.release()

    def _decode(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        if job.future.cancelled():
            return
        try:
            job.image = self.classifier.preprocess(job.data) if isinstance(job.data, bytes) else job.data
        except Exception as error:  # an ImageError, or a defect, which the request must hear of too
            job.decoded = job.started = job.finished = time.perf_counter()
            loop.call_soon_threadsafe(settle, [job], error)
            return
        job.decoded = time.perf_counter()
        self._ready.append(job)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs: list[Job] = []
        while self._ready and len(jobs) < self.max_batch:
            job = self._ready.popleft()
            if not job.future.cancelled():
                jobs.append(job)
        if not jobs:
            return
        started = time.perf_counter()
        outcome: np.ndarray | Exception
        try:
            outcome = self.classifier.probabilities(np.stack([job.image for job in jobs]))  # type: ignore[misc]
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            outcome = error
        finished = time.perf_counter()
        for job in jobs:
            job.started, job.finished = started, finished
        self.queue.seconds_per_image += 0.1 * (
            (finished - started) / len(jobs) - self.queue.seconds_per_image
        )
        loop.call_soon_threadsafe(settle, jobs, outcome)
        self.observe(len(jobs))


def settle(jobs: list[Job], outcome: np.ndarray | Exception) -> None:
    """Gives each job its row of `outcome`, or the exception."""
    for index, job in enumerate(jobs):
        if job.future.done():
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome[index])


def batch_limit(classifier: Classifier, settings: Settings) -> int:
    """As many images as run in about `batch_seconds`: enough of them for full speed, few enough that the
    next request does not wait long.
    """
    blank = np.zeros((1, *classifier.size, 3), np.uint8)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        classifier.logits(blank)
        times.append(time.perf_counter() - start)
    return max(1, min(settings.max_batch, int(settings.batch_seconds / min(times))))
