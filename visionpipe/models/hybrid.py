"""Hybrids of convolution and attention: in series, and interleaved in the last stage of a ResNet."""

from typing import Any

from keras import layers

from visionpipe.models.attention import BottleneckAttention
from visionpipe.models.layers import Conv2D
from visionpipe.models.resnet import resnet_stages
from visionpipe.models.specs import BoTNetSpec, HybridSpec
from visionpipe.models.vit import encode


def hybrid(images: Any, spec: HybridSpec) -> Any:
    """ResNet stages whose last feature map is the Transformer's input (Dosovitskiy et al. 2021,
    arXiv:2010.11929, section 3.1).

    Normalised images (batch, height, width, 3) to features (batch, hidden_dim).
    """
    x = resnet_stages(images, spec)
    x = Conv2D(spec.hidden_dim, spec.patch_size, spec.patch_size, name="patch_embedding")(x)
    return encode(x, spec)


def botnet(images: Any, spec: BoTNetSpec) -> Any:
    """Attention in the last stage (Srinivas et al. 2021, arXiv:2101.11605, section 3).

    Normalised images (batch, height, width, 3) to features (batch, channels).
    """

    def attention(x: Any, filters: int, stride: int, name: str) -> Any:
        x = BottleneckAttention(spec.num_heads, filters, name=name)(x)
        return layers.AveragePooling2D(stride, padding="same", name=f"{name}_pool")(x) if stride > 1 else x

    return layers.GlobalAveragePooling2D(name="pool")(resnet_stages(images, spec, last_spatial=attention))
