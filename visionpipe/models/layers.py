"""The layers that Keras lacks, and faster versions of some that it has (kernels/).

Everything else in the models is a plain Keras layer.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from visionpipe.kernels import kernel

Shape = tuple[Any, ...]  # None where a size is unknown


@keras.saving.register_keras_serializable("visionpipe")
class Rescaling(keras.layers.Layer):
    """Multiplies images (batch, height, width, channels) by `scale` and adds `offset`, each given per channel.

    Computes in float32 whatever the precision of the following layers: far from the mean both terms are large and
    their sum is small, so half precision would lose the pixels. Keras's layer of this name looks up its backend at
    every call, which torch.compile cannot follow.
    """

    def __init__(self, scale: list[float], offset: list[float], **kwargs: Any):
        super().__init__(
            autocast=False, **kwargs
        )  # else Keras would round the pixels before `call` gets them
        self.scale, self.offset = tuple(scale), tuple(offset)

    def call(self, x: Any) -> Any:
        scale, offset = (
            v[0] if len(set(v)) == 1 else ops.convert_to_tensor(v, "float32")
            for v in (self.scale, self.offset)
        )
        return ops.cast(ops.cast(x, "float32") * scale + offset, self.compute_dtype)

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"scale": list(self.scale), "offset": list(self.offset)}


@keras.saving.register_keras_serializable("visionpipe")
class BatchNorm(keras.layers.BatchNormalization):
    """Normalises each channel over (batch, height, width) (Ioffe & Szegedy 2015, arXiv:1502.03167).

    The defaults are those of the ResNet papers' code; Keras's are epsilon 1e-3 and momentum 0.99.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
        training = bool(training and self.trainable)
        fused = kernel("batch_norm_training" if training else "batch_norm_inference")
        if fused is None or self.compute_dtype == "float64":  # the kernels do not support float64
            return super().call(x, training=training, mask=mask)
        moving = (self.moving_mean, self.moving_variance)
        weights = [ops.convert_to_tensor(v) for v in (self.gamma, self.beta, *moving)]
        if not training:
            return fused(x, *weights, self.epsilon)
        y, *averages = fused(x, *weights, self.momentum, self.epsilon)
        for variable, average in zip(moving, averages, strict=True):
            variable.assign(average)
        return y


@keras.saving.register_keras_serializable("visionpipe")
class LayerNorm(keras.layers.LayerNormalization):
    """Normalises each token over its channels (Ba et al. 2016, arXiv:1607.06450).

    The default epsilon is that of the ViT papers' code; Keras's is 1e-3.
    """

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any):
        super().__init__(epsilon=epsilon, **kwargs)

    def call(self, x: Any) -> Any:
        fused = kernel("layer_norm")
        if fused is None or self.compute_dtype == "float64":
            return super().call(x)
        return ops.cast(fused(x, self.gamma, self.beta, self.epsilon), self.compute_dtype)


@keras.saving.register_keras_serializable("visionpipe")
class Conv2D(keras.layers.Conv2D):
    """Computes Keras's convolution, with the backend's kernel if there is one."""

    def build(self, shape: Shape) -> None:
        super().build(shape)
        arrange = kernel("arrange_filters")
        if arrange:
            arrange(self.kernel)

    def convolution_op(self, inputs: Any, weights: Any) -> Any:
        fused = kernel("conv2d")
        if fused is None:
            return super().convolution_op(inputs, weights)
        weights = ops.convert_to_tensor(weights)
        return fused(inputs, weights, self.strides, self.padding, self.dilation_rate)


@keras.saving.register_keras_serializable("visionpipe")
class Dense(keras.layers.Dense):
    """Computes Keras's dense layer, with the backend's kernel if there is one."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        fused = kernel("dense")
        if fused is None:
            return super().call(x, training=training)
        x = fused(x, *weights(self, x.dtype))
        return x if self.activation is None else self.activation(x)


@keras.saving.register_keras_serializable("visionpipe")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """Computes Keras's max-pooling, with the backend's kernel if there is one."""

    def call(self, inputs: Any) -> Any:
        fused = kernel("max_pool")
        if fused is None:
            return super().call(inputs)
        return fused(inputs, self.pool_size, self.strides, self.padding)


@keras.saving.register_keras_serializable("visionpipe")
class Add(keras.layers.Add):
    """Adds a residual branch to its shortcut; takes [shortcut, branch], both of the same shape."""

    def call(self, inputs: list[Any]) -> Any:
        fused = kernel("add")
        return fused(*inputs) if fused else super().call(inputs)


@keras.saving.register_keras_serializable("visionpipe")
class WeightStandardizedConv2D(Conv2D):
    """Convolves with a kernel of mean 0 and standard deviation 1 in each output channel.

    Source: Qiao et al. 2019, arXiv:1903.10520, equations 6 and 7.
    """

    def convolution_op(self, inputs: Any, weights: Any) -> Any:
        mean = ops.mean(weights, axis=(0, 1, 2), keepdims=True)
        deviation = ops.std(weights, axis=(0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, (weights - mean) / (deviation + 1e-5))


@keras.saving.register_keras_serializable("visionpipe")
class Scale(keras.layers.Layer):
    """Multiplies each channel by a learned factor that starts at `initial`.

    Source: Touvron et al. 2021, arXiv:2103.17239, "LayerScale".
    """

    def __init__(self, initial: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.initial = initial

    def build(self, shape: Shape) -> None:
        self.scale = self.add_weight(
            shape=shape[-1:], initializer=keras.initializers.Constant(self.initial), name="scale"
        )

    def call(self, x: Any) -> Any:
        return x * ops.cast(self.scale, x.dtype)

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"initial": self.initial}


@keras.saving.register_keras_serializable("visionpipe")
class ChannelPadding(keras.layers.Layer):
    """Pads (batch, height, width, channels) with `before` channels of zeros in front and `after` behind."""

    def __init__(self, before: int, after: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.before, self.after = before, after

    def call(self, x: Any) -> Any:
        return ops.pad(x, ((0, 0), (0, 0), (0, 0), (self.before, self.after)))

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], shape[-1] + self.before + self.after)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"before": self.before, "after": self.after}


@keras.saving.register_keras_serializable("visionpipe")
class WeightedSum(keras.layers.Layer):
    """Averages several inputs of the same shape, weighted by the softmax of one learned score per input."""

    def build(self, shapes: list[Shape]) -> None:
        self.scores = self.add_weight(shape=(len(shapes),), initializer="zeros", name="scores")

    def call(self, inputs: list[Any]) -> Any:
        weights = ops.cast(ops.softmax(ops.cast(self.scores, "float32")), inputs[0].dtype)
        return sum(weights[number] * x for number, x in enumerate(inputs))

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        return shapes[0]


@keras.saving.register_keras_serializable("visionpipe")
class StochasticDepth(keras.layers.Layer):
    """Drops a whole residual branch for a random fraction `rate` of the images in a batch; the identity in inference.

    The branch of the other images is divided by 1 - rate, which preserves the expectation (Huang et al. 2016,
    arXiv:1603.09382).
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, x: Any, training: bool | None = None) -> Any:
        if not training or self.rate == 0:
            return x
        shape = (ops.shape(x)[0],) + (1,) * (len(x.shape) - 1)
        draw = kernel("uniform") or keras.random.uniform
        survives = draw(shape, seed=self.seed_generator) >= self.rate
        return x * ops.cast(survives, x.dtype) / (1 - self.rate)

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("visionpipe")
def gelu(x: Any) -> Any:
    """Computes the exact GELU, x·Φ(x) (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    The formula uses erf because TensorFlow's GELU uses erfc, which the ONNX exporter does not support.
    """
    fused = kernel("gelu")
    return fused(x) if fused else 0.5 * x * (1 + ops.erf(x * 0.5**0.5))


@keras.saving.register_keras_serializable("visionpipe")
def gelu_tanh(x: Any) -> Any:
    """Computes the tanh approximation of GELU, with which Google's published ViTs were trained."""
    fused = kernel("gelu_tanh")
    return fused(x) if fused else 0.5 * x * (1 + ops.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def product(x: Any, dense: keras.layers.Dense) -> Any:
    """Computes `dense(x)` for a dense layer without an activation that is part of another layer."""
    fused = kernel("dense") if dense.quantization_mode is None else None
    return fused(x, *weights(dense, x.dtype)) if fused else dense(x)


def weights(dense: keras.layers.Dense, dtype: Any) -> list[Any]:
    """Returns the layer's kernel and, if it has one, its bias."""
    return [ops.convert_to_tensor(w, dtype) for w in (dense.kernel, dense.bias) if w is not None]


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh}
