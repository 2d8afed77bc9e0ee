"""Caffe's update rules and per-parameter multipliers (BVLC/caffe: src/caffe/solvers/), as torch optimizers.

A solver is any `torch.optim.Optimizer` whose groups carry `lr_mult`; `set_lr` gives each its share of the schedule's
LR before a step, as Caffe's ApplyUpdate does: the step that makes iteration t + 1 uses lr(t).

Table 3's methods are `caffe_nesterov`, `caffe_adam`, `caffe_rmsprop`, `caffe_adagrad` and `caffe_adadelta`; their
arguments have the names of Caffe's solver prototxt, and weight decay is L2 in the gradient throughout. Table 4's SGD is
`torch_sgd`. The LR of all may be a tensor on the device, which torch's own optimizers take in some of their forms only.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cyclical_lr import kernels

Tensors = list[Tensor] | tuple[Tensor, ...]


def param_groups(model: nn.Module, weight_decay: float, multipliers: bool = True) -> list[dict[str, Any]]:
    """Parameters of `model`, grouped by Caffe's multipliers.

    Args:
        model: layers made with `caffe_layer` have multipliers; other parameters have 1 and 1.
        weight_decay: the solver's, before decay_mult.
        multipliers: False treats every parameter alike, the usual mistake in ports.
    Returns:
        torch parameter groups with `lr_mult` and `weight_decay` (already times decay_mult), in order of appearance.
    Raises:
        ValueError: a negative weight_decay, or none; a parameter with multipliers that is none any more.
    """
    _check("weight_decay", weight_decay, lambda x: x >= 0, "a number >= 0")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()  # modules may share one
    for module in model.modules():
        declared = getattr(module, "caffe_params", {}) if multipliers else {}
        for name in declared:
            if name not in module._parameters and getattr(module, name, None) is not None:
                raise ValueError(
                    f"model: expected {type(module).__name__}'s {name!r} to be a parameter, with Caffe's multipliers, "
                    "and something else has taken its place (a parametrization, pruning); give multipliers=False, or "
                    "groups of your own to the solver"
                )
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            key = (declared[name].lr_mult, declared[name].decay_mult) if name in declared else (1.0, 1.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr_mult": lr_mult, "weight_decay": weight_decay * decay_mult}
        for (lr_mult, decay_mult), params in groups.items()
    ]


def set_lr(optimizer: Optimizer, lr: float | Tensor) -> None:
    """Set the LR of the next step: `lr` times each group's lr_mult.

    `lr` may be a 0-dim tensor for optimizers that say so by an attribute `takes_tensor_lr`.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)


def multiplier(group: Mapping[str, Any]) -> float:
    """A group's `lr_mult`, Caffe's factor of its LR; 1 where it has none.

    Raises:
        ValueError: it is no finite number of at least 0.
    """
    multiple: Any = group.get("lr_mult", 1.0)
    if not isinstance(multiple, Real) or isinstance(multiple, bool) or not 0 <= float(multiple) < math.inf:
        remedy = "2 trains a group at twice the LR, 0 not at all"
        raise ValueError(f"lr_mult: expected a finite number of at least 0, got {multiple!r}; {remedy}")
    return float(multiple)


def check_groups(optimizer: Optimizer) -> None:
    """Warn where groups differ in the LR that they were made with, which the schedule's takes the place of.

    Raises:
        ValueError: an `lr_mult` is no factor.
    """
    for group in optimizer.param_groups:
        multiplier(group)
    lrs = [float(group["lr"]) for group in optimizer.param_groups]
    if len(set(lrs)) > 1 and not any("lr_mult" in group for group in optimizer.param_groups):
        warnings.warn(
            f"the groups' LRs ({', '.join(f'{lr:g}' for lr in lrs)}) all give way to the schedule's; to keep their "
            'ratios, give each group an "lr_mult"',
            stacklevel=3,
        )


class Solver(Optimizer, ABC):
    """What the methods share: weight decay in the gradient, then w -= the method's update value.

    Everything that a step reads or changes is a tensor on the parameters' device, the LR too where `set_lr` gave one.
    The weight decay is added to the gradients in place, as Caffe does: after a step they are not the loss's alone.

    Args:
        params: parameters or groups; a group may have its own lr and weight_decay.
        options: lr, weight_decay and what the method adds; the defaults of the groups.

    Raises:
        ValueError: a momentum or decay outside [0, 1), a negative lr or weight_decay, or a delta that is not above 0,
            of a group too; the message names the key.
    """

    takes_tensor_lr = True

    def __init__(self, params: Any, **options: float) -> None:
        _check_all(options)
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_all(param_group)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if params:
                self.apply(group, params, [p.grad for p in params if p.grad is not None])
        return loss

    def apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        """Change the group's `params`, and `grads` on the way."""
        if group["weight_decay"] != 0:
            torch._foreach_add_(grads, params, alpha=group["weight_decay"])
        torch._foreach_sub_(params, self.update(group, params, grads))

    @abstractmethod
    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        """Caffe's ComputeUpdateValue: what this step takes from each of the group's `params`."""

    def history(self, name: str, params: list[Tensor]) -> list[Tensor]:
        """The buffer of that name of each parameter, zeros at first, for `update` to change in place."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p][name] for p in params]


class CaffeSGD(Solver):
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
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        velocities = self.history("velocity", params)
        found = kernels.stepping(params, grads, velocities) if type(self) is CaffeSGD else None
        if found is None:
            super().apply(group, params, grads)
        else:
            found.sgd(params, grads, velocities, group["lr"], group["momentum"], group["weight_decay"])

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        velocities = self.history("velocity", params)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, torch._foreach_mul(grads, _of_type(group["lr"], grads)))
        return velocities


class CaffeNesterov(CaffeSGD):
    """Nesterov's momentum with the LR inside the buffer (nesterov_solver.cpp).

    g += weight_decay * w;  v' = momentum * v + lr * g
    w -= (1 + momentum) * v' - momentum * v, which is lr * g + momentum * v'

    PyTorch's SGD with nesterov=True is the same at a constant LR. After ten steps through a short triangle and a drop
    (tests/test_adaptive_solvers.py) a small network's weights differ by up to 48 % of the way that they have gone.

    Args: as `CaffeSGD`.
    """

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        velocities = self.history("velocity", params)
        steps = torch._foreach_mul(grads, _of_type(group["lr"], grads))
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        torch._foreach_add_(steps, velocities, alpha=group["momentum"])
        return steps


class CaffeAdam(Solver):
    """Adam with delta added before the bias correction (adam_solver.cpp).

    m = momentum * m + (1 - momentum) * g;  v = momentum2 * v + (1 - momentum2) * g^2
    w -= lr * sqrt(1 - momentum2^t) / (1 - momentum^t) * m / (sqrt(v) + delta), where t is 1 at the first step

    PyTorch's Adam adds eps after the correction, where Caffe's delta counts 1 / sqrt(1 - momentum2^t) times as much: 32
    times at the first step, 10 at the tenth, once in the end. After ten steps the two differ by 1.4e-5 of the way in
    the small network of tests/test_adaptive_solvers.py, and by 13 to 17 % in the weights of cifar10_full's convolutions
    (measured once, batches of 16), whose first gradients are as small as 1e-5.

    Args:
        params, lr, weight_decay: as `CaffeSGD`.
        momentum, momentum2: decay of the first and the second moment, in [0, 1).
        delta: > 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        momentum: float = 0.9,
        momentum2: float = 0.999,
        delta: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        rule = {"momentum": momentum, "momentum2": momentum2, "delta": delta}
        super().__init__(params, lr=lr, **rule, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        momentum, momentum2 = group["momentum"], group["momentum2"]
        first, second = self.history("first_moment", params), self.history("second_moment", params)
        # Counted on the device, as all that a captured step changes has to be; float32 does so up to 2^24. With the
        # group's first parameter, whichever have a gradient: Caffe's count is the solver's.
        first_of_all = group["params"][0]
        if first_of_all.dtype in (torch.float16, torch.bfloat16):  # bfloat16 would count to 256
            raise ValueError(
                f"solver: CaffeAdam counts its steps in the parameters' type, expected float32 or float64, got "
                f"{first_of_all.dtype}; train under autocast (precision bf16-mixed)"
            )
        steps = self.state[first_of_all].setdefault("steps", first_of_all.new_zeros(()))
        steps += 1
        torch._foreach_mul_(first, momentum)
        torch._foreach_add_(first, grads, alpha=1 - momentum)
        _decay_squares(second, grads, momentum2)
        correction = (1 - momentum2 ** steps.double()).sqrt() / (1 - momentum ** steps.double())
        return _over_roots(first, second, group["delta"], group["lr"] * correction)


class CaffeRMSProp(Solver):
    """RMSProp (rmsprop_solver.cpp); it has no momentum, Caffe refuses one.

    h = rms_decay * h + (1 - rms_decay) * g^2;  w -= lr * g / (sqrt(h) + delta)

    PyTorch's RMSprop computes the same, but reads the LR on the host.

    Args:
        params, lr, weight_decay: as `CaffeSGD`.
        rms_decay: of the squared gradients, in [0, 1).
        delta: > 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        rms_decay: float = 0.99,
        delta: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, rms_decay=rms_decay, delta=delta, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        squares = self.history("squares", params)
        _decay_squares(squares, grads, group["rms_decay"])
        return _over_roots(grads, squares, group["delta"], group["lr"])


class CaffeAdaGrad(Solver):
    """AdaGrad (adagrad_solver.cpp); it has no momentum, Caffe refuses one.

    h += g^2;  w -= lr * g / (sqrt(h) + delta)

    PyTorch's Adagrad computes the same with an eps of 1e-10 by default, but reads the LR on the host.

    Args: as `CaffeRMSProp`, without rms_decay.
    """

    def __init__(self, params: Any, lr: float = 0.0, delta: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, delta=delta, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        squares = self.history("squares", params)
        torch._foreach_addcmul_(squares, grads, grads)
        return _over_roots(grads, squares, group["delta"], group["lr"])


class CaffeAdaDelta(Solver):
    """AdaDelta (adadelta_solver.cpp).

    h = momentum * h + (1 - momentum) * g^2;  u = g * sqrt((k + delta) / (h + delta))
    k = momentum * k + (1 - momentum) * u^2;  w -= lr * u

    The first step is at most lr * sqrt(delta / (1 - momentum)) long, which gradients far above
    sqrt(delta / (1 - momentum)) come close to, and the next ones grow from there: delta sets the pace, as in no other
    method here. PyTorch's Adadelta computes the same with an eps of 1e-6 by
    default, but reads the LR on the host.

    Args:
        params, lr, weight_decay: as `CaffeSGD`.
        momentum: decay of both histories, in [0, 1).
        delta: > 0.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        momentum: float = 0.9,
        delta: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, delta=delta, weight_decay=weight_decay)

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        momentum, delta = group["momentum"], group["delta"]
        squares, updates_squares = self.history("squares", params), self.history("updates_squares", params)
        _decay_squares(squares, grads, momentum)
        ratios = torch._foreach_add(updates_squares, delta)
        torch._foreach_div_(ratios, torch._foreach_add(squares, delta))
        torch._foreach_sqrt_(ratios)
        torch._foreach_mul_(ratios, grads)
        _decay_squares(updates_squares, ratios, momentum)
        torch._foreach_mul_(ratios, _of_type(group["lr"], ratios))
        return ratios


class TorchSGD(Solver):
    """PyTorch's SGD, also Torch7's: the LR stands outside the momentum buffer.

    g += weight_decay * w;  v = momentum * v + g;  w -= lr * v, or with Nesterov's momentum lr * (g + momentum * v)

    torch.optim.SGD computes the same, but reads the LR on the host.

    Args:
        params, lr, momentum, weight_decay: as `CaffeSGD`.
        nesterov: which of the two.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> Tensors:
        velocities: Tensors = self.history("velocity", params)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, grads)
        if group["nesterov"]:
            velocities = torch._foreach_add(grads, velocities, alpha=group["momentum"])
        return torch._foreach_mul(velocities, _of_type(group["lr"], velocities))


# What conf/solver names. `model`, `weight_decay` and `multipliers` are those of `param_groups`, the rest those of the
# class, as are the errors; the LR comes with `set_lr` or a scheduler.


def caffe_sgd(model: nn.Module, momentum: float = 0.9, weight_decay: float = 0.0, multipliers: bool = True) -> CaffeSGD:
    """Caffe's SGD solver for `model`, with its multipliers."""
    return CaffeSGD(param_groups(model, weight_decay, multipliers), momentum=momentum)


def caffe_nesterov(
    model: nn.Module, momentum: float = 0.9, weight_decay: float = 0.0, multipliers: bool = True
) -> CaffeNesterov:
    """Caffe's Nesterov solver for `model`, with its multipliers."""
    return CaffeNesterov(param_groups(model, weight_decay, multipliers), momentum=momentum)


def caffe_adam(
    model: nn.Module,
    momentum: float = 0.9,
    momentum2: float = 0.999,
    delta: float = 1e-8,
    weight_decay: float = 0.0,
    multipliers: bool = True,
) -> CaffeAdam:
    """Caffe's Adam solver for `model`, with its multipliers. momentum2 and delta default to Caffe's defaults."""
    groups = param_groups(model, weight_decay, multipliers)
    return CaffeAdam(groups, momentum=momentum, momentum2=momentum2, delta=delta)


def caffe_rmsprop(
    model: nn.Module,
    rms_decay: float = 0.99,
    delta: float = 1e-8,
    weight_decay: float = 0.0,
    multipliers: bool = True,
) -> CaffeRMSProp:
    """Caffe's RMSProp solver for `model`, with its multipliers."""
    return CaffeRMSProp(param_groups(model, weight_decay, multipliers), rms_decay=rms_decay, delta=delta)


def caffe_adagrad(
    model: nn.Module, delta: float = 1e-8, weight_decay: float = 0.0, multipliers: bool = True
) -> CaffeAdaGrad:
    """Caffe's AdaGrad solver for `model`, with its multipliers."""
    return CaffeAdaGrad(param_groups(model, weight_decay, multipliers), delta=delta)


def caffe_adadelta(
    model: nn.Module,
    momentum: float = 0.9,
    delta: float = 1e-8,
    weight_decay: float = 0.0,
    multipliers: bool = True,
) -> CaffeAdaDelta:
    """Caffe's AdaDelta solver for `model`, with its multipliers; `momentum` is the decay of both histories."""
    return CaffeAdaDelta(param_groups(model, weight_decay, multipliers), momentum=momentum, delta=delta)


def torch_sgd(
    model: nn.Module,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    multipliers: bool = True,
) -> TorchSGD:
    """PyTorch's SGD, also Torch7's: the LR stands outside the momentum buffer. With Caffe's multipliers."""
    return TorchSGD(param_groups(model, weight_decay, multipliers), momentum=momentum, nesterov=nesterov)


def _check_all(options: Mapping[str, Any]) -> None:
    for key in ("momentum", "momentum2", "rms_decay"):
        _check(key, options.get(key, 0.0), lambda x: 0 <= x < 1, "a number in [0, 1)")
    for key in ("lr", "weight_decay"):
        _check(key, options.get(key, 0.0), lambda x: x >= 0, "a number >= 0")
    _check("delta", options.get("delta", 1.0), lambda x: x > 0, "a number > 0, such as Caffe's 1e-8")


def _check(key: str, value: Any, fits: Callable[[Any], bool], expected: str) -> None:
    try:
        fine = bool(fits(value))
    except TypeError:  # no number
        fine = False
    if not fine:
        raise ValueError(f"solver.{key}: expected {expected}, got {value!r}")


def _of_type(lr: float | Tensor, tensors: Tensors) -> float | Tensor:
    """The LR in the tensors' own type, as rounded in the product anyway: on a GPU one kernel then scales them all."""
    return lr.to(tensors[0].dtype) if isinstance(lr, Tensor) and len({t.dtype for t in tensors}) == 1 else lr


def _decay_squares(squares: list[Tensor], values: Tensors, decay: float) -> None:
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, values, values, 1 - decay)


def _over_roots(values: list[Tensor], squares: list[Tensor], delta: float, lr: float | Tensor) -> Tensors:
    """lr * values / (sqrt(squares) + delta)"""
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, delta)
    updates = torch._foreach_div(values, roots)
    torch._foreach_mul_(updates, _of_type(lr, updates))
    return updates
