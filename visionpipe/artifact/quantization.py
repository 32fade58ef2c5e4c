"""int8 for an exported model: static, per channel, calibrated on training images.

Weights become int8 with a scale for each output channel, activations uint8 with one scale for each tensor,
found by running the fp32 model on the calibration images (Jacob et al. 2018, arXiv:1712.05877).
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionpipe.artifact.canonical import canonical_onnx
from visionpipe.artifact.classifier import BATCH, Classifier

CALIBRATION_IMAGES = 256
LEAST_SPEEDUP = 1.3  # for `auto` to keep int8
MOST_LOSS = 0.005  # of the validation accuracy, for `auto` to keep int8
PRODUCTS = ("Conv", "Gemm", "MatMul")  # where the time goes; the rest stays fp32


@dataclass(frozen=True)
class Decision:
    """Validation accuracies are in [0, 1], speeds in images per second."""

    requested: str  # int8 | auto
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
        kept = self.speedup >= LEAST_SPEEDUP and self.loss <= MOST_LOSS
        return "int8" if self.requested == "int8" or kept else "fp32"

    def __str__(self) -> str:
        return (
            f"{self.precision}; int8 is {self.speedup:.2f} times as fast as fp32, with validation accuracy "
            f"{self.accuracy_int8:.4f} against {self.accuracy_fp32:.4f}"
        )

    def accuracies(self) -> dict[str, Any]:
        """What is the same in every run: for the artifact's own files."""
        accuracies = {"fp32": self.accuracy_fp32, "int8": self.accuracy_int8}
        return {"precision": self.precision, "validation_accuracy": accuracies}

    def measured(self) -> dict[str, Any]:
        """Everything, for MLflow and the model card."""
        return asdict(self) | {"precision": self.precision, "speedup": round(self.speedup, 3)}


def decision_path(artifact_sha256: str, state: Path) -> Path:
    """Where the numbers lie that an artifact was chosen by, on the machine that exported it."""
    return state / "measurements" / f"precision-{artifact_sha256}.json"


def quantize(model: bytes, images: np.ndarray) -> bytes:
    """The ONNX model with its products in int8: the same bytes for the same model and images.

    images: uint8 (n, height, width, 3), what the model was trained on; n is CALIBRATION_IMAGES or so.

    Some layers of transformers stay fp32, see `kept_in_fp32`.
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
            return None if batch is None else {"images": batch.astype(np.float32)}

    with tempfile.TemporaryDirectory() as temporary:
        raw, folded, int8 = (Path(temporary) / f"{name}.onnx" for name in ("raw", "folded", "int8"))
        raw.write_bytes(model)
        # Folds batch norms into the convolutions, which otherwise would be rounded twice.
        quant_pre_process(str(raw), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded),
            str(int8),
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_exclude=kept_in_fp32(onnx.load(folded).graph),
            per_channel=True,
            # Weights of seven bits: on processors without VNNI the sum of two products of eight saturates.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return canonical_onnx(onnx.load(int8), "images", "logits")


def kept_in_fp32(graph: Any) -> list[str]:
    """Names of the products that would cost more accuracy than they gain speed; none in a pure ResNet.

    Where there are products of two activations, as in attention, these stay fp32 (they gain nothing), and so
    do the first and the last product: the residual stream of a transformer has no normalisation between the
    patch embedding and its end. docs/inside/decisions.md has the numbers.
    """
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in PRODUCTS]
    attention = [node.name for node in products if not constants & set(node.input[:2])]
    return [*attention, products[0].name, products[-1].name] if attention else []


def calibration_images(images: np.ndarray) -> np.ndarray:
    """CALIBRATION_IMAGES of the training images, evenly spread, as they may be sorted by class."""
    return np.asarray(images[:: max(1, len(images) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES])


def accuracy(classifier: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    starts = range(0, len(images), BATCH)  # all logits at once would be images times classes
    right = [classifier.logits(images[i : i + BATCH]).argmax(axis=1) == labels[i : i + BATCH] for i in starts]
    return float(np.concatenate(right).mean())
