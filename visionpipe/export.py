"""Stage `export`: a trained model to the artifact that is evaluated and served."""

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionpipe.backend import start_backend
from visionpipe.canonical import canonical_onnx
from visionpipe.config import Params
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.errors import ArtifactError
from visionpipe.files import write_bytes, write_json
from visionpipe.serving.classifier import Classifier

if TYPE_CHECKING:
    import keras

PARITY_IMAGES = 64


def export(name: str, params: Params) -> None:
    """Writes `artifacts/NAME/`: model.onnx, labels.json, preprocessing.json, parity.json.

    Runs the TensorFlow backend whatever backend trained: its export is exact for all families.
    """
    params.model(name)
    start_backend(params, backend="tensorflow")
    import keras

    import visionpipe.models.attention
    import visionpipe.models.layers  # noqa: F401  (both register the layers that the file names)

    data = open_prepared(PREPARED, verify=False)
    folder = Path("artifacts") / name
    model = keras.models.load_model(Path("models") / name / "model.keras")
    images = data.images("validation")[:PARITY_IMAGES]
    expected = np.asarray(model(images.astype(np.float32)))  # Keras exports only what was called once
    write_bytes(folder / "model.onnx", onnx_bytes(model, params.export.opset))
    write_json(folder / "labels.json", data.classes)
    write_json(folder / "preprocessing.json", {"size": list(params.prepare.size)})

    received = Classifier(folder).logits(images)
    difference = float(np.abs(received - expected).max() / np.abs(expected).max())
    same = bool((received.argmax(1) == expected.argmax(1)).all())
    parity = {"images": len(images), "relative_logit_difference": difference, "same_answers": same}
    write_json(folder / "parity.json", parity)
    if not difference <= params.export.max_logit_difference:  # NaN must not pass either
        raise ArtifactError(
            f"{name}: ONNX logits differ from Keras by {difference:.2g} of the largest, more than "
            f"export.max_logit_difference {params.export.max_logit_difference:g}"
        )
    size = (folder / "model.onnx").stat().st_size / 2**20
    print(f"{name}: exported, {size:.1f} MiB, logits within {difference:.1g} of Keras's")


def onnx_bytes(model: "keras.Model", opset: int) -> bytes:
    """The same bytes for the same model in every process; the batch is dynamic."""
    import onnx

    from visionpipe.models.kernels import keras_operations_only

    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        raw = Path(temporary) / "model.onnx"
        warnings.simplefilter("ignore", FutureWarning)  # Keras asks NumPy 2 for np.object while exporting
        with keras_operations_only():
            model.export(raw, format="onnx", opset_version=opset, verbose=False)
        return canonical_onnx(onnx.load(raw), "images", "logits")
