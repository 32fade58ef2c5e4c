"""The ONNX file with the resizing inside gives the pixels of `frame`, and answers like the classifier."""

import io
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_models import write_artifact
from PIL import Image

from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.digest import WITH_PREPROCESSING, artifact_files, artifact_sha256
from visionpipe.artifact.preprocessing import Graph, resized, with_preprocessing
from visionpipe.artifact.versions import Version, load
from visionpipe.data.frame import RESAMPLING, frame
from visionpipe.errors import ArtifactError

SHAPES = [
    (60, 80),
    (24, 20),
    (200, 31),
    (31, 200),
    (300, 45),
    (9, 7),
    (1, 1),
]  # larger and smaller than the size
SIZE = (24, 20)


def session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def photo(height: int, width: int) -> np.ndarray:
    """Smooth areas with noise on them, and hard edges."""
    random = np.random.default_rng(height)
    coarse = random.integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    smooth[height // 3 : height // 2] = 255 * (np.arange(width)[:, None] % 5 > 2)
    return np.clip(smooth + random.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("framing", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("crop_ratio", [1.0, 0.85])
def test_no_pixel_differs_by_more_than_a_level(framing, interpolation, crop_ratio):
    options = {
        "interpolation": interpolation,
        "crop_ratio": crop_ratio,
        "framing": framing,
        "pad_color": (9, 114, 255),
    }
    graph = Graph()
    result = resized(graph, "image", SIZE, **options)
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])]
    outputs = [helper.make_tensor_value_info(result, TensorProto.FLOAT, [1, *SIZE, 3])]
    made = helper.make_graph(graph.nodes, "resizing", inputs, outputs, graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    run = session(model.SerializeToString()).run
    different, levels = 0, 0
    for shape in SHAPES:
        for image in (
            photo(*shape),
            255 * np.random.default_rng(1).integers(0, 2, (*shape, 3), dtype=np.uint8),
        ):
            received = run(None, {"image": image})[0][0]
            difference = np.abs(received - frame(image, SIZE, **options))
            assert difference.max() <= 1
            different += np.count_nonzero(difference)
            levels += difference.size
    assert different <= 0.02 * levels
    assert different == 0 or interpolation != "nearest"


def test_onnx_s_own_resize_gives_other_pixels():
    """The reason for matrices: Resize is not within a level of Pillow."""
    image = photo(300, 400)
    options = {"mode": "cubic", "cubic_coeff_a": -0.5, "antialias": 1}
    nodes = [helper.make_node("Resize", ["images", "", "", "size"], ["resized"], **options)]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, "height", "width"])]
    outputs = [helper.make_tensor_value_info("resized", TensorProto.UINT8, None)]
    size = helper.make_tensor("size", TensorProto.INT64, [4], [1, 3, 64, 64])
    made = helper.make_graph(nodes, "resize", inputs, outputs, [size])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    planes = image.transpose(2, 0, 1)[None]
    received = session(model.SerializeToString()).run(None, {"images": planes})[0][0].transpose(1, 2, 0)
    assert np.abs(received.astype(int) - frame(image, (64, 64), framing="stretch")).max() > 1


@pytest.mark.parametrize("framing", ["crop", "pad", "stretch"])
def test_it_answers_like_the_classifier_on_pictures_of_any_size(tmp_path, framing):
    weights = np.random.default_rng(0).normal(0, 0.001, (24 * 20 * 3, 3))
    folder = write_artifact(tmp_path, ["a", "b", "c"], SIZE, weights)
    options = {"size": SIZE, "framing": framing}
    (folder / "preprocessing.json").write_text(json.dumps(options))
    classifier = Classifier(folder)
    model = with_preprocessing((folder / "model.onnx").read_bytes(), classifier.framing)
    assert model == with_preprocessing((folder / "model.onnx").read_bytes(), classifier.framing)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    run = session(model).run
    for shape in SHAPES:
        image = photo(*shape)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        expected = classifier.probabilities(classifier.preprocess(file.getvalue())[None])[0]
        received = run(["probabilities"], {"image": image})[0]
        assert received.shape == (3,)
        np.testing.assert_allclose(received, expected, atol=2e-3)
        assert received.sum() == pytest.approx(1)


def test_the_checksum_of_the_artifact_covers_it(tmp_path):
    folder = write_artifact(tmp_path / "artifact", ["a", "b"], SIZE)
    without = artifact_sha256(folder)
    (folder / WITH_PREPROCESSING).write_bytes(
        with_preprocessing((folder / "model.onnx").read_bytes(), Classifier(folder).framing)
    )
    expected = artifact_sha256(folder)
    assert expected != without
    assert WITH_PREPROCESSING in artifact_files(folder)
    version = Version("name", "1", folder, {"artifact_sha256": expected})
    assert load(version).labels == ["a", "b"]
    (folder / WITH_PREPROCESSING).write_bytes(b"other")
    with pytest.raises(ArtifactError, match="is damaged"):
        load(version)
