"""The layers that own weights or randomness. Everything else is written with plain Keras layers."""

from typing import Any

import keras
from keras import ops

from visionpipe.models.kernels import batch_norm_training

Shape = tuple[Any, ...]  # None where the size is not known


@keras.saving.register_keras_serializable("visionpipe")
class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalisation over (batch, height, width) (Ioffe & Szegedy 2015, arXiv:1502.03167).

    Epsilon 1e-5 and momentum 0.9 as in the ResNet papers' code; Keras's own defaults are 1e-3 and 0.99.
    """

    def __init__(self, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, x: Any, training: bool | None = None, mask: Any = None) -> Any:
        if not training or not self.trainable:
            return super().call(x, training=False, mask=mask)
        fused = batch_norm_training(x, self.gamma, self.beta, self.epsilon)
        if fused is None:
            return super().call(x, training=True, mask=mask)
        y, mean, variance = fused
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return y


@keras.saving.register_keras_serializable("visionpipe")
class MultiHeadSelfAttention(keras.layers.Layer):
    """Softmax(q·kᵀ/√d)·v over `num_heads` heads (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    One matrix holds query, key and value side by side: a single large product instead of three small
    ones. Input and output: (batch, tokens, hidden_dim).
    """

    def __init__(self, num_heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = num_heads

    def build(self, shape: Shape) -> None:
        hidden_dim = shape[-1]
        self.query_key_value = keras.layers.Dense(3 * hidden_dim, name="query_key_value")
        # Zeros make a new residual branch the identity, as the zero scales of the ResNet do.
        self.output_projection = keras.layers.Dense(hidden_dim, kernel_initializer="zeros", name="output")
        self.query_key_value.build(shape)
        self.output_projection.build(shape)

    def call(self, x: Any) -> Any:
        batch, tokens, hidden_dim = ops.shape(x)
        head_dim = hidden_dim // self.num_heads
        qkv = ops.reshape(self.query_key_value(x), (batch, tokens, 3, self.num_heads, head_dim))
        query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3)  # each (B, H, T, D)
        weights = ops.softmax(ops.matmul(query * head_dim**-0.5, ops.transpose(key, (0, 1, 3, 2))))
        heads = ops.transpose(ops.matmul(weights, value), (0, 2, 1, 3))  # (B, T, H, D)
        return self.output_projection(ops.reshape(heads, (batch, tokens, hidden_dim)))

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"num_heads": self.num_heads}


@keras.saving.register_keras_serializable("visionpipe")
class ClassToken(keras.layers.Layer):
    """Prepends one learned token: (batch, tokens, hidden_dim) → (batch, 1 + tokens, hidden_dim)."""

    def build(self, shape: Shape) -> None:
        self.token = self.add_weight(shape=(1, 1, shape[-1]), initializer="zeros", name="token")

    def call(self, x: Any) -> Any:
        token = ops.broadcast_to(ops.cast(self.token, x.dtype), (ops.shape(x)[0], 1, x.shape[-1]))
        return ops.concatenate([token, x], axis=1)

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (shape[0], shape[1] + 1, shape[2])


@keras.saving.register_keras_serializable("visionpipe")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned vector to each position, drawn at first with deviation `stddev`."""

    def __init__(self, stddev: float = 0.02, **kwargs: Any):
        super().__init__(**kwargs)
        self.stddev = stddev

    def build(self, shape: Shape) -> None:
        initializer = keras.initializers.RandomNormal(stddev=self.stddev)
        self.embedding = self.add_weight(shape=(1, *shape[1:]), initializer=initializer, name="embedding")

    def call(self, x: Any) -> Any:
        return x + ops.cast(self.embedding, x.dtype)

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"stddev": self.stddev}


@keras.saving.register_keras_serializable("visionpipe")
class StochasticDepth(keras.layers.Layer):
    """Drops a whole residual branch for some images of a batch, and scales the rest up so that the
    expectation stays (Huang et al. 2016, arXiv:1603.09382). Identity at inference.
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
        kept = keras.random.uniform(shape, seed=self.seed_generator) >= self.rate
        return x * ops.cast(kept, x.dtype) / (1 - self.rate)

    def compute_output_shape(self, shape: Shape) -> Shape:
        return shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable("visionpipe")
def gelu(x: Any) -> Any:
    """Exact GELU, x·Φ(x) (Hendrycks & Gimpel 2016). Written with erf: the ONNX exporter has no Erfc,
    which TensorFlow's own GELU uses.
    """
    return 0.5 * x * (1 + ops.erf(x * 0.5**0.5))
