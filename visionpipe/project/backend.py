"""Chooses the Keras backend, its threads and its device before anything imports Keras."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from visionpipe.errors import BackendError
from visionpipe.project.params import Params

PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}


def thread_count(params: Params) -> int:
    """Returns `threads` of params.yaml, or the number of physical cores if it is null."""
    return params.threads or psutil.cpu_count(logical=False) or os.cpu_count() or 1


def check_backend(params: Params) -> None:
    """Raises BackendError if the backend is not installed, or if KERAS_BACKEND names another one."""
    wanted, given = params.backend, os.environ.get("KERAS_BACKEND")
    if given and given != wanted:
        raise BackendError(
            f"KERAS_BACKEND={given} contradicts backend: {wanted} in params.yaml: unset KERAS_BACKEND, "
            f"or change params.yaml (dvc exp run -S backend={given})"
        )
    if importlib.util.find_spec(PACKAGES[wanted]) is None:
        raise BackendError(f"backend {wanted} is not installed: run pip install 'visionpipe[{wanted}]'")


def choose_backend(backend: str) -> None:
    """Sets what Keras reads when it is imported.

    Raises:
        BackendError: Keras already runs on another backend.
    """
    if "keras" in sys.modules and sys.modules["keras"].backend.backend() != backend:
        raise BackendError(f"Keras is already running on another backend than {backend}: start a new process")
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def start_backend(params: Params, backend: str | None = None) -> None:
    """Starts Keras on `backend` (by default that of params.yaml), fixes the number of threads, seeds every generator.

    The fixed number of threads makes two runs on one machine equal to the bit.

    Raises:
        BackendError: the backend is not installed, KERAS_BACKEND names another one, or Keras already runs on another.
    """
    check_backend(params)
    backend, threads = backend or params.backend, thread_count(params)
    choose_backend(backend)
    os.environ["OMP_NUM_THREADS"] = os.environ["NPROC"] = str(threads)  # NPROC: XLA's CPU thread pool
    with quiet_native_logs():
        import keras

        start_tensorflow(threads, owns_device=backend == "tensorflow")
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    keras.utils.set_random_seed(params.seed)


@contextmanager
def quiet_native_logs() -> Iterator[None]:
    """Hides what C++ code writes to stderr during the `with` block; shows it if the block fails.

    TensorFlow prints ten lines at import that no log level suppresses.
    """
    with tempfile.TemporaryFile() as captured:
        stderr = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(stderr, captured.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def start_tensorflow(threads: int, owns_device: bool) -> None:
    """Sets TensorFlow's threads, and hides the GPU from it if another backend trains.

    TensorFlow makes the batches on every backend.
    """
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    if not owns_device:
        tf.config.set_visible_devices([], "GPU")
    elif tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


def device_name() -> str:
    """Returns the name of the device that the running backend computes on: `CPU`, or the name of the GPU."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        gpus: list[Any] = tf.config.list_physical_devices("GPU")
        return (
            str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))
            if gpus
            else "CPU"
        )
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        return "CPU" if device.platform == "cpu" else str(device.device_kind)
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
