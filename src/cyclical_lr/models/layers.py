"""Caffe's layers where they differ from PyTorch's defaults (BVLC/caffe: filler.hpp, pooling_layer.cpp, lrn_layer.cpp).

A layer is an ordinary torch module. What Caffe's prototxt says beside it (filler, learning-rate multiplier, decay
multiplier of each blob) is attached by `caffe_layer`, so that the network's file reads like the prototxt and the solver
finds the multipliers where they were declared.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
        bound = math.sqrt(3.0 / _fan_in(weight))
        weight.uniform_(-bound, bound)


@dataclass(frozen=True)
class MSRA:
    """Normal with variance 2 / fan_in (filler.hpp: MSRAFiller)."""

    def __call__(self, weight: Tensor) -> None:
        weight.normal_(0.0, math.sqrt(2.0 / _fan_in(weight)))


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()


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
        ValueError: `init` is neither "caffe" nor "torch".
    """
    if init not in ("caffe", "torch"):
        raise ValueError(f"model.init: expected 'caffe' or 'torch', got {init!r}")
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    if init == "caffe":
        with torch.no_grad():
            for name, param in params.items():
                param.filler(layer.get_parameter(name))
    layer.caffe_params = params  # type: ignore[assignment]
    return layer


class WithinChannelLRN(nn.Module):
    """Local response normalisation over a square window of each channel (lrn_layer.cpp, WITHIN_CHANNEL).

    y = x * (1 + alpha * A)^-beta, where A is the mean of x^2 over `size` x `size` pixels. The divisor is size^2 at the
    border too (zero padding counts), and Caffe ignores `k` in this mode. PyTorch's LocalResponseNorm is the other kind:
    it normalises across channels. Input and output: [N, C, H, W], any float type.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        scale = 1 + self.alpha * F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        if self.beta == 0.75:  # two square roots cost a fraction of a pow
            return x * (scale.rsqrt() * scale.sqrt().rsqrt())
        return x * scale.pow(-self.beta)

    def extra_repr(self) -> str:
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


def lrn(kind: str, size: int, alpha: float, beta: float) -> nn.Module:
    """Caffe's LRN by its norm_region: "within_channel", "across_channels" (torch's own), or "none".

    Raises:
        ValueError: another kind.
    """
    match kind:
        case "within_channel":
            return WithinChannelLRN(size, alpha, beta)
        case "across_channels":
            return nn.LocalResponseNorm(size, alpha, beta, k=1.0)
        case "none":
            return nn.Identity()
    raise ValueError(f"model.lrn: expected 'within_channel', 'across_channels' or 'none', got {kind!r}")
