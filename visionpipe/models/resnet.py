"""Residual networks for small images (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from typing import Any

from keras import layers

from visionpipe.models.layers import BatchNorm


def conv(x: Any, filters: int, kernel_size: int, stride: int, name: str) -> Any:
    """A convolution without bias (the norm that follows has one), He-initialised."""
    return layers.Conv2D(
        filters,
        kernel_size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)


def basic_block(x: Any, filters: int, stride: int, name: str) -> Any:
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""
    y = conv(x, filters, 3, stride, f"{name}_conv1")
    y = layers.ReLU(name=f"{name}_relu1")(BatchNorm(name=f"{name}_norm1")(y))
    y = conv(y, filters, 3, 1, f"{name}_conv2")
    # A zero scale makes each new block the identity at first (Goyal et al. 2017, section 5.1).
    y = BatchNorm(gamma_initializer="zeros", name=f"{name}_norm2")(y)
    if stride > 1 or x.shape[-1] != filters:
        x = BatchNorm(name=f"{name}_shortcut_norm")(conv(x, filters, 1, stride, f"{name}_shortcut"))
    return layers.ReLU(name=f"{name}_relu2")(layers.Add(name=f"{name}_add")([x, y]))


def resnet_stages(images: Any, *, blocks_per_stage: tuple[int, ...], filters: int, stem_stride: int) -> Any:
    """Normalised images (batch, height, width, 3) to the last feature map
    (batch, height/s, width/s, filters·2^(stages−1)) with s = stem_stride·2^(stages−1).
    """
    x = conv(images, filters, 3, stem_stride, "stem_conv")
    x = layers.ReLU(name="stem_relu")(BatchNorm(name="stem_norm")(x))
    for stage, blocks in enumerate(blocks_per_stage):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = basic_block(x, filters * 2**stage, stride, f"stage{stage + 1}_block{block + 1}")
    return x


def resnet(images: Any, *, blocks_per_stage: tuple[int, ...], filters: int, stem_stride: int) -> Any:
    """Normalised images (batch, height, width, 3) to features (batch, filters·2^(stages−1))."""
    x = resnet_stages(images, blocks_per_stage=blocks_per_stage, filters=filters, stem_stride=stem_stride)
    return layers.GlobalAveragePooling2D(name="pool")(x)
