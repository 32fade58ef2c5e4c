"""Makes random checkpoints in the documented layouts of google-research's `.npz` files."""

import numpy as np

OLDER = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
NEWER = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


class Layout(dict):
    """Name → random array. Activations neither vanish nor explode, and each entry changes the output."""

    def __init__(self, seed=0):
        super().__init__()
        self.random = np.random.default_rng(seed)

    def kernel(self, name, *shape, inputs=None):
        inputs = inputs or np.prod(shape[:-1])
        self[name] = self.random.normal(0, inputs**-0.5, shape).astype(np.float32)

    def vector(self, name, *shape, mean=0.0):
        self[name] = self.random.normal(mean, 0.3, shape).astype(np.float32)

    def norm(self, name, *shape):
        self.vector(f"{name}/scale", *shape, mean=1.0)
        self.vector(f"{name}/bias", *shape)

    def dense(self, name, *shape):
        self.kernel(f"{name}/kernel", *shape)
        self.vector(f"{name}/bias", shape[-1])

    def block(self, name, width, heads, mlp, names, lead=()):
        """Adds an encoder block. `lead`: the leading axis over blocks of a scanned checkpoint."""
        norm1, attention, norm2, dense = names
        self.norm(f"{name}/{norm1}", *lead, width)
        for part in ("query", "key", "value"):
            self.kernel(
                f"{name}/{attention}/{part}/kernel", *lead, width, heads, width // heads, inputs=width
            )
            self.vector(f"{name}/{attention}/{part}/bias", *lead, heads, width // heads)
        self.kernel(f"{name}/{attention}/out/kernel", *lead, heads, width // heads, width, inputs=width)
        self.vector(f"{name}/{attention}/out/bias", *lead, width)
        self.norm(f"{name}/{norm2}", *lead, width)
        for number, (inputs, outputs) in enumerate([(width, mlp), (mlp, width)]):
            self.kernel(f"{name}/{dense}/Dense_{number}/kernel", *lead, inputs, outputs, inputs=inputs)
            self.vector(f"{name}/{dense}/Dense_{number}/bias", *lead, outputs)

    def stages(self, blocks_per_stage, width, four_axes=False):
        """Adds the stages of an R50 backbone; returns their channels. `four_axes`: group norms like in older files."""

        def norm(name, channels):
            self.norm(name, *((1, 1, 1, channels) if four_axes else (channels,)))

        self.kernel("conv_root/kernel", 7, 7, 3, width)
        norm("gn_root", width)
        incoming = width
        for stage, blocks in enumerate(blocks_per_stage, start=1):
            inner = width * 2 ** (stage - 1)
            for unit in range(1, blocks + 1):
                name = f"block{stage}/unit{unit}"
                shapes = [(1, 1, incoming, inner), (3, 3, inner, inner), (1, 1, inner, 4 * inner)]
                for number, shape in enumerate(shapes, start=1):
                    self.kernel(f"{name}/conv{number}/kernel", *shape)
                    norm(f"{name}/gn{number}", shape[-1])
                if unit == 1:
                    self.kernel(f"{name}/conv_proj/kernel", 1, 1, incoming, 4 * inner)
                    norm(f"{name}/gn_proj", 4 * inner)
                incoming = 4 * inner
        return incoming


def google(
    width=64, depth=2, heads=4, mlp=96, patch=8, grid=(4, 4), classes=7, *, blocks=None, stage_width=32,
    names=OLDER, pre_logits=None, class_token=True, prefix="", seed=0,
):  # fmt: skip
    """Makes a checkpoint of vision_transformer: a plain ViT, or a hybrid if `blocks` is given."""
    w = Layout(seed)
    channels = 3 if blocks is None else w.stages(blocks, stage_width, four_axes=names is OLDER)
    w.dense("embedding", patch, patch, channels, width)
    if class_token:
        w.vector("cls", 1, 1, width)
    w.vector("Transformer/posembed_input/pos_embedding", 1, class_token + grid[0] * grid[1], width)
    for block in range(depth):
        w.block(f"Transformer/encoderblock_{block}", width, heads, mlp, names)
    w.norm("Transformer/encoder_norm", width)
    if pre_logits:
        w.dense("pre_logits", width, pre_logits)
    w.dense("head", pre_logits or width, classes)
    return {prefix + name: array for name, array in w.items()}


def big_vision(
    width=64, depth=2, heads=4, mlp=96, patch=8, grid=(4, 4), classes=7, *, class_token=False, scanned=False,
    learned=True, prefix="params/", seed=0,
):  # fmt: skip
    """Makes a checkpoint of big_vision. `learned`: with learned position embeddings."""
    w = Layout(seed)
    w.dense("embedding", patch, patch, 3, width)
    if class_token:
        w.vector("cls", 1, 1, width)
    if learned:
        w.vector("pos_embedding", 1, grid[0] * grid[1], width)
    if scanned:
        w.block("Transformer/encoderblock", width, heads, mlp, NEWER, lead=(depth,))
    else:
        for block in range(depth):
            w.block(f"Transformer/encoderblock_{block}", width, heads, mlp, NEWER)
    w.norm("Transformer/encoder_norm", width)
    w.dense("head", width, classes)
    return {prefix + name: array for name, array in w.items()}
