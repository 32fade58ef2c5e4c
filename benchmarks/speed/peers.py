"""The networks that are timed: ours, and the same architectures in stock Keras, plain torch and timm."""

from typing import Any

SMALL_VIT = {"patch": 4, "width": 96, "depth": 6, "heads": 3, "mlp": 192}
LARGE_VITS = {
    "ViT-S/16": {"num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536},
    "ViT-B/16": {"num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072},
}
TIMM = {
    "ResNet-50": "resnet50",
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
}


def ours(name: str, classes: int, size: int) -> Any:
    """Returns the model as `train` runs it, with its layers called directly where that is faster."""
    from visionpipe.acceleration.network import accelerate
    from visionpipe.models import build_model

    if name == "ResNet-20":  # with the projections that everyone's Keras code has
        return accelerate(build_model(name, classes, size, shortcut="projection"))
    return accelerate(build_model("ViT-Sm/4" if name == "ViT 6×96" else name, classes, size))


def stock_keras(name: str, classes: int, size: int) -> Any:
    import keras

    if name == "ResNet-50":
        return keras.applications.ResNet50(weights=None, classes=classes, classifier_activation=None)
    if name in LARGE_VITS:
        return keras_hub_vit(classes, size, **LARGE_VITS[name])
    return keras_resnet20(classes, size) if name == "ResNet-20" else keras_vit(classes, size, **SMALL_VIT)


def adamw(library: str) -> Any:
    """Returns the optimizer that trains this library's Keras models."""
    if library == "visionpipe":
        from visionpipe.training.adamw import AdamW

        return AdamW(1e-3)
    import keras

    return keras.optimizers.AdamW(1e-3)


def torch_peer(name: str, classes: int, size: int) -> Any:
    """Returns timm's model where timm has the architecture, else one in plain torch."""
    if name in TIMM:
        from torchvision_stub import stub_torchvision

        stub_torchvision()
        import timm

        return timm.create_model(TIMM[name], num_classes=classes)
    return torch_resnet20(classes) if name == "ResNet-20" else torch_vit(classes, size, **SMALL_VIT)


def keras_hub_vit(classes: int, size: int, **shape: int) -> Any:
    import keras
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(size, size, 3), patch_size=16, num_layers=12, **shape
    )
    return keras.Model(backbone.input, keras.layers.Dense(classes)(backbone.output[:, 0]))


def keras_resnet20(classes: int, size: int) -> Any:
    """Returns the network of He et al. 2016, section 4.2, in stock Keras layers, with projections."""
    import keras
    from keras import layers

    def conv_norm(x: Any, filters: int, kernel: int, stride: int) -> Any:
        x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization()(x)

    inputs = keras.Input((size, size, 3))
    x = layers.ReLU()(conv_norm(layers.Rescaling(1 / 127.5, -1)(inputs), 16, 3, 1))
    for stage in range(3):
        filters = 16 * 2**stage
        for block in range(3):
            stride = 2 if stage and not block else 1
            y = layers.ReLU()(conv_norm(x, filters, 3, stride))
            y = conv_norm(y, filters, 3, 1)
            x = conv_norm(x, filters, 1, stride) if stride > 1 else x
            x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def keras_vit(classes: int, size: int, patch: int, width: int, depth: int, heads: int, mlp: int) -> Any:
    """Returns a ViT of stock MultiHeadAttention, LayerNormalization and Dense layers, with mean pooling."""
    import keras
    from keras import layers, ops

    class Positions(layers.Layer):
        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=(1, *shape[1:]), initializer="random_normal")

        def call(self, x: Any) -> Any:
            return x + ops.cast(self.table, x.dtype)

    inputs = keras.Input((size, size, 3))
    x = layers.Conv2D(width, patch, patch)(layers.Rescaling(1 / 127.5, -1)(inputs))
    x = Positions()(layers.Reshape((-1, width))(x))
    for _ in range(depth):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(width)(layers.Dense(mlp, activation="gelu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(inputs, layers.Dense(classes)(x))


def torch_resnet20(classes: int) -> Any:
    """Returns the same network in torch.nn."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, incoming: int, filters: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(incoming, filters, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norm1, self.norm2 = nn.BatchNorm2d(filters), nn.BatchNorm2d(filters)
            self.shortcut = (
                nn.Sequential(nn.Conv2d(incoming, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
                if stride > 1
                else nn.Identity()
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = functional.relu(self.norm1(self.conv1(x)))
            return functional.relu(self.shortcut(x) + self.norm2(self.conv2(y)))

    blocks, incoming = [], 16
    for stage in range(3):
        for block in range(3):
            blocks.append(Block(incoming, 16 * 2**stage, 2 if stage and not block else 1))
            incoming = 16 * 2**stage
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def torch_vit(classes: int, size: int, patch: int, width: int, depth: int, heads: int, mlp: int) -> Any:
    """Returns a ViT of torch's own encoder layers, pre-norm, without dropout, with mean pooling."""
    import torch
    from torch import nn

    class ViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, width, patch, patch)
            self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2, width) * 0.02)
            layer = nn.TransformerEncoderLayer(
                width, heads, mlp, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
                norm_first=True,
            )  # fmt: skip
            self.encoder = nn.TransformerEncoder(
                layer, depth, nn.LayerNorm(width, 1e-6), enable_nested_tensor=False
            )
            self.head = nn.Linear(width, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            return self.head(self.encoder(x).mean(1))

    return ViT()
