"""Compares a backend's kernels with Keras's operations; test_kernels.py runs it in a subprocess.

    python kernels_on_backend.py BACKEND

Prints JSON. `differences`: for each case, how far a layer's output and its weights' change in one step of gradient
descent differ, relative to the largest number. `used`: the kernels that the cases called. `defined`: the public
functions of the backend's module. `available`: the operations whose kernel exists here.
"""

import inspect
import json
import os
import sys
import tempfile

os.environ["KERAS_BACKEND"] = sys.argv[1]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np

from visionpipe import kernels
from visionpipe.acceleration import chains, network
from visionpipe.models import attention, layers
from visionpipe.training import adamw


class SmallBatchNorm(layers.BatchNorm):
    """Normalises an input whose variance is about as large as epsilon, so that a wrong epsilon shows."""

    def call(self, x, training=None):
        return super().call(x * 1e-3, training=training)


def residual_branch(x):
    """A convolution, norm and ReLU, which a Network fuses."""
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    return keras.layers.ReLU()(layers.BatchNorm()(x))


IMAGE, WIDE, TOKENS = (9, 12, 8), (5, 6, 64), (10, 8)
CASES = {
    "convolution": (IMAGE, lambda: layers.Conv2D(6, 3, padding="same")),
    "strided, odd and even": (IMAGE, lambda: layers.Conv2D(6, 3, 2, padding="same", use_bias=False)),
    "pointwise": (IMAGE, lambda: layers.Conv2D(6, 1)),
    "strided by more than its kernel": (IMAGE, lambda: layers.Conv2D(6, 1, 2, padding="same")),
    "pointwise, of many channels": (WIDE, lambda: layers.Conv2D(6, 1)),
    "strided, of many channels": (WIDE, lambda: layers.Conv2D(6, 1, 2, padding="same")),
    "even kernel": (IMAGE, lambda: layers.Conv2D(6, (2, 4), padding="same")),
    "unpadded": (IMAGE, lambda: layers.Conv2D(6, 3, 2)),
    "dilated": (IMAGE, lambda: layers.Conv2D(6, 3, padding="same", dilation_rate=(2, 3))),
    "grouped": (IMAGE, lambda: layers.Conv2D(6, 3, padding="same", groups=2)),
    "weight standardisation": (IMAGE, lambda: layers.WeightStandardizedConv2D(6, 3, padding="same")),
    "pooling": (IMAGE, lambda: layers.MaxPooling2D(3, 2, padding="same")),
    "pooling, unpadded": (IMAGE, lambda: layers.MaxPooling2D(3, 2)),
    "batch norm": (IMAGE, lambda: layers.BatchNorm()),
    "batch norm of small numbers": (IMAGE, lambda: SmallBatchNorm(epsilon=1e-6)),
    "batch norm of one number": ((1, 1, 8), lambda: layers.BatchNorm()),
    "residual branch of one number": ((1, 1, 8), lambda: residual_branch),
    "residual branch": (IMAGE, lambda: residual_branch),
    "layer norm": (TOKENS, lambda: layers.LayerNorm()),
    "layer norm on a grid": (IMAGE, lambda: layers.LayerNorm()),
    "attention": (TOKENS, lambda: attention.MultiHeadSelfAttention(2)),
    "attention without biases, of more channels": (
        TOKENS,
        lambda: attention.MultiHeadSelfAttention(3, hidden_dim=12, use_bias=False),
    ),
    "attention on a grid": (IMAGE, lambda: attention.RelativeBiasAttention(4)),
    "attention of a bottleneck": (IMAGE, lambda: attention.BottleneckAttention(2, hidden_dim=6)),
    "dense": (TOKENS, lambda: layers.Dense(6, activation=layers.gelu)),
    "dense on a grid, without biases": (IMAGE, lambda: layers.Dense(6, use_bias=False)),
    # The rate is too small to drop anything: only the draw is compared with Keras's.
    "stochastic depth": (TOKENS, lambda: layers.StochasticDepth(1e-9)),
    "gelu": (TOKENS, lambda: keras.layers.Activation(layers.gelu)),
    "gelu_tanh": (TOKENS, lambda: keras.layers.Activation(layers.gelu_tanh)),
}


def model_of(cases):
    """Builds one model with a branch for each case, so that a backend compiles one program instead of many."""
    inputs = {shape: keras.Input(shape) for shape in dict.fromkeys(CASES[name][0] for name in cases)}
    outputs = []
    for shape, make in (CASES[name] for name in cases):
        x = keras.layers.Dense(shape[-1])(inputs[shape])  # shows the gradient of the layer's input, too
        y = make()(x)
        y = layers.Add()([x, y]) if y.shape == x.shape else y
        outputs.append(keras.layers.Dense(3)(keras.layers.Flatten()(y)))
    return network.Network(list(inputs.values()), outputs)


def outcome(model, weights, images, targets):
    """Returns the output of each branch, and the change of each variable in one step of gradient descent."""
    model.set_weights(weights)
    model.compile(keras.optimizers.SGD(0.1), ["mse"] * len(targets))
    outputs = model.predict(images, verbose=0)
    model.train_on_batch(images, targets)
    return [*outputs, *(new - old for new, old in zip(model.get_weights(), weights, strict=True))]


def case_differences(random, cases, count):
    """Compares the outputs and updates of a batch of `count` images with Keras's, by case and variable."""
    model = model_of(cases)
    weights = [random.normal(0.3, 0.5, w.shape).astype("float32") for w in model.weights]
    weights = [abs(w) + 0.5 if w.ndim == 1 else w for w in weights]  # variances are positive
    images = [random.normal(0, 2, (count, *x.shape[1:])).astype("float32") for x in model.inputs]
    targets = [random.normal(0, 1, (count, 3)).astype("float32") for _ in cases]
    ours = outcome(model, weights, images, targets)
    with kernels.keras_operations_only():
        by_keras = outcome(model_of(cases), weights, images, targets)
    names = [*cases, *(f"{number}: {weight.path}" for number, weight in enumerate(model.weights))]
    return {
        name: float(abs(a - b).max() / max(abs(b).max(), 1e-6))
        for name, a, b in zip(names, ours, by_keras, strict=True)
    }


def updated(optimizer, gradients):
    """Returns a convolution's two variables and the optimizer's after a step with each of the `gradients`."""
    layer = layers.Conv2D(3, (2, 4))  # torch stores its kernel in another order
    layer.build((None, 9, 9, 5))
    variables = layer.trainable_weights
    for variable in variables:
        variable.assign(np.ones(variable.shape, "float32"))
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient) for gradient in step], variables)
    return [keras.ops.convert_to_numpy(v) for v in (*variables, *optimizer.variables)]


def adamw_difference(random):
    """Compares AdamW with Keras's on gradients so small that epsilon matters."""
    gradients = [
        [random.normal(0, 1e-6, shape).astype("float32") for shape in ((2, 4, 5, 3), (3,))] for _ in range(5)
    ]
    options = {"learning_rate": 0.01, "beta_1": 0.8, "weight_decay": 0.1, "epsilon": 1e-6}
    ours, by_keras = (updated(kind(**options), gradients) for kind in (adamw.AdamW, keras.optimizers.AdamW))
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in zip(ours, by_keras, strict=True))


def stateless_difference():
    """Compares what a stateless step of AdamW returns, and the variable, which the step must not change."""

    def values(kind):
        variable, optimizer = keras.Variable(np.ones((3, 2), "float32")), kind(0.1)
        optimizer.build([variable])
        state = [keras.ops.copy(v.value) for v in optimizer.variables]
        gradient = keras.ops.full((3, 2), 0.5)
        (new,), _ = optimizer.stateless_apply(state, [gradient], [keras.ops.copy(variable.value)])
        return [keras.ops.convert_to_numpy(v).copy() for v in (new, variable)]

    pairs = zip(values(adamw.AdamW), values(keras.optimizers.AdamW), strict=True)
    return max(float(abs(ours - by_keras).max()) for ours, by_keras in pairs)


def copied_filters():
    """Counts the convolution kernels that `_filters_first` has to copy, in a model that was loaded and trained."""
    from visionpipe.kernels.torch import _filters_first

    model = keras.Sequential(
        [keras.Input(IMAGE), layers.Conv2D(6, 3), layers.Conv2D(5, 1), layers.Conv2D(4, (2, 3))]
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        model = keras.saving.load_model(f"{folder}/model.keras")
    model.compile("adamw", "mse")
    model.train_on_batch(np.ones((2, *IMAGE)), np.ones((2, *model.outputs[0].shape[1:])))
    tensors = [layer.kernel.value for layer in model.layers]
    assert len(tensors) == 3
    return sum(_filters_first(tensor).data_ptr() != tensor.data_ptr() for tensor in tensors)


def main():
    used = set()

    def recorded(name):
        implementation = kernels.kernel(name)
        used.update([name] if implementation else [])
        return implementation

    for module in (layers, attention, chains, network, adamw):
        module.kernel = recorded
    random = np.random.default_rng(0)
    alone = [
        name for name in CASES if name.endswith("of one number")
    ]  # need a batch of one image with a 1×1 map
    together = [name for name in CASES if name not in alone]
    differences = case_differences(random, together, 5)
    differences |= {f"alone, {name}": x for name, x in case_differences(random, alone, 1).items()}
    differences["adamw"] = adamw_difference(random)
    if sys.argv[1] == "torch":
        differences["filters that are copied"] = copied_filters()
        differences["adamw in a stateless scope"] = stateless_difference()
    defined = [
        name
        for name, function in inspect.getmembers(kernels.MODULE, callable)
        if getattr(function, "__module__", None) == kernels.MODULE.__name__ and not name.startswith("_")
    ]
    available = [name for name in kernels.OPERATIONS if kernels.kernel(name)]
    result = {"differences": differences, "used": used, "defined": defined, "available": available}
    print(json.dumps(result, default=sorted))


main()
