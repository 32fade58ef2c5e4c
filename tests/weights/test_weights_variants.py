"""Checkpoints of one architecture's names and shapes that compute something else: they are loaded rightly, refused, or
what they leave open is in the report. Whatever overrides a refusal names, a model with them loads and is right.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["HF_HUB_OFFLINE"] = "1"

import json
import re
import shutil

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.torch
import transformers
import yaml
from reference_checkpoints import randomise_keras, randomised, torch_forward
from torchvision_stub import stub_torchvision

from visionpipe.artifact.canonical import save_keras
from visionpipe.errors import WeightsError
from visionpipe.files import write_json
from visionpipe.models import build_model
from visionpipe.models.surgery import with_image_size
from visionpipe.weights import load_weights, resolve

HUGGING_FACE = (transformers.ViTForImageClassification, transformers.DeiTForImageClassificationWithTeacher)
HUGGING_FACE += (transformers.ResNetForImageClassification, transformers.DeiTModel)
stub_torchvision()  # transformers would take it for the real one
import timm  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


def attempt(path, variant, size, overrides, pixels):
    """The model and the report of its import; or None and why it is refused."""
    model = build_model(variant, 7, size, **pixels, **overrides)
    try:
        return model, load_weights(model, path)
    except WeightsError as error:
        return None, str(error)


def walk(path, variant, size, overrides, pixels):
    """As `attempt`, of a model that was built with what a refusal names. Such a model loads."""
    model, said = attempt(path, variant, size, overrides, pixels)
    hint = re.search(r"build it with (.*)", said) if model is None else None
    if hint is None:
        return model, said
    written = re.search(r"overrides: (\{.*?\})( and|$)", hint[1])
    overrides = overrides | (yaml.safe_load(written[1]) if written else {})
    pixels = pixels | {name: yaml.safe_load(x) for name, x in re.findall(r"(pixel_\w+)=(\[.*?\])", hint[1])}
    model, again = attempt(path, variant, size, overrides, pixels)
    assert model is not None, f"{said} … {again}"
    return model, again


def compare(model, forward, size, mean=127.5, std=127.5):
    images = np.random.default_rng(0).uniform(0, 255, (2, *size, 3)).astype(np.float32)
    expected = forward(((images - mean) / std).astype(np.float32))
    assert np.abs(np.asarray(model(images)) - expected).max() < 1e-4 * np.abs(expected).max()


def check(outcome, theirs, path, variant, size, overrides, mean=127.5, std=127.5):
    """`outcome`: `equal`; or what the refusal says; or, behind `assumed`, the option that the report names."""
    model, report = walk(path, variant, size, overrides, {})
    if model is None:
        assert outcome in report, report
    elif outcome.startswith("assumed "):
        assert any(text.startswith(f"{outcome.removeprefix('assumed ')} ") for text in report.assumed), (
            report.assumed
        )
    else:
        assert outcome == "equal"
        compare(model, torch_forward(theirs), size, mean, std)


# timm ----------------------------------------------------------------------------------------------------

VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 4, "mlp_ratio": 2.0}
OURS = {"hidden_dim": 32, "depth": 1, "num_heads": 4, "mlp_dim": 64}
GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
NONE = "no model of this family has"


@pytest.mark.parametrize(
    ("arguments", "stated", "bare"),
    [
        ({}, "equal", "equal"),
        ({"num_heads": 8}, "equal", "assumed num_heads"),
        ({"act_layer": "gelu_tanh"}, "equal", "assumed activation"),
        ({"act_layer": "quick_gelu"}, f"{NONE} activation quick_gelu", "assumed activation"),
        ({"global_pool": "avg", "fc_norm": False}, f"{NONE} pool gap beside", "assumed pool"),
        ({"global_pool": "avg"}, "it has a norm behind the pooling", "it has a norm behind the pooling"),
        ({"class_token": False, "global_pool": "map"}, "it pools with attention", "it pools with attention"),
        ({"global_pool": "max", "fc_norm": False}, f"{NONE} pool max", "assumed pool"),
        (GAP, "equal", "equal"),
        (GAP | {"reg_tokens": 2, "no_embed_class": True}, "equal", "equal"),
        (GAP | {"reg_tokens": 2}, "its register tokens have positions", "its register tokens have positions"),
        ({"no_embed_class": True}, "equal", "equal"),
        ({"init_values": 0.1, "qkv_bias": False}, "equal", "equal"),
        ({"pre_norm": True}, "it has a norm before the first block", "it has a norm before the first block"),
        ({"qk_norm": True}, "it normalises queries and keys", "it normalises queries and keys"),
        ({"pos_embed": "none"}, "equal", "equal"),
        ({"img_size": (192, 224)}, "equal", "equal"),  # 1 + 12·14 positions are 13·13
        ({"img_size": (32, 128)}, "equal", "equal"),  # 2·8 are 4·4
    ],
)
def test_what_a_timm_vit_says_of_itself_is_read_and_what_it_does_not_say_is_in_the_report(
    tmp_path, arguments, stated, bare
):
    theirs = randomised(VisionTransformer(**(VIT | arguments), num_classes=7))
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    size = arguments.get("img_size", (32, 32))
    for outcome in (bare, stated):
        check(outcome, theirs, tmp_path / "model.safetensors", "ViT-Ti/16", size, OURS)
        config = {
            "architecture": "vit_base_patch16_224",
            "model_args": VIT | arguments,
            "pretrained_cfg": HALF,
        }
        config |= {"global_pool": arguments.get("global_pool", "token")}
        (tmp_path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("architecture", "arguments", "outcome", "bare"),
    [
        ("resnet50.tv_in1k", {}, "equal", "equal"),
        ("wide_resnet50_2", {}, "equal", "equal"),
        ("resnetaa50", {}, f"{NONE} aa_layer avg", "assumed aa_layer"),
        ("resnetblur18", {}, f"{NONE} aa_layer blur", "assumed aa_layer"),
        ("resnet50", {"output_stride": 8}, f"{NONE} stage_strides [1, 2, 1, 1]", "assumed stage_strides"),
        ("resnet50", {"output_stride": 16}, f"{NONE} stage_strides [1, 2, 2, 1]", "assumed stage_strides"),
        ("resnet50", {"global_pool": "max"}, f"{NONE} global_pool max", "assumed global_pool"),
        ("resnet50", {"act_layer": "silu"}, f"{NONE} act_layer silu", "assumed act_layer"),
        (
            "resnet50",
            {"avg_down": True},
            "weights of the model, the first is",
            "weights of the model, the first is",
        ),
    ],
)
def test_what_a_timm_resnet_says_of_itself_is_read_and_what_it_does_not_say_is_in_the_report(
    tmp_path, architecture, arguments, outcome, bare
):
    stages = {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)}
    theirs = randomised(timm.create_model(architecture, num_classes=7, **stages, **arguments))
    variant = "ResNet-18" if "18" in architecture else "ResNet-50"
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    overrides = {"blocks_per_stage": stages["layers"], "filters": 8, "stem_filters": 64, "shortcut": "pool"}
    overrides |= {"block": "wide"} if "wide" in architecture else {}
    for said in (bare, outcome):
        check(said, theirs, tmp_path / "model.safetensors", variant, (32, 32), overrides)
        config = {"architecture": architecture, "model_args": stages | arguments, "pretrained_cfg": HALF}
        (tmp_path / "config.json").write_text(json.dumps(config))


# Hugging Face --------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
SMALL |= {"image_size": 32, "patch_size": 16, "num_labels": 7}
STAGES = {"embedding_size": 8, "hidden_sizes": [32, 64], "depths": [1, 1], "num_labels": 7}


@pytest.mark.parametrize(
    ("kind", "arguments", "outcome"),
    [
        ("ViT", {"hidden_act": "gelu_fast", "layer_norm_eps": 1e-3, "num_attention_heads": 8}, "equal"),
        ("ViT", {"qkv_bias": False, "pooler_act": "relu"}, "equal"),
        ("ViT", {"image_size": [32, 128]}, "equal"),
        ("ViT", {"hidden_act": "relu"}, f"{NONE} activation relu"),
        ("DeiT", {}, "equal"),
        ("ResNet", {"downsample_in_bottleneck": True}, "equal"),
        ("ResNet", {"layer_type": "basic", "hidden_sizes": [8, 16]}, "equal"),
        ("ResNet", {"hidden_act": "gelu"}, f"{NONE} act_layer gelu"),
        ("ResNet", {"downsample_in_first_stage": True}, f"{NONE} stage_strides [2, 2, 2, 2]"),
    ],
)
def test_what_a_hugging_face_configuration_says_is_read(tmp_path, kind, arguments, outcome):
    config = getattr(transformers, f"{kind}Config")
    head = {"DeiT": "ForImageClassificationWithTeacher"}.get(kind, "ForImageClassification")
    build = getattr(transformers, f"{kind}{head}")
    theirs = randomised(build(config(**((STAGES if kind == "ResNet" else SMALL) | arguments))))
    theirs.save_pretrained(tmp_path)
    variant, overrides = "ViT-Ti/16", OURS  # of DeiT too: that it needs another token is said
    if kind == "ResNet":
        variant = "ResNet-18" if "layer_type" in arguments else "ResNet-50"
        overrides = {"blocks_per_stage": (1, 1), "filters": 8}
    size = tuple(arguments.get("image_size", (32, 32)))
    check(outcome, theirs, tmp_path / "model.safetensors", variant, size, overrides)


PROCESSOR = {
    "do_resize": True,
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}
PROCESSOR |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
MEAN, STD = np.array(PROCESSOR["image_mean"]), np.array(PROCESSOR["image_std"])


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    theirs = randomised(transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL)))
    theirs.save_pretrained(folder)
    return folder, theirs


def test_a_factor_of_zero_is_refused_and_numbers_written_as_text_are_read(small_vit, tmp_path):
    folder = shutil.copytree(small_vit[0], tmp_path / "vit")
    write_json(folder / "preprocessor_config.json", PROCESSOR | {"rescale_factor": 0})
    with pytest.raises(WeightsError, match="rescale_factor 0: every image would be of one colour"):
        resolve(folder / "model.safetensors").preprocessing  # noqa: B018
    write_json(folder / "preprocessor_config.json", PROCESSOR)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"num_attention_heads": str(config["num_attention_heads"])})
    assert resolve(folder / "model.safetensors").options["num_heads"] == config["num_attention_heads"]


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, 255 * MEAN, 255 * STD),
        ({"do_normalize": False}, 0, 255),
        ({"do_rescale": False}, MEAN, STD),
        ({"do_normalize": False, "do_rescale": False}, 0, 1),
        ({"rescale_factor": 1 / 127.5}, 127.5 * MEAN, 127.5 * STD),
        ({"rescale_factor": 1 / 127.5, "do_normalize": False}, 0, 127.5),
        ({"image_mean": 0.5, "image_std": 0.25}, 127.5, 63.75),
    ],
)
def test_a_normalisation_that_is_switched_off_or_odd_is_the_models(small_vit, changes, mean, std):
    folder, theirs = small_vit
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | changes))
    found = resolve(folder / "model.safetensors").preprocessing
    np.testing.assert_allclose((found.mean, found.std), np.broadcast_to([[mean] * 3, [std] * 3], (2, 3))
                               if np.ndim(mean) == 0 else (mean, std), rtol=1e-6)  # fmt: skip
    check("equal", theirs, folder / "model.safetensors", "ViT-Ti/16", (32, 32), OURS, mean, std)


def square(side):
    return {"height": side, "width": side}


@pytest.mark.parametrize(
    ("processor", "size", "crop_ratio"),
    [
        ({"size": square(224)}, (224, 224), 1.0),
        ({"size": 384}, (384, 384), 1.0),
        ({"size": square(256), "crop_size": square(224), "do_center_crop": True}, (224, 224), 0.875),
        ({"size": square(256), "crop_size": square(224), "do_center_crop": False}, (256, 256), 1.0),
        ({"size": 256, "crop_size": 224}, (224, 224), 0.875),
        ({"size": {"shortest_edge": 256}, "crop_size": square(224)}, (224, 224), 0.875),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.95}, (224, 224), 0.95),
        (
            {"size": {"shortest_edge": 224}, "image_processor_type": "ConvNextImageProcessor"},
            (224, 224),
            0.875,
        ),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.95}, (384, 384), 1.0),
        ({"size": square(224), "crop_size": square(256)}, (256, 256), None),
        ({"size": square(256), "crop_size": square(224), "do_resize": False}, (224, 224), None),
        ({}, None, None),
    ],
)
def test_the_crop_ratio_is_that_of_resize_and_crop(small_vit, processor, size, crop_ratio):
    folder, _ = small_vit
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | processor))
    found = resolve(folder / "model.safetensors").preprocessing
    assert (found.size, found.crop_ratio) == (size, crop_ratio)


# KerasHub ------------------------------------------------------------------------------------------------

BACKBONE = {
    "image_shape": (32, 32, 3),
    "patch_size": 16,
    "num_layers": 1,
    "num_heads": 4,
    "hidden_dim": 32,
    "mlp_dim": 64,
}


@pytest.mark.parametrize(
    ("backbone", "task", "converter", "outcome"),
    [
        ({"layer_norm_epsilon": 1e-3, "num_heads": 8}, {"intermediate_dim": 8}, {}, "equal"),
        ({}, {}, {"scale": 1 / 255}, "equal"),
        ({"use_mha_bias": False}, {}, {}, "weights of the model, the first is"),
        ({"use_class_token": False}, {"pooling": "gap"}, {"offset": -1.0}, "equal"),
        ({}, {"pooling": "gap"}, {}, f"{NONE} pool gap of all tokens"),
        ({"use_class_token": False}, {}, {}, f"{NONE} pool token, the first"),
    ],
)
def test_what_a_preset_says_is_read(tmp_path, backbone, task, converter, outcome):
    converter = {"scale": None, "offset": None} | converter
    images = keras_hub.layers.ViTImageConverter(image_size=(32, 32), **converter)
    theirs = keras_hub.models.ViTImageClassifier(
        keras_hub.models.ViTBackbone(**(BACKBONE | backbone)), 7,
        preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(images), **task,
    )  # fmt: skip
    randomise_keras(theirs).save_to_preset(str(tmp_path))
    model, said = walk(tmp_path, "ViT-Ti/16", (32, 32), OURS, {})
    if outcome != "equal":
        assert model is None
        assert outcome in said
        return
    functional = keras.Model(theirs.input, theirs.output)
    scale, offset = converter["scale"] or 1.0, converter["offset"] or 0.0
    compare(model, lambda x: np.asarray(functional(x)), (32, 32), -offset / scale, 1 / scale)


# Our own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "overrides", "hint"),
    [
        ("ResNet-8", {"stem_stride": 2, "padding": "symmetric"}, "stem_stride: 2"),
        (
            "WRN-16-4",
            {"blocks_per_stage": (1, 1, 1), "width_factor": 1.0, "norm_epsilon": 1e-3},
            "norm_epsilon: 1.0e-3",
        ),
        (
            "ViT-Mi/4",
            {"depth": 1, "activation": "gelu_tanh", "num_heads": 4, "register_tokens": 1},
            "num_heads: 4",
        ),
    ],
)
def test_our_own_file_says_what_its_model_was_built_with(tmp_path, variant, overrides, hint):
    changed = {"stem_stride", "padding", "norm_epsilon", "num_heads", "activation", "register_tokens"}
    theirs = build_model(variant, 7, (32, 32), **overrides)
    save_keras(theirs, tmp_path / "model.keras")
    others = {name: value for name, value in overrides.items() if name not in changed}
    model, said = attempt(tmp_path / "model.keras", variant, (32, 32), others, {})
    assert model is None
    assert hint in said
    model, _ = walk(tmp_path / "model.keras", variant, (32, 32), others, {})
    compare(model, lambda x: np.asarray(theirs(x)), (32, 32), 0, 1)


def test_what_no_override_tells_apart_is_found_in_the_layers(tmp_path):
    theirs = build_model("ResNet-8", 7, (16, 16))
    theirs.get_layer("stage2_block1_relu1").negative_slope = 0.1
    save_keras(theirs, tmp_path / "model.keras")
    _, said = attempt(tmp_path / "model.keras", "ResNet-8", (16, 16), {}, {})
    assert "trained with negative_slope 0.1 in stage2_block1_relu1, the model has 0" in said
    assert "build it with" not in said


def test_fixed_positions_of_a_file_lie_between_those_that_its_model_knew(tmp_path):
    theirs = build_model("ViT-Mi/4", 7, (16, 16), depth=1, position="sincos")
    save_keras(theirs, tmp_path / "model.keras")
    model, _ = attempt(tmp_path / "model.keras", "ViT-Mi/4", (24, 32), {"depth": 1, "position": "sincos"}, {})
    resized = with_image_size(theirs, (24, 32))
    compare(model, lambda x: np.asarray(resized(x)), (24, 32), 0, 1)
