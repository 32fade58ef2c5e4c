"""Tests which images run together, and on how many cores. A stand-in for the model answers with an image's number."""

import asyncio
import threading
import time
from typing import ClassVar

import numpy as np
import pytest

from visionpipe.errors import ArtifactError
from visionpipe.serving.batching import Batcher, Queue
from visionpipe.serving.settings import SMALL_FILE, Settings

SETTINGS = Settings(threads=2, decoders=3, max_batch=8, batch_seconds=1000)
IMAGES = 100


class Model:
    """A model that answers slowly, and records which models run at the same time."""

    size = (1, 1)
    running: ClassVar[list["Model"]] = []
    together: ClassVar[list[list["Model"]]] = []
    lock = threading.Lock()

    def __init__(self, broken=False):
        self.batches: list[int] = []
        self.broken = broken
        self.may_decode, self.may_answer = threading.Event(), threading.Event()
        self.may_decode.set()
        self.may_answer.set()

    def logits(self, images):
        return np.zeros((len(images), 2))

    def noise(self, count):
        return np.zeros((count, *self.size, 3), np.uint8)

    def preprocess(self, data, max_pixels):
        if b"slow" in data:
            self.may_decode.wait(60)
        return image(data[0])

    def probabilities(self, images):
        with Model.lock:
            self.batches.append(len(images))
            Model.running.append(self)
            Model.together.append(list(Model.running))
        time.sleep(0.005)
        self.may_answer.wait(60)
        with Model.lock:
            Model.running.remove(self)
        if self.broken:
            raise RuntimeError("no memory")
        return images[:, 0, 0].astype(np.float64)


@pytest.fixture(autouse=True)
def nobody_runs():
    Model.running.clear()
    Model.together.clear()


def image(number):
    return np.full((1, 1, 3), number, np.uint8)


def answers(batcher, count, pause=0.0, as_bytes=False):
    """Returns the answers to `count` images, submitted at once, or each `pause` seconds after the previous answer."""

    async def ask():
        jobs = []
        for number in range(count):
            jobs.append(batcher.submit(bytes([number]) if as_bytes else image(number)))
            if pause:
                await asyncio.wait([jobs[-1].future])
                await asyncio.sleep(pause)
        return await asyncio.gather(*(job.future for job in jobs), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(ask(), 60))


def make(all_cores, load_one_core):
    observed: list[int] = []
    return Batcher(
        all_cores, load_one_core, Queue(SETTINGS), SETTINGS, lambda images, _: observed.append(images)
    ), observed


def test_an_image_alone_has_all_cores():
    all_cores, loads = Model(), []
    batcher, observed = make(all_cores, lambda: loads.append(1))
    assert [row[0] for row in answers(batcher, 5, pause=0.01)] == [0, 1, 2, 3, 4]
    assert (all_cores.batches, observed, loads) == ([1] * 5, [1] * 5, [])


@pytest.mark.parametrize("as_bytes", [False, True])
def test_more_images_than_a_batch_run_in_separate_batches_on_each_core(as_bytes):
    all_cores, one_core, loads = Model(), Model(), []
    batcher, observed = make(all_cores, lambda: loads.append(1) or one_core)
    for _ in range(2):  # the model for one core is loaded during the first iteration
        assert [row[0] for row in answers(batcher, IMAGES, as_bytes=as_bytes)] == list(range(IMAGES))
    assert loads == [1]
    assert sum(all_cores.batches + one_core.batches) == sum(observed) == 2 * IMAGES
    assert sum(one_core.batches) > IMAGES / 2
    assert max(one_core.batches) == SETTINGS.max_batch // SETTINGS.threads
    assert [one_core, one_core] in Model.together
    for running in Model.together:
        assert len(running) <= SETTINGS.threads
        assert all_cores not in running or len(running) == 1


def test_all_batches_use_all_cores_if_the_model_cannot_be_loaded_again(caplog):
    def refuse():
        raise ArtifactError("the file is missing")

    all_cores = Model()
    batcher, _ = make(all_cores, refuse)
    for _ in range(2):
        assert [row[0] for row in answers(batcher, IMAGES)] == list(range(IMAGES))
    assert max(all_cores.batches) == SETTINGS.max_batch
    assert max(len(running) for running in Model.together) == 1
    warning = "every batch uses all cores, because the model cannot be loaded again: the file is missing"
    assert caplog.text.count(warning) == 1


def test_a_run_that_fails_gives_its_cores_back():
    all_cores, one_core = Model(broken=True), Model(broken=True)
    batcher, _ = make(all_cores, lambda: one_core)
    for _ in range(2):
        assert {str(error) for error in answers(batcher, IMAGES)} == {"no memory"}
    all_cores.broken = one_core.broken = False
    assert [row[0] for row in answers(batcher, IMAGES)] == list(range(IMAGES))
    assert [one_core, one_core] in Model.together


def test_an_image_that_nobody_waits_for_is_not_run():
    model = Model()
    batcher, _ = make(model, Model)

    async def ask():
        model.may_answer.clear()
        first = batcher.submit(image(0))
        while not model.batches:
            await asyncio.sleep(0.001)
        given_up, last = batcher.submit(image(1)), batcher.submit(image(2))
        given_up.future.cancel()
        model.may_answer.set()
        return await asyncio.gather(first.future, last.future)

    assert [row[0] for row in asyncio.run(ask())] == [0, 2]
    assert sum(model.batches) == 2


def test_a_small_file_does_not_wait_for_a_large_one_to_be_decoded():
    model = Model()
    batcher, _ = make(model, Model)

    async def ask():
        model.may_decode.clear()
        large = batcher.submit(bytes([1]) + b"slow" + bytes(SMALL_FILE))
        small = batcher.submit(bytes([2]))
        try:
            await asyncio.wait_for(small.future, 10)
        finally:
            model.may_decode.set()
        await large.future

    asyncio.run(ask())
