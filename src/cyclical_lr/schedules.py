"""Learning-rate policies as pure functions of the iteration: Sections 3.1 to 3.3, Tables 1 and 2, Appendix A.

A schedule is a frozen dataclass that is called with the iteration `t`, counted from 0: `lr(t)` is the learning rate of
the update that leads from iteration t to t + 1, as in Caffe's `SGDSolver::ApplyUpdate`. An int gives a float, an array
of ints a float64 array of the same shape. A schedule holds no state: resuming is calling it with a later t.

    >>> Triangular(base_lr=0.001, max_lr=0.006, stepsize=2000)(1000)
    0.0035

The policies of the paper are Fixed, MultiStep, Triangular, Triangular2, Welch, Hann, ExpRange, Decay, Exp and
RangeTest; Drops, Held, Phases and Compressed build one schedule from others. Later policies are in `comparators`.
Wherever a formula says `cycle` and `x`, they are those of Caffe's listing in Appendix A:

    cycle = t // (2 * stepsize)                                      0 in the first cycle
    x     = (t - (2 * cycle + 1) * stepsize) / stepsize              -1 at a cycle's start, 0 at its middle

Arguments are validated at construction; every refusal is a ValueError that names `schedule.<argument>`. A negative
or non-integer `t` is a ValueError too. For a torch scheduler made from a schedule see `lr_scheduler.ScheduleLR`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cyclical_lr.policy import Iterations, Rates, Schedule, of_iterations, refusal, settle

# ---- Constants, drops and decays -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """A constant: lr(t) = base_lr. Caffe's `fixed`.

    The paper's "fixed" rows for CIFAR-10, AlexNet and GoogLeNet are not constant: they drop. See MultiStep.
    """

    base_lr: float

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return np.full(t.shape, self.base_lr)


@dataclass(frozen=True)
class MultiStep:
    """Drops at given iterations: lr(t) = base_lr * gamma ** (number of milestones <= t). Caffe's `multistep`.

    With base_lr 0.001 and milestones 60000 and 65000 it is the "fixed" curve of Figure 1: Caffe's cifar10_full. Equal
    to torch's `MultiStepLR` stepped once per iteration.
    """

    base_lr: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.base_lr * _dropped(t, self.milestones, self.gamma)


def _dropped(t: Iterations, milestones: Sequence[int], gamma: float) -> Rates:
    passed = np.searchsorted(np.array(milestones, dtype=np.int64), t, side="right")
    return np.power(gamma, passed)


@dataclass(frozen=True)
class Exp:
    """Exponential decay: lr(t) = base_lr * gamma ** t. Caffe's `exp`, and Table 1's (Figures 1, 4, 10 and 13).

    Equal to torch's `ExponentialLR` stepped once per iteration.
    """

    base_lr: float
    gamma: float

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.base_lr * np.power(self.gamma, t)


@dataclass(frozen=True)
class Decay:
    """From max_lr straight down to base_lr over stepsize iterations, then constant (Section 4.1.1, Table 1's `decay`).

    lr(t) = base_lr + (max_lr - base_lr) * max(0, 1 - t / stepsize). It is the falling half of one triangle, which the
    paper uses to ask whether the fall alone explains the gain.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.base_lr + (self.max_lr - self.base_lr) * np.maximum(0.0, 1 - t / self.stepsize)


# ---- Cycles ----------------------------------------------------------------------------------------------------------


def _cycle_and_x(t: Iterations, stepsize: int) -> tuple[Iterations, Rates]:
    """The module docstring's `cycle` and `x`, in integers up to the last division, so that cycle ends are exact."""
    cycle = t // (2 * stepsize)
    return cycle, (t - (2 * cycle + 1) * stepsize) / stepsize


@dataclass(frozen=True)
class Triangular:
    """Linear between two bounds, up and down: lr(t) = base_lr + (max_lr - base_lr) * max(0, 1 - |x|).

    Section 3.1, Figure 2 and Appendix A's `triangular`. stepsize is half a cycle, in iterations. Equal to torch's
    `CyclicLR(mode="triangular")` up to rounding, but `CyclicLR` also cycles the momentum unless told not to.
    An earlier listing of the author's divides the amplitude by the number of the cycle; this is the paper's.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        _, x = _cycle_and_x(t, self.stepsize)
        return self.base_lr + (self.max_lr - self.base_lr) * np.maximum(0.0, 1 - np.abs(x))


@dataclass(frozen=True)
class Triangular2:
    """Triangular with an amplitude that halves after each cycle; base_lr stays.

    lr(t) = base_lr + (max_lr - base_lr) * min(1, max(0, (1 - |x|) / 2 ** cycle)), where cycle counts from 0 and x goes
    from -1 to 1 in each; stepsize is half a cycle, in iterations. Section 3.1 and Appendix A's `triangular2`. Equal to
    torch's `CyclicLR(mode="triangular2")` up to rounding. For Table 2, whose cycle counter
    restarts, put three of these into Phases.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        cycle, x = _cycle_and_x(t, self.stepsize)
        # 2 ** cycle overflows after 1,023 cycles; ldexp divides by it exactly and falls to 0 instead.
        height = np.ldexp(np.maximum(0.0, 1 - np.abs(x)), -np.minimum(cycle, 2000).astype(np.int32))
        return self.base_lr + (self.max_lr - self.base_lr) * np.minimum(1.0, height)


@dataclass(frozen=True)
class Welch:
    """Triangular's bounds and period under a parabolic (Welch) window: base_lr + (max_lr - base_lr) * (1 - x ** 2).

    Section 3.1 names the window and reports that it gives equivalent results; it prints no formula. Its mean lies at
    2/3 of the way from base_lr to max_lr, the triangle's at 1/2. torch has it as `CyclicLR` with a `scale_fn` only.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        _, x = _cycle_and_x(t, self.stepsize)
        return self.base_lr + (self.max_lr - self.base_lr) * (1 - x * x)


@dataclass(frozen=True)
class Hann:
    """Triangular's bounds and period under a sinusoidal (Hann) window: (1 + cos(pi * x)) / 2 of the way to max_lr.

    lr(t) = base_lr + (max_lr - base_lr) * (1 + cos(pi * x)) / 2. Section 3.1 names the window and reports that it
    gives equivalent results; it prints no formula. Unlike the cosines of `comparators` it rises before it falls.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        _, x = _cycle_and_x(t, self.stepsize)
        return self.base_lr + (self.max_lr - self.base_lr) * (1 + np.cos(math.pi * x)) / 2


@dataclass(frozen=True)
class ExpRange:
    """Triangular, decaying by gamma per iteration; `decay` says what decays (Section 3.1's `exp_range`).

    decay="bounds", the paper's: each bound declines, so lr(t) = gamma ** t * triangular(t). It oscillates round Exp.
    decay="amplitude", that of torch's `CyclicLR(mode="exp_range")` and of the Keras callback: base_lr stays, so
    lr(t) = base_lr + (max_lr - base_lr) * gamma ** t * max(0, 1 - |x|).
    With bounds 0.001 and 0.006, stepsize 2000 and gamma 0.99994 the two stand at 0.000301 and 0.001 at t = 20000.
    gamma is raised to the iteration, not to the position within the cycle.
    """

    base_lr: float
    max_lr: float
    stepsize: int
    gamma: float
    decay: Literal["bounds", "amplitude"] = "bounds"

    def __post_init__(self) -> None:
        settle(self, decay=_what_decays)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        _, x = _cycle_and_x(t, self.stepsize)
        height = (self.max_lr - self.base_lr) * np.maximum(0.0, 1 - np.abs(x))
        decayed = np.power(self.gamma, t)
        return (self.base_lr + height) * decayed if self.decay == "bounds" else self.base_lr + height * decayed


def _what_decays(key: str, value: Any) -> Any:
    if value not in ("bounds", "amplitude"):
        remedy = "'bounds' is the paper's form, 'amplitude' PyTorch's and Keras'"
        raise refusal(key, "'bounds' or 'amplitude'", value, remedy)
    return value


@dataclass(frozen=True)
class RangeTest:
    """The LR range test's ramp: from base_lr straight up to max_lr over stepsize iterations (Section 3.3, Figure 3).

    lr(t) = base_lr + (max_lr - base_lr) * min(1, t / stepsize): `triangular` whose stepsize is the whole run, as the
    paper runs it. Past stepsize it stays at max_lr. Most LR finders rise exponentially instead.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.base_lr + (self.max_lr - self.base_lr) * np.minimum(1.0, t / self.stepsize)


# ---- Schedules made of schedules -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drops:
    """Any schedule, multiplied by gamma at each milestone passed: schedule(t) * gamma ** (number of milestones <= t).

    Both bounds of a cycle fall together, and the cycle runs on. Of Table 4 the paper says that both bounds fall when
    the original schedule drops, not whether the cycle restarts there. For one that restarts, as in Table 2, use Phases.
    """

    schedule: Schedule
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.schedule(t) * _dropped(t, self.milestones, self.gamma)


@dataclass(frozen=True)
class Held:
    """Any schedule, looked up only every `every` iterations: lr(t) = schedule((t // every + first) * every).

    With the iterations of an epoch it is the LR of Section 3.1's Torch listing, which counts epochs, and so of Table 4.
    `first` is the number of the first epoch: 0, or 1 as in Table 4's original programs.
    """

    schedule: Schedule
    every: int
    first: int = 0

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.schedule((t // self.every + self.first) * self.every)


@dataclass(frozen=True)
class Phase:
    """One row of Table 2: a schedule and the iteration at which it takes over (Caffe's `start_lr_policy`)."""

    start: int
    schedule: Schedule

    def __post_init__(self) -> None:
        settle(self)


@dataclass(frozen=True)
class Phases:
    """Schedules one after the other: lr(t) = schedule(t - start), of the last phase with start <= t (Table 2).

    Because each phase counts from its own start, its cycle counter restarts, and with it triangular2's
    halving. Starts begin at 0 and increase strictly; the last phase has no end. torch's nearest is `SequentialLR`.
    In a config of your own, its node needs `_convert_: all`: OmegaConf's lists hold no objects.
    """

    phases: Sequence[Phase]

    def __post_init__(self) -> None:
        expected = "a non-empty list of Phase(start, schedule)"
        remedy = "write Phase(0, schedule), or in a config a node with `_target_: cyclical_lr.schedules.Phase`"
        if isinstance(self.phases, str) or not isinstance(self.phases, Iterable):
            raise refusal("phases", expected, self.phases, remedy)
        phases = tuple(self.phases)
        if not phases:
            raise refusal("phases", expected, self.phases, "the first phase starts at 0")
        for i, phase in enumerate(phases):
            if not isinstance(phase, Phase):
                raise refusal(f"phases[{i}]", "a Phase", phase, remedy)
        starts = [phase.start for phase in phases]
        if starts[0] != 0:
            raise refusal("phases[0].start", "0", starts[0], "the first phase holds from the first iteration")
        for i in range(1, len(starts)):
            if starts[i] <= starts[i - 1]:
                expected = f"more than the start before it ({starts[i - 1]})"
                raise refusal(f"phases[{i}].start", expected, starts[i], "list the phases in the order of their starts")
        object.__setattr__(self, "phases", phases)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        current = np.searchsorted([phase.start for phase in self.phases], t, side="right") - 1
        rates = np.empty(t.shape)
        for i, phase in enumerate(self.phases):
            here = current == i
            if here.any():
                rates[here] = phase.schedule(t[here] - phase.start)
        return rates


@dataclass(frozen=True)
class Compressed:
    """The same schedule in 1/factor of the iterations: lr(t) = schedule(t * factor).

    A control of this study, not of the paper: it asks how much of a shorter budget any schedule would have bought.
    """

    schedule: Schedule
    factor: int

    def __post_init__(self) -> None:
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.schedule(t * self.factor)
