"""Hybrids of a ResNet and attention: a Transformer behind the stages, or attention inside the last stage."""

from typing import Any

from keras import layers

from visionpipe.models.attention import BottleneckAttention
from visionpipe.models.layers import Conv2D
from visionpipe.models.names import PATCH_EMBEDDING, POOL
from visionpipe.models.resnet import resnet_stages
from visionpipe.models.specs import BoTNetSpec, HybridSpec
from visionpipe.models.vit import encode


def hybrid(images: Any, spec: HybridSpec) -> Any:
    """Feeds the last feature map of ResNet stages into a Transformer.

    Maps normalised images (batch, height, width, channels) to features (batch, hidden_dim).
    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1.
    """
    x = resnet_stages(images, spec)
    x = Conv2D(spec.hidden_dim, spec.patch_size, spec.patch_size, name=PATCH_EMBEDDING)(x)
    return encode(x, spec)


def botnet(images: Any, spec: BoTNetSpec) -> Any:
    """Replaces the 3×3 convolutions of a ResNet's last stage with attention.

    Maps normalised images (batch, height, width, channels) to features (batch, channels). Source: Srinivas et al. 2021,
    arXiv:2101.11605, section 3.
    """

    def attention(x: Any, filters: int, stride: int, name: str) -> Any:
        x = BottleneckAttention(spec.num_heads, filters, name=name)(x)
        return layers.AveragePooling2D(stride, padding="same", name=f"{name}_pool")(x) if stride > 1 else x

    return layers.GlobalAveragePooling2D(name=POOL)(resnet_stages(images, spec, last_spatial=attention))
