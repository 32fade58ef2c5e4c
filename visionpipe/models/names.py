"""The names of layers that other modules rely on, and the layers' order: before, in and behind a model's blocks.

Training, weights and commands look layers up by these names. The names never change, because `.keras` files contain
them. This module imports no framework, so that a recipe that names layers is checked, and its plan printed, at once.
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

IMAGES, NORMALISATION = "images", "normalisation"
STEM_CONV, STEM_NORM = "stem_conv", "stem_norm"
PATCH_EMBEDDING, TOKENS = "patch_embedding", "tokens"
FINAL_NORM, ENCODER_NORM, POOL, PRE_LOGITS = "final_norm", "encoder_norm", "pool", "pre_logits"
LOGITS = "logits"
CLASS_LOGITS, DISTILLATION_LOGITS = "logits_class", "logits_distillation"
TWO_HEADS = (CLASS_LOGITS, DISTILLATION_LOGITS)  # of a model with a distillation token; LOGITS is their mean
HEADS = (LOGITS, *TWO_HEADS)

BLOCK = re.compile(r"(encoder_block|stage\d+_block)_?(\d+)(?=_|$)")
FIRST_BLOCK = re.compile(r"stage(?P<stage>\d+)_block1_(?P<layer>\w+)")
# The layers whose outputs are those of a stem, of a block of convolutions and of a Transformer block.
STEM_OUTPUTS = (STEM_CONV, "stem_relu", "stem_pool")
STAGE_OUTPUT = re.compile(r"stage\d+_block\d+(_fusion)?_output")
ENCODER_OUTPUT = re.compile(r"(encoder_block_\d+|.*_encoder)_mlp_add")
# The variables of tokens and positions, which weight decay must not shrink.
TOKEN_OR_POSITION = re.compile(r"token|embedding|relative")


def encoder_block_name(block: int) -> str:
    """Returns the name of a Transformer block, which is the prefix of its layers' names; the first block is 0."""
    return f"encoder_block_{block:02d}"


def stage_block_name(stage: int, block: int) -> str:
    """Returns the name of a block of a stage, which is the prefix of its layers' names; both numbers start at 1."""
    return f"stage{stage}_block{block}"


def layer_depths(names: Iterable[str]) -> dict[str, int]:
    """Maps each layer to its depth: 0 before the first block, n in the n-th, one more behind the last.

    The depth follows from the name, because parallel branches put the layers in another order than the blocks.
    """
    names = list(names)
    blocks = sorted({match[0] for name in names if (match := BLOCK.match(name))}, key=block_order)
    stages = sum(block.startswith("stage") for block in blocks)
    # In a serial hybrid the layers that make the tokens have the depth of the last stage's last block.
    embedding = stages if stages < len(blocks) else 0
    depths = {}
    for name in names:
        if match := BLOCK.match(name):
            depths[name] = blocks.index(match[0]) + 1
        elif re.match(r"stem_|tokenizer_", name):
            depths[name] = 0
        elif re.match(rf"({PATCH_EMBEDDING}|{TOKENS})(_|$)", name):
            depths[name] = embedding
        elif name.startswith(FINAL_NORM):
            depths[name] = embedding if stages < len(blocks) else len(blocks) + 1
        else:
            depths[name] = len(blocks) + 1
    return depths


def block_order(block: str) -> tuple[bool, list[int]]:
    """Returns a sort key for the names of blocks: stages before Transformer blocks, and 2 before 10."""
    return block.startswith("encoder"), [int(number) for number in re.findall(r"\d+", block)]


def layer_names(spec: ModelSpec) -> list[str]:
    """Returns the names of a model's blocks, which stand for their layers, and of all other layers with weights.

    The names are in order of depth.
    """
    names = [*before_blocks(spec), *block_names(spec)]
    if isinstance(spec, HybridSpec):
        names += [FINAL_NORM] if spec.preactivation else []
        names += [PATCH_EMBEDDING, TOKENS]
        names += [encoder_block_name(block) for block in range(spec.depth)]
    return names + behind_blocks(spec)


def before_blocks(spec: ModelSpec) -> list[str]:
    """Returns the names of the layers with weights before the first block."""
    if isinstance(spec, Convolutions):
        deep = ["stem_conv1", "stem_norm1", "stem_conv2", "stem_norm2"] if spec.stem == "deep" else []
        return [*deep, STEM_CONV, *([] if spec.preactivation else [STEM_NORM])]
    if isinstance(spec, CoAtNetSpec):
        numbers = range(1, spec.blocks_per_stage[0] + 1)
        return [f"stem_{kind}{number}" for number in numbers for kind in ("conv", "norm")]
    if isinstance(spec, ConformerSpec):
        return [STEM_CONV, f"{STEM_CONV}_norm", PATCH_EMBEDDING, TOKENS]
    if spec.stem == "conv":
        halvings = spec.patch_size.bit_length() - 1
        return [*(f"tokenizer_conv{number}" for number in range(1, halvings + 1)), TOKENS]
    return [PATCH_EMBEDDING, TOKENS]


def block_names(spec: ModelSpec) -> list[str]:
    """Returns the names of the blocks; of a serial hybrid, those of the stages only."""
    if isinstance(spec, ViTSpec):
        return [encoder_block_name(block) for block in range(spec.depth)]
    if isinstance(spec, ConformerSpec):
        counts: tuple[int, ...] = (spec.depth // 3,) * 3
    else:
        counts = spec.blocks_per_stage[1:] if isinstance(spec, CoAtNetSpec) else spec.blocks_per_stage
    return [
        stage_block_name(stage, block)
        for stage, count in enumerate(counts, start=1)
        for block in range(1, count + 1)
    ]


def behind_blocks(spec: ModelSpec) -> list[str]:
    """Returns the names of the layers with weights behind the last block."""
    if isinstance(spec, ResNetSpec | BoTNetSpec):
        return [FINAL_NORM, LOGITS] if spec.preactivation else [LOGITS]
    if isinstance(spec, CoAtNetSpec):
        return [f"{POOL}_norm", LOGITS]
    if isinstance(spec, ConformerSpec):
        weighted = ["pool_project", "fusion"] if spec.fusion == "weighted" else []
        return [ENCODER_NORM, *weighted, LOGITS]
    assert isinstance(spec, Encoder)
    distilled = isinstance(spec, ViTSpec) and spec.distillation_token
    heads = TWO_HEADS if distilled else (LOGITS,)
    pool = [POOL] if spec.pool == "seq" else []
    return [ENCODER_NORM, *pool, *([PRE_LOGITS] if spec.representation_dim else []), *heads]
