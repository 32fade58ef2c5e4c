"""`visionpipe.open_project` and `visionpipe.load`."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from linear_models import make_params, write_model, write_params_file
from PIL import Image
from servers import picture

import visionpipe
from visionpipe.artifact.classifier import Classifier
from visionpipe.errors import ArtifactError, ConfigError, ImageError, RegistryError, VisionpipeError
from visionpipe.stages.register import register


def test_importing_visionpipe_imports_nothing_else():
    script = (
        "import sys; before = set(sys.modules); import visionpipe; visionpipe.__version__; "
        "print(sorted(set(sys.modules) - before - {'visionpipe'}))"
    )
    imported = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert not {"numpy", "keras", "yaml", "PIL", "visionpipe.api"} & set(eval(imported))
    with pytest.raises(AttributeError, match="no attribute 'opn_project'"):
        _ = visionpipe.opn_project


@pytest.fixture(scope="module")
def predictor(artifact):
    return visionpipe.load(artifact)


def answers(classifier: Classifier, data: bytes) -> list[float]:
    return classifier.probabilities(classifier.preprocess(data)[None])[0].tolist()


def test_a_path_a_pil_image_and_an_array_get_one_answer(predictor, classifier, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(picture())
    image = Image.open(file)
    expected = answers(classifier, picture())
    for what in (file, str(file), image, np.asarray(image)):
        prediction = predictor.predict(what, top_k=len(predictor.labels))
        assert dict(prediction.top) == dict(zip(classifier.labels, expected, strict=True))
        assert (prediction.label, prediction.probability) == prediction.top[0]
        assert prediction.probability == max(expected)
        assert [p for _, p in prediction.top] == sorted(expected, reverse=True)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_a_pil_image_of_any_mode_is_read_as_its_file_would_be(predictor, classifier, mode):
    image = Image.open(io.BytesIO(picture())).convert(mode)
    file = io.BytesIO()
    (image.convert("RGB") if mode == "CMYK" else image).save(file, "PNG")
    top = dict(predictor.predict(image, top_k=9).top)
    assert top == dict(zip(classifier.labels, answers(classifier, file.getvalue()), strict=True))


def test_a_pil_image_that_a_camera_turned_is_upright(predictor, classifier):
    image = Image.open(io.BytesIO(picture()))
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, quality=100, subsampling=0)
    turned = Image.open(io.BytesIO(file.getvalue()))
    upright = predictor.predict(np.asarray(turned.transpose(Image.Transpose.ROTATE_270)), top_k=9)
    assert predictor.predict(turned, top_k=9) == upright


def test_several_images_get_a_list_in_their_order(predictor):
    random = np.random.default_rng(0)
    batch = random.integers(0, 256, (70, *predictor.classifier.size, 3), np.uint8)
    predictions = predictor.predict(batch)
    assert predictions == [predictor.predict(image) for image in batch]
    assert predictor.predict(list(batch[:3])) == predictions[:3]
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (np.zeros((8, 8, 3), np.float32), "expected uint8"),
        (np.zeros((8, 8, 2), np.uint8), "expected uint8"),
        (Path("missing.png"), "missing.png cannot be read"),
        (3, "expected a path, a PIL image or a uint8 array"),
    ],
)
def test_what_is_no_image_is_refused_by_name(predictor, what, reason):
    with pytest.raises(ImageError, match=reason):
        predictor.predict(what)
    with pytest.raises(ConfigError, match="top_k"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8), top_k=0)


def test_a_project_has_parameters_results_and_models(in_workspace, workspace, tmp_path_factory, monkeypatch):
    params = make_params("api", ["api-one", "api-two", "api-three"])
    for name, mistaken in (("api-one", 0), ("api-two", 3)):
        write_model(name, params, mistaken)
    write_params_file(params)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    project = visionpipe.open_project(workspace / "models" / "api-one")
    assert project.path == workspace
    assert project.params.tracking.model == "api"
    table = project.results()
    assert list(table.index) == ["api-one", "api-two"]
    assert table.validation_accuracy["api-one"] > table.validation_accuracy["api-two"]
    assert 0 <= table.test_accuracy_low["api-one"] <= table.test_accuracy["api-one"] <= 1
    with pytest.raises(ArtifactError, match=r"models/api-three/model.keras is missing"):
        project.model("api-three")
    with pytest.raises(ConfigError, match=r"no model 'api-oen'.*did you mean 'api-one'"):
        project.model("api-oen")
    with pytest.raises(RegistryError, match=r"no tracking store|no alias champion"):
        project.load("models:/api@champion")
    assert Path.cwd() == elsewhere


def test_a_registered_model_answers_with_its_version(in_workspace, workspace, monkeypatch):
    params = make_params("api-registered", ["api-registered"])
    write_model("api-registered", params)
    register(params)
    write_params_file(params)
    project = visionpipe.open_project(workspace)
    predictor = project.load()
    assert (predictor.name, predictor.version) == ("api-registered", "1")
    image = np.zeros((8, 8, 3), np.uint8)
    exported = visionpipe.load(workspace / "artifacts" / "api-registered")
    assert predictor.predict(image) == exported.predict(image)


def test_outside_a_project_one_is_told_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="is in no visionpipe project: make one with visionpipe init"):
        visionpipe.open_project(tmp_path)


def test_run_shows_what_dvc_says_and_raises_where_dvc_fails(project, capfd):
    project.change("prepare.path", "data/missing.zip")
    opened = visionpipe.open_project(project.root)
    with pytest.raises(VisionpipeError, match="dvc repro prepare has failed"):
        opened.run("prepare")
    assert "data/missing.zip" in capfd.readouterr().out
    project.change("prepare.path", "data/tiny.zip")
    opened.run("prepare")
    assert "prepared 200 of 200 files" in capfd.readouterr().out
    assert len(opened.results()) == 0
