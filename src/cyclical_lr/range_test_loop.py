"""The LR range test (Section 3.3, Figure 3) for a training loop of your own: the accuracy under a rising LR.

    curve = lr_range_test(
        model, optimizer, F.cross_entropy, train_loader, lambda model: accuracy(model, test_loader),
        min_lr=0.0, max_lr=0.02, iterations=4000, eval_every=200,
    )
    print(range_test.report([curve], stepsize=2000))

For a LightningModule see `training.range_test.LRRangeTest`.
"""

import copy
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from cyclical_lr.range_test import Curve
from cyclical_lr.schedules import RangeTest
from cyclical_lr.solvers import check_groups, set_lr

OWN_LOOP = (
    "train in a loop of your own under ScheduleLR(optimizer, RangeTest(min_lr, max_lr, iterations)), and give the LRs "
    "and accuracies to range_test.report(Curve(lrs, accuracies), stepsize)"
)
"""The remedy for what cannot be tested here."""


def lr_range_test(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    evaluate: Callable[[nn.Module], float | Tensor],
    *,
    min_lr: float,
    max_lr: float,
    iterations: int,
    eval_every: int,
    seed: int | None = None,
) -> Curve:
    """Train under an LR that rises from `min_lr` to `max_lr`, and measure the accuracy on the way.

    It works on deep copies of model and optimizer, which go when it returns or raises: yours, their state, gradients,
    modes and LRs, and any scheduler on them, stay as they are, as do the global random states (torch on CPU and CUDA,
    NumPy, Python) and those of the generators of `batches`, if that is a DataLoader. So the order of the samples drawn
    afterwards is what it would have been. Memory for the second copy is needed. For mixed precision call it under
    torch.autocast; gradients are not scaled, as float16 needs them to be.

    Args:
        model: trained in training mode, from its present weights.
        optimizer: over the model's parameters; one whose step needs no closure, and that can be deep-copied, which
            attributes of its own beside state and groups are not. Every group gets the ramp's LR times its `lr_mult`
            (1 where there is none); a warning where groups differ in their LR and none has one.
        loss_fn: loss_fn(model(x), y), a scalar. One that looks at the model too has to hold it where a deep copy finds
            it: functools.partial(fn, model) or an object, not a closure.
        batches: pairs (x, y) on the model's device. A DataLoader or a list is gone through again when it ends; a
            generator is used up and has to yield enough.
        evaluate: gives the accuracy, in percent, of the model handed to it: the copy, in evaluation mode, without
            gradients. One that looks at a model of its own sees nothing change, and has it in whatever mode it is in.
        min_lr, max_lr: of the ramp (`RangeTest`), linear as the paper's.
        iterations: of the ramp; the paper takes several epochs.
        eval_every: iterations between evaluations; the first is before any update, the last at `max_lr`.
        seed: names the curve.
    Returns:
        the curve. `lr` is that of the step that follows; accuracies are NaN from where the loss was no longer finite,
        or `evaluate` gave NaN.
    Raises:
        ValueError: arguments of the ramp, an optimizer of another model, `batches` that are no pairs or end too soon,
            an accuracy that is no percentage, a loss that is no scalar, has no gradient, or is of the model itself and
            not of the copy, what cannot be deep-copied, or hooks on gradients or steps, which a copy does not have.
    """
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            f"optimizer: expected a torch optimizer whose step needs no closure, got {type(optimizer).__name__}"
        )
    if not callable(evaluate):
        raise ValueError(f"evaluate: expected a function of the model that gives its accuracy, got {evaluate!r}")
    test, yours = RampTest.over(min_lr, max_lr, iterations, eval_every), {*map(id, model.parameters())}
    points, accuracies = set(test.points), dict[int, float]()
    refuse_hooks(model.parameters(), optimizer)
    if yours.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "optimizer: expected one over the model's parameters, it has none of them; build it from these"
        )
    check_groups(optimizer)
    with preserved_rng(batches):
        try:
            model, optimizer, loss_fn = copy.deepcopy((model, optimizer, loss_fn))
        except Exception as error:
            raise ValueError(
                f"model, optimizer, loss_fn: expected what can be deep-copied, got {error!r}; {OWN_LOOP}"
            ) from error
        stream = _repeated(batches, iterations)
        for t in range(iterations + 1):
            if t in points:
                model.eval()
                with torch.no_grad():
                    found = evaluate(model)
                try:
                    accuracy = float(found)
                except (TypeError, ValueError, RuntimeError):  # the last of a tensor of several
                    raise ValueError(f"evaluate: expected it to return a number of percent, got {found!r}") from None
                if t > 0 and math.isnan(accuracy):  # diverged in the step before
                    break
                accuracies[t] = percent(accuracy, "evaluate")
            if t == iterations:
                break
            model.train()
            x, y = _pair(next(stream))
            set_lr(optimizer, test.ramp(t))
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(
                    f"loss_fn: expected a scalar tensor, got {got}; return the mean loss of the batch alone"
                )
            if not loss.requires_grad:
                raise ValueError(
                    "loss_fn: expected a loss with a gradient, got one without; let a parameter of the model require "
                    "one, and call this outside of torch.no_grad()"
                )
            if not torch.isfinite(loss):
                break
            if not yours.isdisjoint(leaves(loss)):
                raise ValueError(
                    "loss_fn: expected a loss of what it is given, got one of your model's own parameters, while the "
                    "test trains a copy; give functools.partial(fn, model), which is copied along, and no closure"
                )
            loss.backward()
            optimizer.step()
            torch.clear_autocast_cache()  # under an autocast of the caller's, weights of before the step
    return test.curve(accuracies, seed)


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    got = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
    raise ValueError(
        f"batches: expected pairs (x, y), got {got}; make pairs of them, as in [(b['x'], b['y']) for b in loader], "
        "whose x may be all that the model takes"
    )


def leaves(loss: Tensor) -> set[int]:
    """The ids of all tensors that `loss.backward()` would give a gradient."""
    found, seen, left = set[int](), set[Any](), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):  # an AccumulateGrad
                found.add(id(node.variable))
            left += [following for following, _ in node.next_functions]
    return found


@dataclass(frozen=True)
class RampTest:
    """What every range test does, whoever trains: the LR of each iteration, and the iterations at which to evaluate."""

    ramp: RangeTest
    eval_every: int

    @classmethod
    def over(cls, min_lr: float, max_lr: float, iterations: int, eval_every: int) -> "RampTest":
        """
        Raises:
            ValueError: no ramp, or no evaluations of it; named as the arguments here are.
        """
        for key, value, papers in (("iterations", iterations, 4000), ("eval_every", eval_every, 200)):
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise ValueError(
                    f"{key}: expected a whole number of iterations >= 1, got {value!r}; the paper's is {papers}"
                )
        try:
            rises = 0 <= min_lr < max_lr < math.inf
        except TypeError:
            rises = False
        if not rises:
            raise ValueError(
                f"min_lr, max_lr: expected LRs with 0 <= min_lr < max_lr, got {min_lr!r} and {max_lr!r}; the paper's "
                "are 0 and 0.02"
            )
        return cls(RangeTest(min_lr, max_lr, iterations), eval_every)

    @property
    def points(self) -> tuple[int, ...]:
        """Iterations to evaluate at: 0, every `eval_every`, and the ramp's last."""
        return (*range(0, self.ramp.stepsize, self.eval_every), self.ramp.stepsize)

    def curve(self, accuracies: Mapping[int, float], seed: int | None = None) -> Curve:
        """The curve from accuracies, in percent, by iteration; points after the last of them are NaN."""
        last = max(accuracies)
        iterations = (*sorted(accuracies), *(point for point in self.points if point > last))
        lrs = tuple(self.ramp(t) for t in iterations)
        return Curve(lrs, tuple(accuracies.get(t, math.nan) for t in iterations), seed)


def percent(accuracy: float, source: str, remedy: str = "convert it") -> float:
    """The accuracy, refused at once if it cannot be one: a test takes long, and shows it only at its end.

    Raises:
        ValueError: it is not in 0 to 100.
    """
    if not 0 <= accuracy <= 100.001:  # a perfect one may be rounded up
        raise ValueError(
            f"{source}: expected an accuracy in percent, 0 to 100, got {accuracy}; {remedy} (a loss is none)"
        )
    return min(accuracy, 100.0)


def refuse_hooks(parameters: Iterable[Tensor], optimizer: Optimizer) -> None:
    """Refuse hooks, which a deep copy leaves behind: the test would train otherwise than you do.

    Raises:
        ValueError: a parameter has a gradient hook, or the optimizer's step has one.
    """
    hooks = ("_backward_hooks", "_post_accumulate_grad_hooks")
    on_steps = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if any(getattr(parameter, name, None) for parameter in parameters for name in hooks):
        what = "a parameter with a gradient hook (register_hook)"
    elif any(getattr(optimizer, name, None) for name in on_steps):
        what = "an optimizer with a step hook"
    else:
        return
    raise ValueError(
        f"model, optimizer: expected none with hooks, got {what}, which is lost when the test copies them; take it "
        f"away for the test, or do its work in the loss, or {OWN_LOOP}"
    )


@contextmanager
def preserved_rng(loader: object = None) -> Iterator[None]:
    """Put the global random states, and those of the loader's own generators, back to what they were.

    Covers torch on CPU, CUDA and Apple's GPUs (not tried on one), NumPy's legacy state and Python's. CUDA's are left
    alone where nothing has used CUDA in this process yet.
    """
    generators = _generators(loader)
    own = [generator.get_state() for generator in generators]
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        for generator, state in zip(generators, own, strict=True):
            generator.set_state(state)


def _generators(loader: object) -> list[torch.Generator]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = {id(g): g for owner in owners if isinstance(g := getattr(owner, "generator", None), torch.Generator)}
    return list(found.values())


def _repeated(batches: Iterable[Any], iterations: int) -> Iterator[Any]:
    """The batches, again and again; a ValueError when there are none left to give."""
    if isinstance(batches, DataLoader):
        # Persistent workers live in the loader's iterator and keep their random state: ours must not be found there.
        batches = loader = copy.copy(batches)
        loader._iterator = None
    given = 0
    while True:
        before = given
        for batch in batches:
            given += 1
            yield batch
        if given == before:
            remedy = "give a DataLoader or a list, which can be gone through again, or a longer generator"
            if not given:
                remedy = "there is none in it: is the dataset empty, or smaller than a batch with drop_last?"
            raise ValueError(f"batches: expected {iterations} batches, got {given}; {remedy}")
