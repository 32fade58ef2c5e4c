"""Residual networks (He et al. 2016, arXiv:1512.03385), with the later variations that `Convolutions` lists."""

from collections.abc import Callable
from typing import Any

from keras import layers

from visionpipe.models.layers import BatchNorm, ChannelPadding, Conv2D, MaxPooling2D, WeightStandardizedConv2D
from visionpipe.models.names import FINAL_NORM, POOL, STEM_CONV, STEM_NORM, stage_block_name
from visionpipe.models.specs import GROUPS, Convolutions, ResNetSpec

# A replacement for a bottleneck's 3×3 convolution: (x, filters, stride, name) → x.
Spatial = Callable[[Any, int, int, str], Any]


def conv(x: Any, filters: int, kernel_size: int, stride: int, spec: Convolutions, name: str) -> Any:
    """Applies a He-initialised convolution without a bias; the norm that follows has one."""
    kind = WeightStandardizedConv2D if spec.norm == "group" else Conv2D
    padding = "same"
    if spec.padding == "symmetric" and stride > 1 and kernel_size > 1:
        x, padding = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_padding")(x), "valid"
    return kind(
        filters,
        kernel_size,
        stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def norm(x: Any, spec: Convolutions, name: str, scale: str = "ones") -> Any:
    """Applies the norm of the spec; `scale` is the initializer of its factors."""
    if spec.norm == "group":
        return layers.GroupNormalization(
            GROUPS, epsilon=spec.norm_epsilon, gamma_initializer=scale, name=name
        )(x)
    return BatchNorm(
        momentum=spec.norm_momentum, epsilon=spec.norm_epsilon, gamma_initializer=scale, name=name
    )(x)


def norm_relu(x: Any, spec: Convolutions, name: str) -> Any:
    """Applies the norm of the spec and a ReLU."""
    return layers.ReLU(name=name.replace("norm", "relu"))(norm(x, spec, name))


def stem(images: Any, spec: Convolutions) -> Any:
    """Maps normalised images (batch, height, width, channels) to the input of the first stage."""
    filters = spec.stem_filters or spec.width
    match spec.stem:
        case "3x3":
            x = conv(images, filters, 3, spec.stem_stride, spec, STEM_CONV)
        case "7x7":
            x = conv(images, filters, 7, 2, spec, STEM_CONV)
        case "deep":
            x = norm_relu(conv(images, filters // 2, 3, 2, spec, "stem_conv1"), spec, "stem_norm1")
            x = norm_relu(conv(x, filters // 2, 3, 1, spec, "stem_conv2"), spec, "stem_norm2")
            x = conv(x, filters, 3, 1, spec, STEM_CONV)
    if not spec.preactivation:  # with preactivation the first block begins with a norm
        x = norm_relu(x, spec, STEM_NORM)
    if spec.stem == "3x3":
        return x
    if spec.padding == "symmetric":
        # torch pads with minus infinity. Zeros give the same result behind a ReLU; without one, BiT's code uses zeros.
        x = layers.ZeroPadding2D(1, name="stem_pool_padding")(x)
        return MaxPooling2D(3, 2, name="stem_pool")(x)
    return MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)


def shortcut(x: Any, filters: int, stride: int, spec: Convolutions, name: str) -> Any:
    """Brings `x` into the shape of its block's output."""
    if stride == 1 and x.shape[-1] == filters:
        return x
    if spec.shortcut == "pad":
        x = layers.AveragePooling2D(1, stride, name=f"{name}_stride")(x) if stride > 1 else x
        added = filters - x.shape[-1]
        return ChannelPadding(added // 2, added - added // 2, name=f"{name}_pad")(x)
    if spec.shortcut == "pool" and stride > 1:
        x, stride = layers.AveragePooling2D(stride, padding="same", name=f"{name}_pool")(x), 1
    x = conv(x, filters, 1, stride, spec, name)
    return x if spec.preactivation else norm(x, spec, f"{name}_norm")


def residual_block(
    x: Any, filters: int, stride: int, spec: Convolutions, name: str, spatial: Spatial | None = None
) -> Any:
    """Computes relu(shortcut(x) + branch(x)), or with preactivation shortcut(x) + branch(x).

    The branch is a series of convolutions, each followed by a norm, with ReLUs between them. With preactivation a norm
    and a ReLU precede each convolution, and a shortcut that changes the shape branches off behind the first ReLU.

    A basic block has two 3×3 convolutions. A bottleneck has a 1×1, a 3×3, and a 1×1 with four times the channels. In a
    wide bottleneck the first two have twice the channels.
    """
    inner = 2 * filters if spec.block == "wide" else filters
    strides = (stride, 1) if spec.stride_on == "1x1" else (1, stride)
    if spec.block == "basic":
        steps = [(filters, 3, stride), (filters, 3, 1)]
    else:
        steps = [(inner, 1, strides[0]), (inner, 3, strides[1]), (4 * filters, 1, 1)]
    out = steps[-1][0]

    branch = x
    if spec.preactivation:
        branch = norm_relu(x, spec, f"{name}_norm1")
        x = branch if stride > 1 or x.shape[-1] != out else x
    for number, (channels, kernel_size, step) in enumerate(steps, start=1):
        if spec.preactivation and number > 1:
            branch = norm_relu(branch, spec, f"{name}_norm{number}")
        if spatial and kernel_size == 3:
            branch = spatial(branch, channels, step, f"{name}_attention")
        else:
            branch = conv(branch, channels, kernel_size, step, spec, f"{name}_conv{number}")
        if not spec.preactivation and number < len(steps):
            branch = norm_relu(branch, spec, f"{name}_norm{number}")

    x = shortcut(x, out, stride, spec, f"{name}_shortcut")
    if spec.preactivation:
        return layers.Add(name=f"{name}_output")([x, branch])
    scale = "zeros" if spec.zero_last_scale else "ones"
    branch = norm(branch, spec, f"{name}_norm{len(steps)}", scale)
    return layers.ReLU(name=f"{name}_output")(layers.Add(name=f"{name}_add")([x, branch]))


def resnet_stages(images: Any, spec: Convolutions, last_spatial: Spatial | None = None) -> Any:
    """Maps normalised images (batch, height, width, channels) to features (batch, height/s, width/s, filters).

    Here s is `spec.total_stride`. In the last stage `last_spatial` replaces the 3×3 convolutions.
    """
    x = stem(images, spec)
    for stage, blocks in enumerate(spec.blocks_per_stage):
        spatial = last_spatial if stage == len(spec.blocks_per_stage) - 1 else None
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            name = stage_block_name(stage + 1, block + 1)
            x = residual_block(x, spec.width * 2**stage, stride, spec, name, spatial)
    return norm_relu(x, spec, FINAL_NORM) if spec.preactivation else x


def resnet(images: Any, spec: ResNetSpec) -> Any:
    """Maps normalised images (batch, height, width, channels) to features (batch, channels)."""
    return layers.GlobalAveragePooling2D(name=POOL)(resnet_stages(images, spec))
