"""What an import reports, resizes and refuses. Exactness is in test_weights_exact.py."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import gzip
import pickle
import shutil
import tarfile
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import scipy.ndimage
import torch
from npz_layout import big_vision, google
from torch.nn import functional

from visionpipe.artifact.canonical import save_keras
from visionpipe.cli import main
from visionpipe.errors import WeightsError
from visionpipe.models import build_model
from visionpipe.models.known import KNOWN, table
from visionpipe.models.positions import resize_positions
from visionpipe.weights import Preprocessing, load_weights, resolve

ENCODER = {"patch_size": 8, "hidden_dim": 64, "depth": 2, "num_heads": 4, "mlp_dim": 96}
GOOGLE = {"activation": "gelu_tanh", **ENCODER}


def vit(classes=7, size=32, **more):
    keras.utils.set_random_seed(0)
    return build_model("ViT-B/16", classes, size, **(GOOGLE | more))


def write(tmp_path, tensors, name="x.npz"):
    np.savez(tmp_path / name, **tensors)
    return tmp_path / name


def refused(model, source, *parts, **arguments):
    """The import is refused with one line that has these parts, and the model is what it was."""
    before = model.get_weights()
    with pytest.raises(WeightsError) as caught:
        load_weights(model, source, **arguments)
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, line
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return line


# Other channels ----------------------------------------------------------------------------------------

EQUAL = {"pixel_mean": (120.0,) * 3, "pixel_std": (60.0,) * 3}


def test_weights_for_rgb_answer_a_grey_model_as_they_answered_grey_rgb(tmp_path):
    stored = vit(**EQUAL)
    save_keras(stored, tmp_path / "rgb.keras")
    grey = vit(channels=1, pixel_mean=(120.0,), pixel_std=(60.0,))
    report = load_weights(grey, tmp_path / "rgb.keras")
    assert "patch_embedding/kernel, 3 → 1 input channel, summed" in str(report)
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 1)).astype(np.float32)
    expected = stored.predict(np.repeat(images, 3, axis=3), verbose=0)
    np.testing.assert_allclose(grey.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-5)


def test_weights_for_rgb_are_repeated_for_more_channels_as_in_timm(tmp_path):
    stored = vit(pixel_mean=(100.0, 120.0, 140.0), pixel_std=(60.0, 70.0, 80.0))
    save_keras(stored, tmp_path / "rgb.keras")
    mean, std = (100.0, 120.0, 140.0, 100.0, 120.0), (60.0, 70.0, 80.0, 60.0, 70.0)
    five = vit(channels=5, pixel_mean=mean, pixel_std=std)
    assert "3 → 5 input channels, repeated in turn and scaled by 3/5" in str(
        load_weights(five, tmp_path / "rgb.keras")
    )
    kernel = torch.tensor(keras.ops.convert_to_numpy(stored.get_layer("patch_embedding").kernel)).permute(
        3, 2, 0, 1
    )
    adapted = kernel.repeat(1, 2, 1, 1)[:, :5] * (3 / 5)  # timm's adapt_input_conv
    received = keras.ops.convert_to_numpy(five.get_layer("patch_embedding").kernel)
    np.testing.assert_allclose(received, adapted.permute(2, 3, 1, 0).numpy(), rtol=1e-6)


def test_the_normalisation_of_other_channels_must_be_the_fitted_one(tmp_path):
    save_keras(vit(pixel_mean=(100.0, 120.0, 140.0), pixel_std=(60.0, 70.0, 80.0)), tmp_path / "rgb.keras")
    load_weights(vit(channels=1, pixel_mean=(120.0,), pixel_std=(70.0,)), tmp_path / "rgb.keras")
    refused(vit(channels=1), tmp_path / "rgb.keras", "pixel_mean [120], the model has [127.5]")


# The report --------------------------------------------------------------------------------------------


def test_the_report_accounts_for_every_tensor_and_every_weight(tmp_path):
    tensors, model = google(), vit()
    report = load_weights(model, write(tmp_path, tensors))
    used = [name for names in report.used.values() for name in names]
    assert sorted(used) == sorted(tensors)
    assert report.used.keys() == {variable.path for variable in model.variables}
    assert (report.unused, report.missing, report.resized, report.differences) == ({}, (), {}, ())
    assert report.format == "google-research .npz"
    assert report.head == "loaded, 7 classes"
    assert report.preprocessing == Preprocessing((127.5,) * 3, (127.5,) * 3, "bilinear", 1.0)
    assert report.used["encoder_block_01_attention/query_key_value/kernel"] == tuple(
        f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/{part}/kernel"
        for part in ("query", "key", "value")
    )
    assert "google-research .npz, sha256 " in str(report)
    assert f"used: {len(tensors)} tensors in {len(report.used)} weights" in str(report)


def test_a_head_of_other_classes_becomes_zeros_and_is_in_the_report(tmp_path):
    model = vit(classes=5)
    report = load_weights(model, write(tmp_path, google()))
    assert report.head == "zeros: the checkpoint has 7 classes, the model 5"
    assert report.unused == dict.fromkeys(["head/kernel", "head/bias"], "head of other classes")
    assert set(report.missing) == set()
    assert not np.asarray(model.get_layer("logits").kernel).any()
    assert not np.asarray(model(np.ones((1, 32, 32, 3), np.float32))).any()


def test_a_head_of_the_same_number_of_other_classes_can_be_left_out(tmp_path):
    model = vit()
    report = load_weights(model, write(tmp_path, google()), head="zero")
    assert report.head == "zeros, as requested"
    assert not np.asarray(model.get_layer("logits").kernel).any()


def test_a_checkpoint_without_head_leaves_one_of_zeros(tmp_path):
    tensors = {name: x for name, x in google().items() if not name.startswith("head")}
    report = load_weights(vit(), write(tmp_path, tensors))
    assert report.head == "zeros: the checkpoint has none"
    assert set(report.missing) == {"logits/kernel", "logits/bias"}


def test_what_the_file_does_not_say_is_named(tmp_path):
    model = build_model("ViT-B/16", 7, 32, **ENCODER)
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(timm_vit(), file)
    report = load_weights(model, file)
    assert report.preprocessing is None
    assert report.assumed[:2] == ("pixel_mean [127.5, 127.5, 127.5]", "pixel_std [127.5, 127.5, 127.5]")
    assert "num_heads 4" in report.assumed


def timm_vit():
    """google's random checkpoint in timm's naming."""
    tensors, out = google(), {}
    for block in range(2):
        theirs, ours = f"Transformer/encoderblock_{block}", f"blocks.{block}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        parts = [tensors[f"{attention}/{part}/kernel"] for part in ("query", "key", "value")]
        out[f"{ours}.attn.qkv.weight"] = np.concatenate([part.reshape(64, 64).T for part in parts])
        biases = [tensors[f"{attention}/{part}/bias"] for part in ("query", "key", "value")]
        out[f"{ours}.attn.qkv.bias"] = np.concatenate([bias.ravel() for bias in biases])
        out[f"{ours}.attn.proj.weight"] = tensors[f"{attention}/out/kernel"].reshape(64, 64).T
        out[f"{ours}.attn.proj.bias"] = tensors[f"{attention}/out/bias"]
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{ours}.{norm}.weight"] = tensors[f"{theirs}/{name}/scale"]
            out[f"{ours}.{norm}.bias"] = tensors[f"{theirs}/{name}/bias"]
        for number in (0, 1):
            out[f"{ours}.mlp.fc{number + 1}.weight"] = tensors[f"{theirs}/MlpBlock_3/Dense_{number}/kernel"].T
            out[f"{ours}.mlp.fc{number + 1}.bias"] = tensors[f"{theirs}/MlpBlock_3/Dense_{number}/bias"]
    out["patch_embed.proj.weight"] = tensors["embedding/kernel"].transpose(3, 2, 0, 1)
    out["patch_embed.proj.bias"] = tensors["embedding/bias"]
    out["cls_token"] = tensors["cls"]
    out["pos_embed"] = tensors["Transformer/posembed_input/pos_embedding"]
    out["norm.weight"] = tensors["Transformer/encoder_norm/scale"]
    out["norm.bias"] = tensors["Transformer/encoder_norm/bias"]
    out["head.weight"], out["head.bias"] = tensors["head/kernel"].T, tensors["head/bias"]
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def test_one_checkpoint_in_two_formats_gives_one_model(tmp_path):
    one, other = vit(), vit()
    load_weights(one, write(tmp_path, google()))
    safetensors.numpy.save_file(timm_vit(), tmp_path / "model.safetensors")
    report = load_weights(other, tmp_path / "model.safetensors", strict=False)
    assert report.differences == ("activation gelu, the model has gelu_tanh",)
    for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_files_are_read_through_the_weights_only_reader(tmp_path, legacy):
    tensors = timm_vit()
    state = {f"module.{name}": torch.from_numpy(array) for name, array in tensors.items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    model = build_model("ViT-B/16", 7, 32, **ENCODER)
    report = load_weights(model, tmp_path / "x.pth")
    assert report.format == "timm ViT"
    np.testing.assert_array_equal(model.get_layer("logits").kernel, tensors["head.weight"].T)


def test_half_precision_of_numpy_files_becomes_single(tmp_path):
    tensors, model = google(), vit()
    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    load_weights(model, write(tmp_path, halves))
    expected = halves["head/kernel"].astype(np.float32)
    np.testing.assert_array_equal(model.get_layer("logits").kernel, expected)
    load_weights(model, write(tmp_path, {name: array.astype(np.float16) for name, array in tensors.items()}))
    np.testing.assert_allclose(model.get_layer("logits").kernel, expected, atol=1e-2)


def test_half_precision_becomes_single(tmp_path):
    from safetensors.torch import save_file

    tensors = {name: torch.from_numpy(array).bfloat16() for name, array in timm_vit().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    model = build_model("ViT-B/16", 7, 32, **ENCODER)
    load_weights(model, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(model.get_layer("logits").kernel, tensors["head.weight"].float().numpy().T)


# Positions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (2, 3), (4, 4)])
def test_positions_are_resized_as_the_original_codes_do(size):
    grid = np.random.default_rng(0).normal(size=(4, 4, 6)).astype(np.float32)
    image = torch.from_numpy(grid.transpose(2, 0, 1)[None])
    for method, antialias in (("bicubic", False), ("bicubic, antialiased", True)):
        expected = functional.interpolate(image, size, mode="bicubic", antialias=antialias)[0]
        np.testing.assert_allclose(
            resize_positions(grid, size, method), expected.numpy().transpose(1, 2, 0), atol=2e-6
        )
    zoomed = scipy.ndimage.zoom(grid, (size[0] / 4, size[1] / 4, 1), order=1)
    np.testing.assert_allclose(resize_positions(grid, size, "linear"), zoomed, atol=1e-6)


def test_a_model_of_another_grid_gets_resized_positions_and_the_same_class_token(tmp_path):
    size = (48, 24)
    tensors, model = google(), vit(size=size)
    report = load_weights(model, write(tmp_path, tensors))
    grid = tuple(side // 8 for side in size)
    old = tensors["Transformer/posembed_input/pos_embedding"][0]
    new = np.asarray(model.get_layer("tokens").position_embedding)[0]
    np.testing.assert_array_equal(new[0], old[0])
    expected = resize_positions(old[1:].reshape(4, 4, 64), grid, "linear").reshape(-1, 64)
    np.testing.assert_allclose(new[1:], expected, atol=1e-6)
    assert report.resized == {"tokens/position_embedding": f"4×4 → {grid[0]}×{grid[1]}, linear"}


def test_a_grid_that_is_no_square_is_told(tmp_path):
    file = write(tmp_path, google(grid=(2, 8)))
    report = load_weights(vit(), file, grid=(2, 8))
    assert report.resized == {"tokens/position_embedding": "2×8 → 4×4, linear"}
    wide = vit(size=(16, 64))
    assert load_weights(wide, file).resized == {}, (
        "17 positions fit its grid of 2×8: they are taken as they are"
    )
    assert load_weights(wide, file, grid=(4, 4)).resized == {"tokens/position_embedding": "4×4 → 2×8, linear"}
    refused(vit(), write(tmp_path, google(grid=(3, 5))), "has 16 positions", "give grid=(rows, columns)")


def test_positions_that_have_none_for_the_class_token_leave_it_without(tmp_path):
    tensors, model = big_vision(class_token=True), vit()
    load_weights(model, write(tmp_path, tensors))
    positions = np.asarray(model.get_layer("tokens").position_embedding)[0]
    assert not positions[0].any()
    np.testing.assert_array_equal(positions[1:], tensors["params/pos_embedding"][0])


# Our own models ----------------------------------------------------------------------------------------


def test_a_trained_model_is_a_checkpoint_too(tmp_path):
    model = vit()
    load_weights(model, write(tmp_path, google()))
    save_keras(model, tmp_path / "model.keras")
    other = vit(classes=3, size=(48, 32))
    report = load_weights(other, tmp_path / "model.keras")
    assert report.format == "visionpipe .keras"
    assert report.head == "zeros: the checkpoint has 7 classes, the model 3"
    assert list(report.resized) == ["tokens/position_embedding"]
    np.testing.assert_array_equal(
        other.get_layer("patch_embedding").kernel, model.get_layer("patch_embedding").kernel
    )
    again = vit()
    load_weights(again, tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(again(images), model(images))


def test_the_normalisation_of_a_trained_model_is_known_without_keras(tmp_path):
    model = build_model("ResNet-8", 3, 16, pixel_mean=(10.0, 20.0, 30.0), pixel_std=(40.0, 50.0, 60.0))
    save_keras(model, tmp_path / "model.keras")
    found = resolve(tmp_path / "model.keras").preprocessing
    np.testing.assert_allclose(found.mean, (10, 20, 30), rtol=1e-6)
    np.testing.assert_allclose(found.std, (40, 50, 60), rtol=1e-6)
    assert found.size == (16, 16)
    refused(build_model("ResNet-8", 3, 16), tmp_path / "model.keras", "pixel_mean [10, 20, 30]")


# Refusals ----------------------------------------------------------------------------------------------


def test_options_that_the_weights_were_not_trained_with_are_refused_with_the_ones_to_set(tmp_path):
    file = write(tmp_path, google())
    model = build_model("ViT-B/16", 7, 32, **ENCODER, layer_norm_epsilon=1e-3)
    refused(
        model, file, "activation gelu_tanh, the model has gelu",
        "build it with overrides: {activation: gelu_tanh, layer_norm_epsilon: 1.0e-6}",
    )  # fmt: skip
    model = vit(pixel_mean=(123.675, 116.28, 103.53))
    refused(model, file, "build it with pixel_mean=[127.5, 127.5, 127.5]")
    report = load_weights(model, file, strict=False)
    assert report.differences == (
        "pixel_mean [127.5, 127.5, 127.5], the model has [123.675, 116.28, 103.53]",
    )
    refused(vit(num_heads=8), file, "num_heads 4, the model has 8")


def test_options_that_may_differ_are_named_in_the_report_and_the_others_refused(tmp_path):
    file = write(tmp_path, google())
    pixels = {"pixel_mean": (123.675, 116.28, 103.53)}
    report = load_weights(vit(**pixels), file, permitted=pixels)
    assert report.differences == (
        "pixel_mean [127.5, 127.5, 127.5], the model has [123.675, 116.28, 103.53]",
    )
    model = vit(**pixels, activation="gelu")
    line = refused(model, file, "build it with overrides: {activation: gelu_tanh}", permitted=pixels)
    assert "pixel_mean" not in line


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ({"padding": "same"}, "padding: symmetric"),
        ({"stride_on": "1x1"}, "stride_on: 3x3"),
        ({"norm_epsilon": 1e-3}, "norm_epsilon: 1.0e-5"),
        ({"shortcut": "pool"}, "shortcut: projection"),
    ],
)
def test_a_resnet_of_other_numerics_is_refused(tmp_path, option, advice):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(torch_resnet(), file)
    options = {"padding": "symmetric", "filters": 8, "blocks_per_stage": (1, 1)}
    report = load_weights(build_model("ResNet-50", 7, 32, **options), file)
    assert report.unused == {"bn1.num_batches_tracked": "no weight"}
    refused(build_model("ResNet-50", 7, 32, **(options | option)), file, advice)


def torch_resnet():
    """Two bottlenecks in torchvision's naming."""
    random = np.random.default_rng(0)
    tensors = {"bn1.num_batches_tracked": np.array(3)}

    def conv(name, norm, inputs, outputs, side):
        tensors[f"{name}.weight"] = random.normal(size=(outputs, inputs, side, side)).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = random.uniform(0.5, 1, outputs).astype(np.float32)

    conv("conv1", "bn1", 3, 8, 7)
    for stage, inputs, inner in ((1, 8, 8), (2, 32, 16)):
        name = f"layer{stage}.0"
        conv(f"{name}.conv1", f"{name}.bn1", inputs, inner, 1)
        conv(f"{name}.conv2", f"{name}.bn2", inner, inner, 3)
        conv(f"{name}.conv3", f"{name}.bn3", inner, 4 * inner, 1)
        conv(f"{name}.downsample.0", f"{name}.downsample.1", inputs, 4 * inner, 1)
    tensors["fc.weight"] = random.normal(size=(7, 64)).astype(np.float32)
    tensors["fc.bias"] = random.normal(size=7).astype(np.float32)
    return tensors


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path):
    tensors = google()
    tensors["Transformer/encoder_norm/scale"] = np.ones(63, np.float32)
    refused(
        vit(), write(tmp_path, tensors),
        "Transformer/encoder_norm/scale has shape (63,), for encoder_norm/gamma of shape (64,)",
    )  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, value):
    tensors = google()
    tensors["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"][2, 3] = value
    refused(
        vit(), write(tmp_path, tensors), "encoderblock_1/MlpBlock_3/Dense_0/kernel has 1 entries that are"
    )


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    file = write(tmp_path, google())
    refused(
        build_model("ResNet-18", 7, 64, filters=8), file,
        "a google-research .npz checkpoint, but not of this model:", "weights of the model, the first is",
    )  # fmt: skip
    refused(vit(depth=3), file, "it lacks 12 weights of the model", "encoderblock_2")
    refused(
        vit(depth=1),
        file,
        "16 of its tensors have no place in the model, the first is Transformer/encoderblock_1/",
    )
    refused(vit(pool="gap"), file, "has 17 positions", "(it needs pool: token)")
    file = write(tmp_path, google(pre_logits=24))
    refused(vit(), file, "shape", "24")
    refused(vit(hidden_dim=32), file, "have another shape")


def test_a_distilled_checkpoint_needs_a_model_with_its_token(tmp_path):
    tensors = timm_vit()
    tensors |= {"dist_token": tensors["cls_token"], "head_dist.weight": tensors["head.weight"]}
    tensors["head_dist.bias"] = tensors["head.bias"]
    tensors["pos_embed"] = np.concatenate([tensors["pos_embed"][:, :1], tensors["pos_embed"]], axis=1)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    model = build_model("ViT-B/16", 7, 32, **ENCODER)
    refused(model, tmp_path / "model.safetensors", "18 positions", "it needs distillation_token: true")


def test_an_unknown_naming_is_refused_with_what_was_found_and_expected(tmp_path):
    file = write(tmp_path, {"encoder/layer_0/w": np.ones(3), "encoder/layer_0/b": np.ones(3)})
    refused(vit(), file, "has 2 tensors (encoder/layer_0/w, ", "expected", "google-research .npz", "timm ViT")


def pickled(path):
    class Bomb:
        def __reduce__(self):
            return (os.system, (f"touch {path.with_name('exploded')}",))

    return pickle.dumps({"head.weight": Bomb()})


def disguises(tmp_path):
    """Files that are no weights under the names of some: name, content, what is said."""
    source = tmp_path / "source.txt"
    source.write_text("x")
    with zipfile.ZipFile(tmp_path / "archive.npz", "w") as archive:
        archive.write(source, "photo.txt")
    with tarfile.open(tmp_path / "archive.pth", "w") as archive:
        archive.add(source)
    (tmp_path / "packed.npz").write_bytes(gzip.compress(b"x" * 600))
    (tmp_path / "pickle.npz").write_bytes(pickled(tmp_path / "pickle.npz"))
    (tmp_path / "pickle.pth").write_bytes(pickled(tmp_path / "pickle.pth"))
    torch.save({"x": pickled}, tmp_path / "code.pth", pickle_protocol=2)
    np.savez(tmp_path / "objects.npz", **{"embedding/kernel": np.array([{"a": 1}], dtype=object)})
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>")
    (tmp_path / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    (tmp_path / "empty.npz").touch()
    (tmp_path / "noise.bin").write_bytes(bytes(range(1, 200)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("archive.npz", "is a zip archive of photo.txt …, not of weights: unpack it first"),
        ("archive.pth", "is a tar archive: unpack it first"),
        ("packed.npz", "is a gzip archive: unpack it first"),
        ("pickle.npz", "is a pickle that contains more than tensors, which is never loaded"),
        ("pickle.pth", "is a pickle that contains more than tensors, which is never loaded"),
        ("code.pth", "is a pickle that contains more than tensors, which is never loaded"),
        ("objects.npz", "embedding/kernel is a pickled object, which is never loaded"),
        ("page.safetensors", "is a web page"),
        ("pointer.safetensors", "is a Git LFS pointer"),
        ("empty.npz", "is an empty file"),
        ("noise.bin", "is an unknown kind of file, beginning 01 02 03 04"),
        ("none.npz", "no such file; other sources are URLs, hf:REPO"),
    ],
)
def test_what_is_no_weights_file_is_told_apart_and_never_unpickled(tmp_path, name, message):
    disguises(tmp_path)
    refused(vit(), tmp_path / name, message)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth", "h5", "keras", "preset"])
@pytest.mark.parametrize("part", [0.5, 0.98])
def test_a_truncated_file_is_refused(tmp_path, kind, part):
    model = vit()
    file = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(file, **google())
    elif kind == "safetensors":
        safetensors.numpy.save_file(timm_vit(), file)
    elif kind == "pth":
        torch.save({name: torch.from_numpy(array) for name, array in timm_vit().items()}, file)
    elif kind == "keras":
        save_keras(model, file)
    else:
        model.save_weights(tmp_path / "whole.weights.h5")
        file = tmp_path / "preset" / "model.weights.h5" if kind == "preset" else file
        file.parent.mkdir(exist_ok=True)
        shutil.move(tmp_path / "whole.weights.h5", file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * part)])
    refused(model, file.parent if kind == "preset" else file)


def test_a_file_with_another_sha256_is_refused(tmp_path):
    file = write(tmp_path, google())
    found = resolve(file).sha256
    assert load_weights(vit(), file, sha256=found[:8]).sha256 == found
    refused(vit(), file, f"has sha256 {found}, expected 00ff", sha256="00ff")


def test_a_broken_companion_is_named(tmp_path):
    safetensors.numpy.save_file(timm_vit(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    refused(vit(), tmp_path / "model.safetensors", "config.json is not valid JSON")


def test_a_companion_that_is_not_understood_is_named(tmp_path):
    safetensors.numpy.save_file(timm_vit(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"mean": "half", "std": [1, 1, 1]}')
    refused(vit(), tmp_path / "model.safetensors", "config.json cannot be understood")


@pytest.mark.parametrize("kind", ["external", "soft", "storage"])
def test_a_link_out_of_the_file_is_not_followed(tmp_path, kind):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones(3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["layer_names"] = ["conv1_conv"]
        group = file.create_group("conv1_conv")
        if kind == "storage":
            group.create_dataset("kernel", (3,), "f8", external=[(str(secret), 0, 24)])
        else:
            link = h5py.ExternalLink(str(secret), "x") if kind == "external" else h5py.SoftLink("/elsewhere")
            group["kernel"] = link
    refused(vit(), tmp_path / "x.h5", "kernel is a link out of the file, which is never followed")


# What is published -------------------------------------------------------------------------------------


def test_every_known_checkpoint_can_be_built_and_is_in_the_table():
    from visionpipe.models.variants import resolve_variant

    printed = table()
    for name, row in KNOWN.items():
        resolve_variant(row.variant, (row.size, row.size), **row.overrides)
        assert f"| {name} | {row.variant} |" in printed
        assert row.licence


def test_visionpipe_models_lists_them_below_the_variants(capsys):
    assert main(["models"]) == 0
    variants, published = capsys.readouterr().out.strip().split("\n\n")
    assert "| ViT-S/16 | vit |" in variants
    assert published == table()
