"""Every option of every family changes the model that it makes, or is refused."""

import dataclasses
import functools

import pytest

from visionpipe.errors import ConfigError
from visionpipe.models import build_model
from visionpipe.models.names import layer_depths, layer_names
from visionpipe.models.specs import ModelSpec
from visionpipe.models.variants import resolve_variant
from visionpipe.training.recipe import begins_with

REFUSED = object()  # there is no other value
CONVOLUTIONS = {"blocks_per_stage": (1, 1), "filters": 32, "stem": "3x3"}
ENCODER = {"hidden_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
OTHER_CONVOLUTIONS = {
    "blocks_per_stage": (1, 2),
    "filters": 64,
    "width_factor": 2,
    "block": "basic",
    "preactivation": True,
    "stem": "7x7",
    "stem_stride": 2,
    "stem_filters": 64,
    "shortcut": "pool",
    "stride_on": "1x1",
    "norm": "group",
    "norm_epsilon": 1e-3,
    "norm_momentum": 0.99,
    "zero_last_scale": False,
    "padding": "symmetric",
}
OTHER_ENCODER = {
    "hidden_dim": 24,
    "depth": 2,
    "num_heads": 4,
    "mlp_dim": 16,
    "pool": "gap",
    "representation_dim": 8,
    "position": "sincos",
    "position_stddev": 0.5,
    "register_tokens": 1,
    "query_key_value_bias": False,
    "activation": "gelu_tanh",
    "layer_norm_epsilon": 1e-3,
    "layer_scale": 0.1,
    "dropout_rate": 0.1,
    "stochastic_depth_rate": 0.1,
}
# family: (variant, a small one, another value of every field)
FAMILIES = {
    "resnet": ("ResNet-50", CONVOLUTIONS, OTHER_CONVOLUTIONS),
    "vit": (
        "ViT-S/16",
        ENCODER,
        OTHER_ENCODER | {"patch_size": 8, "stem": "conv", "distillation_token": True},
    ),
    "hybrid": (
        "R50+ViT-B/16",
        CONVOLUTIONS | ENCODER | {"activation": "gelu"},
        OTHER_CONVOLUTIONS | OTHER_ENCODER | {"patch_size": 2, "norm": "batch", "norm_momentum": REFUSED},
    ),
    "botnet": (
        "BoTNet-50",
        CONVOLUTIONS | {"blocks_per_stage": (1, 1, 1)},
        OTHER_CONVOLUTIONS | {"num_heads": 2, "block": REFUSED, "preactivation": REFUSED},
    ),
    "coatnet": (
        "CoAtNet-0",
        {"blocks_per_stage": (1, 1, 1), "dims": (8, 8, 16), "attention_stages": 1, "head_dim": 8},
        {
            "blocks_per_stage": (1, 1, 2),
            "dims": (8, 12, 16),
            "attention_stages": 2,
            "stem_stride": 1,
            "head_dim": 4,
            "dropout_rate": 0.1,
            "stochastic_depth_rate": 0.1,
        },
    ),
    "conformer": (
        "Conformer-Ti",
        ENCODER | {"depth": 3, "filters": 16},
        {
            "filters": 32,
            "hidden_dim": 24,
            "num_heads": 4,
            "mlp_dim": 16,
            "depth": 6,
            "patch_size": 32,
            "stem": "3x3",
            "fusion": "weighted",
            "dropout_rate": 0.1,
            "stochastic_depth_rate": 0.1,
        },
    ),
}
OPTIONS = [(spec.family, field.name) for spec in ModelSpec.__args__ for field in dataclasses.fields(spec)]


@functools.cache
def usual(family):
    variant, small, _ = FAMILIES[family]
    return description(build_model(variant, 4, 32, **small))


def description(model):
    return [(type(layer).__name__, layer.get_config(), layer.output.shape) for layer in model.layers]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_options_make_the_same_model(family):
    variant, small, _ = FAMILIES[family]
    assert description(build_model(variant, 4, 32, **small)) == usual(family)


@pytest.mark.parametrize(("family", "option"), OPTIONS)
def test_an_option_makes_another_model_or_is_refused(family, option):
    variant, small, others = FAMILIES[family]
    if others[option] is REFUSED:
        with pytest.raises(ConfigError, match=option):
            resolve_variant(variant, (32, 32), **small, **{option: OTHER_CONVOLUTIONS[option]})
        return
    assert description(build_model(variant, 4, 32, **small | {option: others[option]})) != usual(family)


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("ViT-S/16", {"position": "none", "position_stddev": 0.5}, "has no effect, because position none"),
        ("ViT-S/16", {"position": "sincos", "position_stddev": 0.02}, "position_stddev has no effect"),
        ("R50+ViT-B/16", {"position": "none", "position_stddev": 0.5}, "position_stddev has no effect"),
        ("ResNet-50v2", {"zero_last_scale": True}, "zero_last_scale has no effect, because with preactivation"),
        ("ResNet-50", {"blocks_per_stage": (1,), "stride_on": "1x1"}, "stride_on has no effect"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused(variant, options, message):
    with pytest.raises(ConfigError, match=message):
        resolve_variant(variant, (32, 32), **options)


def test_what_a_variant_has_itself_is_no_fault_of_who_overrides_the_rest():
    assert resolve_variant("ViT-Mi/4", (32, 32), position="none").position == "none"
    assert resolve_variant("ResNet-50", (32, 32), preactivation=True).preactivation


DEEP = {**ENCODER, "depth": 12, "filters": 16, "fusion": "weighted"}


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        *(FAMILIES[family][:2] for family in FAMILIES),
        ("Conformer-Ti", DEEP),
        ("R14+ViT-Mi", {"preactivation": True, "filters": 8, "hidden_dim": 16}),
        ("ViT-S/16", ENCODER | {"stem": "conv", "pool": "seq", "representation_dim": 8}),
    ],
)
def test_the_names_of_a_variants_layers_and_their_depths_are_those_of_its_model(variant, options):
    names = layer_depths(layer_names(resolve_variant(variant, (32, 32), **options)))
    model = build_model(variant, 4, 32, **options)
    found = layer_depths(layer.name for layer in model.layers if layer.weights)
    for name, depth in found.items():
        assert any(begins_with(name, known) and names[known] == depth for known in names), name
    assert [name for name in names if not any(begins_with(layer, name) for layer in found)] == []
    for layer in model.layers:  # no layer has a block behind it that is nearer to the images
        if layer.name in found:
            before = [found.get(node.operation.name, 0) for node in layer._inbound_nodes[0].parent_nodes]
            assert max(before, default=0) <= found[layer.name]
