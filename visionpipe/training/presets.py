"""Recipes by name, for `train.preset`: what a paper or a widely used code trains with. A key beside it overrides.

What belongs to the model is not here: for stochastic depth, at 0.1 in DeiT's paper and in CCT's own code, write
`overrides: {stochastic_depth_rate: 0.1}`.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # He et al. 2016, arXiv:1512.03385, section 3.4, with the cosine and the warm-up of He et al. 2019,
    # arXiv:1812.01187, instead of the steps; weight decay is coupled there: 1e-4 / 0.1.
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
    # Touvron et al. 2021, arXiv:2012.12877, table 9; the rate is theirs at 1,024 images a step, of which two views
    # each, where their code has three: that many divide the batch.
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
    # Howard & Gugger 2020, arXiv:2002.04688, section 2.1.1 (`fine_tune`): the head first, then all of it; clipping
    # and the low rate of Dosovitskiy et al. 2021, arXiv:2010.11929, appendix B.1.1.
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
