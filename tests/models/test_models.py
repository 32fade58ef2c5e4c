"""The models against closed forms and a NumPy forward pass. Runs on TensorFlow; the other backends are in
test_backends.py.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import inspect
import math

import keras
import numpy as np
import pytest

from visionpipe.artifact.canonical import canonical_keras, save_keras
from visionpipe.errors import ConfigError
from visionpipe.models import attention, build_model, layers
from visionpipe.models.attention import MultiHeadSelfAttention
from visionpipe.models.layers import StochasticDepth
from visionpipe.models.resnet import residual_block
from visionpipe.models.variants import VARIANTS, resolve_variant

random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (5, 16, 24, 3), np.uint8)
SMALL = {"hidden_dim": 12, "depth": 2, "num_heads": 3, "mlp_dim": 20}


def randomise(model):
    """Gives every weight, statistics and biases too, a random value that no initialiser would give."""
    for weight in model.weights:
        value = random.normal(0, 0.3, weight.shape)
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.path else value)
    return model


def trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_variables)


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_a_vit_has_the_parameters_of_its_equations(pool):
    model = build_model("ViT-Mi/4", 10, (16, 24), pool=pool, **SMALL)
    d, mlp, tokens = 12, 20, 24
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * mlp + mlp) + (mlp * d + d)
    ends = (48 * d + d) + (tokens + (pool == "token")) * d + 2 * d + (d * 10 + 10) + d * (pool == "token")
    assert trainable(model) == 2 * block + ends


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_a_vit_computes_what_the_equations_say(pool):
    model = randomise(
        build_model("ViT-Mi/4", 7, (16, 24), pool=pool, pixel_mean=(1, 2, 3), pixel_std=(40, 50, 60), **SMALL)
    )
    logits = np.asarray(model(IMAGES))
    reference = numpy_vit({w.path: np.asarray(w, np.float64) for w in model.weights}, IMAGES, pool)
    np.testing.assert_allclose(logits, reference, atol=1e-4 * np.abs(reference).max())


def numpy_vit(weights, images, pool):
    """An independent forward pass in float64."""
    erf = np.vectorize(math.erf)
    x = (images.astype(np.float64) - (1, 2, 3)) / (40, 50, 60)
    batch, rows, columns = len(x), 4, 6
    patches = (
        x.reshape(batch, rows, 4, columns, 4, 3)
        .transpose(0, 1, 3, 2, 4, 5)
        .reshape(batch, rows * columns, 48)
    )
    x = patches @ weights["patch_embedding/kernel"].reshape(48, 12) + weights["patch_embedding/bias"]
    if pool == "token":
        x = np.concatenate([np.broadcast_to(weights["tokens/class_token"], (batch, 1, 12)), x], axis=1)
    x = x + weights["tokens/position_embedding"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    for block in range(2):
        name = f"encoder_block_{block:02d}"
        qkv = dense(norm(x, f"{name}_attention_norm"), f"{name}_attention/query_key_value")
        heads = []
        for head in range(3):
            q, k, v = (qkv[..., part * 12 + head * 4 : part * 12 + head * 4 + 4] for part in range(3))
            scores = np.exp(q @ k.transpose(0, 2, 1) / 2)
            heads.append(scores / scores.sum(-1, keepdims=True) @ v)
        x = x + dense(np.concatenate(heads, -1), f"{name}_attention/output")
        y = dense(norm(x, f"{name}_mlp_norm"), f"{name}_mlp_expand")
        x = x + dense(y * 0.5 * (1 + erf(y / math.sqrt(2))), f"{name}_mlp_project")
    x = norm(x, "encoder_norm")
    return dense(x[:, 0] if pool == "token" else x.mean(1), "logits")


@pytest.mark.parametrize("variant", ["ViT-Mi/4", "R14+ViT-Mi"])
def test_an_encoder_without_positions_permutes_its_outputs_as_its_inputs(variant):
    model = randomise(build_model(variant, 5, 32, position="none", **SMALL))
    tokens, last = model.get_layer("tokens").output, model.get_layer("encoder_norm").output
    encoder, answer = keras.Model(tokens, last), keras.Model(tokens, model.output)
    x = np.asarray(keras.Model(model.input, tokens)(random.integers(0, 256, (3, 32, 32, 3))))
    order = random.permutation(x.shape[1])
    before, after = np.asarray(encoder(x)), np.asarray(encoder(x[:, order]))
    np.testing.assert_allclose(after, before[:, order], rtol=1e-4, atol=1e-4)
    assert np.abs(after - before).max() > 0.1
    np.testing.assert_allclose(answer(x), answer(x[:, order]), rtol=1e-4, atol=1e-4)


def test_with_positions_it_does():
    model = randomise(build_model("ViT-Mi/4", 5, 16, **SMALL))
    image = random.integers(0, 256, (1, 16, 16, 3))
    swapped = np.concatenate([image[:, 8:], image[:, :8]], axis=1)
    assert np.abs(np.asarray(model(image)) - np.asarray(model(swapped))).max() > 1e-3


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("ResNet-8", {"filters": 6}),
        ("ResNet-50", {"filters": 8, "blocks_per_stage": [1]}),
        ("ResNet-50", {"filters": 32, "blocks_per_stage": [1], "norm": "group"}),
    ],
)
def test_a_fresh_residual_block_is_the_identity_until_its_last_scale_moves(variant, overrides):
    spec = resolve_variant(variant, (16, 16), **overrides)
    channels = spec.width * (4 if spec.block == "bottleneck" else 1)
    inputs = keras.Input((8, 8, channels))
    block = keras.Model(inputs, residual_block(inputs, spec.width, 1, spec, "block"))
    x = random.uniform(0, 1, (2, 8, 8, channels)).astype(np.float32)
    np.testing.assert_array_equal(block(x, training=False), x)
    (scale,) = (w for w in block.weights if w.path.endswith("gamma") and not np.any(w))
    scale.assign(np.ones(scale.shape))
    assert np.abs(np.asarray(block(x, training=False)) - x).max() > 0.1


def test_stochastic_depth_drops_whole_images_and_keeps_the_expectation():
    layer = StochasticDepth(0.25, seed=1)
    y = np.asarray(layer(np.ones((4000, 2, 3), np.float32), training=True))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all()
    assert y.mean() == pytest.approx(1, abs=4 * math.sqrt(0.25 / 0.75 / 4000))
    x = random.normal(size=(3, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(layer(x, training=False), x)


def test_gelu_is_x_times_the_normal_distribution_function():
    x = np.linspace(-4, 4, 41, dtype=np.float32)
    expected = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x]
    np.testing.assert_allclose(layers.gelu(x), expected, atol=1e-6)


CUSTOM_LAYERS = {
    name: kind
    for module in (layers, attention)
    for name, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, keras.layers.Layer) and kind.__module__ == module.__name__
}
ARGUMENTS = {
    "BottleneckAttention": {"num_heads": 2, "hidden_dim": 8},
    "ChannelPadding": {"before": 2, "after": 3},
    "Conv2D": {"filters": 4, "kernel_size": (3, 3), "padding": "same"},
    "Dense": {"units": 3, "activation": "relu"},
    "LayerNorm": {"epsilon": 1e-5},
    "MaxPooling2D": {"pool_size": (3, 3), "strides": (2, 2)},
    "MultiHeadSelfAttention": {"num_heads": 2, "hidden_dim": 8, "use_bias": False},
    "RelativeBiasAttention": {"num_heads": 2},
    "Rescaling": {"scale": [0.5, 0.25, 0.125], "offset": [1.0, 2.0, 3.0]},
    "Scale": {"initial": 0.1},
    "StochasticDepth": {"rate": 0.3, "seed": 4},
    "Tokens": {
        "class_token": True,
        "distillation_token": True,
        "register_tokens": 3,
        "position": "sincos",
        "sincos_grid": (3, 4),
        "stddev": 0.7,
    },
    "WeightStandardizedConv2D": {"filters": 4, "kernel_size": (3, 3)},
}


@pytest.mark.parametrize("name", CUSTOM_LAYERS)
def test_every_custom_layer_comes_back_from_its_config(name):
    layer = CUSTOM_LAYERS[name](name="layer", **ARGUMENTS.get(name, {}))
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert ARGUMENTS.get(name, {}).items() <= layer.get_config().items()


def test_the_same_parameters_make_the_same_bytes(tmp_path):
    contents = []
    for attempt in range(2):
        keras.utils.set_random_seed(3)
        model = build_model("R14+ViT-Mi", 4, 32, stochastic_depth_rate=0.1)
        model.compile("adam", "mse")
        save_keras(model, tmp_path / f"{attempt}.keras")
        contents.append((tmp_path / f"{attempt}.keras").read_bytes())
        model.save(tmp_path / f"raw{attempt}.keras")
    assert contents[0] == contents[1]
    raw = [(tmp_path / f"raw{attempt}.keras").read_bytes() for attempt in range(2)]
    assert raw[0] != raw[1]  # Keras's own files differ: otherwise this module has no reason to be
    assert canonical_keras(contents[0]) == contents[0]


@pytest.mark.parametrize(
    ("variant", "size", "overrides", "message"),
    [
        ("ViT-Mi/5", (28, 28), {}, "did you mean 'ViT-Mi/4'"),
        ("ViT-Mi/4", (30, 28), {}, "image size 30×28 is not divisible by patch_size 4"),
        ("ViT-Mi/4", (28, 28), {"patchsize": 2}, "did you mean 'patch_size'"),
        ("ViT-Mi/4", (28, 28), {"num_heads": 5}, "hidden_dim 64 is not divisible by num_heads 5"),
        ("ViT-Mi/4", (28, 28), {"depth": 0}, "depth: expected a positive whole number, received 0"),
        ("ViT-Mi/4", (28, 28), {"depth": True}, "depth: expected a positive whole number, received True"),
        ("ViT-Mi/4", (28, 28), {"pool": "mean"}, "pool: expected one of token, gap, seq, received 'mean'"),
        (
            "ViT-Mi/4",
            (28, 28),
            {"dropout_rate": 1.0},
            "dropout_rate: expected a number in [0, 1), received 1.0",
        ),
        ("ResNet-8", (28, 28), {"blocks_per_stage": []}, "blocks_per_stage: expected a list of positive"),
        (
            "ResNet-8",
            (28, 28),
            {"blocks_per_stage": 3},
            "expected a list of positive whole numbers, received 3",
        ),
        ("ResNet-8", (28, 28), {"width_factor": math.inf}, "width_factor: expected a finite number above 0"),
        (
            "ResNet-8",
            (28, 28),
            {"width_factor": 0.01},
            "filters × width_factor is 0 and the stem has 0 filters: too few",
        ),
        (
            "ResNet-20",
            (28, 28),
            {"stem_filters": 32},
            "shortcut pad can only add channels, but stem_filters 32",
        ),
        (
            "ResNet-50-D",
            (64, 64),
            {"norm": "group", "width_factor": 0.5},
            "in multiples of 32, but filters × width_factor is 32 and the stem has 16",
        ),
        ("CoAtNet-0", (64, 64), {"head_dim": 80}, "dims: 384 is not divisible by head_dim 80"),
        ("CoAtNet-0", (64, 64), {"head_dim": 1000}, "dims: 384 is not divisible by head_dim 1000"),
        ("CoAtNet-0", (64, 64), {"dims": [2, 2, 8, 32, 64]}, "dims: 2 is too few: squeeze-and-excitation"),
        ("ResNet-8", (28, 28), {"norm": "group"}, "norm group needs channels in multiples of 32"),
        (
            "ResNet-8",
            (28, 28),
            {"width_factor": 0},
            "width_factor: expected a finite number above 0, received 0",
        ),
        ("ResNet-8", (28, 28), {"preactivation": 1}, "preactivation: expected true or false, received 1"),
        ("ResNet-50", (64, 64), {"shortcut": "pad"}, "shortcut pad needs block basic"),
        ("ResNet-50", (64, 64), {"stem_stride": 2}, "stem_stride needs stem 3x3"),
        (
            "ViT-Mi/4",
            (28, 28),
            {"register_tokens": -1},
            "register_tokens: expected a whole number, 0 or more",
        ),
        ("ViT-Mi/4", (28, 28), {"layer_scale": "big"}, "layer_scale: expected a finite number above 0"),
        ("ViT-Mi/4", (30, 30), {"stem": "conv", "patch_size": 3}, "stem conv needs a patch_size of 2, 4, 8"),
        (
            "ViT-Mi/4",
            (28, 28),
            {"position": "sincos", "hidden_dim": 6},
            "position sincos needs a hidden_dim of 8",
        ),
        ("R+ViT-Ti/16", (100, 64), {}, "image size 100×64 is not divisible by 32"),
        (
            "BoTNet-50",
            (64, 64),
            {"num_heads": 5},
            "the last stage has 512 filters, which num_heads 5 does not divide",
        ),
        (
            "BoTNet-50",
            (64, 64),
            {"block": "basic"},
            "a BoTNet needs block bottleneck and preactivation false",
        ),
        (
            "CoAtNet-0",
            (64, 64),
            {"stem_stride": 3},
            "stem_stride: expected 1, 2, 4 …; with this one the total stride would be 48",
        ),
        (
            "ResNet-8",
            (28, 28),
            {"stem_stride": 6},
            "stem_stride: expected 1, 2, 4 …; with this one the total",
        ),
        ("DeiT-S/16", (32, 32), {"pool": "gap"}, "distillation_token needs pool token"),
        ("Conformer-Ti", (64, 64), {"filters": 18}, "filters 18 is not divisible by 4"),
        ("CoAtNet-0", (31, 64), {}, "image size 31×64 is too small for a total stride of 32"),
        ("ResNet-18", (64, 64), {"stride_on": "1x1"}, "stride_on 1x1 needs block bottleneck"),
        (
            "BiT-R50x1",
            (64, 64),
            {"norm_momentum": 0.99},
            "norm_momentum needs norm batch; norm group has no moving averages",
        ),
        ("CoAtNet-0", (64, 64), {"dims": [8, 8]}, "dims has 2 stages and blocks_per_stage 5"),
        ("CoAtNet-0", (64, 64), {"attention_stages": 5}, "attention_stages 5 leaves no convolution stage"),
        ("Conformer-Ti", (64, 64), {"depth": 4}, "depth 4 is not a multiple of 3"),
        ("Conformer-Ti", (64, 64), {"patch_size": 8}, "patch_size 8 is not a multiple of 16"),
        ("Conformer-Ti", (72, 64), {}, "image size 72×64 is not divisible by patch_size 16"),
        ("ResNet-8", (28, 28), {"blocks_per_stage": [1] * 6}, "too small for a total stride of 32"),
        ("R14+ViT-Mi", (28, 28), {"num_heads": 7}, "not divisible by num_heads 7"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(variant, size, overrides, message):
    with pytest.raises(ConfigError) as caught:
        resolve_variant(variant, size, **overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected a positive whole number, received 0"),
        ({"num_classes": 2.0}, "num_classes: expected a positive whole number, received 2.0"),
        ({"image_size": -28}, r"image_size: expected pixels or \(height, width\), received -28"),
        ({"image_size": (28, 28, 3)}, r"received \(28, 28, 3\)"),
        ({"image_size": 28.0}, r"image_size: expected .* received 28.0"),
        ({"pixel_std": (1.0,)}, r"pixel_std: expected a number for each of 3 channels, received \(1.0,\)"),
        ({"channels": 0}, "channels: expected a positive whole number, received 0"),
        ({"channels": 2, "pixel_std": (1.0,) * 3}, "pixel_std: expected a number for each of 2 channels"),
        ({"pixel_mean": 127.5}, r"pixel_mean: expected a number for each of 3 channels, received 127.5"),
        ({"pixel_mean": (0.0, 0.0, float("nan"))}, "pixel_mean: expected a number for each of 3 channels"),
        ({"variant": None}, "variant: no None"),
        ({"variant": ["ViT-Mi/4"]}, r"variant: no \['ViT-Mi/4'\]"),
        ({"name": "vit"}, "overrides: ViT-Mi/4 has no 'name'"),
    ],
)
def test_arguments_that_make_no_model_are_refused_by_name(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_model(**{"variant": "ViT-Mi/4", "num_classes": 5, "image_size": 28} | arguments)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize(
    ("variant", "rows"),
    [("ViT-Mi/4", 4), ("ResNet-8", 3), ("ResNet-50-D", 3), ("BoTNet-50", 7), ("CoAtNet-0", 3)],
)
def test_only_the_first_kernel_depends_on_the_channels(variant, rows, channels):
    with keras.StatelessScope(initialize_variables=False):
        rgb, other = (build_model(variant, 5, 64, channels=c) for c in (3, channels))
    assert other.input.shape[1:] == (64, 64, channels)
    differing = [
        (ours.shape, theirs.shape)
        for ours, theirs in zip(other.weights, rgb.weights, strict=True)
        if ours.shape != theirs.shape
    ]
    (((*sides, received, out), first),) = differing
    assert (sides, received, (*sides, 3, out)) == ([rows, rows], channels, first)


def test_numbers_of_numpy_are_numbers():
    labels = np.array([0, 4])
    model = build_model("ResNet-8", labels.max() + 1, np.int64(16), filters=4)
    assert (model.input.shape[1:3], model.output.shape[-1]) == ((16, 16), 5)


def test_overrides_do_not_change_the_table():
    resolve_variant("ResNet-8", (28, 28), filters=4)
    assert VARIANTS["ResNet-8"].spec.filters == 16


def test_attention_weights_every_token_of_an_image_by_itself():
    layer = MultiHeadSelfAttention(2)
    x = random.normal(size=(3, 5, 8)).astype(np.float32)
    together = np.asarray(layer(x))
    for image in range(3):
        np.testing.assert_allclose(layer(x[image : image + 1])[0], together[image], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "theirs"), [(layers.BatchNorm, "BatchNormalization"), (layers.LayerNorm, "LayerNormalization")]
)
@pytest.mark.parametrize("training", [False, True])
def test_norms_compute_in_float64_where_that_is_asked_for(kind, theirs, training):
    ours = kind(epsilon=1e-3, dtype="float64")
    reference = getattr(keras.layers, theirs)(epsilon=1e-3, dtype="float64")
    arguments = {"training": training} if kind is layers.BatchNorm else {}
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 6))
    received, expected = np.asarray(ours(x, **arguments)), np.asarray(reference(x, **arguments))
    assert received.dtype == np.float64
    np.testing.assert_allclose(received, expected, rtol=1e-12)
