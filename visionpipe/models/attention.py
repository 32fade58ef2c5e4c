"""Self-attention over tokens or feature grids, with the position embeddings that it uses."""

import math
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from visionpipe.kernels import kernel
from visionpipe.models.layers import product, weights
from visionpipe.models.positions import distance_index, resize_positions, sincos_positions

Shape = tuple[Any, ...]  # None where a size is unknown


@keras.saving.register_keras_serializable("visionpipe")
class MultiHeadSelfAttention(keras.layers.Layer):
    """Computes softmax(q·kᵀ/√d)·v in each of `num_heads` heads (Vaswani et al. 2017, arXiv:1706.03762, section 3.2).

    The input is (batch, tokens, channels) or a grid (batch, rows, columns, channels). The output has `hidden_dim`
    channels, by default as many as the input. One matrix holds the weights of query, key and value side by side; the
    backend computes one product with it, or three.
    """

    projected = True  # whether a dense layer follows

    def __init__(self, num_heads: int, hidden_dim: int | None = None, use_bias: bool = True, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads, self.hidden_dim, self.use_bias = num_heads, hidden_dim, use_bias

    def build(self, shape: Shape) -> None:
        hidden_dim = self.hidden_dim or shape[-1]
        self.head_dim = hidden_dim // self.num_heads
        # Else the inner layers would take the global policy, which may not be the one that the file was saved with.
        dense = partial(keras.layers.Dense, dtype=self.dtype_policy)
        self.query_key_value = dense(3 * hidden_dim, use_bias=self.use_bias, name="query_key_value")
        self.query_key_value.build(shape)
        if self.projected:
            # With zeros a new residual block starts as the identity, as a ResNet's does with zero scales.
            self.output_projection = dense(hidden_dim, kernel_initializer="zeros", name="output")
            self.output_projection.build((*shape[:-1], hidden_dim))

    def heads(self, x: Any) -> list[Any]:
        """Returns the scaled query, the key and the value, each (batch, heads, tokens, head_dim)."""
        shape = (-1, math.prod(x.shape[1:-1]), self.num_heads, self.head_dim)
        in_parts, dense = kernel("dense_in_parts"), self.query_key_value
        if in_parts and dense.quantization_mode is None:
            parts = in_parts(3, x, *weights(dense, x.dtype))
            query, key, value = (ops.transpose(ops.reshape(part, shape), (0, 2, 1, 3)) for part in parts)
        else:
            qkv = ops.reshape(dense(x), (*shape[:2], 3, *shape[2:]))
            query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3)
        return [query * self.head_dim**-0.5, key, value]

    def logits(self, query: Any, key: Any) -> Any:
        """Returns the attention logits (batch, heads, tokens, tokens)."""
        return ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))

    def attention_map(self, x: Any) -> Any:
        """Returns the attention weights (batch, heads, tokens, tokens); the weights of each query sum to 1."""
        query, key, _ = self.heads(x)
        return softmax(self.logits(query, key))

    def attend(self, x: Any) -> Any:
        """Returns the heads' weighted sums of values side by side, in the shape of the output."""
        query, key, value = self.heads(x)
        logits, fused = self.logits(query, key), kernel("softmax_product")
        sums = fused(logits, value) if fused else ops.matmul(softmax(logits), value)
        return ops.reshape(ops.transpose(sums, (0, 2, 1, 3)), (-1, *self.compute_output_shape(x.shape)[1:]))

    def call(self, x: Any) -> Any:
        y = self.attend(x)
        return product(y, self.output_projection) if self.projected else y

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (*shape[:-1], self.hidden_dim or shape[-1])

    def get_config(self) -> dict[str, Any]:
        config = {"num_heads": self.num_heads, "hidden_dim": self.hidden_dim, "use_bias": self.use_bias}
        return super().get_config() | config


@keras.saving.register_keras_serializable("visionpipe")
class RelativeBiasAttention(MultiHeadSelfAttention):
    """Attends over a grid and adds a learned bias to each logit, per head and relative position in rows and columns.

    Source: Dai et al. 2021, arXiv:2106.04803, equation 3.
    """

    def build(self, shape: Shape) -> None:
        super().build(shape)
        self.grid = shape[1:3]
        distances = [2 * side - 1 for side in self.grid]
        self.relative_bias = self.add_weight(
            shape=(self.num_heads, *distances),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
            name="relative_bias",
        )
        self.rows, self.columns = (constant(distance_index(side)) for side in self.grid)  # (side, side) each

    def logits(self, query: Any, key: Any) -> Any:
        table = ops.cast(self.relative_bias, query.dtype)
        # (heads, rows, rows, columns, columns)
        bias = ops.take(ops.take(table, self.rows, axis=1), self.columns, axis=3)
        tokens = self.grid[0] * self.grid[1]
        bias = ops.reshape(ops.transpose(bias, (0, 1, 3, 2, 4)), (1, self.num_heads, tokens, tokens))
        return super().logits(query, key) + bias

    def resize_from(self, other: "RelativeBiasAttention") -> None:
        """Copies the weights of a layer built for another grid, and resizes its biases linearly."""
        take_weights(self, other, except_for="relative_bias")
        table = ops.convert_to_numpy(other.relative_bias)
        self.relative_bias.assign(
            np.moveaxis(
                resize_positions(np.moveaxis(table, 0, -1), self.relative_bias.shape[1:], "linear"), -1, 0
            )
        )


@keras.saving.register_keras_serializable("visionpipe")
class BottleneckAttention(MultiHeadSelfAttention):
    """Attends over a grid, and compares the query also with learned vectors of the relative row and column.

    It has no biases and no output projection (Srinivas et al. 2021, arXiv:2101.11605, figure 4).
    """

    projected = False

    def __init__(self, num_heads: int, hidden_dim: int | None = None, use_bias: bool = False, **kwargs: Any):
        super().__init__(num_heads, hidden_dim, use_bias, **kwargs)

    def build(self, shape: Shape) -> None:
        super().build(shape)
        self.grid = shape[1:3]
        self.relative_rows, self.relative_columns = (
            self.add_weight(
                shape=(2 * side - 1, self.head_dim),
                initializer=keras.initializers.RandomNormal(stddev=self.head_dim**-0.5),
                name=name,
            )
            for side, name in zip(self.grid, ("relative_rows", "relative_columns"), strict=True)
        )
        self.rows, self.columns = (constant(distance_index(side)) for side in self.grid)  # (side, side) each

    def logits(self, query: Any, key: Any) -> Any:
        rows, columns = self.grid
        grid = ops.reshape(query, (-1, self.num_heads, rows, columns, query.shape[-1]))
        by_row = ops.take(ops.cast(self.relative_rows, query.dtype), self.rows, axis=0)
        by_column = ops.take(ops.cast(self.relative_columns, query.dtype), self.columns, axis=0)
        row_logits = ops.einsum("bnijd,ikd->bnijk", grid, by_row)[..., :, None]
        column_logits = ops.einsum("bnijd,jld->bnijl", grid, by_column)[..., None, :]
        tokens = rows * columns
        relative = ops.reshape(row_logits + column_logits, (-1, self.num_heads, tokens, tokens))
        return super().logits(query, key) + relative

    def resize_from(self, other: "BottleneckAttention") -> None:
        """Copies the weights of a layer built for another grid, and resizes its relative positions linearly."""
        take_weights(self, other, except_for="relative_")
        for mine, theirs in (
            (self.relative_rows, other.relative_rows),
            (self.relative_columns, other.relative_columns),
        ):
            table = ops.convert_to_numpy(theirs)
            mine.assign(resize_positions(table[:, None], (mine.shape[0], 1), "linear")[:, 0])


@keras.saving.register_keras_serializable("visionpipe")
class Tokens(keras.layers.Layer):
    """Turns a feature grid (batch, rows, columns, channels) into tokens (batch, tokens, channels), and adds positions.

    The order is: class token (Dosovitskiy et al. 2021, arXiv:2010.11929, equation 1), distillation token (Touvron et
    al. 2021, arXiv:2012.12877), register tokens (Darcet et al. 2023, arXiv:2309.16588), image tokens. All but the image
    tokens are optional. Register tokens have no position.

    Args:
        position: `learned`, `sincos` or `none`.
        stddev: standard deviation of the initial learned positions.
        sincos_grid: the rows and columns that the fixed positions span; by default those of the input.
    """

    def __init__(
        self,
        class_token: bool = False,
        register_tokens: int = 0,
        position: str = "learned",
        stddev: float = 0.02,
        distillation_token: bool = False,
        sincos_grid: tuple[int, int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.sincos_grid = sincos_grid
        self.has_class_token, self.has_distillation_token = class_token, distillation_token
        self.register_count = register_tokens
        self.position, self.stddev = position, stddev

    @property
    def first(self) -> int:
        """The number of tokens with a position that precede the image tokens."""
        return self.has_class_token + self.has_distillation_token

    def build(self, shape: Shape) -> None:
        self.grid, channels = shape[1:3], shape[-1]

        def tokens(name: str, count: int, initializer: Any) -> Any:
            return self.add_weight(shape=(1, count, channels), initializer=initializer, name=name)

        normal = keras.initializers.RandomNormal
        if self.has_class_token:
            self.class_token = tokens("class_token", 1, "zeros")
        if self.has_distillation_token:
            self.distillation_token = tokens("distillation_token", 1, normal(stddev=0.02))
        if self.register_count:
            self.register_tokens = tokens("register_tokens", self.register_count, normal(stddev=0.02))
        if self.position == "learned":
            count = self.first + self.grid[0] * self.grid[1]
            self.position_embedding = tokens("position_embedding", count, normal(stddev=self.stddev))
        elif self.position == "sincos":
            self.span(channels, self.sincos_grid)

    def span(self, channels: int, sincos_grid: tuple[int, int] | None) -> None:
        """Computes the fixed positions, stretched over the rows and columns of `sincos_grid`."""
        self.sincos_grid = sincos_grid
        positions = sincos_positions(self.grid[0], self.grid[1], channels, sincos_grid)
        self.fixed_positions = constant(np.pad(positions, ((self.first, 0), (0, 0)))[None])

    def call(self, x: Any) -> Any:
        rows, columns, channels = x.shape[1:]
        x = ops.reshape(x, (-1, rows * columns, channels))

        def for_each_image(tokens: Any) -> Any:
            return ops.broadcast_to(ops.cast(tokens, x.dtype), (ops.shape(x)[0], *tokens.shape[1:]))

        if self.has_distillation_token:
            x = ops.concatenate([for_each_image(self.distillation_token), x], axis=1)
        if self.has_class_token:
            x = ops.concatenate([for_each_image(self.class_token), x], axis=1)
        if self.position == "learned":
            x = x + ops.cast(self.position_embedding, x.dtype)
        elif self.position == "sincos":
            x = x + ops.cast(self.fixed_positions, x.dtype)
        if self.register_count:
            parts = [x[:, : self.first], for_each_image(self.register_tokens), x[:, self.first :]]
            x = ops.concatenate(parts, axis=1)
        return x

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (shape[0], self.first + self.register_count + shape[1] * shape[2], shape[3])

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"class_token": self.has_class_token, "register_tokens": self.register_count}
        # Only models that use these write them, so that the files of all other models stay the same, byte for byte.
        if self.has_distillation_token:
            config["distillation_token"] = True
        if self.sincos_grid:
            config["sincos_grid"] = self.sincos_grid
        return super().get_config() | config | {"position": self.position, "stddev": self.stddev}

    def resize_from(self, other: "Tokens") -> None:
        """Copies the weights of a layer built for another grid, and resizes the image tokens' positions linearly."""
        take_weights(self, other, except_for="position_embedding")
        if self.position != "learned":
            return
        old, first = ops.convert_to_numpy(other.position_embedding)[0], self.first
        grid = resize_positions(old[first:].reshape(*other.grid, -1), self.grid, "linear")
        self.position_embedding.assign(np.concatenate([old[:first], grid.reshape(-1, old.shape[-1])])[None])


@keras.saving.register_keras_serializable("visionpipe")
class LaidOutAs(keras.layers.Layer):
    """Reshapes tokens (batch, rows·columns, channels) to (batch, rows, columns, channels).

    Takes [tokens, grid] and reads rows and columns off the shape of `grid`.
    """

    def call(self, inputs: list[Any]) -> Any:
        tokens, grid = inputs
        return ops.reshape(tokens, (-1, *grid.shape[1:3], tokens.shape[-1]))

    def compute_output_shape(self, shapes: list[Shape]) -> Shape:
        tokens, grid = shapes
        return (tokens[0], *grid[1:3], tokens[2])


@keras.saving.register_keras_serializable("visionpipe")
class SequencePooling(keras.layers.Layer):
    """Averages the tokens (batch, tokens, channels) to (batch, channels), weighted by a learned score of each token.

    Source: Hassani et al. 2021, arXiv:2104.05704, section 3.2.
    """

    def build(self, shape: Shape) -> None:
        self.score = keras.layers.Dense(1, dtype=self.dtype_policy, name="score")
        self.score.build(shape)

    def call(self, x: Any) -> Any:
        return ops.sum(softmax(self.score(x), axis=1) * x, axis=1)

    def compute_output_shape(self, shape: Shape) -> Shape:
        return (shape[0], shape[2])


def constant(array: np.ndarray) -> Any:
    """Converts a constant array to the form that the backend handles best in a layer's `call`."""
    convert = kernel("constant")
    return convert(array) if convert else array


def softmax(x: Any, axis: int = -1) -> Any:
    """Computes the softmax in float32 and returns it in the dtype of `x`."""
    return ops.cast(ops.softmax(ops.cast(x, "float32"), axis), x.dtype)


def take_weights(layer: keras.layers.Layer, other: keras.layers.Layer, except_for: str | None = None) -> None:
    """Copies the weights of `other` into `layer`, except those whose name begins with `except_for`.

    The arrays are copied because on JAX the layers would share them, and a training step of one layer deletes them.
    """
    for weight, source in zip(layer.weights, other.weights, strict=True):
        if except_for is None or not weight.name.startswith(except_for):
            weight.assign(np.array(ops.convert_to_numpy(source)))
