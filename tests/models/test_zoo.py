"""Every variant and every option of the model zoo."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import csv
import functools
import math
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import pytest
import scipy.ndimage
from reference_models import r_vit, resnet50, vit
from zoo import ZOO

from visionpipe.artifact.canonical import save_keras
from visionpipe.errors import ConfigError
from visionpipe.models import COSTS, build_model, costs, list_models
from visionpipe.models.attention import (
    BottleneckAttention,
    RelativeBiasAttention,
    softmax,
)
from visionpipe.models.layers import StochasticDepth, WeightedSum, WeightStandardizedConv2D
from visionpipe.models.positions import resize_positions, sincos_positions
from visionpipe.models.saved import load_model
from visionpipe.models.surgery import attention_maps, features, with_image_size
from visionpipe.models.variants import VARIANTS
from visionpipe.stages.export import onnx_bytes

random = np.random.default_rng(0)


def perturbed(model):
    """Gives every weight that starts at a constant a random value near it, so that each one matters."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        value = np.asarray(weight)
        if value.std() == 0 and value.ndim and "seed" not in weight.path:
            spread = 0.1 if value.ndim == 1 else math.prod(value.shape[:-1]) ** -0.5
            weight.assign(value + random.normal(0, spread, value.shape))
    return model


def kinds(*quick):
    """All of them; only the `quick` ones outside the slow tier."""
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in ZOO]


@functools.cache
def small(name):
    """The model of one kind, which all tests share: none of them may change it."""
    variant, image_size, overrides = ZOO[name]
    keras.utils.set_random_seed(0)
    return perturbed(build_model(variant, 5, image_size, **overrides))


def images_for(model, count=3):
    return np.random.default_rng(1).integers(0, 256, (count, *model.input.shape[1:]), np.uint8)


def agree(received, expected, tolerance=1e-4):
    """Within `tolerance` of the largest logit, and the same answers."""
    received, expected = np.asarray(received), np.asarray(expected)
    np.testing.assert_allclose(received, expected, atol=tolerance * np.abs(expected).max(), rtol=0)
    np.testing.assert_array_equal(received.argmax(1), expected.argmax(1))


# Counts ------------------------------------------------------------------------------------------------


def test_every_published_count_of_parameters_is_met():
    """Exactly, or within one unit of the last digit printed: papers cut digits off as well as round. CoAtNet's
    leaves open what its blocks have of biases and norms: 24.4M here, where table 4 says 25M.
    """
    counts = {model.name: model.parameters for model in list_models()}
    for name, variant in VARIANTS.items():
        if isinstance(variant.parameters, int):
            assert counts[name] == variant.parameters, name
        elif variant.parameters:
            printed = variant.parameters.removesuffix("M")
            unit = 10.0 ** (6 - len(printed.partition(".")[2]))
            assert abs(counts[name] - float(printed) * 1e6) < unit, name


def vit_count(spec, image_size, classes):
    """Of the equations: Dosovitskiy et al. 2021, section 3.1."""
    d, mlp, tokens = spec.hidden_dim, spec.mlp_dim, (image_size // spec.patch_size) ** 2
    first = spec.pool == "token"
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * mlp + mlp) + (mlp * d + d)
    ends = (3 * spec.patch_size**2 + 1) * d + first * d + (tokens + first) * d + 2 * d + (d + 1) * classes
    return spec.depth * block + ends


def small_resnet_count(blocks, filters):
    """3×3 convolutions without bias, each with a norm of two numbers a channel; three stages."""
    stem, total = 27 * filters + 2 * filters, 0
    for stage in range(3):
        out = filters * 2**stage
        for block in range(blocks):
            into = out // 2 if stage and not block else out
            total += 9 * into * out + 9 * out * out + 4 * out + (into * out + 2 * out if into != out else 0)
    return stem + total


OURS = {
    "ResNet-8": small_resnet_count(1, 16) + 65 * 10,
    "ResNet-14": small_resnet_count(2, 16) + 65 * 10,
    # The last feature map has 128 channels and 4 × 4 places: a 1 × 1 convolution instead of patches.
    "R14+ViT-Mi": small_resnet_count(2, 32)
    + vit_count(VARIANTS["R14+ViT-Mi"].spec, 4, 10) - 4 * 128 + 129 * 128,
}  # fmt: skip


def test_every_variant_has_a_check_of_its_parameters():
    """A published count, which the test above compares, or one from the equations of the variant's reference."""
    counts = {model.name: model.parameters for model in list_models()}
    assert set(counts) == set(VARIANTS)
    for name, variant in VARIANTS.items():
        if variant.parameters is None:
            expected = OURS.get(name) or vit_count(variant.spec, variant.image_size, variant.num_classes)
            assert counts[name] == expected, name


@pytest.mark.slow
def test_the_table_of_costs_is_that_of_the_models():
    with COSTS.open() as file:
        written = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in costs.build_all()] == written


@pytest.mark.parametrize(
    ("name", "published"),  # REFERENCE.md's column of timm's counts, which has no residual additions either
    [
        ("ResNet-18", 1.82),
        ("ResNet-50", 4.11),
        ("ResNet-101", 7.83),
        ("ResNet-152", 11.56),
        ("ViT-Ti/16", 1.26),
        ("ViT-S/16", 4.61),
        ("ViT-B/16", 17.58),
        ("ViT-L/16", 61.6),
    ],
)
def test_published_multiply_accumulates(name, published):
    gmac = {model.name: model.gmac for model in list_models()}
    assert gmac[name] == pytest.approx(published, rel=0.02)


def test_the_table_that_users_see_has_every_variant():
    lines = costs.table().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(VARIANTS)
    (model,) = (model for model in list_models() if model.name == "ResNet-50")
    assert (model.family, model.parameters, model.gmac, model.image_size) == ("resnet", 25_557_032, 4.09, 224)
    assert "| ResNet-50 | resnet | 25,557,032 | 4.09 | 224 | He et al. 2016" in costs.table()


def test_every_row_cites_its_source():
    assert all("arXiv" in variant.reference or "ours" in variant.reference for variant in VARIANTS.values())


# Against independent implementations -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "size", "overrides", "reference"),
    [
        ("ResNet-50", 64, {"padding": "symmetric"}, resnet50),
        ("ViT-S/16", 64, {}, vit),
        ("R26+ViT-S/32", 64, {}, r_vit),
        ("R50+ViT-B/16", 64, {"blocks_per_stage": (2, 1, 1), "width_factor": 0.5, "hidden_dim": 96}, r_vit),
    ],
)
def test_a_model_computes_what_plain_torch_computes_with_its_weights(variant, size, overrides, reference):
    model = perturbed(build_model(variant, 11, size, **overrides))
    images = images_for(model, 2)
    weights = {weight.path: np.asarray(weight) for weight in model.weights}
    agree(model(images), reference(weights, images, **overrides))


def test_a_weight_standardised_convolution_ignores_scale_and_shift_of_its_kernel():
    layer = WeightStandardizedConv2D(4, 3, use_bias=False)
    x = random.normal(size=(2, 6, 6, 3)).astype(np.float32)
    before = np.asarray(layer(x))
    kernel = np.asarray(layer.kernel)
    standard = (kernel - kernel.mean((0, 1, 2))) / (kernel.std((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(before, keras.ops.conv(x, standard), rtol=1e-4, atol=1e-4)
    layer.kernel.assign(5 * kernel + 2)
    np.testing.assert_allclose(layer(x), before, rtol=1e-3, atol=1e-3)


def test_group_norm_normalises_each_group_of_each_image():
    model = small("resnet group norm")
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.GroupNormalization))
    x = random.normal(3, 2, (2, 4, 4, layer.gamma.shape[0])).astype(np.float32)
    groups = x.reshape(2, 16, layer.groups, -1)
    centred = groups - groups.mean((1, 3), keepdims=True)
    expected = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + layer.epsilon)).reshape(x.shape)
    expected = expected * np.asarray(layer.gamma) + np.asarray(layer.beta)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-3, atol=1e-4)


def test_a_weighted_sum_is_the_mean_at_first():
    parts = [random.normal(size=(2, 3)).astype(np.float32) for _ in range(2)]
    np.testing.assert_allclose(WeightedSum()(parts), np.mean(parts, axis=0), rtol=1e-5, atol=1e-6)


def test_sincos_positions_tell_all_places_apart():
    positions = sincos_positions(5, 7, 16)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    assert distances[~np.eye(35, dtype=bool)].min() > 0.1
    assert positions[0].tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4  # sines and cosines of 0


def relative_logits(layer, x, added):
    """q·k of all pairs of places on the grid, one by one, and what `added` gives a head, q and their distance."""
    rows, columns = x.shape[1:3]
    query, key = (np.asarray(values) for values in layer.heads(x)[:2])
    places = [(row, column) for row in range(rows) for column in range(columns)]
    logits = np.einsum("bhid,bhjd->bhij", query, key)
    for head in range(layer.num_heads):
        for i, (row, column) in enumerate(places):
            for j, (other_row, other_column) in enumerate(places):
                down, right = other_row - row + rows - 1, other_column - column + columns - 1
                logits[:, head, i, j] += added(head, query[:, head, i], down, right)
    return logits


def test_relative_attention_adds_what_belongs_to_the_distance_in_rows_and_in_columns():
    x = random.normal(size=(2, 2, 3, 8)).astype(np.float32)
    bias, bottleneck = RelativeBiasAttention(2), BottleneckAttention(2)
    for layer in (bias, bottleneck):
        layer(x)
    table = random.normal(size=bias.relative_bias.shape)
    bias.relative_bias.assign(table)
    expected = relative_logits(bias, x, lambda head, query, down, right: table[head, down, right])
    np.testing.assert_allclose(bias.logits(*bias.heads(x)[:2]), expected, rtol=1e-4, atol=1e-5)
    rows, columns = (np.asarray(table) for table in (bottleneck.relative_rows, bottleneck.relative_columns))
    expected = relative_logits(
        bottleneck, x, lambda head, query, down, right: query @ (rows[down] + columns[right])
    )
    np.testing.assert_allclose(bottleneck.logits(*bottleneck.heads(x)[:2]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "size", "overrides"),
    [
        ("R14+ViT-Mi", 16, {"filters": 4}),
        ("ViT-Mi/4", 8, {"depth": 1}),
        ("CoAtNet-0", 8, {"blocks_per_stage": (1, 1), "dims": (4, 8), "attention_stages": 1, "head_dim": 4}),
        ("Conformer-Ti", 32, {"filters": 8, "hidden_dim": 8, "num_heads": 2, "mlp_dim": 8, "depth": 3}),
    ],
)
def test_stochastic_depth_reaches_its_rate_in_the_last_block_also_where_there_is_one(
    variant, size, overrides
):
    model = build_model(variant, 5, size, stochastic_depth_rate=0.3, **overrides)
    rates = [layer.rate for layer in model.layers if isinstance(layer, StochasticDepth)]
    assert max(rates) == rates[-1] == 0.3


# Every kind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", kinds("vit registers", "resnet v2", "interleaved, relative bias"))
def test_every_kind_answers_bytes_and_floats_from_its_file_and_from_onnx(name, tmp_path):
    model = small(name)
    images = images_for(model, 32)
    logits = np.asarray(model(images))
    assert (logits.shape, logits.dtype) == ((32, 5), np.float32)
    np.testing.assert_array_equal(model(images.astype(np.float32)), logits)
    save_keras(model, tmp_path / "model.keras")
    np.testing.assert_array_equal(load_model(tmp_path / "model.keras")(images), logits)
    session = onnxruntime.InferenceSession(onnx_bytes(model, 18), providers=["CPUExecutionProvider"])
    for count in (1, 7, 32):
        (received,) = session.run(["logits"], {"images": images[:count].astype(np.float32)})
        agree(received, logits[:count], 1e-3)


@pytest.mark.parametrize("name", ["vit gap", "cct", "interleaved, relative bias"])
def test_a_model_of_bfloat16_comes_back_as_one(name, tmp_path):
    variant, image_size, overrides = ZOO[name]
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(variant, 5, image_size, **overrides)
    finally:
        keras.config.set_dtype_policy("float32")
    model.save(tmp_path / "model.keras")
    again, images = load_model(tmp_path / "model.keras"), images_for(model)
    for layer in (layer for layer in again._flatten_layers(include_self=False) if layer.weights):
        assert layer.compute_dtype == ("float32" if layer.name == "logits" else "bfloat16"), layer.path
    np.testing.assert_array_equal(again(images), model(images))


@pytest.mark.parametrize("name", kinds("vit gap"))
def test_every_kind_trains_in_bfloat16_with_a_float32_head(name):
    variant, image_size, overrides = ZOO[name]
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_model(variant, 5, image_size, **overrides)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    finally:
        keras.config.set_dtype_policy("float32")
    perturbed(model)
    before = [np.asarray(weight) for weight in model.trainable_variables]
    loss = model.train_on_batch(images_for(model, 8).astype(np.float32), np.arange(8) % 5)
    assert np.isfinite(loss)
    logits = model(images_for(model))
    assert logits.dtype == "float32"
    assert np.isfinite(logits).all()
    for weight, old in zip(model.trainable_variables, before, strict=True):
        assert (np.asarray(weight) != old).any(), weight.path
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Each kind's file, images and logits, made on TensorFlow; the same at twice the height."""
    folder = tmp_path_factory.mktemp("zoo")
    for number, name in enumerate(ZOO):
        model = small(name)
        height, width = model.input.shape[1:3]
        larger = with_image_size(model, (2 * height, width))
        save_keras(model, folder / f"{number}.keras")
        images, larger_images = images_for(model), images_for(larger)
        arrays = {"images": images, "larger_images": larger_images}
        np.savez(folder / f"{number}.npz", logits=model(images), larger=larger(larger_images), **arrays)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.rare)], ids=["every third", "all"])
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_kind_is_the_same_on_every_backend_and_exports_what_was_trained_there(saved, backend, step):
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0"  # compiling takes longer than running here
    )
    script = Path(__file__).parents[1] / "shared" / "zoo_on_backend.py"
    subprocess.run([sys.executable, script, saved, str(step)], env=environment, check=True, timeout=1500)
    for number in range(0, len(ZOO), step):
        here, there = np.load(saved / f"{number}.npz"), np.load(saved / f"{number}.{backend}.npz")
        agree(there["logits"], here["logits"])
        agree(there["larger"], here["larger"])
        model = keras.models.load_model(saved / f"{number}.{backend}.keras")
        agree(model(here["images"]), there["trained"])
        assert np.abs(there["trained"] - here["logits"]).max() > 1e-3
        session = onnxruntime.InferenceSession(onnx_bytes(model, 18), providers=["CPUExecutionProvider"])
        images = here["images"].astype(np.float32)
        for count in (1, 7, 32):
            chosen = np.arange(count) % len(images)
            (received,) = session.run(["logits"], {"images": images[chosen]})
            agree(received, there["trained"][chosen], 1e-3)


# Surgery -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", kinds(*list(ZOO)[::3]))
def test_every_kind_takes_another_image_size_and_comes_back_from_the_same_one(name):
    model = small(name)
    images = images_for(model)
    np.testing.assert_array_equal(with_image_size(model, model.input.shape[1:3])(images), model(images))
    height, width = model.input.shape[1:3]
    larger = with_image_size(model, (2 * height, width))
    assert larger.input.shape == (None, 2 * height, width, 3)
    assert np.isfinite(larger(images_for(larger))).all()
    kernels = [[w for w in m.weights if w.name == "kernel"] for m in (model, larger)]
    for old, new in zip(*kernels, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("size", [(40, 64), (16, 64)], ids=["larger", "as many tokens"])
def test_resized_positions_keep_the_class_token_and_interpolate_the_grid(size):
    model = small("vit token pre-logits")
    old = np.asarray(model.get_layer("tokens").position_embedding)[0]
    new = np.asarray(with_image_size(model, size).get_layer("tokens").position_embedding)[0]
    np.testing.assert_array_equal(new[0], old[0])
    rows, columns = size[0] // 8, size[1] // 8
    expected = scipy.ndimage.zoom(old[1:].reshape(4, 4, 16), (rows / 4, columns / 4, 1), order=1)
    np.testing.assert_allclose(new[1:].reshape(rows, columns, 16), expected, atol=1e-6)


def test_fixed_positions_of_a_larger_image_lie_between_those_that_the_model_knows():
    old, new = sincos_positions(3, 4, 16), sincos_positions(5, 7, 16, grid=(3, 4)).reshape(5, 7, 16)
    np.testing.assert_allclose(new[::2, ::2].reshape(-1, 16), old, atol=1e-6)
    model = small("vit registers")
    larger = with_image_size(model, (48, 64))
    assert larger.get_layer("tokens").get_config()["sincos_grid"] == model.get_layer("tokens").grid
    images = images_for(model)
    np.testing.assert_allclose(with_image_size(larger, (24, 32))(images), model(images), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"),
    [("cct", (30, 21)), ("interleaved, relative bias", (19, 30)), ("resnet basic", (33, 47))],
)
def test_sizes_that_strides_do_not_divide_are_built_as_they_are_resized_to(name, size):
    variant, _, overrides = ZOO[name]
    resized, built = with_image_size(small(name), size), build_model(variant, 5, size, **overrides)
    assert [layer.output.shape for layer in resized.layers] == [layer.output.shape for layer in built.layers]
    assert np.isfinite(resized(images_for(resized))).all()


def test_resized_positions_keep_the_distillation_token_and_registers_are_taken_as_they_are():
    model = small("vit distilled")
    old, new = model.get_layer("tokens"), with_image_size(model, (48, 32)).get_layer("tokens")
    positions = [np.asarray(layer.position_embedding)[0] for layer in (old, new)]
    np.testing.assert_array_equal(positions[1][:2], positions[0][:2])
    expected = scipy.ndimage.zoom(positions[0][2:].reshape(3, 2, 16), (2, 2, 1), order=1)
    np.testing.assert_allclose(positions[1][2:].reshape(6, 4, 16), expected, atol=1e-6)
    for name in ("class_token", "distillation_token", "register_tokens"):
        np.testing.assert_array_equal(getattr(new, name), getattr(old, name))


@pytest.mark.parametrize(
    ("name", "kind", "tables"),
    [
        ("interleaved, relative bias", RelativeBiasAttention, ["relative_bias"]),
        ("interleaved, bottleneck attention", BottleneckAttention, ["relative_rows", "relative_columns"]),
    ],
)
def test_resized_tables_of_distances_are_interpolated_and_stay_centred(name, kind, tables):
    model = small(name)
    height, width = model.input.shape[1:3]
    larger = with_image_size(model, (2 * height, width))
    layers = [[layer for layer in m.layers if isinstance(layer, kind)] for m in (model, larger)]
    assert layers[0]
    for old, new in zip(*layers, strict=True):
        for table in tables:
            before, after = np.asarray(getattr(old, table)), np.asarray(getattr(new, table))
            factors = [now / then for now, then in zip(after.shape, before.shape, strict=True)]
            np.testing.assert_allclose(after, scipy.ndimage.zoom(before, factors, order=1), atol=1e-6)
        np.testing.assert_array_equal(new.query_key_value.kernel, old.query_key_value.kernel)
        middle = [side // 2 for side in np.asarray(getattr(new, tables[0])).shape]
        assert middle[-2 if len(tables) == 1 else 0] == new.grid[0] - 1  # a distance of no rows


def test_attention_is_weighted_in_float32_whatever_the_precision():
    logits = keras.ops.cast(random.normal(0, 3, (4, 200)), "bfloat16")
    exact = np.exp(np.asarray(logits, np.float64))
    exact /= exact.sum(-1, keepdims=True)
    weights = softmax(logits)
    assert weights.dtype == "bfloat16"
    np.testing.assert_allclose(np.asarray(weights, np.float64), exact, rtol=2**-8)  # a rounding, and no more


def test_resizing_a_grid_keeps_its_corners_and_straight_lines():
    rows, columns = np.mgrid[:4, :3].astype(float)
    resized = resize_positions(np.stack([rows, columns], axis=-1), (7, 9), "linear")
    expected = np.meshgrid(np.linspace(0, 3, 7), np.linspace(0, 2, 9), indexing="ij")
    np.testing.assert_allclose(resized, np.stack(expected, axis=-1), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit token pre-logits", 4, "cannot take images of 4×4"),
        ("resnet wide", (2, 64), "cannot take images of 2×64: too small for its strides"),
        ("vit gap", 28.0, "image_size: expected pixels or"),
        ("vit gap", (28, 28, 3), "image_size: expected pixels or"),
        ("vit gap", (True, True), "image_size: expected pixels or"),
    ],
)
def test_a_size_that_does_not_fit_is_refused(name, size, message):
    with pytest.raises(ConfigError, match=message):
        with_image_size(small(name), size)


def test_patches_that_would_leave_out_a_border_are_refused():
    with pytest.raises(ConfigError, match="would leave out the last 2 rows and 0 columns"):
        with_image_size(small("vit gap"), (18, 16))


def test_a_model_without_attention_has_no_maps():
    model = small("resnet basic")
    with pytest.raises(ConfigError, match="resnet has no attention"):
        attention_maps(model, images_for(model))


@pytest.mark.parametrize("size", [65, 66, 67, 97, 100, 127])
def test_strides_have_their_names_at_sizes_that_they_do_not_divide(size):
    model = build_model("ResNet-18", 5, size, filters=4)
    outputs = features(model).output
    last = {f"stride_{4 * 2**stage}": f"stage{stage + 1}_block2_output" for stage in range(4)}
    assert list(outputs) == list(last)
    for name, layer in last.items():
        assert outputs[name] is model.get_layer(layer).output


def test_a_hybrid_of_a_stem_alone_has_the_stride_of_its_stem():
    model = small("serial hybrid, stem only")
    assert list(features(model).output) == ["stride_4", "block_00", "block_01"]
    small_images = build_model("R14+ViT-Mi", 5, 32, blocks_per_stage=(), stem_stride=2, depth=1)
    assert list(features(small_images).output) == ["stride_2", "block_00"]


@pytest.mark.parametrize(
    ("variant", "size", "overrides", "expected"),
    [
        ("ResNet-18", 64, {"filters": 4}, {4: 4, 8: 8, 16: 16, 32: 32}),
        ("ResNet-50", 64, {"filters": 4}, {4: 16, 8: 32, 16: 64, 32: 128}),
        ("R26+ViT-S/32", 64, {"depth": 1, "width_factor": 0.5}, {4: 128, 8: 256, 16: 512, 32: 1024}),
        ("BoTNet-50", 64, {"filters": 8}, {4: 32, 8: 64, 16: 128, 32: 256}),
        (
            "CoAtNet-0",
            64,
            {"dims": (4, 8, 16, 32, 64), "blocks_per_stage": (1,) * 5},
            {4: 8, 8: 16, 16: 32, 32: 64},
        ),
        ("Conformer-Ti", 64, {"filters": 8, "depth": 3}, {4: 8, 8: 16, 32: 32}),
        ("Conformer-Ti", 64, {"filters": 8, "depth": 6}, {4: 8, 8: 16, 16: 32, 32: 32}),
    ],
)
def test_features_of_convolution_stages(variant, size, overrides, expected):
    model = build_model(variant, 5, size, **overrides)
    outputs = features(model)(images_for(model, 2))
    shapes = {name: value.shape for name, value in outputs.items() if name.startswith("stride")}
    assert shapes == {
        f"stride_{stride}": (2, size // stride, size // stride, channels)
        for stride, channels in expected.items()
    }


def test_features_of_a_vit_are_its_blocks():
    model = small("vit registers")
    outputs = features(model)(images_for(model, 2))
    assert {name: value.shape for name, value in outputs.items()} == {
        "block_00": (2, 15, 16),
        "block_01": (2, 15, 16),
    }


@pytest.mark.parametrize("name", [n for n in ZOO if "resnet" not in n])
def test_attention_maps_are_what_the_layer_weights_its_values_with(name):
    model = small(name)
    images = images_for(model, 2)
    maps = attention_maps(model, images)
    assert maps
    for layer_name, weights in maps.items():
        layer = model.get_layer(layer_name)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        x = keras.Model(model.input, layer.input)(images)
        value = np.asarray(layer.heads(x)[2])
        read = np.einsum("bhij,bhjd->bihd", weights, value)
        np.testing.assert_allclose(read.reshape(layer.attend(x).shape), layer.attend(x), rtol=1e-4, atol=1e-5)


def test_the_guides_example_of_what_a_model_can_do_runs():
    text = (Path(__file__).parents[2] / "docs" / "guides" / "models.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    (example,) = (block for block in blocks if "surgery" in block)
    names: dict = {}
    exec(example, names)
    assert set(features(names["model"]).output) == {"stride_2", "stride_4", "stride_8", "block_00"}
