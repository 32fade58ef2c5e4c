"""Kernels for torch.

Keras copies a convolution's input from (batch, height, width, channels) to (batch, channels, height, width), and the
output back, forward and backward. Here both are views with torch's channels_last strides, which copy nothing.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import torch
from keras import ops
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.torch.core import get_device
from torch.nn import functional

if TYPE_CHECKING:
    from visionpipe.models import layers

# By default torch.compile assumes that four axes are (batch, channels, height, width) and would transpose ours at
# every sum.
os.environ.setdefault("TORCHINDUCTOR_LAYOUT_OPTIMIZATION", "0")
# oneDNN's convolution with a fused sum and ReLU. torch has it for its compiler; some builds lack it.
FUSED_CONVOLUTION: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def channels_first(x: torch.Tensor) -> torch.Tensor:
    """Returns a view (batch, channels, height, width) of `x`; in memory the channels stay last."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Returns a view (batch, height, width, channels) of `x` (batch, channels, height, width)."""
    return x.permute(0, 2, 3, 1)


def _same_padding(x: torch.Tensor, size: Sequence[int], strides: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns the padding (before, after) of height and width by TensorFlow's rule SAME: an odd pixel goes after."""
    totals = [
        max((-(-length // stride) - 1) * stride + kernel - length, 0)
        for length, kernel, stride in zip(x.shape[2:], size, strides, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]


def _pad(
    x: torch.Tensor, padding: list[tuple[int, int]], value: float
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Pads `x` if opposite sides need different padding; returns it and the padding that is left to the operation.

    torch's convolutions and poolings pad opposite sides by the same number of pixels, at no cost.
    """
    (top, bottom), (left, right) = padding
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _filters_first(kernel: torch.Tensor) -> torch.Tensor:
    """Converts a kernel (height, width, channels in, channels out) to torch's (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def arrange_filters(kernel: "keras.Variable") -> None:
    """Rearranges a convolution's kernel in memory so that `_filters_first` need not copy it."""
    kernel.value.data = _filters_first(kernel.value.data).permute(2, 3, 1, 0)


def conv2d(
    x: torch.Tensor,
    kernel: torch.Tensor,
    strides: tuple[int, int],
    padding: str,
    dilation: tuple[int, int],
) -> torch.Tensor:
    """Convolves `x` (batch, height, width, channels) with `kernel` (height, width, channels in, channels out)."""
    x, kernel, *options = _conv2d_arguments(channels_first(x), kernel, strides, padding, dilation)
    return channels_last(functional.conv2d(x, kernel, None, *options))


def _conv2d_arguments(
    x: torch.Tensor,
    kernel: torch.Tensor,
    strides: tuple[int, int],
    padding: str,
    dilation: tuple[int, int],
) -> tuple[Any, ...]:
    """Converts the arguments of a Keras convolution, with `x` as (batch, channels, height, width), to torch's.

    Returns input, kernel, strides, padding, dilation and groups.
    """
    if kernel.shape[:2] == (1, 1) and kernel.shape[2] < 16 and strides != (1, 1):
        # oneDNN's gradient of such a convolution writes outside its memory (AVX-512, torch 2.13, batches of 3, 5,
        # 7 …), so the input is strided before it.
        x, strides = x[:, :, :: strides[0], :: strides[1]], (1, 1)
    padded = (0, 0)
    if padding == "same":
        reach = [(side - 1) * step + 1 for side, step in zip(kernel.shape[:2], dilation, strict=True)]
        x, padded = _pad(x, _same_padding(x, reach, strides), value=0.0)
    kernel = _filters_first(kernel)
    return x, kernel, strides, padded, dilation, x.shape[1] // kernel.shape[1]


def dense(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns `x @ kernel + bias`, computed in one operation."""
    return functional.linear(x, kernel.T, bias)


def dense_in_parts(
    parts: int, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Returns `x @ kernel + bias`, split into `parts` equal parts of the last axis."""
    return dense(x, kernel, bias).chunk(parts, -1)


def max_pool(x: torch.Tensor, size: tuple[int, int], strides: tuple[int, int], padding: str) -> torch.Tensor:
    """Takes the maximum over windows of `x` (batch, height, width, channels)."""
    x, padded = channels_first(x), (0, 0)
    if padding == "same":
        x, padded = _pad(x, _same_padding(x, size, strides), value=-torch.inf)
    return channels_last(functional.max_pool2d(x, size, strides, padded))


def batch_norm_training(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    moving_mean: torch.Tensor,
    moving_variance: torch.Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalises `x` (batch, height, width, channels) by the statistics of the batch.

    Returns the result and the new moving mean and moving variance, updated with the biased variance as in Keras.
    """
    averages = moving_mean.clone(), moving_variance.clone()
    y = _batch_norm_in_place(channels_first(x), gamma, beta, *averages, momentum, epsilon)
    return channels_last(y), *averages


def _batch_norm_in_place(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    moving_mean: torch.Tensor,
    moving_variance: torch.Tensor,
    momentum: float,
    epsilon: float,
) -> torch.Tensor:
    """Normalises `x` (batch, channels, height, width) as in training, and updates both moving averages in place."""
    old, count = moving_variance * momentum, x.numel() // x.shape[1]
    if count == 1:  # torch raises an error here; on the other backends a single number is its own mean
        moving_mean.data.lerp_(x.detach().flatten().to(moving_mean.dtype), 1 - momentum)
        moving_variance.data.copy_(old)
        return ((x - x) * gamma[:, None, None] + beta[:, None, None]).to(x.dtype)
    y = functional.batch_norm(
        x, moving_mean, moving_variance, gamma, beta, training=True, momentum=1 - momentum, eps=epsilon
    )
    # torch averages the unbiased variance, which is count / (count - 1) times Keras's. The change goes through `data`
    # because autograd has saved the average and would raise an error, although the gradient does not read it.
    moving_variance.data.lerp_(old, 1 / count)
    return y


def batch_norm_inference(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
) -> torch.Tensor:
    """Normalises `x` (batch, height, width, channels) by the moving averages."""
    y = functional.batch_norm(channels_first(x), mean, variance, gamma, beta, training=False, eps=epsilon)
    return channels_last(y)


def _value(variable: "keras.Variable | torch.Tensor", dtype: torch.dtype) -> torch.Tensor:
    """Returns the tensor of a variable, for an input of this dtype.

    In float32 there is nothing to cast, and Keras's conversion, which first looks for open scopes, would take a
    thirtieth of a small model's inference.
    """
    in_float32 = dtype == torch.float32 and isinstance(variable, keras.Variable)
    return variable._value if in_float32 else ops.convert_to_tensor(variable)


def _folded(
    kernel: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the kernel and bias of a convolution that computes the batch norm of inference as well."""
    scale = gamma * torch.rsqrt(variance + epsilon)
    return kernel * scale, beta - mean * scale


def chain(
    conv: "layers.Conv2D",
    norm: "layers.BatchNorm | None",
    relu: bool,
    x: torch.Tensor,
    other: torch.Tensor | None = None,
    *,
    training: bool | None,
) -> torch.Tensor:
    """Computes relu(norm(conv(x)) + other), of which norm, sum and ReLU are optional (see acceleration/chains.py).

    Inputs and output are (batch, channels, height, width): autograd adds up a shortcut's gradients in place, except
    where they are permuted views.
    """
    setting = conv.strides, conv.padding, conv.dilation_rate
    kernel = _value(conv.kernel, x.dtype)
    if norm:
        gamma, beta = _value(norm.gamma, x.dtype), _value(norm.beta, x.dtype)
        mean, variance = _value(norm.moving_mean, x.dtype), _value(norm.moving_variance, x.dtype)
        weights = gamma, beta, mean, variance
        training = training and norm.trainable
    # oneDNN's fused operation has no gradient, and supports half precision on some processors only.
    fusable = x.is_cpu and x.dtype == torch.float32 and FUSED_CONVOLUTION is not None
    if fusable and not (training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
        kernel, bias = _folded(kernel, *weights, norm.epsilon) if norm else (kernel, None)
        x, kernel, strides, padded, dilation, groups = _conv2d_arguments(x, kernel, *setting)
        convolution = kernel, bias, padded, strides, dilation, groups
        if other is None:
            x = FUSED_CONVOLUTION(x, *convolution, "relu" if relu else "none", [], None)
        else:
            activation = "relu" if relu else None
            x = FUSED_CONVOLUTION.binary(x, other, *convolution, "add", 1.0, activation, [], None)
        return x

    x, kernel, *options = _conv2d_arguments(x, kernel, *setting)
    x = functional.conv2d(x, kernel, None, *options)
    if norm and training:
        x = _batch_norm_in_place(x, *weights, norm.momentum, norm.epsilon)
    elif norm:
        x = functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=norm.epsilon)
    if other is not None:
        x.add_(other)
    return x.relu_() if relu else x


def constant(array: Any) -> torch.Tensor:
    """Converts an array to a tensor when its layer is built: torch.compile cannot follow a conversion from NumPy."""
    return ops.convert_to_tensor(array)


def uniform(shape: tuple[Any, ...], seed: keras.random.SeedGenerator) -> torch.Tensor:
    """Draws float32 numbers in [0, 1), as Keras does.

    Compiled code draws from torch's global generator, as dropout does: torch.compile cannot follow the generator that
    Keras makes for each draw.
    """
    if torch.compiler.is_compiling():
        return torch.rand(shape, device=get_device())
    return keras.random.uniform(shape, seed=seed)


def gelu(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


def adam(
    variables: "Sequence[keras.Variable]",
    gradients: Sequence[torch.Tensor],
    momentums: "Sequence[keras.Variable]",
    velocities: "Sequence[keras.Variable]",
    step: torch.Tensor,
    learning_rate: torch.Tensor,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> bool:
    """Updates all `variables` and their moments in place by Adam; `step` counts from 1.

    Returns True; or returns False, without a change, if Keras's operations are needed or faster.
    """
    # torch.compile fuses Keras's operations itself. On an accelerator, reading `step` and `learning_rate` would wait
    # for the device. In a stateless scope only the scope's values may change, and `_value` does not see those.
    if torch.compiler.is_compiling() or in_stateless_scope() or not step.is_cpu:
        return False
    number, gradients = int(step), list(gradients)
    groups = variables, momentums, velocities
    tensors, means, squares = ([_value(v, torch.float32) for v in group] for group in groups)
    # torch's operation goes through the memory of all four tensors in parallel and ignores the order of their axes.
    for position, tensor in enumerate(tensors):
        order = tensor.stride()
        if gradients[position].stride() != order:
            gradients[position] = torch.empty_like(tensor).copy_(gradients[position])
        for moment in (means[position], squares[position]):
            if moment.stride() != order:
                moment.data = torch.empty_like(tensor).copy_(moment)
    torch._fused_adam_(
        tensors,
        gradients,
        means,
        squares,
        [],
        [torch.tensor(float(number))] * len(gradients),
        lr=float(learning_rate),
        beta1=beta_1,
        beta2=beta_2,
        weight_decay=0.0,
        eps=epsilon / (1 - beta_2**number) ** 0.5,  # Keras adds epsilon before it corrects the bias
        amsgrad=False,
        maximize=False,
    )
    return True
