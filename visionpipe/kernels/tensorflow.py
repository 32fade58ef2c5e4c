"""Kernels for TensorFlow.

TensorFlow makes a separate pass over memory for every elementwise operation, forward and backward. Here XLA compiles
the elementwise operations of a layer into one loop. Matrix products and convolutions stay with oneDNN, which is
faster than XLA there.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from keras import ops

if TYPE_CHECKING:
    from visionpipe.models import layers

Tensor = Any  # TensorFlow ships no types


def conv2d(
    x: Tensor, kernel: Tensor, strides: tuple[int, int], padding: str, dilation: tuple[int, int]
) -> Tensor:
    """Convolves `x` (batch, height, width, channels) with `kernel` (height, width, channels in, channels out)."""
    if kernel.shape[:2] == (1, 1) and kernel.shape[2] < 16 and strides != (1, 1):
        # oneDNN's gradient of such a convolution writes outside its memory (AVX-512, TensorFlow 2.21, batches of 3,
        # 5 …), so the input is strided before it.
        x, strides = x[:, :: strides[0], :: strides[1]], (1, 1)
    return ops.conv(x, kernel, strides, padding, dilation_rate=dilation)


def batch_norm_training(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_variance: Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalises `x` (batch, height, width, channels) by the statistics of the batch.

    Returns the result and the new moving mean and moving variance, updated with the biased variance as in Keras.
    """
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]), variance.dtype)
    variance *= (count - 1) / count  # FusedBatchNormV3 returns the unbiased variance
    averages = [
        old * momentum + batch * (1 - momentum)
        for old, batch in ((moving_mean, mean), (moving_variance, variance))
    ]
    return y, *averages


def batch_norm_inference(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, epsilon: float
) -> Tensor:
    """Normalises `x` (batch, height, width, channels) by the moving averages."""
    return tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
    ).y


def chain(
    conv: "layers.Conv2D",
    norm: "layers.BatchNorm | None",
    relu: bool,
    x: Tensor,
    other: Tensor | None = None,
    *,
    training: bool | None,
) -> Tensor:
    """Computes relu(norm(conv(x)) + other), of which norm, sum and ReLU are optional (see acceleration/chains.py).

    In inference the norm is folded into the convolution: TensorFlow fuses a convolution, a bias, a sum and a ReLU into
    one operation.
    """
    # Not in half precision: a folded kernel could overflow, and a folded bias, which is large in a channel whose mean
    # is far from 0, would be rounded. There the norm computes in float32.
    if norm is None or (training and norm.trainable) or x.dtype != tf.float32:
        x = conv.call(x)
        x = norm.call(x, training=training) if norm else x
    else:
        scale = norm.gamma.value * tf.math.rsqrt(norm.moving_variance.value + norm.epsilon)
        kernel = tf.cast(tf.cast(conv.kernel, scale.dtype) * scale, x.dtype)
        bias = tf.cast(norm.beta.value - norm.moving_mean.value * scale, x.dtype)
        x = tf.nn.bias_add(conv.convolution_op(x, kernel), bias)
    x = x if other is None else x + other
    return tf.nn.relu(x) if relu else x


@tf.function(jit_compile=True, reduce_retracing=True)
def _layer_norm_forward(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> tuple[Tensor, ...]:
    x = tf.cast(x, tf.float32)
    mean = tf.reduce_mean(x, -1, keepdims=True)
    centred = x - mean
    scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    return centred * scale * gamma + beta, mean, scale


@tf.function(jit_compile=True, reduce_retracing=True)
def _layer_norm_backward(
    x: Tensor, mean: Tensor, scale: Tensor, gamma: Tensor, dy: Tensor
) -> tuple[Tensor, ...]:
    dtype, x = x.dtype, tf.cast(x, tf.float32)
    normal, dnormal = (x - mean) * scale, dy * gamma
    dx = scale * (
        dnormal
        - tf.reduce_mean(dnormal, -1, keepdims=True)
        - normal * tf.reduce_mean(dnormal * normal, -1, keepdims=True)
    )
    return tf.cast(dx, dtype), tf.reduce_sum(dy * normal, 0), tf.reduce_sum(dy, 0)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    """Normalises over the last axis in float32, as Keras does in every precision. Returns float32."""

    @tf.custom_gradient
    def normalise(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
        y, mean, scale = _layer_norm_forward(x, gamma, beta, epsilon)
        return y, lambda dy: _layer_norm_backward(x, mean, scale, gamma, dy)

    rows = tf.reshape(x, (-1, x.shape[-1]))
    y = normalise(rows, tf.cast(gamma, tf.float32), tf.cast(beta, tf.float32))
    return tf.ensure_shape(tf.reshape(y, tf.shape(x)), x.shape)


def _compiled(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compiles an elementwise `function` and its gradient into one loop each."""
    forward = tf.function(function, jit_compile=True, reduce_retracing=True)

    @tf.function(jit_compile=True, reduce_retracing=True)
    def backward(x: Tensor, dy: Tensor) -> Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x, dy)

    @tf.custom_gradient
    def both(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return forward(x), lambda dy: backward(x, dy)

    return both


@_compiled
def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + tf.math.erf(x * 0.5**0.5))


@_compiled
def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + tf.math.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def adam(
    variables: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momentums: Sequence[Any],
    velocities: Sequence[Any],
    step: Tensor,
    learning_rate: Tensor,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> bool:
    """Updates all `variables` and their moments in place by Adam; `step` counts from 1. Returns True."""
    for variable, gradient, momentum, velocity in zip(
        variables, gradients, momentums, velocities, strict=True
    ):
        number = tf.cast(step, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.value.handle,
            v=velocity.value.handle,
            beta1_power=beta_1**number,
            beta2_power=beta_2**number,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
        )
    return True
