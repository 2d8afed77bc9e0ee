"""Caffe's layers where they differ from PyTorch's (BVLC/caffe: filler.hpp, lrn_layer.cpp, batch_norm_layer.cpp).

A layer is an ordinary torch module. What Caffe's prototxt says beside it (filler, learning-rate multiplier, decay
multiplier of each blob) is attached by `caffe_layer`, so that the network's file reads like the prototxt and the solver
finds the multipliers where they were declared. Convolution, pooling and LRN have first derivatives alone, and not under
`torch.func` or vmap.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cyclical_lr import kernels

L = TypeVar("L", bound=nn.Module)
Filler = Callable[[Tensor], object]
"""Fills a weight in place, drawing from torch's global CPU generator."""


@dataclass(frozen=True)
class Gaussian:
    """Normal with mean 0 (filler.hpp: GaussianFiller)."""

    std: float

    def __call__(self, weight: Tensor) -> None:
        weight.normal_(0.0, self.std)


@dataclass(frozen=True)
class Constant:
    """One value everywhere (filler.hpp: ConstantFiller)."""

    value: float = 0.0

    def __call__(self, weight: Tensor) -> None:
        weight.fill_(self.value)


@dataclass(frozen=True)
class Xavier:
    """Uniform on +-sqrt(3 / fan_in) (filler.hpp: XavierFiller with its default FAN_IN, not Glorot's average)."""

    def __call__(self, weight: Tensor) -> None:
        bound = math.sqrt(3.0 / weight[0].numel())
        weight.uniform_(-bound, bound)


@dataclass(frozen=True)
class Param:
    """One blob of a Caffe layer: how it is filled, and what multiplies the solver's LR and weight decay for it."""

    filler: Filler = Constant()
    lr_mult: float = 1.0
    decay_mult: float = 1.0


def caffe_layer(layer: L, weight: Param, bias: Param | None = None, init: str = "caffe") -> L:
    """Declare the blobs of `layer` as a prototxt does, and fill them.

    Args:
        layer: a module with `weight` and, unless `bias` is None, `bias`.
        weight, bias: filler and multipliers of each blob; None for a layer without bias.
        init: "caffe" fills by the declared fillers; "torch" keeps the values that PyTorch gave at construction.
    Returns:
        the same layer, with `caffe_params: dict[str, Param]`, which `cyclical_lr.solvers.param_groups` reads.
    Raises:
        ValueError: `init` is neither "caffe" nor "torch"; a blob of the layer is not declared.
    """
    if init not in ("caffe", "torch"):
        raise ValueError(f"model.init: expected 'caffe' or 'torch', got {init!r}")
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    if params.keys() != dict(layer.named_parameters()).keys():
        raise ValueError(f"expected a Param for each of {list(dict(layer.named_parameters()))}, got {list(params)}")
    if init == "caffe":
        with torch.no_grad():
            for name, param in params.items():
                param.filler(layer.get_parameter(name))
    layer.caffe_params = params  # type: ignore[assignment]
    return layer


class Conv2d(nn.Conv2d):
    """nn.Conv2d, in value and gradient. On a GPU, its own kernels where they take the layer (`gpu_kernels.convolves`).

    Elsewhere, in float32, the bias's gradient is a sum of its own. On a CPU, oneDNN computes it along with the
    weight's, and both take longer: at least 3 % of an iteration of cifar10_full. On a GPU, PyTorch's sum over images
    and pixels at once takes 8 % of one, where the channels stand before the pixels (benchmarks/README.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        usual = x.dim() == 4 and self.padding_mode == "zeros" and not isinstance(self.padding, str)
        options = self.stride, self.padding, self.dilation, self.groups
        x, mixed = _cast(x)
        fits = usual and (mixed or x.dtype == self.weight.dtype)
        found = kernels.convolving(x, self.weight, *options) if fits else None
        if found is not None:
            return _CompiledConvolve.apply(x, self.weight, self.bias, found)
        if usual and device in ("cpu", "cuda") and self.bias is not None and not mixed:
            return _Convolve.apply(x, self.weight, self.bias, *options)
        return super().forward(x)


def _cast(x: Tensor) -> tuple[Tensor, bool]:
    """x as autocast would hand it to a convolution, and whether it is on."""
    device = x.device.type
    mixed = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    return (x.to(torch.get_autocast_dtype(device)) if mixed and x.dtype == torch.float32 else x), mixed


class _CompiledConvolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, found: Any) -> Tensor:
        x = found.aligned(x)
        ctx.save_for_backward(x, weight)
        ctx.kernels = found
        return found.convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, dbias = ctx.kernels.convolve_backward(dy, *ctx.saved_tensors, wants_dx=ctx.needs_input_grad[0])
        return dx, dweight, dbias if ctx.needs_input_grad[2] else None, None


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        return torch.conv2d(x, weight, bias, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        *options, groups = ctx.options
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            *(dy, x, weight, None, *options, False, [0, 0], groups, [*ctx.needs_input_grad[:2], False])
        )
        dbias = None
        if ctx.needs_input_grad[2]:
            dbias = dy.sum((0, 2, 3)) if dy.device.type == "cpu" else dy.sum((2, 3)).sum(0)
        return dx, dweight, dbias, *[None] * len(ctx.options)


class MaxPool2d(nn.MaxPool2d):
    """nn.MaxPool2d, in value and gradient. Input [N, C, H, W], output [N, C, H', W'], any float dtype.

    Args:
        kernel_size, stride, ceil_mode: as nn.MaxPool2d's.
        relu: whether a ReLU follows.
    """

    def __init__(self, kernel_size: int, stride: int, ceil_mode: bool = False, relu: bool = False) -> None:
        super().__init__(kernel_size, stride, ceil_mode=ceil_mode)
        self.pooling = kernels.Pooling(kernel_size, stride, ceil_mode, relu)

    def forward(self, x: Tensor) -> Tensor:
        found = _pooling_kernels(x, self.pooling)
        if found is not None:
            return _CompiledMaxPool.apply(x, self.pooling, found)
        y = super().forward(x)
        return F.relu(y, inplace=True) if self.pooling.relu else y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.pooling.relu}"


class _CompiledMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pooling: kernels.Pooling, found: Any) -> Tensor:
        y, winner = found.max_pool(x, pooling)
        ctx.save_for_backward(winner)
        ctx.pooling, ctx.size, ctx.kernels = pooling, x.shape, found
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (winner,) = ctx.saved_tensors
        return ctx.kernels.max_pool_backward(dy, winner, ctx.size, ctx.pooling), None, None


def max_pooled(conv: Conv2d, pool: MaxPool2d, x: Tensor) -> Tensor:
    """pool(conv(x)), in value and gradient; for a network's first layers.

    On a CPU, where nobody wants the gradient of x, one kernel computes those of weight and bias: from what each window
    passes on to its maximum, without the gradient of conv(x) (`kernels.pooling_convolved`). Layers with hooks, and what
    stands in their place, are called one after another.
    """
    known = type(conv) is Conv2d and type(pool) is MaxPool2d and not (_altered(conv) or _altered(pool))
    if known and torch.is_grad_enabled():
        x, mixed = _cast(x)
        options = conv.stride, conv.padding, conv.dilation, conv.groups
        dtype = torch.get_autocast_dtype(x.device.type) if mixed else conv.weight.dtype
        fits = conv.padding_mode == "zeros" and x.dtype == dtype
        found = kernels.pooling_convolved(x, conv.weight, pool.pooling, *options) if fits else None
        if found is not None:
            return _CompiledConvolveMaxPool.apply(x, conv.weight, conv.bias, conv.padding, pool.pooling, found)
    return pool(conv(x))


def _altered(layer: nn.Module) -> bool:
    """Whether it has hooks, as all layers may have, or a forward that is not its class's."""
    hooks = layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks
    return any(hooks) or nn.modules.module._has_any_global_hook() or "forward" in vars(layer)


class _CompiledConvolveMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, pooling: kernels.Pooling, found: Any
    ) -> Tensor:
        convolved = torch.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), padding=padding)
        y, winner = found.max_pool(convolved.contiguous(memory_format=torch.channels_last), pooling)
        ctx.save_for_backward(x, weight, winner)
        ctx.pooling, ctx.kernels = pooling, found
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, winner = ctx.saved_tensors
        dweight, dbias = ctx.kernels.convolve_max_pool_backward(dy, winner, x, weight, ctx.pooling)
        return None, dweight, dbias if ctx.needs_input_grad[2] else None, None, None, None


class AvgPool2d(nn.AvgPool2d):
    """nn.AvgPool2d, in value and gradient. Input [N, C, H, W], output [N, C, H', W'], any float dtype.

    Args:
        kernel_size, stride, ceil_mode: as nn.AvgPool2d's.
        relu: whether a ReLU stands before it.
    """

    def __init__(self, kernel_size: int, stride: int, ceil_mode: bool = False, relu: bool = False) -> None:
        # Without padding the last has no effect, but that torch.compile then has the right gradient with ceil_mode.
        super().__init__(kernel_size, stride, ceil_mode=ceil_mode, count_include_pad=False)
        self.pooling = kernels.Pooling(kernel_size, stride, ceil_mode, relu)

    def forward(self, x: Tensor) -> Tensor:
        found = _pooling_kernels(x, self.pooling)
        if found is not None:
            return _CompiledAvgPool.apply(x, self.pooling, found)
        return super().forward(F.relu(x) if self.pooling.relu else x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, relu={self.pooling.relu}"


class _CompiledAvgPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pooling: kernels.Pooling, found: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pooling, ctx.kernels = pooling, found
        return found.average_pool(x, pooling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.kernels.average_pool_backward(dy, x, ctx.pooling), None, None


def _pooling_kernels(x: Tensor, pooling: kernels.Pooling) -> Any:
    return kernels.serving(x) if pooling.kernel <= min(x.shape[2:]) else None


class WithinChannelLRN(nn.Module):
    """Local response normalisation over a square window of each channel (lrn_layer.cpp, WITHIN_CHANNEL).

    y = x * (1 + alpha * A)^-beta, where A is the mean of x^2 over `size` x `size` pixels. The divisor is size^2 at the
    border too (zero padding counts), and Caffe ignores `k` in this mode. PyTorch's LocalResponseNorm is the other kind:
    it normalises across channels. Input and output: [N, C, H, W], any float type.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size: expected an odd number of pixels, got {size}; Caffe refuses even windows")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        found = kernels.serving(x)
        if found is not None:
            return _CompiledNormalise.apply(x, self.size, self.alpha, self.beta, found)
        return _normalised(x, self._mean_over_window, self.alpha, self.beta)

    def _mean_over_window(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":  # of padded pixels, channels last, PyTorch 2.11 has wrong gradients there
            x = x.contiguous()
        return F.avg_pool2d(x, self.size, stride=1, padding=self.size // 2)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


class AcrossChannelsLRN(nn.Module):
    """Local response normalisation over neighbouring channels (lrn_layer.cpp, ACROSS_CHANNELS).

    y = x * (1 + alpha / size * sum of x^2 over `size` channels around its own) ** -beta. Channels beyond the first and
    the last count as 0. Input and output: [N, C, H, W], any float dtype.

    nn.LocalResponseNorm with k=1 computes the same up to rounding, but by avg_pool3d, whose gradient has no
    deterministic form on CUDA. For AlexNet's first norm its sums take three times as long on a CPU.

    Args:
        size: number of channels, odd.
        alpha: factor of the mean square.
        beta: exponent.
    """

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        super().__init__()
        if size % 2 == 0:
            raise ValueError(f"size: expected an odd number of channels, got {size}")
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        return _normalised(x, self._mean_over_window, self.alpha, self.beta)

    def _mean_over_window(self, x: Tensor) -> Tensor:
        reach, channels = self.size // 2, x.shape[1]
        padded = F.pad(x, (0, 0, 0, 0, reach, reach))
        total = padded[:, :channels]
        for shift in range(1, self.size):
            total = total + padded[:, shift : shift + channels]
        return total / self.size

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


class _CompiledNormalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, found: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options, ctx.kernels = (size, alpha, beta), found
        return found.normalise(x, size, alpha, beta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return ctx.kernels.normalise(x, *ctx.options, dy), None, None, None, None


def _normalised(x: Tensor, window: Callable[[Tensor], Tensor], alpha: float, beta: float) -> Tensor:
    if x.dtype == torch.float16:  # whose squares end at 65,504
        return _Normalise.apply(x.float(), window, alpha, beta).to(x.dtype)
    return _Normalise.apply(x, window, alpha, beta)


class _Normalise(torch.autograd.Function):
    """y = x * scale^-beta with scale = 1 + alpha * window(x^2), for a `window` that is linear and symmetric.

    With dy = dL/dy, dL/dx = dy * scale^-beta - 2 alpha beta x * window(dy * x * scale^(-beta - 1)): half the passes
    over memory that autograd makes. `scale` is at least float32: bf16 would round it to steps of 1/128.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Callable[[Tensor], Tensor], alpha: float, beta: float) -> Tensor:
        mean = window(x * x).to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.add(mean.new_ones(()), mean, alpha=alpha)
        if beta == 0.75:  # roots cost a fraction of a pow
            power = scale.rsqrt()
            power = power.sqrt().mul_(power)
        else:
            power = scale.pow(-beta)
        ctx.save_for_backward(x, scale, power)
        ctx.window, ctx.slope = window, -2 * alpha * beta
        y = x * power
        return y if y.dtype == x.dtype else y.to(x.dtype)  # after `to` its own type, torch.compile has gradients of 0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        x, scale, power = ctx.saved_tensors
        direct = dy * power
        through_scale = ctx.window((direct * x).div_(scale).to(x.dtype))
        return direct.addcmul_(x, through_scale, value=ctx.slope).to(x.dtype), None, None, None


def lrn(kind: str, size: int, alpha: float, beta: float) -> nn.Module:
    """Caffe's LRN by its norm_region: "within_channel", "across_channels", or "none".

    Raises:
        ValueError: another kind.
    """
    match kind:
        case "within_channel":
            return WithinChannelLRN(size, alpha, beta)
        case "across_channels":
            return AcrossChannelsLRN(size, alpha, beta)
        case "none":
            return nn.Identity()
    raise ValueError(f"model.lrn: expected 'within_channel', 'across_channels' or 'none', got {kind!r}")


class CaffeBatchNorm(nn.Module):
    """Batch normalisation without scale and shift (batch_norm_layer.cpp). Input and output: [N, C, H, W], any float.

    In training, by mean and (biased) variance of the batch. In evaluation, by an exponential average of the batches'
    means and unbiased variances, divided by what the weights of that average add up to. PyTorch's BatchNorm2d leaves
    that correction out and starts from a mean of 0 and a variance of 1: with Caffe's fraction a tenth of its variance
    is still that 1 after 2,300 iterations, which dominates evaluations before that.

    Before the first training batch Caffe takes both averages as 0, and so does this: the input is divided by sqrt(eps).

    For other weights, as those that `torch.optim.swa_utils` averages, zero the three buffers and pass batches through
    in training mode: `update_bn` knows PyTorch's own norms alone.

    Args:
        channels: C.
        moving_average_fraction: what an average keeps of itself per batch.
        eps: added to the variance.
    """

    mean: Tensor
    variance: Tensor
    total: Tensor

    def __init__(self, channels: int, moving_average_fraction: float = 0.999, eps: float = 1e-5) -> None:
        super().__init__()
        self.moving_average_fraction, self.eps = moving_average_fraction, eps
        # Caffe's sums, times 1 - fraction: in the state dict, hence in checkpoints.
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.zeros(channels))
        self.register_buffer("total", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        new = 1 - self.moving_average_fraction
        if self.training:
            self.total.lerp_(torch.ones_like(self.total), new)
            return F.batch_norm(x, self.mean, self.variance, training=True, momentum=new, eps=self.eps)
        total = self.total.clamp(min=torch.finfo(self.total.dtype).tiny)  # 0 only where the averages are 0 too
        return F.batch_norm(x, self.mean / total, self.variance / total, training=False, eps=self.eps)

    def extra_repr(self) -> str:
        channels = len(self.mean)
        return f"{channels}, moving_average_fraction={self.moving_average_fraction}, eps={self.eps}"
