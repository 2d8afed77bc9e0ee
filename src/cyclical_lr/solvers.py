"""Caffe's update rules and per-parameter multipliers (BVLC/caffe: src/caffe/solvers/), as torch optimizers.

A solver is any `torch.optim.Optimizer` whose groups carry `lr_mult`; `set_lr` gives each its share of the schedule's
LR before a step, as Caffe's ApplyUpdate does: the step that makes iteration t + 1 uses lr(t).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def param_groups(model: nn.Module, weight_decay: float, multipliers: bool = True) -> list[dict[str, Any]]:
    """Parameters of `model`, grouped by Caffe's multipliers.

    Args:
        model: layers made with `caffe_layer` have multipliers; other parameters have 1 and 1.
        weight_decay: the solver's, before decay_mult.
        multipliers: False treats every parameter alike, the usual mistake in ports.
    Returns:
        torch parameter groups with `lr_mult` and `weight_decay` (already times decay_mult), in order of appearance.
    """
    if weight_decay < 0:
        raise ValueError(f"solver.weight_decay: expected a number >= 0, got {weight_decay}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in model.modules():
        declared = getattr(module, "caffe_params", {}) if multipliers else {}
        for name, parameter in module.named_parameters(recurse=False):
            key = (declared[name].lr_mult, declared[name].decay_mult) if name in declared else (1.0, 1.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr_mult": lr_mult, "weight_decay": weight_decay * decay_mult}
        for (lr_mult, decay_mult), params in groups.items()
    ]


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the LR of the next step: `lr` times each group's lr_mult."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)


class CaffeSGD(Optimizer):
    """Momentum with the LR inside the buffer (sgd_solver.cpp).

    g += weight_decay * w;  v = momentum * v + lr * g;  w -= v

    PyTorch's SGD keeps the LR outside (v = momentum * v + g; w -= lr * v). At a constant LR the two are the same. When
    the LR drops tenfold, Caffe's velocity needs some 20 iterations to shrink and PyTorch's shrinks at once; on a
    triangle's ramp they differ by a few percent of a step.

    Args:
        params: parameters or groups; a group may have its own lr and weight_decay.
        lr: of the next step; usually set by `set_lr` or a scheduler.
        momentum: in [0, 1).
        weight_decay: L2, added to the gradient.
    """

    def __init__(self, params: Any, lr: float = 0.0, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        _check_momentum(momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]
            for p in params:
                if "velocity" not in self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            velocities = [self.state[p]["velocity"] for p in params]
            if group["weight_decay"] != 0:
                torch._foreach_add_(grads, params, alpha=group["weight_decay"])
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, grads, alpha=group["lr"])
            torch._foreach_sub_(params, velocities)
        return loss


def caffe_sgd(model: nn.Module, momentum: float = 0.9, weight_decay: float = 0.0, multipliers: bool = True) -> CaffeSGD:
    """Caffe's SGD solver for `model`, with its multipliers."""
    return CaffeSGD(param_groups(model, weight_decay, multipliers), momentum=momentum)


def torch_sgd(
    model: nn.Module,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    multipliers: bool = True,
) -> torch.optim.SGD:
    """PyTorch's SGD (LR outside the momentum buffer) with Caffe's multipliers; Torch7's `optim.sgd` is this form too."""
    _check_momentum(momentum)
    groups = param_groups(model, weight_decay, multipliers)
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)


def _check_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"solver.momentum: expected a number in [0, 1), got {momentum}")
