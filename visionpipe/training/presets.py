"""Recipes by name, for `train.preset`: those of papers and of widely used code. Keys beside `preset` override them.

Presets hold nothing that belongs to the model. For stochastic depth, which is 0.1 in DeiT's paper and in CCT's code,
write `overrides: {stochastic_depth_rate: 0.1}`.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # He et al. 2016, arXiv:1512.03385, section 3.4, with the cosine and the warm-up of He et al. 2019,
    # arXiv:1812.01187, instead of steps. The paper's weight decay of 1e-4 is coupled: decoupled it is 1e-4 / 0.1.
    "resnet-classic": {
        "epochs": 90,
        "batch_size": 256,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.001,
        "schedule": "cosine",
        "warmup": "5 epochs",
        "label_smoothing": 0.1,
        "augmentation": [{"name": "resized_crop"}, {"name": "flip"}],
    },
    # Hassani et al. 2021, arXiv:2104.05704, appendix (CIFAR-10).
    "vit-small-data": {
        "epochs": 200,
        "batch_size": 128,
        "optimizer": "adamw",
        "learning_rate": 0.0006,
        "weight_decay": 0.06,
        "schedule": "cosine",
        "warmup": "10 epochs",
        "label_smoothing": 0.1,
        "augmentation": [
            {"name": "crop", "padding": 4},
            {"name": "flip"},
            {"name": "rand_augment"},
            {"name": "mixup", "alpha": 0.8},
            {"name": "cutmix", "alpha": 1.0},
        ],
    },
    # Touvron et al. 2021, arXiv:2012.12877, table 9, with the rate for 1,024 images per step. Their code repeats each
    # image three times; this recipe twice, because the repetitions must divide the batch size.
    "deit": {
        "epochs": 300,
        "batch_size": 1024,
        "optimizer": "adamw",
        "learning_rate": 0.001,
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup": "5 epochs",
        "label_smoothing": 0.1,
        "repeated_augmentation": 2,
        "augmentation": [
            {"name": "resized_crop"},
            {"name": "flip"},
            {"name": "rand_augment"},
            {"name": "erasing", "probability": 0.25},
            {"name": "mixup", "alpha": 0.8},
            {"name": "cutmix", "alpha": 1.0},
        ],
    },
    # Howard & Gugger 2020, arXiv:2002.04688, section 2.1.1 (`fine_tune`): first the head, then the whole model.
    # Clipping and the low rate are of Dosovitskiy et al. 2021, arXiv:2010.11929, appendix B.1.1.
    "finetune": {
        "epochs": 6,
        "batch_size": 32,
        "optimizer": "adamw",
        "learning_rate": 0.0005,
        "weight_decay": 0.01,
        "schedule": "cosine",
        "warmup": "20 steps",
        "clip_norm": 1.0,
        "layer_decay": 0.75,
        "freeze": [{"epochs": 1, "train": ["logits"]}],
        "augmentation": [{"name": "flip"}],
    },
}
