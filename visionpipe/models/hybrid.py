"""Serial hybrid: ResNet stages whose last feature map is the Transformer's input
(Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1, "Hybrid Architecture").
"""

from typing import Any

from keras import layers

from visionpipe.models.resnet import resnet_stages
from visionpipe.models.vit import encode


def hybrid(
    images: Any,
    *,
    blocks_per_stage: tuple[int, ...],
    filters: int,
    stem_stride: int,
    hidden_dim: int,
    depth: int,
    num_heads: int,
    mlp_dim: int,
    pool: str,
    dropout_rate: float,
    stochastic_depth_rate: float,
) -> Any:
    """Normalised images (batch, height, width, 3) to features (batch, hidden_dim)."""
    x = resnet_stages(images, blocks_per_stage=blocks_per_stage, filters=filters, stem_stride=stem_stride)
    x = layers.Conv2D(hidden_dim, 1, name="patch_embedding")(x)
    return encode(
        x,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        pool=pool,
        position_stddev=0.02,  # the feature map knows its positions already
        dropout_rate=dropout_rate,
        stochastic_depth_rate=stochastic_depth_rate,
    )
