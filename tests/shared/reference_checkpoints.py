"""Writes checkpoints of other implementations with their logits; test_weights_exact.py runs it in a subprocess.

    python reference_checkpoints.py torch|heavy|keras FOLDER

Each case is a folder: a checkpoint, case.json with the model of this package to load it into, images.npy, and
logits.npy. No forward pass here uses this package.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

SEED = 0
HEAVY = {"timm resnet152", "timm hybrid 3 4 9", "npz hybrid 3 4 9"}  # minutes of compiling
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
ENCODER = {"hidden_dim": 64, "depth": 2, "num_heads": 4, "mlp_dim": 96}
SMALL_VIT = {"patch_size": 8, **ENCODER}


def case(folder, name, path, variant, size, overrides, forward, mean=HALF, std=HALF, **more):
    """Writes a case. `mean`, `std`: of pixels in [0, 1]. `forward`: normalised images (batch, h, w, 3) to logits."""
    size = (size, size) if isinstance(size, int) else size
    images = np.random.default_rng(SEED + 1).integers(0, 256, (4, *size, 3), np.uint8)
    normalised = (images / 255 - np.array(mean)) / np.array(std)
    logits = forward(normalised.astype(np.float32))
    target = folder / name
    target.mkdir(exist_ok=True)
    np.save(target / "images.npy", images)
    np.save(target / "logits.npy", logits)
    pixels = {"pixel_mean": [255 * x for x in mean], "pixel_std": [255 * x for x in std]}
    content = {"path": str(path), "variant": variant, "size": size, "overrides": overrides, **pixels, **more}
    (target / "case.json").write_text(json.dumps(content))


# torch ---------------------------------------------------------------------------------------------------


def randomised(model):
    """Replaces the weights so that each entry changes the output: no zeros, no ones, batch statistics of all sizes."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else None
            if noise is None:
                continue
            if "running_var" in name:
                tensor.copy_(0.5 + noise.abs())
            elif tensor.ndim <= 1:
                centre = 1.0 if name.endswith(("weight", "gamma")) else 0.0
                tensor.copy_(centre + 0.3 * noise)
            elif "pos" in name or "token" in name:
                tensor.copy_(0.5 * noise)
            else:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
    return model.eval()


def torch_forward(model):
    import torch

    def forward(images):
        with torch.inference_mode():
            out = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        return getattr(out, "logits", out).numpy()

    return forward


def timm_cases(folder, wanted):
    import timm
    from safetensors.torch import save_file

    def save(name, model, mean, std, file="model.safetensors"):
        target = folder / name
        target.mkdir()
        config = {"mean": mean, "std": std, "interpolation": "bicubic", "crop_pct": 0.9}
        config |= {"input_size": [3, 32, 32]}
        (target / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": config}))
        save_file(model.state_dict(), target / file)
        return target / file

    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}

    def add(name, architecture, variant, size, overrides, mean=HALF, std=HALF, **arguments):
        if not wanted(name):
            return
        model = randomised(timm.create_model(architecture, num_classes=7, **arguments))
        path = save(name, model, mean, std)
        case(folder, name, path, variant, size, overrides, torch_forward(model), mean, std)

    add("timm vit", "vit_base_patch16_224", "ViT-B/16", 32, SMALL_VIT, **vit)
    add(
        "timm vit gap", "vit_base_patch16_gap_224", "ViT-B/16", (32, 16), SMALL_VIT | {"pool": "gap"},
        **vit | {"img_size": (32, 16)},
    )  # fmt: skip
    add(
        "timm vit registers and scales", "vit_base_patch16_224", "ViT-B/16", 32,
        SMALL_VIT | {"register_tokens": 2, "layer_scale": 0.1},
        **vit, init_values=0.1, reg_tokens=2, no_embed_class=True,
    )  # fmt: skip
    add(
        "timm deit distilled", "deit_base_distilled_patch16_224", "DeiT-B/16", 32, SMALL_VIT,
        IMAGENET_MEAN, IMAGENET_STD, **vit,
    )  # fmt: skip
    resnet = {"padding": "symmetric"}
    narrow = {"channels": (16, 32, 64, 128)}
    for name, architecture, variant, more, own in (
        ("timm resnet18", "resnet18", "ResNet-18", {}, {}),
        ("timm resnet50", "resnet50", "ResNet-50", narrow, {"filters": 16, "stem_filters": 64}),
        ("timm resnet152", "resnet152", "ResNet-152", narrow, {"filters": 16, "stem_filters": 64}),
    ):
        add(name, architecture, variant, 64, resnet | own, IMAGENET_MEAN, IMAGENET_STD, **more)
    for name, blocks, width, size in (
        ("timm hybrid 3 4 9", (3, 4, 9), 0.5, 64),
        ("timm hybrid other stages", (2, 1, 1, 1), 1.0, 64),
        ("timm hybrid stem only", (), 0.5, 32),
    ):
        if not wanted(name):
            continue
        model = randomised(timm_hybrid(blocks, width, size, patch=8 if not blocks else 1))
        path = save(name, model, HALF, HALF)
        own = {"blocks_per_stage": blocks, "width_factor": width, "norm_epsilon": 1e-5, "activation": "gelu"}
        own |= {"patch_size": 1 if blocks else 8}
        case(folder, name, path, "R50+ViT-B/16", size, ENCODER | own, torch_forward(model))


def timm_hybrid(blocks, width, size, patch=1, **more):
    from functools import partial

    from timm.layers import HybridEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
    from timm.models.vision_transformer import VisionTransformer

    conv = partial(StdConv2dSame, eps=1e-8)
    if blocks:
        channels = tuple(int(256 * width) * 2**stage for stage in range(len(blocks)))
        backbone = ResNetV2(
            layers=blocks, channels=channels, stem_chs=int(64 * width), num_classes=0, global_pool="",
            preact=False, stem_type="same", conv_layer=conv,
        )  # fmt: skip
    else:
        backbone = create_resnetv2_stem(3, int(64 * width), stem_type="same", preact=False, conv_layer=conv)
    return VisionTransformer(
        img_size=size, patch_size=patch, embed_dim=64, depth=2, num_heads=4, mlp_ratio=1.5, num_classes=7,
        embed_layer=partial(HybridEmbed, backbone=backbone), **more,
    )  # fmt: skip


def npz_cases(folder, wanted):
    """Writes `.npz` cases, which timm's loader reads and timm's models compute with the constants of flax."""
    import torch
    from npz_layout import NEWER, OLDER, big_vision, google
    from timm.layers import StdConv2dSame
    from timm.layers.padding import pad_same
    from timm.models.vision_transformer import VisionTransformer
    from torch.nn import functional

    class GoogleStdConv(StdConv2dSame):
        """Divides by the deviation plus 1e-5, as flax does; timm divides by the root of the variance plus 1e-8."""

        def forward(self, x):
            deviation, mean = torch.std_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
            weight = (self.weight - mean) / (deviation + 1e-5)
            x = pad_same(x, self.kernel_size, self.stride, self.dilation) if self.same_pad else x
            return functional.conv2d(x, weight, None, self.stride, self.padding)

    def gelu_tanh():
        return torch.nn.GELU("tanh")

    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 1.5}
    vit |= {"num_classes": 7, "act_layer": gelu_tanh}

    def load(model, tensors):
        """Loads tensors with timm, which reads only the older names, and no head after pre-logits."""
        newer = {OLDER[i]: NEWER[i] for i in range(4)}
        names = {name: name for name in tensors}
        if any(NEWER[3] in name for name in tensors) and any("posembed" in name for name in tensors):
            back = {new: old for old, new in newer.items() if old != new}
            names = {name: "/".join(back.get(part, part) for part in name.split("/")) for name in tensors}
        np.savez(folder / "timm.npz", **{names[name]: array for name, array in tensors.items()})
        model.load_pretrained(str(folder / "timm.npz"))
        return model.eval()

    def add(name, tensors, model, variant, size, overrides, forward=None, fixed=None):
        """Adds a case. `fixed`: tensors that the original computes and timm has to load."""
        if not wanted(name):
            return
        target = folder / name
        target.mkdir()
        np.savez(target / "x.npz", **tensors)
        load(model, tensors | (fixed or {}))
        forward = forward(model) if forward else torch_forward(model)
        case(folder, name, target / "x.npz", variant, size, overrides, forward)

    ours = SMALL_VIT | {"activation": "gelu_tanh"}
    add("npz vit", google(), VisionTransformer(**vit), "ViT-B/16", 32, ours)
    add(
        "npz vit newer names and prefix", google(names=NEWER, prefix="opt/target/", seed=1),
        VisionTransformer(**vit), "ViT-B/16", 32, ours,
    )  # fmt: skip
    gap = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    add(
        "npz vit gap", google(class_token=False), VisionTransformer(**vit | gap), "ViT-B/16", 32,
        ours | {"pool": "gap"},
    )  # fmt: skip
    tensors = google(pre_logits=24, names=NEWER)

    def with_pre_logits(model):
        model.head = torch.nn.Identity()
        kernels = [torch.from_numpy(tensors[f"{name}/kernel"].T) for name in ("pre_logits", "head")]
        biases = [torch.from_numpy(tensors[f"{name}/bias"]) for name in ("pre_logits", "head")]

        def head(images):
            x = torch.from_numpy(torch_forward(model)(images))
            return functional.linear(
                torch.tanh(functional.linear(x, kernels[0], biases[0])), kernels[1], biases[1]
            ).numpy()

        return head

    add(
        "npz vit pre-logits", tensors, VisionTransformer(**vit | {"num_classes": 0}), "ViT-B/16", 32,
        ours | {"representation_dim": 24}, with_pre_logits,
    )  # fmt: skip
    tok = {"class_token": True, "no_embed_class": True}

    add(
        "npz big_vision sincos", big_vision(learned=False), VisionTransformer(**vit | gap), "ViT-B/16", 32,
        ours | {"pool": "gap", "position": "sincos"}, fixed={"params/pos_embedding": sines(4, 4, 64)[None]},
    )  # fmt: skip
    add(
        "npz big_vision", big_vision(), VisionTransformer(**vit | gap), "ViT-B/16", 32, ours | {"pool": "gap"}
    )
    add(
        "npz big_vision scanned with class token", big_vision(class_token=True, scanned=True),
        VisionTransformer(**vit | tok), "ViT-B/16", 32, ours,
    )  # fmt: skip
    for name, blocks, width, names in (
        ("npz hybrid 3 4 9", (3, 4, 9), 0.5, OLDER),
        ("npz hybrid other stages", (1, 2), 1.0, NEWER),
    ):
        side = 64 // 2 ** (len(blocks) + 1)
        model = timm_hybrid(blocks, width, 64, act_layer=gelu_tanh)
        for module in model.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.eps = 1e-6
            elif isinstance(module, StdConv2dSame):
                module.__class__ = GoogleStdConv
        tensors = google(patch=1, grid=(side, side), blocks=blocks, stage_width=int(64 * width), names=names)
        own = {"blocks_per_stage": blocks, "width_factor": width, **ENCODER}
        add(name, tensors, model, "R50+ViT-B/16", 64, own)


def sines(rows, columns, width):
    """Computes the fixed position embeddings of MoCo v3 (Chen et al. 2021, arXiv:2104.02057): column, then row."""
    table = np.zeros((rows, columns, width), np.float32)
    for row in range(rows):
        for column in range(columns):
            for index in range(width // 4):
                omega = 1 / 10000 ** (index / (width // 4 - 1))
                values = (np.sin(column * omega), np.cos(column * omega))
                values += (np.sin(row * omega), np.cos(row * omega))
                table[row, column, index :: width // 4] = values
    return table.reshape(-1, width)


def huggingface_cases(folder):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    encoder = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    encoder |= {"image_size": 32, "patch_size": 8, "num_labels": 7}

    def add(name, model, variant, size, overrides, mean, std):
        target = folder / name
        randomised(model).save_pretrained(target)
        config = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 2}
        config |= {"image_mean": mean, "image_std": std, "size": {"height": 32, "width": 32}}
        (target / "preprocessor_config.json").write_text(json.dumps(config))
        path = target / "model.safetensors"
        case(folder, name, path, variant, size, overrides, torch_forward(model), mean, std)

    own = SMALL_VIT | {"layer_norm_epsilon": 1e-12}
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**encoder))
    add("huggingface vit", vit, "ViT-B/16", 32, own, HALF, HALF)
    deit = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**encoder))
    add("huggingface deit", deit, "DeiT-B/16", 32, own, IMAGENET_MEAN, IMAGENET_STD)
    for kind, depths, widths, filters in (
        ("basic", (2, 1), (16, 32), 16),
        ("bottleneck", (1, 2, 1), (64, 128, 256), 16),
    ):
        config = transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=list(widths), depths=list(depths), layer_type=kind, num_labels=7
        )
        model = transformers.ResNetForImageClassification(config)
        overrides = {"block": kind, "blocks_per_stage": depths, "filters": filters, "padding": "symmetric"}
        add(f"huggingface resnet {kind}", model, "ResNet-50", 64, overrides, IMAGENET_MEAN, IMAGENET_STD)


# Keras ---------------------------------------------------------------------------------------------------


def randomise_keras(model):
    random = np.random.default_rng(SEED)
    for variable in model.variables:
        if "seed" in variable.path:
            continue
        noise = random.normal(size=variable.shape)
        if variable.name == "moving_variance":
            value = 0.5 + np.abs(noise)
        elif variable.name == "gamma":
            value = 1 + 0.3 * noise
        elif len(variable.shape) == 1 or variable.name in ("bias", "class_token", "embeddings"):
            value = 0.3 * noise
        else:
            heads_in = len(variable.shape) == 3 and "attention_output" not in variable.path
            inputs = variable.shape[0] if heads_in else np.prod(variable.shape[:-1])
            value = noise * inputs**-0.5
        variable.assign(value)
    return model


def keras_cases(folder):
    import keras
    import keras_hub
    from keras.src.applications import resnet

    def stages(x):
        x = resnet.stack_residual_blocks_v1(x, 32, 2, stride1=1, name="conv2")
        return resnet.stack_residual_blocks_v1(x, 64, 1, name="conv3")

    model = resnet.ResNet(
        stages, False, True, weights=None, input_shape=(64, 64, 3), classes=7, classifier_activation=None
    )
    randomise_keras(model)
    (folder / "keras.applications").mkdir()
    path = folder / "keras.applications" / "x.h5"
    model.save(path)
    own = {"filters": 32, "stem_filters": 64, "blocks_per_stage": (2, 1), "stride_on": "1x1"}
    own |= {"padding": "symmetric", "norm_epsilon": 1.001e-5}
    mean = tuple(value / 255 for value in (123.68, 116.779, 103.939))

    def forward(images):
        pixels = np.round(255 * (images / 255 + np.array(mean)))  # undoes the normalisation of case()
        return model.predict(keras.applications.resnet.preprocess_input(pixels.copy()), verbose=0)

    case(
        folder, "keras.applications", path, "ResNet-50", 64, own, forward, mean, (1 / 255,) * 3
    )  # fmt: skip

    def preset(name, model, variant, size, overrides, mean, std):
        randomise_keras(model)
        model.save_to_preset(str(folder / name))
        predict = keras.Model(model.input, model.output).predict
        case(
            folder, name, folder / name, variant, size, overrides, lambda x: predict(x, verbose=0), mean, std
        )

    def converter(kind, mean, std):
        scale = [1 / 255 / x for x in std]
        offset = [-m / s for m, s in zip(mean, std, strict=True)]
        return kind(image_size=(32, 32), scale=scale, offset=offset, interpolation="bilinear")

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=96
    )
    images = converter(keras_hub.layers.ViTImageConverter, HALF, HALF)
    model = keras_hub.models.ViTImageClassifier(
        backbone, 7, preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(images)
    )
    preset("kerashub vit", model, "ViT-B/16", 32, SMALL_VIT, HALF, HALF)
    for kind, blocks in (("basic", (2, 1)), ("bottleneck", (1, 1))):
        backbone = keras_hub.models.ResNetBackbone(
            input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64, 128],
            stackwise_num_blocks=list(blocks), stackwise_num_strides=[1, 2], block_type=f"{kind}_block",
            image_shape=(64, 64, 3),
        )  # fmt: skip
        images = converter(keras_hub.layers.ResNetImageConverter, IMAGENET_MEAN, IMAGENET_STD)
        model = keras_hub.models.ResNetImageClassifier(
            backbone, 7, preprocessor=keras_hub.models.ResNetImageClassifierPreprocessor(images)
        )
        own = {"block": kind, "blocks_per_stage": blocks, "padding": "symmetric"}
        preset(f"kerashub resnet {kind}", model, "ResNet-50", 64, own, IMAGENET_MEAN, IMAGENET_STD)


if __name__ == "__main__":
    kind, target = sys.argv[1], Path(sys.argv[2])
    if kind == "keras":
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        keras_cases(target)
    else:
        import torch

        torch.set_num_threads(1)
        if kind == "torch":
            huggingface_cases(
                target
            )  # before the stub, which transformers would take for the real torchvision
        from torchvision_stub import stub_torchvision

        stub_torchvision()
        timm_cases(target, lambda name: (name in HEAVY) == (kind == "heavy"))
        npz_cases(target, lambda name: (name in HEAVY) == (kind == "heavy"))
