"""What the layers of a model are called, and where they lie before, in and behind its blocks. Imports no framework, so
that a recipe that names a layer is checked, and its plan printed, at once.
"""

import re
from collections.abc import Iterable

from visionpipe.models.specs import (
    BoTNetSpec,
    CoAtNetSpec,
    ConformerSpec,
    Convolutions,
    Encoder,
    HybridSpec,
    ModelSpec,
    ResNetSpec,
    ViTSpec,
)

BLOCK = re.compile(r"(encoder_block|stage\d+_block)_?(\d+)(?=_|$)")


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """Layer → 0 before the first block, 1 in the first, 2 in the second …; one more than the last behind it. By the
    names, for the order of the layers is not that of the blocks where branches are parallel.
    """
    names = list(names)
    blocks = sorted({match[0] for name in names if (match := BLOCK.match(name))}, key=order)
    stages = sum(block.startswith("stage") for block in blocks)
    # The Transformer of a serial hybrid follows upon the stages; what makes its tokens belongs to the last of them.
    embedding = stages if stages < len(blocks) else 0
    depths = {}
    for name in names:
        if match := BLOCK.match(name):
            depths[name] = blocks.index(match[0]) + 1
        elif re.match(r"stem_|tokenizer_", name):
            depths[name] = 0
        elif re.match(r"(patch_embedding|tokens)(_|$)", name):
            depths[name] = embedding
        elif name.startswith("final_norm"):
            depths[name] = embedding if stages < len(blocks) else len(blocks) + 1
        else:
            depths[name] = len(blocks) + 1
    return depths


def order(block: str) -> tuple[bool, list[int]]:
    """Stages come before the Transformer's blocks; 2 comes before 10."""
    return block.startswith("encoder"), [int(number) for number in re.findall(r"\d+", block)]


def layer_names(spec: ModelSpec) -> list[str]:
    """The blocks, which stand for their layers, and all layers with weights outside of them."""
    names = [*before_blocks(spec), *block_names(spec)]
    if isinstance(spec, HybridSpec):
        names += ["final_norm"] if spec.preactivation else []
        names += ["patch_embedding", "tokens"]
        names += [f"encoder_block_{block:02d}" for block in range(spec.depth)]
    return names + behind_blocks(spec)


def before_blocks(spec: ModelSpec) -> list[str]:
    if isinstance(spec, Convolutions):
        deep = ["stem_conv1", "stem_norm1", "stem_conv2", "stem_norm2"] if spec.stem == "deep" else []
        return [*deep, "stem_conv", *([] if spec.preactivation else ["stem_norm"])]
    if isinstance(spec, CoAtNetSpec):
        numbers = range(1, spec.blocks_per_stage[0] + 1)
        return [f"stem_{kind}{number}" for number in numbers for kind in ("conv", "norm")]
    if isinstance(spec, ConformerSpec):
        return ["stem_conv", "stem_conv_norm", "patch_embedding", "tokens"]
    if spec.stem == "conv":
        halvings = spec.patch_size.bit_length() - 1
        return [*(f"tokenizer_conv{number}" for number in range(1, halvings + 1)), "tokens"]
    return ["patch_embedding", "tokens"]


def block_names(spec: ModelSpec) -> list[str]:
    """Those of a serial hybrid's stages alone: its encoder comes behind them."""
    if isinstance(spec, ViTSpec):
        return [f"encoder_block_{block:02d}" for block in range(spec.depth)]
    if isinstance(spec, ConformerSpec):
        counts: tuple[int, ...] = (spec.depth // 3,) * 3
    else:
        counts = spec.blocks_per_stage[1:] if isinstance(spec, CoAtNetSpec) else spec.blocks_per_stage
    return [
        f"stage{stage}_block{block}"
        for stage, count in enumerate(counts, start=1)
        for block in range(1, count + 1)
    ]


def behind_blocks(spec: ModelSpec) -> list[str]:
    if isinstance(spec, ResNetSpec | BoTNetSpec):
        return ["final_norm", "logits"] if spec.preactivation else ["logits"]
    if isinstance(spec, CoAtNetSpec):
        return ["pool_norm", "logits"]
    if isinstance(spec, ConformerSpec):
        weighted = ["pool_project", "fusion"] if spec.fusion == "weighted" else []
        return ["encoder_norm", *weighted, "logits"]
    assert isinstance(spec, Encoder)
    distilled = isinstance(spec, ViTSpec) and spec.distillation_token
    heads = ["logits_class", "logits_distillation"] if distilled else ["logits"]
    pool = ["pool"] if spec.pool == "seq" else []
    return ["encoder_norm", *pool, *(["pre_logits"] if spec.representation_dim else []), *heads]
