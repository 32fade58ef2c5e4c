"""JAX on CPUs. XLA fuses without end there: the gradient along a chain of residual blocks is computed again,
from the last block on, for every operation of every block that reads it, so that a step's time grows with
the square of the depth. Norms whose gradient is written out, and sums that are kept, have it computed once.
"""

from functools import partial

import jax
from jax import Array, lax
from jax import numpy as jnp


def conv2d(
    x: Array, kernel: Array, strides: tuple[int, int], padding: str, dilation: tuple[int, int]
) -> Array:
    """`kernel`: (height, width, channels in, channels out)."""
    groups = x.shape[-1] // kernel.shape[2]
    # XLA's convolutions are slow on CPUs, and their gradients slower, where a matrix product gives the same; of
    # few channels it is the product that is slower, for nothing is fused with it.
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
    """`x @ kernel + bias` in `parts` equal parts of the last axis."""
    # Of one product XLA on CPUs copies each part out of the whole before anything reads it.
    if jax.default_backend() == "cpu":
        products = [x @ columns for columns in jnp.split(kernel, parts, -1)]
    else:
        products = jnp.split(x @ kernel, parts, -1)
    if bias is None:
        return products
    return [product + part for product, part in zip(products, jnp.split(bias, parts), strict=True)]


def softmax_product(logits: Array, values: Array) -> Array:
    """softmax(logits) @ values, the softmax in float32."""
    logits = logits.astype(jnp.float32)
    if jax.default_backend() != "cpu":
        return jax.nn.softmax(logits).astype(values.dtype) @ values
    # Divided after the product: of as many numbers as a value has, not as there are tokens. The maximum cancels
    # out, and so does its gradient.
    weights = jnp.exp(logits - lax.stop_gradient(logits.max(-1, keepdims=True)))
    read = weights.astype(values.dtype) @ values
    return (read / weights.sum(-1, keepdims=True)).astype(values.dtype)


@jax.custom_vjp
def kept(x: Array) -> Array:
    """The identity, whose gradient is one array in memory."""
    return x


def kept_forward(x: Array) -> tuple[Array, None]:
    return x, None


def kept_backward(_: None, dy: Array) -> tuple[Array]:
    # Both branches are the identity. XLA removes an optimization_barrier before it fuses, a branch it keeps.
    return (lax.cond(dy.ravel()[0] < 0, lambda dy: dy, lambda dy: jnp.minimum(dy, jnp.inf), dy),)


kept.defvjp(kept_forward, kept_backward)


def add(x: Array, branch: Array) -> Array:
    """A residual sum."""
    # A branch waits for its condition, which on an accelerator stops the queue.
    return kept(x + branch) if jax.default_backend() == "cpu" else x + branch


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def normalise(x: Array, epsilon: float) -> Array:
    """`x` with mean 0 and variance 1 over the last axis."""
    return normalise_forward(x, epsilon)[0]


def normalise_forward(x: Array, epsilon: float) -> tuple[Array, tuple[Array, Array, Array]]:
    mean = x.mean(-1, keepdims=True)
    scale = lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + epsilon)
    return (x - mean) * scale, (x, mean, scale)


def normalise_backward(epsilon: float, saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array]:
    x, mean, scale = saved
    y = (x - mean) * scale
    return (scale * (dy - dy.mean(-1, keepdims=True) - y * (dy * y).mean(-1, keepdims=True)),)


normalise.defvjp(normalise_forward, normalise_backward)


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    """Over the last axis, in float32, as Keras does it in every precision."""
    return normalise(x.astype(jnp.float32), epsilon) * jnp.asarray(gamma) + jnp.asarray(beta)
