"""Quantizes an exported model to int8: statically, per channel, calibrated on training images.

Weights become int8 with one scale per output channel. Activations become uint8 with one scale per tensor, which is
computed by running the fp32 model on the calibration images (Jacob et al. 2018, arXiv:1712.05877).
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionpipe.artifact.canonical import canonical_onnx
from visionpipe.artifact.classifier import BATCH
from visionpipe.data.form import model_input

CALIBRATION_IMAGES = 256
LEAST_SPEEDUP = 1.3  # int8 over fp32; below it `auto` chooses fp32
MOST_LOSS = 0.005  # of validation accuracy; above it `auto` chooses fp32
PRODUCTS = ("Conv", "Gemm", "MatMul")  # the operations that take most of the time; all others stay fp32


@dataclass(frozen=True)
class Decision:
    """The choice between fp32 and int8, with the validation accuracies, in [0, 1], and speeds that decide it."""

    requested: str  # "int8" or "auto"
    accuracy_fp32: float
    accuracy_int8: float
    images_per_second_fp32: float
    images_per_second_int8: float

    @property
    def speedup(self) -> float:
        return self.images_per_second_int8 / self.images_per_second_fp32

    @property
    def loss(self) -> float:
        return self.accuracy_fp32 - self.accuracy_int8

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        worthwhile = self.speedup >= LEAST_SPEEDUP and self.loss <= MOST_LOSS
        return "int8" if self.requested == "int8" or worthwhile else "fp32"

    def __str__(self) -> str:
        return (
            f"{self.precision}; int8 is {self.speedup:.2f} times as fast as fp32, with validation accuracy "
            f"{self.accuracy_int8:.4f} against {self.accuracy_fp32:.4f}"
        )

    def accuracies(self) -> dict[str, Any]:
        """Returns precision and accuracies for the artifact's `parity.json`. Speeds would differ from run to run."""
        accuracies = {"fp32": self.accuracy_fp32, "int8": self.accuracy_int8}
        return {"precision": self.precision, "validation_accuracy": accuracies}

    def measured(self) -> dict[str, Any]:
        """Returns precision, accuracies and speeds for MLflow and the model card."""
        return asdict(self) | {"precision": self.precision, "speedup": round(self.speedup, 3)}


def decision_path(artifact_sha256: str, state: Path) -> Path:
    """Returns the path of the numbers that decided the precision. Only the machine that exported has the file."""
    return state / "measurements" / f"precision-{artifact_sha256}.json"


def quantize(model: bytes, images: np.ndarray) -> bytes:
    """Quantizes the products of a serialised ONNX model to int8; returns the new model, serialised.

    The model has the outputs `logits` and `probabilities`, as that of an artifact.

    The same model and images always give the same bytes. Some products of transformers stay fp32: see
    `products_left_in_fp32`.

    images: uint8 or uint16 (n, height, width, channels), training images for the calibration, about
        CALIBRATION_IMAGES of them.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(np.array_split(images, max(1, len(images) // BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": model_input(batch)}

    with tempfile.TemporaryDirectory() as temporary:
        raw, folded, int8 = (Path(temporary) / f"{name}.onnx" for name in ("raw", "folded", "int8"))
        raw.write_bytes(model)
        # Folds each batch norm into its convolution, whose result would otherwise be rounded twice.
        quant_pre_process(str(raw), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded),
            str(int8),
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=products_left_in_fp32(onnx.load(folded).graph),
            per_channel=True,
            # Weights of seven bits: without VNNI, processors sum two 8-bit products in 16 bits, which saturates.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return canonical_onnx(onnx.load(int8), "images", "logits", "probabilities")


def products_left_in_fp32(graph: Any) -> list[str]:
    """Returns the names of the products that are not worth quantizing. Only graphs with attention have such products.

    Products of two activations stay fp32, because int8 does not make them faster. The first and the last product stay
    fp32, because they lose too much accuracy: the residual stream of a transformer is not normalised between the patch
    embedding and its end. docs/inside/decisions.md has the numbers.
    """
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    attention = [node.name for node in products if not constants & set(node.input[:2])]
    return [*attention, products[0].name, products[-1].name] if attention else []


def calibration_images(images: np.ndarray) -> np.ndarray:
    """Selects CALIBRATION_IMAGES of the training images, evenly spaced, because they may be sorted by class."""
    return np.asarray(images[:: max(1, len(images) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES])
