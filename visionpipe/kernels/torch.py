"""torch. Keras copies a convolution's input from (batch, height, width, channels) to channels first, and that
to channels last, forward and backward; a view with torch's channels_last strides needs neither.
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

# torch.compile takes any four axes for (batch, channels, height, width), and would transpose ours at every sum.
os.environ.setdefault("TORCHINDUCTOR_LAYOUT_OPTIMIZATION", "0")
# oneDNN's convolution with a sum and a ReLU, which torch has for its compiler. Not in every build.
CONVOLUTION: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def channels_first(x: torch.Tensor) -> torch.Tensor:
    """A view in torch's order of axes; in memory the channels stay last."""
    return x.permute(0, 3, 1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 2, 3, 1)


def same_padding(x: torch.Tensor, size: Sequence[int], strides: tuple[int, int]) -> list[tuple[int, int]]:
    """Before and after, for height and width, as TensorFlow's SAME has it: the odd one comes after."""
    totals = [
        max((-(-length // stride) - 1) * stride + kernel - length, 0)
        for length, kernel, stride in zip(x.shape[2:], size, strides, strict=True)
    ]
    return [(total // 2, total - total // 2) for total in totals]


def pad(
    x: torch.Tensor, padding: list[tuple[int, int]], value: float
) -> tuple[torch.Tensor, tuple[int, int]]:
    """`x` and what a convolution or pooling itself is to pad: all of it, unless one side needs more."""
    (top, bottom), (left, right) = padding
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


def filters_first(kernel: torch.Tensor) -> torch.Tensor:
    """From (height, width, channels in, channels out) to torch's order of axes."""
    return kernel.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def arrange_filters(kernel: "keras.Variable") -> None:
    """Has it in memory as `filters_first` wants it, which then copies nothing."""
    kernel.value.data = filters_first(kernel.value.data).permute(2, 3, 1, 0)


def conv2d(
    x: torch.Tensor,
    kernel: torch.Tensor,
    strides: tuple[int, int],
    padding: str,
    dilation: tuple[int, int],
) -> torch.Tensor:
    """`kernel`: (height, width, channels in, channels out)."""
    x, kernel, *options = arguments(channels_first(x), kernel, strides, padding, dilation)
    return channels_last(functional.conv2d(x, kernel, None, *options))


def arguments(
    x: torch.Tensor,
    kernel: torch.Tensor,
    strides: tuple[int, int],
    padding: str,
    dilation: tuple[int, int],
) -> tuple[Any, ...]:
    """torch's own for a convolution of (batch, channels, height, width): input, kernel, strides, padding, dilation,
    groups.
    """
    if kernel.shape[:2] == (1, 1) and kernel.shape[2] < 16 and strides != (1, 1):
        # Here oneDNN's gradient writes outside its memory: AVX-512, torch 2.13, batches of 3, 5, 7 …
        x, strides = x[:, :, :: strides[0], :: strides[1]], (1, 1)
    own = (0, 0)
    if padding == "same":
        reach = [(side - 1) * step + 1 for side, step in zip(kernel.shape[:2], dilation, strict=True)]
        x, own = pad(x, same_padding(x, reach, strides), value=0.0)
    kernel = filters_first(kernel)
    return x, kernel, strides, own, dilation, x.shape[1] // kernel.shape[1]


def dense(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ kernel + bias`, in one operation."""
    return functional.linear(x, kernel.T, bias)


def dense_in_parts(
    parts: int, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """`x @ kernel + bias` in `parts` equal parts of the last axis."""
    return dense(x, kernel, bias).chunk(parts, -1)


def max_pool(x: torch.Tensor, size: tuple[int, int], strides: tuple[int, int], padding: str) -> torch.Tensor:
    x, own = channels_first(x), (0, 0)
    if padding == "same":
        x, own = pad(x, same_padding(x, size, strides), value=-torch.inf)
    return channels_last(functional.max_pool2d(x, size, strides, own))


def batch_norm_training(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    moving_mean: torch.Tensor,
    moving_variance: torch.Tensor,
    momentum: float,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result and both averages with this batch's mean and biased variance in them."""
    averages = moving_mean.clone(), moving_variance.clone()
    y = batch_norm(channels_first(x), gamma, beta, *averages, momentum, epsilon)
    return channels_last(y), *averages


def batch_norm(
    x: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    moving_mean: torch.Tensor,
    moving_variance: torch.Tensor,
    momentum: float,
    epsilon: float,
) -> torch.Tensor:
    """Of (batch, channels, height, width), in training; both averages are updated in place."""
    old, count = moving_variance * momentum, x.numel() // x.shape[1]
    if count == 1:  # torch refuses it; the other backends see that a number alone is its mean
        moving_mean.data.lerp_(x.detach().flatten().to(moving_mean.dtype), 1 - momentum)
        moving_variance.data.copy_(old)
        return ((x - x) * gamma[:, None, None] + beta[:, None, None]).to(x.dtype)
    y = functional.batch_norm(
        x, moving_mean, moving_variance, gamma, beta, training=True, momentum=1 - momentum, eps=epsilon
    )
    # torch takes the unbiased variance, count / (count - 1) times the one of Keras. `data`: autograd has kept the
    # average and would refuse the change, though the gradient in training does not read it.
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
    y = functional.batch_norm(channels_first(x), mean, variance, gamma, beta, training=False, eps=epsilon)
    return channels_last(y)


def value(variable: "keras.Variable | torch.Tensor", dtype: torch.dtype) -> torch.Tensor:
    """What a variable holds, for an input of this dtype. In float32 there is nothing to cast, and Keras's own way,
    which asks for scopes first, is a thirtieth of a small model's inference.
    """
    in_float32 = dtype == torch.float32 and isinstance(variable, keras.Variable)
    return variable._value if in_float32 else ops.convert_to_tensor(variable)


def folded(
    kernel: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel and the bias of the convolution that computes a batch norm in inference too."""
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
    """What acceleration/chains.py takes together, from and to (batch, channels, height, width): autograd adds up a
    shortcut's gradients in place, but not where they are permuted views.
    """
    setting = conv.strides, conv.padding, conv.dilation_rate
    kernel = value(conv.kernel, x.dtype)
    if norm:
        gamma, beta = value(norm.gamma, x.dtype), value(norm.beta, x.dtype)
        mean, variance = value(norm.moving_mean, x.dtype), value(norm.moving_variance, x.dtype)
        weights = gamma, beta, mean, variance
        training = training and norm.trainable
    # oneDNN's operation has no gradient, and half precision on some processors only.
    in_one = x.is_cpu and x.dtype == torch.float32 and CONVOLUTION is not None
    if in_one and not (training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
        kernel, bias = folded(kernel, *weights, norm.epsilon) if norm else (kernel, None)
        x, kernel, strides, own, dilation, groups = arguments(x, kernel, *setting)
        convolution = kernel, bias, own, strides, dilation, groups
        if other is None:
            x = CONVOLUTION(x, *convolution, "relu" if relu else "none", [], None)
        else:
            x = CONVOLUTION.binary(x, other, *convolution, "add", 1.0, "relu" if relu else None, [], None)
        return x

    x, kernel, *options = arguments(x, kernel, *setting)
    x = functional.conv2d(x, kernel, None, *options)
    if norm and training:
        x = batch_norm(x, *weights, norm.momentum, norm.epsilon)
    elif norm:
        x = functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=norm.epsilon)
    if other is not None:
        x.add_(other)
    return x.relu_() if relu else x


def constant(array: Any) -> torch.Tensor:
    """A compiler follows no conversion from NumPy."""
    return ops.convert_to_tensor(array)


def drawn_by_torch(shape: tuple[Any, ...]) -> torch.Tensor:
    """Numbers in [0, 1) of torch's own generator, which dropout draws from too."""
    return torch.rand(shape, device=get_device())


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
    """Adam's update of all `variables` and moments, where that pays; `step` counts from 1."""
    # A compiler makes one loop of Keras's own operations. On an accelerator the numbers below would be waited for.
    # In a stateless scope nothing may change but the scope's values, which `value` does not see.
    if torch.compiler.is_compiling() or in_stateless_scope() or not step.is_cpu:
        return False
    number, gradients = int(step), list(gradients)
    groups = variables, momentums, velocities
    tensors, means, squares = ([value(v, torch.float32) for v in group] for group in groups)
    # torch's operation walks through the memory of all four side by side, whatever the order of their axes.
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
        eps=epsilon / (1 - beta_2**number) ** 0.5,  # Keras adds it before the correction of the bias
        amsgrad=False,
        maximize=False,
    )
    return True
