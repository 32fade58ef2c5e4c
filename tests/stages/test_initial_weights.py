"""`models.NAME.init` through the real pipeline: what a training starts from, what it says, what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import pytest
from npz_layout import google
from repository import CHECKOUT, CLASSES, NEEDS, Project, environment, tracked

import visionpipe.models.attention
import visionpipe.models.layers  # noqa: F401  (both register the layers of model.keras)
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.files import sha256_file
from visionpipe.project.lineage import train_key
from visionpipe.project.params import load_params
from visionpipe.stages.training_plan import resolve_training
from visionpipe.weights import resolve

pytestmark = pytest.mark.slow

SHAPE = {"width": 16, "depth": 2, "heads": 2, "mlp": 32, "patch": 4, "class_token": False}
OVERRIDES = {"hidden_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "activation": "gelu_tanh"}
TENSORS = google(**SHAPE, grid=(4, 4), classes=len(CLASSES))
STILL = {"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0, "ema_decay": None}  # ends where it starts
ONE_STEP = {
    "steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, "warmup": 0.0,
    "schedule": "constant", "ema_decay": None, "augmentation": [],
}  # fmt: skip
FROZEN = {  # the second epoch, with all layers, has a rate of 0
    "epochs": 2, "freeze": [{"epochs": 1, "train": ["logits"]}], "weight_decay": 0.0, "ema_decay": None,
    "schedule": "step", "decay_at": ["1 epoch"], "decay_factor": 0.0,
}  # fmt: skip


def entry(train=STILL, **more):
    vit = {"needs": NEEDS, "variant": "ViT-Mi/4", "overrides": OVERRIDES, "init": "x.npz", "train": train}
    return vit | more


ENTRIES = {
    "start": entry(),
    "follower": entry(needs="models/start/model.keras", init="start"),
    "own-pixels": entry(pixel_mean=[1.0, 2.0, 3.0], pixel_std=[50.0, 60.0, 70.0]),
    "frozen": entry(FROZEN),
    "even": entry(ONE_STEP, init_head="load"),
    "decayed": entry(ONE_STEP | {"layer_decay": 0.5}, init_head="load"),
}

# Gives one command after the other in one process, because its start takes longest.
COMMANDS = """
import json, sys
from visionpipe.cli import main
for arguments in json.loads(sys.argv[1]):
    print("exit", main(arguments), flush=True)
    for stream in (sys.stdout, sys.stderr):
        print("----", file=stream, flush=True)
"""


@dataclass(frozen=True)
class Said:
    code: int
    output: str
    error: str


def commands(project, *arguments, **variables):
    result = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(arguments)],
        cwd=project.root, env=environment() | {"PYTHONPATH": str(CHECKOUT)} | variables,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    outputs, errors = (stream.split("----\n")[:-1] for stream in (result.stdout, result.stderr))
    return [
        Said(int(re.search(r"^exit (\d)$", output, re.M)[1]), output, error)
        for output, error in zip(outputs, errors, strict=True)
    ]


def write_entries(project, entries):
    params = project.params()
    project.write_params(params | {"models": entries})


@pytest.fixture(scope="module")
def trained(pristine, tmp_path_factory):
    """A repository with every one of ENTRIES trained, `start` exported, and what the trainings said."""
    project = Project(tmp_path_factory.mktemp("init") / "project")
    shutil.copytree(pristine.root, project.root)
    np.savez(project.root / "x.npz", **TENSORS)
    pinned = ENTRIES["frozen"] | {"init_sha256": sha256_file(project.root / "x.npz")[:8]}
    write_entries(project, ENTRIES | {"frozen": pinned})
    params = project.params()
    params["prepare"] |= {"interpolation": "bicubic", "crop_ratio": 0.75}
    project.write_params(params)
    said = commands(project, ["prepare"], *(["train", name] for name in ENTRIES), ["export", "start"])
    for one in said:
        assert one.code == 0, one.error
    return project, dict(zip(ENTRIES, said[1:-1], strict=True))


def weights(project, name):
    model = keras.models.load_model(project.root / "models" / name / "model.keras")
    return {variable.path: np.asarray(variable) for variable in model.variables}


def lineage(project, name):
    return json.loads((project.root / "models" / name / "lineage.json").read_text())


# What a training starts from ---------------------------------------------------------------------------


def test_a_training_starts_from_the_tensors_of_the_file_with_a_head_of_zeros(trained):
    project, said = trained
    found = weights(project, "start")
    assert np.abs(found.pop("logits/kernel")).max() < 1e-9
    assert np.abs(found.pop("logits/bias")).max() < 1e-9
    positions = TENSORS["Transformer/posembed_input/pos_embedding"].reshape(4, 4, 16)
    corners = positions[::3, ::3].reshape(1, 4, 16)  # of a linear resize to 2×2
    np.testing.assert_allclose(found.pop("tokens/position_embedding"), corners, atol=1e-6)
    np.testing.assert_array_equal(found["patch_embedding/kernel"], TENSORS["embedding/kernel"])
    stored = {array.tobytes() for name, array in TENSORS.items() if "query" not in name}
    same = [path for path, array in found.items() if array.tobytes() in stored]
    assert len(same) == len(found) - 2 * OVERRIDES["depth"], (
        "all but query, key and value, which are put together"
    )
    assert "head: zeros, as requested" in said["start"].output
    assert "resized: tokens/position_embedding, 4×4 → 2×2, linear" in said["start"].output


def test_the_sha256_of_the_file_is_in_the_key_and_the_lineage(trained, monkeypatch):
    project, _ = trained
    found = lineage(project, "start")
    assert found["init_sha256"] == sha256_file(project.root / "x.npz")
    assert found["params"]["model"]["init"] == "x.npz"
    monkeypatch.chdir(project.root)
    params, data = load_params(), open_prepared(PREPARED)
    identity = resolve_training("start", params, data).identity
    assert train_key(identity) == found["train_key"]
    np.savez("other.npz", **google(**SHAPE, grid=(4, 4), classes=len(CLASSES), seed=1))
    model = replace(params.model("start"), init="other.npz")
    other = resolve_training("start", replace(params, models={"start": model}), data).identity
    assert other["init_sha256"] == sha256_file(Path("other.npz"))
    assert train_key(identity | {"init_sha256": other["init_sha256"]}) != train_key(identity)
    (run,) = [run for run in tracked(project.root / "mlflow.db").runs if run.data.tags["model"] == "start"]
    assert run.data.tags["train_key"] == found["train_key"]
    assert run.data.tags["init_sha256"] == found["init_sha256"]


def test_another_entrys_model_is_started_from(trained):
    project, said = trained
    file = project.root / "models" / "start" / "model.keras"
    assert lineage(project, "follower")["init_sha256"] == sha256_file(file)
    assert "models/start/model.keras: visionpipe .keras, sha256" in said["follower"].output
    before, after = weights(project, "start"), weights(project, "follower")
    for path in before.keys() - {"logits/kernel", "logits/bias"}:
        np.testing.assert_allclose(after[path], before[path], atol=1e-9)


def test_in_a_frozen_phase_only_the_head_leaves_the_weights_of_the_file(trained):
    project, _ = trained
    before, after = weights(project, "start"), weights(project, "frozen")
    assert np.abs(after["logits/kernel"]).max() > 0.01
    for path in before.keys() - {"logits/kernel", "logits/bias"}:
        np.testing.assert_allclose(after[path], before[path], atol=1e-9)


def test_with_layer_decay_each_block_leaves_the_weights_of_the_file_half_as_far_as_the_next(trained):
    project, said = trained
    assert f"head: loaded, {len(CLASSES)} classes" in said["decayed"].output
    before = weights(project, "start") | {
        "logits/kernel": TENSORS["head/kernel"], "logits/bias": TENSORS["head/bias"]
    }  # fmt: skip
    even, decayed = weights(project, "even"), weights(project, "decayed")
    for path, factor in (
        ("logits/kernel", 1),
        ("encoder_block_01_mlp_expand/kernel", 1 / 2),
        ("encoder_block_00_mlp_expand/kernel", 1 / 4),
        ("patch_embedding/kernel", 1 / 8),
    ):
        moved = even[path] - before[path]
        assert np.abs(moved).max() > 1e-3, path
        difference = np.abs(decayed[path] - before[path] - factor * moved).max()
        assert difference < 1e-2 * factor * np.abs(moved).max(), path


# Preprocessing -----------------------------------------------------------------------------------------


def test_the_normalisation_of_the_checkpoint_is_in_the_model_and_said(trained):
    project, said = trained
    found = resolve(project.root / "models" / "start" / "model.keras").preprocessing
    np.testing.assert_allclose(found.mean, (127.5,) * 3, rtol=1e-6)
    np.testing.assert_allclose(found.std, (127.5,) * 3, rtol=1e-6)
    assert "pixel_mean: [127.5, 127.5, 127.5], from the checkpoint" in said["start"].output
    assert lineage(project, "start")["init_preprocessing"]["mean"] == [127.5] * 3


def test_a_normalisation_that_is_written_wins_and_that_is_said(trained):
    project, said = trained
    found = resolve(project.root / "models" / "own-pixels" / "model.keras").preprocessing
    np.testing.assert_allclose(found.mean, (1, 2, 3), rtol=1e-6)
    np.testing.assert_allclose(found.std, (50, 60, 70), rtol=1e-6)
    output = said["own-pixels"].output
    assert "different: pixel_mean [127.5, 127.5, 127.5], the model has [1, 2, 3]" in output
    assert "pixel_std: [50, 60, 70], from params.yaml" in output
    assert lineage(project, "own-pixels")["params"]["model"]["pixel_std"] == [50, 60, 70]


def test_a_checkpoint_whose_images_were_resized_otherwise_is_told(trained):
    """google's were resized bilinearly and not cropped; what was prepared goes into the artifact."""
    project, said = trained
    assert (
        "prepare.interpolation: bicubic, but the checkpoint was trained with bilinear" in said["start"].output
    )
    assert "prepare.crop_ratio: 0.75, but the checkpoint was trained with 1" in said["start"].output
    assert "prepare." not in said["follower"].output
    exported = json.loads((project.root / "artifacts" / "start" / "preprocessing.json").read_text())
    assert exported == {"size": [8, 8], "interpolation": "bicubic", "crop_ratio": 0.75}


def test_how_the_images_of_an_own_model_were_resized_is_in_the_lineage_beside_it(trained, tmp_path):
    project, _ = trained
    file = project.root / "models" / "start" / "model.keras"
    found = resolve(file).preprocessing
    assert (found.size, found.interpolation, found.crop_ratio) == ((8, 8), "bicubic", 0.75)
    assert lineage(project, "follower")["init_preprocessing"]["crop_ratio"] == 0.75
    shutil.copy(file.with_name("lineage.json"), tmp_path)
    shutil.copy(file.parents[1] / "even" / "model.keras", tmp_path)
    found = resolve(tmp_path / "model.keras").preprocessing
    assert (found.size, found.crop_ratio) == ((8, 8), None), "that lineage is of another model"


# What is refused ---------------------------------------------------------------------------------------


def write_bad_files(root):
    np.savez(root / "x.npz", **TENSORS)
    content = (root / "x.npz").read_bytes()
    (root / "truncated.npz").write_bytes(content[: len(content) // 2])
    with tarfile.open(root / "archive.npz", "w") as archive:
        archive.add(root / "x.npz", "x.npz")
    (root / "pickle.npz").write_bytes(b"\x80\x04cos\nsystem\n(S'touch exploded'\ntR.")
    misshapen = TENSORS | {"Transformer/encoder_norm/scale": np.ones(15, np.float32)}
    np.savez(root / "misshapen.npz", **misshapen)
    nan = TENSORS | {"Transformer/encoder_norm/scale": np.full(16, np.nan, np.float32)}
    np.savez(root / "nan.npz", **nan)
    np.savez(root / "deeper.npz", **google(**(SHAPE | {"depth": 3})))


BAD = [
    ({"init": "truncated.npz"}, "truncated.npz is damaged: "),
    ({"init_sha256": "00ff"}, ", expected 00ff: another file, or a damaged one"),
    ({"init": "archive.npz"}, "archive.npz is a tar archive: unpack it first"),
    ({"init": "pickle.npz"}, "pickle.npz is a pickle that contains more than tensors, which is never loaded"),
    ({"init": "misshapen.npz"}, "scale has shape (15,), for encoder_norm/gamma of shape (16,)"),
    ({"init": "nan.npz"}, "Transformer/encoder_norm/scale has 16 entries that are NaN or infinite"),
    (
        {"init": "deeper.npz"},
        "16 of its tensors have no place in the model, the first is Transformer/encoderblock_2/",
    ),
    ({"overrides": OVERRIDES | {"activation": "gelu"}}, "build it with overrides: {activation: gelu_tanh}"),
    ({"variant": "ResNet-8", "overrides": {}}, "not of this model: "),
    ({"init": "http://127.0.0.1:9/x.npz"}, "http://127.0.0.1:9/x.npz cannot be downloaded: "),
    ({"init": "none.npz"}, "none.npz: no such file; other sources are URLs"),
    ({"init": "models:/visionpipe@nobody"}, "models:/visionpipe@nobody is not in sqlite:"),
]


def test_what_cannot_be_started_from_is_one_line_and_changes_nothing(trained, tmp_path):
    project, _ = trained
    write_bad_files(project.root)
    entries = {f"bad{number}": entry(**changes) for number, (changes, _) in enumerate(BAD)}
    write_entries(project, ENTRIES | entries)
    for name in entries:
        shutil.copytree(project.root / "models" / "start", project.root / "models" / name)
    before, runs = model_files(project), len(tracked(project.root / "mlflow.db").runs)
    cache = tmp_path / "cache"
    arguments = [["train", name] for name in entries]
    results = commands(project, *arguments, VISIONPIPE_CACHE=str(cache))
    for (changes, message), said in zip(BAD, results, strict=True):
        assert said.code == 1, changes
        (line,) = said.error.splitlines()
        assert line.startswith("visionpipe: ")
        assert message in line
    assert model_files(project) == before
    assert len(tracked(project.root / "mlflow.db").runs) == runs
    assert not list((project.root / ".visionpipe" / "checkpoints").glob("*/*"))
    assert not list((project.root / ".visionpipe" / "identities").glob("bad*"))
    assert not (project.root / "exploded").exists()
    assert not [file for file in cache.rglob("*") if file.is_file() and file.name != ".lock"]


def model_files(project):
    return {str(path): sha256_file(path) for path in (project.root / "models").rglob("*") if path.is_file()}


# In the order of what they need ------------------------------------------------------------------------


@pytest.mark.slow
def test_a_changed_model_is_trained_again_before_the_one_that_starts_from_it(project):
    first = {"needs": NEEDS, "variant": "ResNet-8", "overrides": {"filters": 4}, "train": {}}
    second = first | {"needs": "models/zero/model.keras", "init": "zero", "train": {"preset": "finetune"}}
    both = first | {"needs": "data/both.needs", "init": "zero", "train": {"distill": {"teacher": "another"}}}
    write_entries(project, {"both": both, "another": second, "zero": first})
    project.change("needs", {"both": ["models/zero/model.keras", "models/another/model.keras"]})
    trained = ["train@zero", "train@another", "needs@both", "train@both"]
    assert project.repro("train") == ["prepare", *trained]
    before = lineage(project, "another")["init_sha256"]
    assert project.repro("train") == []
    project.change("models.zero.train", {"epochs": 2})
    assert project.repro("train") == trained
    after = lineage(project, "another")["init_sha256"]
    assert after == sha256_file(project.root / "models" / "zero" / "model.keras") != before
