"""Compares a Network with a Keras model of the same layers; test_network.py runs it in a subprocess.

    python network_on_backend.py BACKEND KINDS

BACKEND: torch or tensorflow. KINDS: `all` kinds of the zoo, or anything else for some of them. Prints JSON.
"""

import contextlib
import json
import os
import sys
import weakref

os.environ["KERAS_BACKEND"] = sys.argv[1]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
from zoo import ZOO

from visionpipe.acceleration.chains import Chain
from visionpipe.acceleration.network import Network
from visionpipe.models import attention, build_model, layers
from visionpipe.models.surgery import attention_maps, features

KINDS = list(ZOO)[:: 1 if sys.argv[2] == "all" else 7]
random = np.random.default_rng(0)


def plain(model):
    return keras.Model(model.input, model.output)


def without_gradients():
    if keras.backend.backend() != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def training_step(model, images):
    """Returns the outputs, and the gradients of the mean of their squares."""
    weights = [variable.value for variable in model.trainable_weights]
    if keras.backend.backend() == "torch":
        outputs = model(images, training=True)
        keras.ops.mean(keras.ops.cast(outputs, "float32") ** 2).backward()
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        return outputs, gradients
    import tensorflow as tf

    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = keras.ops.mean(keras.ops.cast(outputs, "float32") ** 2)
    return outputs, list(map(tf.convert_to_tensor, tape.gradient(loss, weights)))


def outcome(model, images):
    """Returns the outputs in inference without and with gradients, and in training; the gradients; seeds and averages.

    The model's state is the same before and afterwards.
    """
    start = [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]  # seeds too
    keras.utils.set_random_seed(1)
    with without_gradients():
        results = [model(images, training=False)]
    outputs, gradients = training_step(model, images)
    seeds = [variable for variable in model.non_trainable_variables if variable.dtype == "uint32"]
    averages = [variable for variable in model.non_trainable_variables if variable.dtype == "float32"]
    results += [model(images, training=False), outputs, gradients, seeds, averages]
    results = [flat(result) for result in results]
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    return results


def flat(tensors):
    """Returns one array of all numbers, because some gradients alone are nothing but rounding errors."""
    parts = [
        keras.ops.convert_to_numpy(keras.ops.cast(x, "float32")).ravel() for x in keras.tree.flatten(tensors)
    ]
    return np.concatenate([np.zeros(1), *parts])


def relative(ours, by_keras):
    return float(abs(ours - by_keras).max() / max(abs(by_keras).max(), 1e-6))


def zoo_differences(policy, names):
    """Returns for each model the largest difference between the outcomes, relative to the largest number."""
    keras.config.set_dtype_policy(policy)
    differences = {}
    for name in names:
        variant, image_size, overrides = ZOO[name]
        model = build_model(variant, 5, image_size, **overrides)
        for variable in model.trainable_weights:  # zero weights would hide differences before them
            variable.assign(variable + random.normal(0, 0.05, variable.shape).astype("float32"))
        # An odd batch: with "resnet wide" oneDNN would end the process, see visionpipe/kernels/torch.py.
        images = random.integers(0, 256, (3, *model.input.shape[1:])).astype("float32")
        pairs = zip(outcome(model, images), outcome(plain(model), images), strict=True)
        differences[name] = max(relative(ours, by_keras) for ours, by_keras in pairs)
    keras.config.set_dtype_policy("float32")
    return differences


@keras.saving.register_keras_serializable("test")
class Watching(keras.layers.Layer):
    """The identity, which records at each call whether the inputs of its earlier calls are still in memory."""

    seen, alive = None, None

    def call(self, x):
        Watching.alive.append([ref() is not None for ref in Watching.seen])
        Watching.seen.append(weakref.ref(x))
        return x + 0.0


def alive(kind):
    """Returns for the calls of three layers which of the earlier inputs are still in memory."""
    Watching.seen, Watching.alive = [], []
    x = inputs = keras.Input((4,))
    x = layers.Dense(4)(x)
    for _ in range(3):
        x = Watching()(x)
    model = kind(inputs, x)
    with without_gradients():
        Watching.seen, Watching.alive = [], []
        model(np.ones((2, 4), "float32"))
    return Watching.alive


def structures():
    """Compares models with several inputs, outputs in a dictionary, an operation with several results, and slices."""
    first, second = keras.Input((6,), name="first"), keras.Input((6,), name="second")
    left, right = keras.ops.split(layers.Dense(8)(keras.layers.Add()([first, second])), 2, axis=-1)
    attended = keras.layers.Attention()([left[:, None], right[:, None]])
    outputs = {"left": left, "attended": attended, "first": first[:, 1:3]}
    values = [random.normal(size=(3, 6)).astype("float32") for _ in range(2)]
    ours, by_keras = (kind([first, second], outputs)(values) for kind in (Network, keras.Model))
    assert list(ours) == list(by_keras)
    one = [kind([first, second], {"left": left})(values)["left"] for kind in (Network, keras.Model)]
    listed = [kind([first, second], [left])(values) for kind in (Network, keras.Model)]
    assert all(
        relative(*map(keras.ops.convert_to_numpy, (value, ours["left"]))) == 0 for value in (*one, *listed)
    )
    return max(relative(*map(keras.ops.convert_to_numpy, (ours[name], by_keras[name]))) for name in ours)


class HalvedNorm(layers.BatchNorm):
    def call(self, x, training=None):
        return super().call(x * 0.5, training=training)


def chains():
    """Returns which layers a Network fuses into chains after convolutions, and how far its results are from Keras's."""
    x = inputs = keras.Input((6, 6, 4))

    def conv(x, name, **options):
        return layers.Conv2D(4, 1, name=name, **{"use_bias": False} | options)(x)

    a = layers.BatchNorm(name="a_norm")(conv(x, "a"))
    a = keras.layers.ReLU(name="a_relu")(keras.layers.Add(name="a_add")([x, a]))  # fuses all four layers
    b = conv(a, "b")
    b = keras.layers.ReLU(name="b_relu")(
        keras.layers.Add(name="b_add")([b, layers.BatchNorm()(b)])
    )  # not fused: b is read twice
    c = keras.layers.ReLU(max_value=6)(
        layers.BatchNorm(name="c_norm")(conv(b, "c"))
    )  # fuses up to the norm, without a ReLU that has a maximum
    d = layers.BatchNorm()(conv(c, "d_bias", use_bias=True))
    e = layers.BatchNorm()(conv(d, "e_relu", activation="relu"))
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True)(e)
    f = keras.layers.Add()([pooled, conv(e, "f")])  # not fused: a sum of two shapes
    g = keras.layers.ReLU()(
        layers.BatchNorm(name="g_norm")(g_conv := conv(f, "g"))
    )  # not fused: g_conv is an output
    h = keras.layers.Add(name="hi_add")(
        [conv(f, "h"), conv(f, "i")]
    )  # one of the two convolutions fuses the sum
    twice = conv(f, "twice")
    j = keras.layers.Add()([twice, twice])
    shared = layers.BatchNorm(name="shared_norm")
    k = shared(shared(conv(f, "k")))  # not fused: the norm is called twice
    halved = HalvedNorm(name="halved_norm")(conv(f, "m"))  # not fused: a subclass
    outputs = [g, g_conv, h, j, k, halved]
    model, by_keras = Network(inputs, outputs), keras.Model(inputs, outputs)
    for variable in model.weights:
        variable.assign(random.uniform(0.5, 1.5, variable.shape))
    images = random.normal(size=(3, 6, 6, 4)).astype("float32")
    with without_gradients():
        pairs = [
            map(keras.ops.convert_to_numpy, pair)
            for pair in zip(model(images), by_keras(images), strict=True)
        ]
    fused = [step.operation for step in model.steps if isinstance(step.operation, Chain)]
    return {
        "difference": max(relative(*pair) for pair in pairs),
        "found": sorted(
            [
                [chain.conv.name, chain.norm and chain.norm.name, len(chain.input_tensors), chain.relu]
                for chain in fused
            ]
        ),
    }


def frozen():
    """Returns how much a training step changes the averages of frozen batch norms."""
    model = build_model("ResNet-20", 3, 16, blocks_per_stage=(1,), filters=4)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNorm)]
    for norm in norms:
        norm.trainable = False
    before = [flat(norm.moving_mean) for norm in norms]
    model(np.ones((2, 16, 16, 3), "float32"), training=True)
    return max(
        float(abs(flat(norm.moving_mean) - old).max()) for norm, old in zip(norms, before, strict=True)
    )


def stateless():
    """Returns how much a stateless call changes the model's averages, those passed to it, and those that it returns."""
    model = build_model("ResNet-20", 3, 16, blocks_per_stage=(1,), filters=4)
    before = flat(model.non_trainable_variables)
    values = [
        [keras.ops.copy(variable) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    _, after = model.stateless_call(*values, np.ones((2, 16, 16, 3), "float32"), training=True)
    return [float(abs(flat(x) - before).max()) for x in (model.non_trainable_variables, values[1], after)]


def losses(kind):
    inputs = keras.Input((6,))
    keras.utils.set_random_seed(0)
    model = kind(inputs, keras.layers.Dense(3, activity_regularizer="l2")(inputs))
    model(np.ones((2, 6), "float32"))
    return [float(loss) for loss in model.losses]


def explicit_training():
    """Returns how many numbers dropouts with a fixed `training=True` drop, and the means after a norm with the same."""
    inputs = keras.Input((1000,))
    model = Network(inputs, keras.layers.Dropout(0.5)(inputs, training=True))
    ones = np.ones((1, 1000), "float32")
    dropped = [
        int((keras.ops.convert_to_numpy(model(ones, **given)) == 0).sum())
        for given in ({}, {"training": False})
    ]
    inputs = keras.Input((5, 5, 3))
    norm = layers.BatchNorm()(layers.Conv2D(4, 1, use_bias=False)(inputs), training=True)
    images = random.uniform(1, 2, (3, 5, 5, 3)).astype("float32")
    with without_gradients():
        normal = keras.ops.convert_to_numpy(Network(inputs, norm)(images))
    return [*dropped, float(abs(normal.mean((0, 1, 2))).max())]


def attention_in_halves():
    """Returns the shape of the attention maps and the names of the features of a model in bfloat16 with one block."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_model(
        "ViT-S/16", 3, 16, patch_size=8, hidden_dim=8, depth=1, num_heads=2, mlp_dim=8, pool="gap"
    )
    keras.config.set_dtype_policy("float32")
    (weights,) = attention_maps(model, np.ones((2, 16, 16, 3), "float32")).values()
    return [list(weights.shape), list(features(model)(np.ones((2, 16, 16, 3), "float32")))]


def quantized():
    inputs = keras.Input((6,))
    model = Network(inputs, keras.layers.Dense(3)(keras.layers.Dense(8)(inputs)))
    values = random.normal(size=(3, 6)).astype("float32")
    before = model(values)
    model.quantize("int8")
    return [
        float(abs(keras.ops.convert_to_numpy(model(values) - other)).max())
        for other in (before, plain(model)(values))
    ]


def followed():
    """Returns how many graphs torch.compile makes of a training step; 1 if it can trace all layers."""
    if sys.argv[1] != "torch":
        return 1
    import torch

    inputs = keras.Input((4, 4, 8))
    x = layers.BatchNorm()(layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs))
    for attend in (attention.RelativeBiasAttention(2), attention.BottleneckAttention(2)):
        x = layers.Add()([x, layers.StochasticDepth(0.5)(attend(x))])
    x = keras.layers.Dropout(0.1)(attention.Tokens(class_token=True, position="sincos")(x))
    model = Network(inputs, attention.SequencePooling()(x))
    parts = []

    def counted(graph, _):
        parts.append(graph)
        return graph.forward

    torch.compile(lambda images: model(images, training=True), backend=counted)(torch.ones(2, 4, 4, 8))
    return len(parts)


print(
    json.dumps(
        {
            "float32": zoo_differences("float32", KINDS),
            "mixed_bfloat16": zoo_differences("mixed_bfloat16", KINDS[::4]),
            "alive": [alive(Network), alive(keras.Model)],
            "structures": structures(),
            "chains": chains(),
            "frozen": frozen(),
            "stateless": stateless(),
            "losses": [losses(Network), losses(keras.Model)],
            "quantized": quantized(),
            "explicit training": explicit_training(),
            "attention": attention_in_halves(),
            "parts": followed(),
        }
    )
)
