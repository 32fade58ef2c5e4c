"""`.h5` files of ResNet-50, -101 and -152 in keras.applications.

They follow Caffe: channels in the order B, G, R, subtracted means, convolutions with biases, and the stride on the
first 1×1 convolution.
"""

from typing import Any

import numpy as np

from visionpipe.weights.layout import Companions, Format, FormatRow, Tensors, keras_dense, same
from visionpipe.weights.report import Preprocessing

MEAN = (123.68, 116.779, 103.939)


def bgr_to_rgb(kernel: np.ndarray) -> np.ndarray:
    """Reverses the input channels of a kernel (rows, columns, in, out)."""
    return kernel[:, :, ::-1, :]


def without_bias(mean: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Folds a bias into the mean of the norm behind it: norm(x + bias) is norm(x) with the mean lowered by the bias."""
    return mean - bias


def conv_norm(ours: str, ours_norm: str, theirs: str, theirs_norm: str) -> tuple[FormatRow, ...]:
    """Returns the rows of a convolution and the batch norm behind it."""
    return (
        FormatRow(f"{ours}/kernel", (f"{theirs}/kernel",), same),
        *(FormatRow(f"{ours_norm}/{name}", (f"{theirs_norm}/{name}",), same) for name in ("gamma", "beta")),
        FormatRow(f"{ours_norm}/moving_mean", (f"{theirs_norm}/moving_mean", f"{theirs}/bias"), without_bias),
        FormatRow(f"{ours_norm}/moving_variance", (f"{theirs_norm}/moving_variance",), same),
    )


OURS, THEIRS = "stage{stage}_block{block}", "conv{stage+1}_block{block}"


def options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of the checkpoint (see `Format`)."""
    return {
        "norm": "batch",
        "norm_epsilon": 1.001e-5,
        "preactivation": False,
        "shortcut": "projection",
        "stride_on": "1x1",
        "padding": "symmetric",
        "act_layer": "relu",
        "aa_layer": "none",
        "stage_strides": (1, 2, 2, 2),
        **({"global_pool": "avg"} if tensors.keys() & {"predictions/kernel", "probs/kernel"} else {}),
        "pixel_mean": MEAN,
        "pixel_std": (1.0,) * 3,
    }


FORMAT = Format(
    name="keras.applications ResNet .h5",
    signature=("conv1_conv/kernel", "conv1_conv/bias", "conv2_block1_0_conv/kernel"),
    rows=(
        FormatRow("stem_conv/kernel", ("conv1_conv/kernel",), bgr_to_rgb),
        *conv_norm("stem_conv", "stem_norm", "conv1_conv", "conv1_bn"),
        *(
            row
            for number in (1, 2, 3)
            for row in conv_norm(
                f"{OURS}_conv{number}", f"{OURS}_norm{number}",
                f"{THEIRS}_{number}_conv", f"{THEIRS}_{number}_bn",
            )
        ),
        *conv_norm(f"{OURS}_shortcut", f"{OURS}_shortcut_norm", f"{THEIRS}_0_conv", f"{THEIRS}_0_bn"),
        *keras_dense("logits", "predictions"),
        *keras_dense("logits", "probs"),
    ),
    options=options,
    preprocessing=lambda companions: Preprocessing(MEAN, (1.0,) * 3),
)  # fmt: skip
