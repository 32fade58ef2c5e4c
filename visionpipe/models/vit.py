"""Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv:2010.11929)."""

from typing import Any

from keras import layers

from visionpipe.models.attention import MultiHeadSelfAttention, SequencePooling, Tokens
from visionpipe.models.layers import (
    ACTIVATIONS,
    Add,
    Conv2D,
    Dense,
    LayerNorm,
    MaxPooling2D,
    Scale,
    StochasticDepth,
)
from visionpipe.models.names import (
    ENCODER_NORM,
    PATCH_EMBEDDING,
    POOL,
    PRE_LOGITS,
    TOKENS,
    encoder_block_name,
)
from visionpipe.models.specs import Encoder, ViTSpec


def mlp_block(x: Any, mlp_dim: int, activation: str, dropout_rate: float, name: str) -> Any:
    """Applies Dense → GELU → Dense to tokens (batch, tokens, hidden_dim), and returns the same shape.

    The second layer starts at zero, so that a new residual block starts as the identity.
    """
    hidden_dim = x.shape[-1]
    x = Dense(mlp_dim, activation=ACTIVATIONS[activation], name=f"{name}_expand")(x)
    x = layers.Dropout(dropout_rate, name=f"{name}_inner_dropout")(x) if dropout_rate else x
    return Dense(hidden_dim, kernel_initializer="zeros", name=f"{name}_project")(x)


def encoder_block(x: Any, spec: Encoder, drop_path_rate: float, name: str) -> Any:
    """Applies attention, then an MLP, each behind a LayerNorm and in a residual branch (equations 2 and 3)."""

    def residual(x: Any, y: Any, branch: str) -> Any:
        y = layers.Dropout(spec.dropout_rate, name=f"{name}_{branch}_dropout")(y) if spec.dropout_rate else y
        y = Scale(spec.layer_scale, name=f"{name}_{branch}_scale")(y) if spec.layer_scale else y
        y = StochasticDepth(drop_path_rate, name=f"{name}_{branch}_drop")(y) if drop_path_rate else y
        return Add(name=f"{name}_{branch}_add")([x, y])

    y = LayerNorm(spec.layer_norm_epsilon, name=f"{name}_attention_norm")(x)
    attention = MultiHeadSelfAttention(
        spec.num_heads, use_bias=spec.query_key_value_bias, name=f"{name}_attention"
    )
    x = residual(x, attention(y), "attention")
    y = LayerNorm(spec.layer_norm_epsilon, name=f"{name}_mlp_norm")(x)
    return residual(x, mlp_block(y, spec.mlp_dim, spec.activation, spec.dropout_rate, f"{name}_mlp"), "mlp")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Returns each block's rate of stochastic depth, linear from 0 to `last`; a single block has `last`."""
    return [last * block / (depth - 1) for block in range(depth)] if depth > 1 else [last]


def encode(x: Any, spec: Encoder, distillation_token: bool = False) -> Any:
    """Encodes a feature grid (batch, rows, columns, hidden_dim) as one vector per image (batch, features).

    With `distillation_token` it returns two such vectors: the class token's and the distillation token's.
    """
    x = Tokens(
        class_token=spec.pool == "token",
        distillation_token=distillation_token,
        register_tokens=spec.register_tokens,
        position=spec.position,
        stddev=spec.position_stddev,
        name=TOKENS,
    )(x)
    x = layers.Dropout(spec.dropout_rate, name="embedding_dropout")(x) if spec.dropout_rate else x
    for block, drop_path_rate in enumerate(drop_path_rates(spec.stochastic_depth_rate, spec.depth)):
        x = encoder_block(x, spec, drop_path_rate, encoder_block_name(block))
    x = LayerNorm(spec.layer_norm_epsilon, name=ENCODER_NORM)(x)
    if distillation_token:
        return [x[:, 0], x[:, 1]]
    if spec.pool == "token":
        x = x[:, 0]
    else:
        x = x[:, spec.register_tokens :] if spec.register_tokens else x
        x = (layers.GlobalAveragePooling1D if spec.pool == "gap" else SequencePooling)(name=POOL)(x)
    if spec.representation_dim:
        x = layers.Dense(spec.representation_dim, activation="tanh", name=PRE_LOGITS)(x)
    return x


def vit(images: Any, spec: ViTSpec) -> Any:
    """Maps normalised images (batch, height, width, channels) to features (batch, hidden_dim).

    With a distillation token it returns two feature vectors (see `encode`).
    """
    if spec.stem == "patch":
        grid = Conv2D(spec.hidden_dim, spec.patch_size, spec.patch_size, name=PATCH_EMBEDDING)(images)
    else:
        grid = convolutional_tokenizer(images, spec)
    return encode(grid, spec, spec.distillation_token)


def convolutional_tokenizer(x: Any, spec: ViTSpec) -> Any:
    """Repeats 3×3 convolution, ReLU and max-pooling of stride 2 until the total stride is `patch_size`.

    Source: Hassani et al. 2021, arXiv:2104.05704, equation 4.
    """
    halvings = spec.patch_size.bit_length() - 1
    for number in range(1, halvings + 1):
        filters = spec.hidden_dim if number == halvings else 64
        x = Conv2D(
            filters, 3, padding="same", use_bias=False, activation="relu", kernel_initializer="he_normal",
            name=f"tokenizer_conv{number}",
        )(x)  # fmt: skip
        x = MaxPooling2D(3, 2, padding="same", name=f"tokenizer_pool{number}")(x)
    return x
