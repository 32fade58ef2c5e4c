"""The settings of each model family, and the checks of their combinations.

Imports no framework, so that a wrong name, field or image size is refused before anything slow starts.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from visionpipe.errors import ConfigError

Size = tuple[int, int]
GROUPS = 32  # of every group norm (Wu & He 2018, arXiv:1803.08494, table 3)


@dataclass(frozen=True, kw_only=True)
class Convolutions:
    """Settings of residual stages (He et al. 2016, arXiv:1512.03385).

    Args:
        blocks_per_stage: residual blocks in each stage. Every stage except the first halves the resolution.
        filters: channels of the first stage; each next stage has twice as many. A bottleneck's output has four times
            as many.
        width_factor: multiplies `filters`.
        block: the kind of block. `basic` has two 3×3 convolutions; `bottleneck` has a 3×3 between two 1×1; `wide` is a
            bottleneck with twice the channels inside (Zagoruyko & Komodakis 2016, arXiv:1605.07146).
        preactivation: whether norm and ReLU precede each convolution (He et al. 2016, arXiv:1603.05027).
        stem: `7x7` and `deep` (three 3×3, ResNet-D) halve the resolution twice; `3x3` strides by `stem_stride` and
            has no pooling.
        stem_stride: stride of the stem `3x3`.
        stem_filters: channels of the stem; null: those of the first stage.
        shortcut: how a shortcut changes the shape: a strided 1×1 `projection`; an average `pool` before the 1×1
            (ResNet-D); or `pad`, a stride and channels of zeros, without parameters (section 4.2, option A).
        stride_on: which convolution of a bottleneck strides: the `3x3`, or the first `1x1` as in the first paper.
        norm: `group` includes weight-standardised convolutions (Qiao et al. 2019, arXiv:1903.10520).
        norm_epsilon: what a norm adds to the variance.
        norm_momentum: how much of its moving averages a batch norm retains at each step.
        zero_last_scale: whether each block starts as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
            With `preactivation` it has no effect, because no norm ends a block.
        padding: TensorFlow's `same`, which puts an odd pixel below and right, or torch's `symmetric`.
    """

    blocks_per_stage: tuple[int, ...]
    filters: int = 64
    width_factor: float = 1.0
    block: Literal["basic", "bottleneck", "wide"] = "bottleneck"
    preactivation: bool = False
    stem: Literal["3x3", "7x7", "deep"] = "7x7"
    stem_stride: int = 1
    stem_filters: int | None = None
    shortcut: Literal["projection", "pool", "pad"] = "projection"
    stride_on: Literal["3x3", "1x1"] = "3x3"
    norm: Literal["batch", "group"] = "batch"
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    zero_last_scale: bool = True
    padding: Literal["same", "symmetric"] = "same"

    @property
    def width(self) -> int:
        """Channels of the first stage, before a bottleneck's expansion."""
        return round(self.filters * self.width_factor)

    @property
    def total_stride(self) -> int:
        """How many times smaller than the image the last feature map is."""
        stem = self.stem_stride if self.stem == "3x3" else 4
        return stem * 2 ** max(len(self.blocks_per_stage) - 1, 0)

    def idle(self) -> dict[str, str]:
        """Returns the fields that have no effect on this model, each with the reason."""
        stages = len(self.blocks_per_stage)
        reasons = {}
        if self.preactivation:
            reasons["zero_last_scale"] = "with preactivation no norm ends a block"
        if stages < 2:
            reasons["stride_on"] = "with one stage no block strides"
        if stages < 1:
            for name in ("block", "shortcut", "zero_last_scale"):
                reasons[name] = "without stages there is no block"
        return reasons

    def check_convolutions(self, image_size: Size) -> None:
        """Raises a ConfigError for settings of the convolutions that contradict each other or the image size."""
        check_size(image_size, self.total_stride)
        if self.stem != "3x3" and self.stem_stride != 1:
            raise ConfigError(f"stem_stride needs stem 3x3; stem {self.stem} always strides by 4")
        if self.stride_on == "1x1" and self.block == "basic":
            raise ConfigError("stride_on 1x1 needs block bottleneck; block basic has no 1×1 convolution")
        if self.shortcut == "pad" and self.block != "basic":
            raise ConfigError("shortcut pad needs block basic")
        if self.norm_momentum != Convolutions.norm_momentum and self.norm == "group":
            raise ConfigError("norm_momentum needs norm batch; norm group has no moving averages")
        stem_filters = self.stem_filters or self.width
        if self.width < 1 or (self.stem == "deep" and stem_filters < 2):
            raise ConfigError(
                f"filters × width_factor is {self.width} and the stem has {stem_filters} filters: too few, "
                "use larger filters, width_factor or stem_filters"
            )
        if self.shortcut == "pad" and stem_filters > self.width:
            raise ConfigError(
                f"shortcut pad can only add channels, but stem_filters {stem_filters} is more than the first stage's "
                f"{self.width}"
            )
        narrowest = stem_filters // 2 if self.stem == "deep" else stem_filters
        if self.norm == "group" and (self.width % GROUPS or narrowest % GROUPS):
            raise ConfigError(
                f"norm group needs channels in multiples of {GROUPS}, but filters × width_factor is {self.width} and "
                f"the stem has {narrowest}"
            )


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Settings of a Transformer encoder over a grid of tokens (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1).

    Args:
        hidden_dim: channels of a token.
        depth: the number of blocks.
        num_heads: heads of each attention; they divide `hidden_dim`.
        mlp_dim: channels inside the MLP of a block.
        pool: `token` reads a class token; `gap` averages the image tokens (Beyer et al. 2022, arXiv:2205.01580);
            `seq` averages them with learned weights (Hassani et al. 2021, arXiv:2104.05704).
        representation_dim: width of a tanh layer before the head; null: no such layer.
        position: `learned`, fixed `sincos` of rows and columns (Beyer et al. 2022), or `none`.
        position_stddev: standard deviation of the initial learned positions.
        query_key_value_bias: whether query, key and value have biases.
        dropout_rate: the rate of dropout after the positions, inside each MLP and after each branch.
        register_tokens: extra tokens that the head does not read (Darcet et al. 2023, arXiv:2309.16588).
        activation: the exact `gelu`, or `gelu_tanh`, its approximation with tanh.
        layer_norm_epsilon: the default is that of the papers' code; Hugging Face's ViT has 1e-12.
        layer_scale: initial value of a learned factor per channel and branch (Touvron et al. 2021, arXiv:2103.17239);
            null: no such factor.
        stochastic_depth_rate: the rate of the last block; it grows linearly from 0 at the first.
    """

    hidden_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    pool: Literal["token", "gap", "seq"] = "token"
    representation_dim: int | None = None
    position: Literal["learned", "sincos", "none"] = "learned"
    position_stddev: float = 0.02
    register_tokens: int = 0
    query_key_value_bias: bool = True
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    layer_norm_epsilon: float = 1e-6
    layer_scale: float | None = None
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0

    def idle(self) -> dict[str, str]:
        """Returns the fields that have no effect on this model, each with the reason."""
        if self.position == "learned":
            return {}
        return {"position_stddev": f"position {self.position} learns no positions"}

    def check_encoder(self) -> None:
        """Raises a ConfigError for settings of the encoder that contradict each other."""
        check_heads(self.hidden_dim, self.num_heads)
        if self.position == "sincos" and (self.hidden_dim % 4 or self.hidden_dim < 8):
            raise ConfigError(
                f"position sincos needs a hidden_dim of 8, 12, 16 …, received {self.hidden_dim}"
            )


@dataclass(frozen=True, kw_only=True)
class ViTSpec(Encoder):
    """Settings of a Vision Transformer.

    Args:
        patch_size: side of the square of pixels that a token stands for.
        stem: `patch` cuts the image into patches; `conv` is the tokenizer of the compact transformers: 3×3
            convolutions, each followed by a ReLU and a max-pooling of stride 2 (Hassani et al. 2021, section 3.3).
        distillation_token: whether a second token with a second head learns from a teacher. The model's logits are the
            mean of both heads (Touvron et al. 2021, arXiv:2012.12877, section 4).
    """

    family: ClassVar[str] = "vit"
    patch_size: int
    stem: Literal["patch", "conv"] = "patch"
    distillation_token: bool = False

    def check(self, image_size: Size) -> None:
        self.check_encoder()
        if self.stem == "patch":
            check_divisible(image_size, self.patch_size, "patch_size {}")
        if self.stem == "conv" and (self.patch_size < 2 or self.patch_size.bit_count() != 1):
            raise ConfigError(f"stem conv needs a patch_size of 2, 4, 8 …, received {self.patch_size}")
        if self.distillation_token and (self.pool != "token" or self.representation_dim):
            raise ConfigError("distillation_token needs pool token and no representation_dim")


@dataclass(frozen=True, kw_only=True)
class ResNetSpec(Convolutions):
    """Settings of a residual network whose head reads the average of the last feature map."""

    family: ClassVar[str] = "resnet"

    def check(self, image_size: Size) -> None:
        check_stages(self.blocks_per_stage)
        self.check_convolutions(image_size)


@dataclass(frozen=True, kw_only=True)
class HybridSpec(Convolutions, Encoder):
    """Settings of a serial hybrid: patches of the last feature map become the tokens.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1, "Hybrid Architecture".

    Args:
        patch_size: side of the square of the last feature map that a token stands for.
    """

    family: ClassVar[str] = "hybrid"
    patch_size: int = 1

    def idle(self) -> dict[str, str]:
        return Convolutions.idle(self) | Encoder.idle(self)

    def check(self, image_size: Size) -> None:
        self.check_encoder()
        self.check_convolutions(image_size)
        stride = self.total_stride * self.patch_size
        if self.patch_size > 1:
            check_divisible(image_size, stride, "{}, the stride of the convolutions times patch_size")


@dataclass(frozen=True, kw_only=True)
class BoTNetSpec(Convolutions):
    """Settings of a ResNet whose last stage has attention in place of its 3×3 convolutions.

    Source: Srinivas et al. 2021, arXiv:2101.11605.

    Args:
        num_heads: heads of each attention.
    """

    family: ClassVar[str] = "botnet"
    num_heads: int = 4

    def check(self, image_size: Size) -> None:
        check_stages(self.blocks_per_stage)
        self.check_convolutions(image_size)
        if self.block != "bottleneck" or self.preactivation:
            raise ConfigError("a BoTNet needs block bottleneck and preactivation false, for its attention")
        filters = self.width * 2 ** (len(self.blocks_per_stage) - 1)
        if filters % self.num_heads:
            raise ConfigError(
                f"the last stage has {filters} filters, which num_heads {self.num_heads} does not divide"
            )


@dataclass(frozen=True, kw_only=True)
class CoAtNetSpec:
    """Settings of a CoAtNet: stages of MBConv, then stages of attention with relative positions.

    Source: Dai et al. 2021, arXiv:2106.04803, table 3.

    Args:
        blocks_per_stage: blocks in the stem S0 and in each of the stages S1, S2 …
        dims: channels of the stem and of each stage.
        attention_stages: how many of the last stages have attention.
        stem_stride: stride of the stem; every stage strides by 2.
        head_dim: channels of an attention head.
        dropout_rate: the rate of dropout.
        stochastic_depth_rate: the rate of the last block; it grows linearly from 0 at the first.
    """

    family: ClassVar[str] = "coatnet"
    blocks_per_stage: tuple[int, ...]
    dims: tuple[int, ...]
    attention_stages: int = 2
    stem_stride: int = 2
    head_dim: int = 32
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0

    def check(self, image_size: Size) -> None:
        check_stages(self.blocks_per_stage)
        if len(self.dims) != len(self.blocks_per_stage):
            raise ConfigError(
                f"dims has {len(self.dims)} stages and blocks_per_stage {len(self.blocks_per_stage)}"
            )
        if self.attention_stages >= len(self.dims):
            raise ConfigError(f"attention_stages {self.attention_stages} leaves no convolution stage")
        for dim in self.dims[-self.attention_stages :]:
            if dim % self.head_dim:
                raise ConfigError(f"dims: {dim} is not divisible by head_dim {self.head_dim}")
        for dim in self.dims[1 : -self.attention_stages]:
            if dim < 4:
                raise ConfigError(f"dims: {dim} is too few: squeeze-and-excitation divides it by 4")
        check_size(image_size, self.stem_stride * 2 ** (len(self.dims) - 1))


@dataclass(frozen=True, kw_only=True)
class ConformerSpec:
    """Settings of a parallel hybrid: a branch of convolutions and a Transformer that exchange features in every block.

    Source: Peng et al. 2021, arXiv:2105.03889.

    Args:
        filters: output channels of the first of three stages. Each next stage halves the resolution and has twice as
            many; the last block strides once more.
        hidden_dim: channels of a token.
        num_heads: heads of each attention; they divide `hidden_dim`.
        mlp_dim: channels inside the MLP of a block.
        depth: number of blocks, a multiple of 3.
        patch_size: side of the square of pixels that a token stands for.
        stem: `7x7` halves the resolution twice; `3x3` preserves it.
        fusion: what the head reads: both branches concatenated (`concat`), or their weighted sum with learned weights
            (`weighted`).
        dropout_rate: the rate of dropout.
        stochastic_depth_rate: the rate of the last block; it grows linearly from 0 at the first.
    """

    family: ClassVar[str] = "conformer"
    filters: int
    hidden_dim: int
    num_heads: int
    mlp_dim: int
    depth: int = 12
    patch_size: int = 16
    stem: Literal["7x7", "3x3"] = "7x7"
    fusion: Literal["concat", "weighted"] = "concat"
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0

    @property
    def stem_stride(self) -> int:
        """How many times smaller than the image the output of the stem is."""
        return 4 if self.stem == "7x7" else 1

    def check(self, image_size: Size) -> None:
        check_heads(self.hidden_dim, self.num_heads)
        if self.depth % 3:
            raise ConfigError(f"depth {self.depth} is not a multiple of 3, the number of stages")
        if self.filters % 4:
            raise ConfigError(f"filters {self.filters} is not divisible by 4, the expansion of a bottleneck")
        stride = self.stem_stride * 4
        if self.patch_size % stride:
            raise ConfigError(
                f"patch_size {self.patch_size} is not a multiple of {stride}, the stride of the last stage"
            )
        check_divisible(image_size, self.patch_size, "patch_size {}")


ModelSpec = ViTSpec | ResNetSpec | HybridSpec | BoTNetSpec | CoAtNetSpec | ConformerSpec


def check_size(image_size: Size, stride: int) -> None:
    """Raises a ConfigError if the total stride is no power of two, or larger than the image."""
    height, width = image_size
    if stride.bit_count() != 1:  # every other stride is 2, and `features` names its outputs by powers of two
        raise ConfigError(
            f"stem_stride: expected 1, 2, 4 …; with this one the total stride would be {stride}"
        )
    if min(image_size) < stride:
        raise ConfigError(f"image size {height}×{width} is too small for a total stride of {stride}")


def check_divisible(image_size: Size, number: int, what: str) -> None:
    """Raises a ConfigError if `number` does not divide height and width; `what` describes the number."""
    height, width = image_size
    if height % number or width % number:
        raise ConfigError(f"image size {height}×{width} is not divisible by {what.format(number)}")


def check_heads(hidden_dim: int, num_heads: int) -> None:
    if hidden_dim % num_heads:
        raise ConfigError(f"hidden_dim {hidden_dim} is not divisible by num_heads {num_heads}")


def check_stages(blocks_per_stage: tuple[int, ...]) -> None:
    if not blocks_per_stage:
        raise ConfigError("blocks_per_stage: expected a list of positive whole numbers, received none")
