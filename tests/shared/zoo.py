"""One small model of each family and option: name → (variant, image size, overrides)."""

ENCODER = {"hidden_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
STAGES = {"blocks_per_stage": (1, 2, 1), "filters": 8}

ZOO = {
    "vit token pre-logits": (
        "ViT-S/16",
        32,
        {
            "patch_size": 8,
            "representation_dim": 12,
            "dropout_rate": 0.1,
            "stochastic_depth_rate": 0.1,
            **ENCODER,
        },
    ),
    "vit registers": (
        "ViT-S/16",
        (24, 32),
        {"patch_size": 8, "register_tokens": 2, "position": "sincos", "layer_scale": 0.1, **ENCODER},
    ),
    "vit gap": (
        "ViT-Mi/4",
        16,
        {"position": "none", "activation": "gelu_tanh", "register_tokens": 1, **ENCODER},
    ),
    "vit distilled": (
        "DeiT-S/16",
        (24, 16),
        {"patch_size": 8, "register_tokens": 1, "layer_norm_epsilon": 1e-12, **ENCODER},
    ),
    "cct": ("CCT-7/3x1", 16, {"patch_size": 4, **ENCODER}),
    "resnet basic": ("ResNet-18", 32, {"padding": "symmetric", **STAGES}),
    "resnet bottleneck": ("ResNet-50", (32, 48), {"zero_last_scale": False, **STAGES}),
    "resnet stride on the 1×1": ("ResNet-50", 32, {"stride_on": "1x1", "norm_epsilon": 1e-3, **STAGES}),
    "resnet deep stem": ("ResNet-50-D", 32, STAGES),
    "resnet v2": ("ResNet-50v2", 32, {"padding": "symmetric", **STAGES}),
    "resnet group norm": ("BiT-R50x1", 32, {"blocks_per_stage": (1, 1), "width_factor": 0.5}),
    "resnet padded shortcut": ("ResNet-20", 16, {"blocks_per_stage": (1, 1, 1), "filters": 4}),
    "resnet wide": ("WRN-16-4", 16, {"blocks_per_stage": (1, 1, 1), "width_factor": 0.5}),
    "serial hybrid": (
        "R50+ViT-B/16",
        (64, 32),
        {"blocks_per_stage": (2, 1), "width_factor": 0.5, "patch_size": 2, **ENCODER},
    ),
    "serial hybrid, stem only": ("R+ViT-Ti/16", 32, {"patch_size": 4, "width_factor": 0.5, **ENCODER}),
    "small serial hybrid": ("R14+ViT-Mi", 16, {"filters": 4, **ENCODER}),
    "interleaved, bottleneck attention": ("BoTNet-50", (32, 64), {"num_heads": 2, **STAGES}),
    "interleaved, relative bias": (
        "CoAtNet-0",
        (16, 24),
        {
            "blocks_per_stage": (1, 1, 2),
            "dims": (8, 12, 16),
            "attention_stages": 1,
            "head_dim": 8,
            "dropout_rate": 0.1,
            "stem_stride": 2,
        },
    ),
    "parallel, concatenated": (
        "Conformer-Ti",
        32,
        {"filters": 16, "hidden_dim": 16, "num_heads": 2, "mlp_dim": 24, "depth": 3},
    ),
    "parallel, weighted": (
        "Conformer-Ti",
        (16, 24),
        {
            "filters": 16,
            "hidden_dim": 16,
            "num_heads": 2,
            "mlp_dim": 24,
            "depth": 6,
            "fusion": "weighted",
            "stem": "3x3",
            "patch_size": 8,
            "stochastic_depth_rate": 0.2,
        },
    ),
}
