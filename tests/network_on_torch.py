"""Run by test_network.py in a process of its own: what a Network computes, against Keras's own model of the same
layers. Prints one JSON object.
"""

import json
import os
import weakref

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import torch
from zoo import ZOO

from visionpipe.models import build_model, layers
from visionpipe.models.network import Network
from visionpipe.models.surgery import attention_maps, features

random = np.random.default_rng(0)


def plain(model):
    return keras.Model(model.input, model.output)


def outcome(model, images):
    """Outputs in inference and in training, gradients and what training changed besides, from one state."""
    start = [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]  # seeds too
    keras.utils.set_random_seed(1)
    results = [model(images, training=False), model(images, training=True)]
    keras.ops.cast(results[1], "float32").square().mean().backward()
    results += [variable.value.grad for variable in model.trainable_weights]
    results += [variable.value for variable in model.non_trainable_variables]
    results = [keras.ops.convert_to_numpy(result).copy() for result in results]
    model.zero_grad()
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    return results


def zoo_differences(policy, names):
    """By model: the largest difference, which of one order of operations is 0."""
    keras.config.set_dtype_policy(policy)
    differences = {}
    for name in names:
        variant, image_size, overrides = ZOO[name]
        model = build_model(variant, 5, image_size, **overrides)
        for variable in model.trainable_weights:  # zeros would hide what is behind them
            variable.assign(variable + random.normal(0, 0.05, variable.shape).astype("float32"))
        # An odd batch: with "resnet wide" oneDNN's own strided gradient would end the process (kernels/torch.py).
        images = random.integers(0, 256, (3, *model.input.shape[1:])).astype("float32")
        pairs = zip(outcome(model, images), outcome(plain(model), images), strict=True)
        differences[name] = max(float(abs(ours - keras_own).max()) for ours, keras_own in pairs)
    keras.config.set_dtype_policy("float32")
    return differences


@keras.saving.register_keras_serializable("test")
class Watching(keras.layers.Layer):
    """The identity; which of the tensors that it has seen are alive."""

    seen, alive = None, None

    def call(self, x):
        Watching.alive.append([ref() is not None for ref in Watching.seen])
        Watching.seen.append(weakref.ref(x))
        return x + 0.0


def alive(kind):
    """Which of the inputs of three layers are still there at each call."""
    Watching.seen, Watching.alive = [], []
    x = inputs = keras.Input((4,))
    x = layers.Dense(4)(x)
    for _ in range(3):
        x = Watching()(x)
    model = kind(inputs, x)
    with torch.no_grad():
        Watching.seen, Watching.alive = [], []
        model(np.ones((2, 4), "float32"))
    return Watching.alive


def structures():
    """Several inputs, outputs in a dictionary, an operation with several results, slices and keywords."""
    first, second = keras.Input((6,), name="first"), keras.Input((6,), name="second")
    left, right = keras.ops.split(layers.Dense(8)(keras.layers.Add()([first, second])), 2, axis=-1)
    attended = keras.layers.Attention()([left[:, None], right[:, None]])
    outputs = {"left": left, "attended": attended, "first": first[:, 1:3]}
    values = [random.normal(size=(3, 6)).astype("float32") for _ in range(2)]
    ours, keras_own = (kind([first, second], outputs)(values) for kind in (Network, keras.Model))
    assert list(ours) == list(keras_own)
    one = [kind([first, second], {"left": left})(values)["left"] for kind in (Network, keras.Model)]
    listed = [kind([first, second], [left])(values) for kind in (Network, keras.Model)]
    assert all((value == ours["left"]).all() for value in (*one, *listed))
    return max(float((ours[name] - keras_own[name]).abs().max()) for name in ours)


def losses(kind):
    inputs = keras.Input((6,))
    keras.utils.set_random_seed(0)
    model = kind(inputs, keras.layers.Dense(3, activity_regularizer="l2")(inputs))
    model(np.ones((2, 6), "float32"))
    return [float(loss) for loss in model.losses]


def explicit_training():
    """Which a model whose own is not given leaves as it was."""
    inputs = keras.Input((1000,))
    model = Network(inputs, keras.layers.Dropout(0.5)(inputs, training=True))
    ones = np.ones((1, 1000), "float32")
    return [int((model(ones, **given) == 0).sum()) for given in ({}, {"training": False})]


def attention_in_halves():
    """The maps of a model in bfloat16, one of which is all that it has."""
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
    return [float((model(values) - other).abs().max()) for other in (before, plain(model)(values))]


print(
    json.dumps(
        {
            "float32": zoo_differences("float32", ZOO),
            "mixed_bfloat16": zoo_differences("mixed_bfloat16", list(ZOO)[::4]),
            "alive": [alive(Network), alive(keras.Model)],
            "structures": structures(),
            "losses": [losses(Network), losses(keras.Model)],
            "quantized": quantized(),
            "explicit training": explicit_training(),
            "attention": attention_in_halves(),
        }
    )
)
