"""Kernels for JAX, most of them for CPUs.

On a CPU XLA fuses without limit. For every operation that reads the gradient at a residual sum, it computes that
gradient again through all later blocks, so the time of a step grows with the square of the depth. Here layer norms have
a hand-written gradient, and the gradients at residual sums are stored, so that XLA computes each of them once.
"""

from functools import partial

import jax
from jax import Array, lax
from jax import numpy as jnp


def conv2d(
    x: Array, kernel: Array, strides: tuple[int, int], padding: str, dilation: tuple[int, int]
) -> Array:
    """Convolves `x` (batch, height, width, channels) with `kernel` (height, width, channels in, channels out)."""
    groups = x.shape[-1] // kernel.shape[2]
    # On CPUs XLA's pointwise convolutions, and their gradients even more, are slower than a matrix product. With few
    # channels the product is slower, because XLA fuses nothing with it.
    pointwise = kernel.shape[:2] == (1, 1) and groups == 1 and kernel.shape[2] >= 64
    if pointwise and jax.default_backend() == "cpu":
        return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding.upper(),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def dense_in_parts(parts: int, x: Array, kernel: Array, bias: Array | None = None) -> list[Array]:
    """Returns `x @ kernel + bias`, split into `parts` equal parts of the last axis."""
    # XLA on CPUs would copy each part out of a single product before anything reads it.
    if jax.default_backend() == "cpu":
        products = [x @ columns for columns in jnp.split(kernel, parts, -1)]
    else:
        products = jnp.split(x @ kernel, parts, -1)
    if bias is None:
        return products
    return [product + part for product, part in zip(products, jnp.split(bias, parts), strict=True)]


def softmax_product(logits: Array, values: Array) -> Array:
    """Returns softmax(logits) @ values, with the softmax in float32 and the result in the dtype of `values`."""
    logits = logits.astype(jnp.float32)
    if jax.default_backend() != "cpu":
        return jax.nn.softmax(logits).astype(values.dtype) @ values
    # Dividing after the product takes one division per channel of a value, not one per token. The maximum cancels
    # out, and so does its gradient.
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    weighted_sum = weights.astype(values.dtype) @ values
    return (weighted_sum / weights.sum(-1, keepdims=True)).astype(values.dtype)


@jax.custom_vjp
def _with_materialised_gradient(x: Array) -> Array:
    """Returns `x` unchanged; XLA stores its gradient as one array instead of recomputing it."""
    return x


def _identity_forward(x: Array) -> tuple[Array, None]:
    return x, None


def _identity_backward(_: None, dy: Array) -> tuple[Array]:
    # Both branches are the identity. XLA removes an optimization_barrier before it fuses, but not a conditional.
    return (lax.cond(dy.ravel()[0] < 0, lambda dy: dy, lambda dy: jnp.minimum(dy, jnp.inf), dy),)


_with_materialised_gradient.defvjp(_identity_forward, _identity_backward)


def add(x: Array, branch: Array) -> Array:
    """Adds a residual branch to its shortcut `x`."""
    # Not on accelerators: a conditional waits for its condition, which stops the queue there.
    return _with_materialised_gradient(x + branch) if jax.default_backend() == "cpu" else x + branch


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalise(x: Array, epsilon: float) -> Array:
    """Shifts and scales `x` to mean 0 and variance 1 over the last axis."""
    return _normalise_forward(x, epsilon)[0]


def _normalise_forward(x: Array, epsilon: float) -> tuple[Array, tuple[Array, Array, Array]]:
    mean = x.mean(-1, keepdims=True)
    scale = lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)
    return (x - mean) * scale, (x, mean, scale)


def _normalise_backward(epsilon: float, saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array]:
    x, mean, scale = saved
    y = (x - mean) * scale
    return (scale * (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)),)


_normalise.defvjp(_normalise_forward, _normalise_backward)


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    """Normalises over the last axis in float32, as Keras does in every precision. Returns float32."""
    return _normalise(x.astype(jnp.float32), epsilon) * jnp.asarray(gamma) + jnp.asarray(beta)
