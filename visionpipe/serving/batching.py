"""Micro-batches: what waits is answered together, and nothing waits while the model is idle.

Worker threads decode. Whoever has decoded an image and finds the model idle runs it, on that image and all
others that are ready by then; whoever finds it busy goes on decoding. So an idle server adds no delay at
all, and under load the batches grow by themselves to the size that the model's speed asks for.

All cores work on one batch while one is enough. When more waits, each core runs batches of its own until there
is a moment without any: then no operation stands still for a thread that decoding, or a neighbour on the
machine, has held up.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from visionpipe.artifact.classifier import Classifier
from visionpipe.serving.settings import Settings

SMALL = 16 * 2**10  # bytes of a file that is decoded in a fraction of a millisecond
PATIENCE = 0.001  # seconds that the idle model waits for images that are being decoded: less than they gain

log = logging.getLogger("visionpipe")


class Job:
    """One image on its way.

    `data`: a file's bytes, or uint8 or float32 (height, width, 3) as the model takes it. `future` gets the
    probabilities, float64 (classes,), or an ImageError. The times are those of `time.perf_counter`.
    """

    __slots__ = ("data", "decoded", "finished", "future", "image", "small", "started", "submitted")

    def __init__(self, data: bytes | np.ndarray, future: "asyncio.Future[np.ndarray]"):
        self.data, self.future = data, future
        self.small = not isinstance(data, bytes) or len(data) <= SMALL
        self.image: np.ndarray | None = None
        self.submitted = self.decoded = self.started = self.finished = time.perf_counter()


class Queue:
    """How many images were accepted and are not answered yet, over all versions, and the threads for them."""

    def __init__(self, settings: Settings):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.cores = settings.threads or cores
        self.decoders = settings.decoders or cores + 1
        self.pool = ThreadPoolExecutor(self.decoders + self.cores, thread_name_prefix="worker")
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

    classifier: runs on all cores.
    load_one_core: the same model on one thread, asked for when it is first needed.
    observe: called in a worker with each batch's number of images and its seconds.
    """

    def __init__(
        self,
        classifier: Classifier,
        load_one_core: Callable[[], Classifier],
        queue: Queue,
        settings: Settings,
        observe: Callable[[int, float], Any],
    ):
        self.classifier, self.queue, self.observe = classifier, queue, observe
        self.max_batch, self.max_pixels = batch_limit(classifier, settings), settings.max_pixels
        self._load_one_core: Callable[[], Classifier] | None = load_one_core if queue.cores > 1 else None
        self._one_core: Classifier | None = None
        self._lock = threading.Lock()  # guards all of the following, but for what comes into _ready
        self._undecoded: deque[Job] = deque()
        self._large = 0  # of the undecoded ones and of those that are being decoded
        self._decoders = 0  # at work
        self._ready: deque[Job] = deque()
        self._idle = queue.cores

    def submit(self, data: bytes | np.ndarray) -> Job:
        job = Job(data, asyncio.get_running_loop().create_future())
        self.queue.waiting += 1
        job.future.add_done_callback(self.queue.answered)
        with self._lock:
            self._undecoded.append(job)
            self._large += not job.small
            # Small files are decoded by one thread: almost all of that is Python, which several only hinder.
            needed = self._decoders < (self.queue.decoders if self._large else 1)
            self._decoders += needed
        if needed:
            self.queue.pool.submit(self._work)
        return job

    def _work(self) -> None:
        """Decodes until nothing waits; then, or once the model could have begun, runs it if it is idle."""
        begin = time.perf_counter()
        while True:
            with self._lock:
                if not self._undecoded:
                    self._decoders -= 1
                    break
                job = self._undecoded.popleft()
            self._decode(job)
            if not job.small:
                with self._lock:
                    self._large -= 1
            enough = len(self._ready) >= self.max_batch or time.perf_counter() - begin > PATIENCE
            if enough and self._idle:
                self.queue.pool.submit(self._work)  # another one goes on decoding
                break
        self._answer()

    def _answer(self) -> None:
        """Runs batches until nothing is ready, or no core is idle."""
        while batch := self._take():
            classifier, cores, jobs = batch
            try:
                if self._idle and self._ready:
                    self.queue.pool.submit(self._answer)
                self._run(classifier, cores, jobs)
            finally:
                with self._lock:
                    self._idle += cores

    def _take(self) -> tuple[Classifier, int, list[Job]] | None:
        """What can begin now: images, what answers them, and how many cores that occupies."""
        with self._lock:
            much = len(self._ready) + len(self._undecoded) > self.max_batch
            if much and self._load_one_core:
                self.queue.pool.submit(self._get_one_core, self._load_one_core)
                self._load_one_core = None
            if self._one_core and self._idle and (much or self._idle < self.queue.cores):
                classifier, cores, most = self._one_core, 1, -(-self.max_batch // self.queue.cores)
            elif self._idle == self.queue.cores:
                classifier, cores, most = self.classifier, self.queue.cores, self.max_batch
            else:
                return None
            jobs: list[Job] = []
            while self._ready and len(jobs) < most:
                job = self._ready.popleft()
                if not job.future.cancelled():
                    jobs.append(job)
            if not jobs:
                return None
            self._idle -= cores
            return classifier, cores, jobs

    def _get_one_core(self, load: Callable[[], Classifier]) -> None:
        try:
            self._one_core = load()
        except Exception as error:  # its files may have changed since they were loaded first
            log.warning("every batch goes on having all cores: %s", error)

    def _decode(self, job: Job) -> None:
        if job.future.cancelled():
            return
        try:
            if isinstance(job.data, bytes):
                job.image = self.classifier.preprocess(job.data, self.max_pixels)
            else:
                job.image = job.data
        except Exception as error:  # an ImageError, or a defect, which the request must hear of too
            job.decoded = job.started = job.finished = time.perf_counter()
            settle_soon([job], error)
            return
        job.decoded = time.perf_counter()
        self._ready.append(job)

    def _run(self, classifier: Classifier, cores: int, jobs: list[Job]) -> None:
        started = time.perf_counter()
        outcome: np.ndarray | Exception
        try:
            outcome = classifier.probabilities(np.stack([job.image for job in jobs]))  # type: ignore[misc]
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            outcome = error
        finished = time.perf_counter()
        for job in jobs:
            job.started, job.finished = started, finished
        seconds = (finished - started) * cores / self.queue.cores / len(jobs)
        self.queue.seconds_per_image += 0.1 * (seconds - self.queue.seconds_per_image)
        self.observe(len(jobs), finished - started)
        settle_soon(jobs, outcome)


def settle_soon(jobs: list[Job], outcome: np.ndarray | Exception) -> None:
    """From a worker, in the event loop that waits for them."""
    jobs[0].future.get_loop().call_soon_threadsafe(settle, jobs, outcome)


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
