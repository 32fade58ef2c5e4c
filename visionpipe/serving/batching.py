"""Runs waiting images in batches, and never lets an image wait while the model is idle.

Worker threads decode images. A worker that has decoded an image while the model is idle runs the model on all images
that are ready. A worker that has decoded an image while the model is busy decodes the next one. So an idle server
adds no delay, and under load the batches grow to the size that the model's speed requires.

While one batch holds all waiting images, all cores work on it. When more images wait, each core runs separate batches
until no image waits. Then a core that is delayed by decoding, or by another process, does not delay the other cores.
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
from visionpipe.serving.settings import GATHER_SECONDS, SMALL_FILE, Settings

log = logging.getLogger("visionpipe")


class Job:
    """One image that waits for its answer.

    data: the bytes of a file, or the model's input (height, width, channels): uint16, or uint8
        or float32 in [0, 255].
    future: gets the probabilities, float64 (classes,), or an exception, such as ImageError.
    submitted, decoded, started, finished: times of `time.perf_counter`, in seconds.
    """

    __slots__ = ("data", "decoded", "finished", "future", "image", "small", "started", "submitted")

    def __init__(self, data: bytes | np.ndarray, future: "asyncio.Future[np.ndarray]"):
        self.data, self.future = data, future
        self.small = not isinstance(data, bytes) or len(data) <= SMALL_FILE
        self.image: np.ndarray | None = None
        self.submitted = self.decoded = self.started = self.finished = time.perf_counter()


class Queue:
    """Counts the images of all versions that wait for an answer, and holds the worker threads."""

    def __init__(self, settings: Settings):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.cores = settings.threads or cores
        self.decoders = settings.decoders or cores + 1
        self.pool = ThreadPoolExecutor(self.decoders + self.cores, thread_name_prefix="worker")
        self.limit = settings.max_queue
        self.waiting = 0
        self.seconds_per_image = 0.0  # moving average of recent batches

    def answered(self, future: "asyncio.Future[Any]") -> None:
        """Counts an image as answered; the done-callback of the futures that are counted in `waiting`."""
        self.waiting -= 1
        if not future.cancelled():
            future.exception()  # marks it as retrieved, or asyncio would log it for a request that was given up

    def retry_after(self) -> int:
        """Estimates the seconds until the waiting images are answered, at least one."""
        return max(1, round(self.waiting * self.seconds_per_image + 0.5))


class Batcher:
    """Answers images with one classifier. `submit` must be called in the event loop's thread.

    classifier: uses all cores.
    load_one_core: loads the same model with one thread; called when that is first needed.
    observe: called in a worker thread with the number of images and the seconds of each batch.
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
        self._lock = threading.Lock()  # guards the following attributes, except appending to _ready
        self._undecoded: deque[Job] = deque()
        self._large = 0  # large files among the undecoded ones and those being decoded
        self._decoders = 0  # threads that are decoding
        self._ready: deque[Job] = deque()
        self._idle = queue.cores

    def submit(self, data: bytes | np.ndarray) -> Job:
        """Queues an image, and starts a worker if needed."""
        job = Job(data, asyncio.get_running_loop().create_future())
        self.queue.waiting += 1
        job.future.add_done_callback(self.queue.answered)
        with self._lock:
            self._undecoded.append(job)
            self._large += not job.small
            # One thread decodes small files: that is almost only Python code, which more threads do not speed up.
            needed = self._decoders < (self.queue.decoders if self._large else 1)
            self._decoders += needed
        if needed:
            self.queue.pool.submit(self._work)
        return job

    def _work(self) -> None:
        """Decodes images, then runs the model.

        Decoding ends when no image waits, or when an idle model has a full batch or has waited GATHER_SECONDS.
        """
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
            enough = len(self._ready) >= self.max_batch or time.perf_counter() - begin > GATHER_SECONDS
            if enough and self._idle:
                self.queue.pool.submit(self._work)  # another worker continues decoding
                break
        self._answer()

    def _answer(self) -> None:
        """Runs batches until no image is ready or no core is idle."""
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
        """Returns the next batch: classifier, number of cores and jobs; None if no batch can start."""
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
        except Exception as error:  # the files may have changed since the model was loaded first
            log.warning("every batch uses all cores, because the model cannot be loaded again: %s", error)

    def _decode(self, job: Job) -> None:
        if job.future.cancelled():
            return
        try:
            if isinstance(job.data, bytes):
                job.image = self.classifier.preprocess(job.data, self.max_pixels)
            else:
                job.image = job.data
        except Exception as error:  # an ImageError, or a bug, which must end the request too
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
    """Settles jobs in the event loop that waits for them; called in a worker thread."""
    jobs[0].future.get_loop().call_soon_threadsafe(settle, jobs, outcome)


def settle(jobs: list[Job], outcome: np.ndarray | Exception) -> None:
    """Sets the result of each job to its row of `outcome`, or to the exception."""
    for index, job in enumerate(jobs):
        if job.future.done():
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome[index])


def batch_limit(classifier: Classifier, settings: Settings) -> int:
    """Measures how many images the model runs in about `batch_seconds`; returns at most `max_batch`.

    Larger batches are faster per image, but the next request waits longer.
    """
    blank = classifier.noise(1)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        classifier.logits(blank)
        times.append(time.perf_counter() - start)
    return max(1, min(settings.max_batch, int(settings.batch_seconds / min(times))))
