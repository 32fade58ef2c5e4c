"""Conformer: a branch of convolutions and a Transformer side by side that exchange features in every block.

Source: Peng et al. 2021, arXiv:2105.03889, figure 2.
"""

from typing import Any

from keras import layers

from visionpipe.models.attention import LaidOutAs, Tokens
from visionpipe.models.layers import BatchNorm, Conv2D, LayerNorm, MaxPooling2D, WeightedSum, gelu
from visionpipe.models.names import ENCODER_NORM, PATCH_EMBEDDING, POOL, STEM_CONV, TOKENS, stage_block_name
from visionpipe.models.specs import ConformerSpec, Encoder
from visionpipe.models.vit import drop_path_rates, encoder_block


def conv_norm(x: Any, filters: int, kernel_size: int, stride: int, name: str, relu: bool = True) -> Any:
    """Applies a He-initialised convolution without a bias, a batch norm, and a ReLU if `relu`."""
    x = Conv2D(
        filters,
        kernel_size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    x = BatchNorm(epsilon=1e-6, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def bottleneck(
    x: Any, filters: int, stride: int, project: bool, name: str, added: Any | None = None
) -> tuple[Any, Any]:
    """Applies a bottleneck, 1×1, 3×3, 1×1, in a residual branch; `added` is added before the 3×3 convolution.

    Returns the block's output and the output of the 3×3 convolution.
    """
    y = conv_norm(x, filters // 4, 1, 1, f"{name}_conv1")
    y = layers.Add(name=f"{name}_join")([y, added]) if added is not None else y
    inner = conv_norm(y, filters // 4, 3, stride, f"{name}_conv2")
    y = conv_norm(inner, filters, 1, 1, f"{name}_conv3", relu=False)
    if project:
        x = conv_norm(x, filters, 1, stride, f"{name}_shortcut", relu=False)
    return layers.ReLU(name=f"{name}_output")(layers.Add(name=f"{name}_add")([x, y])), inner


def to_tokens(grid: Any, tokens: Any, hidden_dim: int, factor: int, name: str) -> Any:
    """Converts a feature map to tokens (batch, tokens, hidden_dim), behind the class token of `tokens`.

    The map has `factor` times the tokens' resolution. This is the paper's feature coupling unit, downwards.
    """
    x = Conv2D(hidden_dim, 1, name=f"{name}_project")(grid)
    x = layers.AveragePooling2D(factor, name=f"{name}_pool")(x) if factor > 1 else x
    x = layers.Reshape((-1, hidden_dim), name=f"{name}_tokens")(x)
    x = LayerNorm(name=f"{name}_norm")(x)
    x = layers.Activation(gelu, name=f"{name}_gelu")(x)
    return layers.Concatenate(axis=1, name=f"{name}_concatenate")([tokens[:, :1], x])


def to_grid(tokens: Any, patches: Any, filters: int, factor: int, name: str) -> Any:
    """Converts tokens, except the class token, to a feature map of `filters` channels.

    The tokens are laid out like the grid `patches`, and the map has `factor` times its resolution. This is the paper's
    feature coupling unit, upwards.
    """
    x = LaidOutAs(name=f"{name}_grid")([tokens[:, 1:], patches])
    x = Conv2D(filters, 1, name=f"{name}_project")(x)
    x = layers.ReLU(name=f"{name}_relu")(BatchNorm(epsilon=1e-6, name=f"{name}_norm")(x))
    return layers.UpSampling2D(factor, name=f"{name}_upsample")(x) if factor > 1 else x


def conformer(images: Any, spec: ConformerSpec) -> Any:
    """Maps normalised images (batch, height, width, channels) to the features of both branches (batch, features).

    `spec.fusion` says whether these are concatenated or summed.
    """
    encoder = Encoder(
        hidden_dim=spec.hidden_dim,
        depth=spec.depth,
        num_heads=spec.num_heads,
        mlp_dim=spec.mlp_dim,
        dropout_rate=spec.dropout_rate,
    )
    if spec.stem == "7x7":
        x = conv_norm(images, 64, 7, 2, STEM_CONV)
        x = MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    else:
        x = conv_norm(images, 64, 3, 1, STEM_CONV)
    rates = drop_path_rates(spec.stochastic_depth_rate, spec.depth)

    patch = spec.patch_size // spec.stem_stride
    patches = Conv2D(spec.hidden_dim, patch, patch, name=PATCH_EMBEDDING)(x)
    tokens = Tokens(class_token=True, position="none", name=TOKENS)(patches)
    name = stage_block_name(1, 1)
    tokens = encoder_block(tokens, encoder, rates[0], f"{name}_encoder")
    x, _ = bottleneck(x, spec.filters, 1, True, name)

    for block in range(2, spec.depth + 1):
        stage, first = (block - 1) // (spec.depth // 3), (block - 1) % (spec.depth // 3) == 0
        filters, stride = spec.filters * 2**stage, 2 if first else 1
        factor, name = patch // 2**stage, stage_block_name(stage + 1, block - stage * (spec.depth // 3))
        x, inner = bottleneck(x, filters, stride, first, f"{name}_conv")
        from_grid = to_tokens(inner, tokens, spec.hidden_dim, factor, f"{name}_down")
        tokens = layers.Add(name=f"{name}_tokens")([from_grid, tokens])
        tokens = encoder_block(tokens, encoder, rates[block - 1], f"{name}_encoder")
        from_tokens = to_grid(tokens, patches, filters // 4, factor, f"{name}_up")
        last = block == spec.depth
        x, _ = bottleneck(x, filters, 2 if last else 1, last, f"{name}_fusion", added=from_tokens)

    x = layers.GlobalAveragePooling2D(name=POOL)(x)
    token = LayerNorm(name=ENCODER_NORM)(tokens)[:, 0]
    if spec.fusion == "concat":
        return layers.Concatenate(name="fusion")([x, token])
    x = layers.Dense(spec.hidden_dim, name="pool_project")(x)
    return WeightedSum(name="fusion")([x, token])
