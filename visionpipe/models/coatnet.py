"""CoAtNet: stages of convolution, then stages of attention (Dai et al. 2021, arXiv:2106.04803, appendix A.1)."""

from typing import Any

from keras import layers

from visionpipe.models.attention import RelativeBiasAttention
from visionpipe.models.layers import Add, BatchNorm, Conv2D, LayerNorm, MaxPooling2D, StochasticDepth, gelu
from visionpipe.models.names import POOL, stage_block_name
from visionpipe.models.specs import CoAtNetSpec
from visionpipe.models.vit import drop_path_rates, mlp_block


def mbconv(x: Any, dim: int, stride: int, drop_path_rate: float, name: str) -> Any:
    """Applies an inverted bottleneck in a residual branch (equation 4).

    The branch is: norm, 1×1 up to 4·dim channels, depthwise 3×3, squeeze-and-excitation, 1×1 down to `dim`. Where the
    shape changes, the shortcut is pooled and projected.
    """
    y = BatchNorm(name=f"{name}_norm")(x)
    y = Conv2D(4 * dim, 1, stride, use_bias=False, name=f"{name}_expand")(y)
    y = layers.Activation(gelu, name=f"{name}_gelu1")(BatchNorm(name=f"{name}_norm1")(y))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.Activation(gelu, name=f"{name}_gelu2")(BatchNorm(name=f"{name}_norm2")(y))
    y = squeeze_and_excite(y, dim // 4, f"{name}_excite")
    y = Conv2D(dim, 1, name=f"{name}_project")(y)
    y = StochasticDepth(drop_path_rate, name=f"{name}_drop")(y) if drop_path_rate else y
    if stride > 1:
        x = MaxPooling2D(stride, padding="same", name=f"{name}_pool")(x)
    if x.shape[-1] != dim:
        x = Conv2D(dim, 1, name=f"{name}_shortcut")(x)
    return Add(name=f"{name}_output")([x, y])


def squeeze_and_excite(x: Any, filters: int, name: str) -> Any:
    """Scales each channel by a factor computed from the means of all channels (Hu et al. 2018, arXiv:1709.01507)."""
    y = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_mean")(x)
    y = Conv2D(filters, 1, activation=gelu, name=f"{name}_reduce")(y)
    y = Conv2D(x.shape[-1], 1, activation="sigmoid", name=f"{name}_expand")(y)
    return layers.Multiply(name=name)([x, y])


def transformer_block(
    x: Any, dim: int, stride: int, spec: CoAtNetSpec, drop_path_rate: float, name: str
) -> Any:
    """Applies attention with relative positions, then an MLP, to a grid, each in a residual branch (equation 5).

    A strided block pools its input first: in the branch behind the norm, and on the shortcut.
    """

    def dropped(y: Any, branch: str) -> Any:
        y = layers.Dropout(spec.dropout_rate, name=f"{name}_{branch}_dropout")(y) if spec.dropout_rate else y
        return StochasticDepth(drop_path_rate, name=f"{name}_{branch}_drop")(y) if drop_path_rate else y

    y = LayerNorm(name=f"{name}_attention_norm")(x)
    if stride > 1:
        y = MaxPooling2D(stride, padding="same", name=f"{name}_attention_pool")(y)
        x = MaxPooling2D(stride, padding="same", name=f"{name}_shortcut_pool")(x)
    if x.shape[-1] != dim:
        x = Conv2D(dim, 1, name=f"{name}_shortcut")(x)
    attention = RelativeBiasAttention(dim // spec.head_dim, dim, name=f"{name}_attention")
    x = Add(name=f"{name}_attention_add")([x, dropped(attention(y), "attention")])
    y = LayerNorm(name=f"{name}_mlp_norm")(x)
    y = mlp_block(y, 4 * dim, "gelu", spec.dropout_rate, f"{name}_mlp")
    return Add(name=f"{name}_output")([x, dropped(y, "mlp")])


def coatnet(images: Any, spec: CoAtNetSpec) -> Any:
    """Maps normalised images (batch, height, width, channels) to features (batch, channels)."""
    x = images
    for number in range(1, spec.blocks_per_stage[0] + 1):
        stride = spec.stem_stride if number == 1 else 1
        name = f"stem_conv{number}"
        x = Conv2D(spec.dims[0], 3, stride, padding="same", use_bias=False, name=name)(x)
        x = layers.Activation(gelu, name=f"stem_gelu{number}")(BatchNorm(name=f"stem_norm{number}")(x))
    rates = iter(drop_path_rates(spec.stochastic_depth_rate, sum(spec.blocks_per_stage[1:])))
    for stage, (count, dim) in enumerate(zip(spec.blocks_per_stage[1:], spec.dims[1:], strict=True), start=1):
        for block in range(1, count + 1):
            stride, name = 2 if block == 1 else 1, stage_block_name(stage, block)
            if stage >= len(spec.dims) - spec.attention_stages:
                x = transformer_block(x, dim, stride, spec, next(rates), name)
            else:
                x = mbconv(x, dim, stride, next(rates), name)
    x = layers.GlobalAveragePooling2D(name=POOL)(x)
    return LayerNorm(name=f"{POOL}_norm")(x)
