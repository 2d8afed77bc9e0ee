"""Learning-rate policies as pure functions of the iteration: Sections 3.1 to 3.3, Tables 1 and 2, Appendix A.

A schedule is a frozen dataclass that is called with the iteration `t`, counted from 0: `lr(t)` is the learning rate of
the update that leads from iteration t to t + 1, as in Caffe's `SGDSolver::ApplyUpdate`. An int gives a float, an array
of ints a float64 array of the same shape. A schedule holds no state: resuming is calling it with a later t.

    >>> Triangular(base_lr=0.001, max_lr=0.006, stepsize=2000)(1000)
    0.0035

The policies of the paper are Fixed, MultiStep, Triangular, Triangular2, Welch, Hann, ExpRange, Decay, Exp and
RangeTest; Drops, Held, Phases and Compressed build one schedule from others; Cosine, CosineRestarts, OneCycle and
WarmupStableDecay are later policies for comparison. Wherever a formula says `cycle` and `x`, they are those of
Caffe's listing in Appendix A:

    cycle = t // (2 * stepsize)                                      0 in the first cycle
    x     = (t - (2 * cycle + 1) * stepsize) / stepsize              -1 at a cycle's start, 0 at its middle

Arguments are validated at construction; every refusal is a ValueError that names `schedule.<argument>`. A negative
or non-integer `t` is a ValueError too. For a torch scheduler made from a schedule see `lr_scheduler.ScheduleLR`.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, overload

import numpy as np
import numpy.typing as npt

Iterations = npt.NDArray[np.integer[Any]]
Rates = npt.NDArray[np.float64]


class Schedule(Protocol):
    """What every policy offers, and all that Drops, Held, Phases, Compressed and `ScheduleLR` ask for: lr(t)."""

    @overload
    def __call__(self, t: int | np.integer[Any]) -> float: ...
    @overload
    def __call__(self, t: Iterations) -> Rates: ...


def _of_iterations(formula: Callable[[Any, Iterations], Rates]) -> Schedule:
    """Turn a formula over an int64 array of one dimension or more into a schedule's call."""

    @functools.wraps(formula)
    def call(self: object, t: Any) -> float | Rates:
        iterations = np.asarray(t)
        if not np.issubdtype(iterations.dtype, np.integer):
            raise ValueError(f"t: expected an int or an array of ints, got {t!r}; count iterations in whole numbers")
        if np.any(iterations < 0):
            raise ValueError(f"t: expected iterations from 0, got {t!r}; the first update has t = 0")
        # Scalars take the arrays' path, since NumPy's and Python's powers may differ in the last bit.
        rates = formula(self, np.atleast_1d(iterations.astype(np.int64)))
        return float(rates[0]) if iterations.ndim == 0 else rates

    # mypy binds no `self` to an attribute of a protocol's type, so the methods get exactly Schedule's overloads.
    return cast(Schedule, call)


# ---- Validation ------------------------------------------------------------------------------------------------------


def _refuse(key: str, expected: str, value: object, remedy: str) -> ValueError:
    return ValueError(f"schedule.{key}: expected {expected}, got {value!r}; {remedy}")


def _number(key: str, value: Any, expected: str, accept: Callable[[float], bool], remedy: str) -> float:
    if isinstance(value, (str, bytes, bool, np.bool_)):
        raise _refuse(key, expected, value, remedy)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _refuse(key, expected, value, remedy) from None
    if not (math.isfinite(number) and accept(number)):
        raise _refuse(key, expected, value, remedy)
    return number


def _rate(key: str, value: Any) -> float:
    remedy = "give a learning rate such as 0.001"
    return _number(key, value, "a finite learning rate of at least 0", lambda number: number >= 0, remedy)


def _gamma(key: str, value: Any) -> float:
    remedy = "1 means no decay, 0.1 a tenth at each drop, 0.99994 a slow decay per iteration"
    return _number(key, value, "a factor above 0 and at most 1", lambda number: 0 < number <= 1, remedy)


def _fraction(key: str, value: Any) -> float:
    remedy = "0.3 is 30 % of the iterations"
    return _number(key, value, "a fraction between 0 and 1, both excluded", lambda number: 0 < number < 1, remedy)


def _divisor(key: str, value: Any) -> float:
    return _number(key, value, "a divisor of at least 1", lambda number: number >= 1, "25 starts at max_lr / 25")


def _integer(key: str, value: Any, least: int, expected: str, remedy: str) -> int:
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise _refuse(key, expected, value, f"{remedy}; write an int, such as 2000, not 2000.0 or '2000'") from None
    if number < least:
        raise _refuse(key, expected, value, remedy)
    return number


def _half_cycle(key: str, value: Any) -> int:
    expected = "a positive integer number of iterations (half a cycle)"
    return _integer(key, value, 1, expected, "the paper advises 2 to 10 times the iterations of an epoch")


def _duration(key: str, value: Any) -> int:
    return _integer(key, value, 1, "a positive integer number of iterations", "give the length in iterations")


def _optional_duration(key: str, value: Any) -> int:
    return _integer(key, value, 0, "an integer number of iterations of at least 0", "0 leaves this part out")


def _start(key: str, value: Any) -> int:
    return _integer(key, value, 0, "an integer iteration of at least 0", "give the iteration at which the phase begins")


def _multiple(key: str, value: Any) -> int:
    return _integer(key, value, 1, "a positive integer factor", "1 changes nothing")


def _schedule(key: str, value: Any) -> Schedule:
    if not callable(value) or isinstance(value, type):
        remedy = "give a schedule object, or in a config a node with `_target_: cyclical_lr.schedules.<policy>`"
        raise _refuse(key, "a schedule, called with the iteration", value, remedy)
    return cast(Schedule, value)


def _milestone(key: str, value: Any) -> int:
    return _integer(key, value, 1, "a positive integer iteration", "list the iterations of the drops")


def _milestones(key: str, value: Any) -> tuple[int, ...]:
    expected = "a list of strictly increasing positive integer iterations"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise _refuse(key, expected, value, "write a list such as [60000, 65000]")
    milestones = tuple(_milestone(f"{key}[{i}]", milestone) for i, milestone in enumerate(value))
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise _refuse(key, expected, list(milestones), "sort them and name each drop once")
    return milestones


def _settle(schedule: object, /, **rules: Callable[[str, Any], Any]) -> None:
    """Replace each named field by what its rule makes of it: a plain, hashable value."""
    for key, rule in rules.items():
        object.__setattr__(schedule, key, rule(key, getattr(schedule, key)))


def _ascending(lower_key: str, lower: float, upper: float) -> None:
    if upper < lower:
        expected = f"at least {lower_key} ({lower!r})"
        raise _refuse("max_lr", expected, upper, f"raise max_lr or lower {lower_key}; equal bounds are a constant")


# ---- Constants, drops and decays -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """A constant: lr(t) = base_lr. Caffe's `fixed`.

    The paper's "fixed" rows for CIFAR-10, AlexNet and GoogLeNet are not constant: they drop. See MultiStep.
    """

    base_lr: float

    def __post_init__(self) -> None:
        _settle(self, base_lr=_rate)

    @_of_iterations
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
        _settle(self, base_lr=_rate, milestones=_milestones, gamma=_gamma)

    @_of_iterations
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
        _settle(self, base_lr=_rate, gamma=_gamma)

    @_of_iterations
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
        _settle(self, base_lr=_rate, max_lr=_rate, stepsize=_half_cycle)
        _ascending("base_lr", self.base_lr, self.max_lr)

    @_of_iterations
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
        _settle(self, base_lr=_rate, max_lr=_rate, stepsize=_half_cycle)
        _ascending("base_lr", self.base_lr, self.max_lr)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        _, x = _cycle_and_x(t, self.stepsize)
        return self.base_lr + (self.max_lr - self.base_lr) * np.maximum(0.0, 1 - np.abs(x))


@dataclass(frozen=True)
class Triangular2:
    """Triangular with an amplitude that halves after each cycle; base_lr stays.

    lr(t) = base_lr + (max_lr - base_lr) * min(1, max(0, (1 - |x|) / 2 ** cycle)). Section 3.1 and Appendix A's
    `triangular2`. Equal to torch's `CyclicLR(mode="triangular2")` up to rounding. For Table 2, whose cycle counter
    restarts, put three of these into Phases.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        _settle(self, base_lr=_rate, max_lr=_rate, stepsize=_half_cycle)
        _ascending("base_lr", self.base_lr, self.max_lr)

    @_of_iterations
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
        _settle(self, base_lr=_rate, max_lr=_rate, stepsize=_half_cycle)
        _ascending("base_lr", self.base_lr, self.max_lr)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        _, x = _cycle_and_x(t, self.stepsize)
        return self.base_lr + (self.max_lr - self.base_lr) * (1 - x * x)


@dataclass(frozen=True)
class Hann:
    """Triangular's bounds and period under a sinusoidal (Hann) window: (1 + cos(pi * x)) / 2 of the way to max_lr.

    lr(t) = base_lr + (max_lr - base_lr) * (1 + cos(pi * x)) / 2. Section 3.1 names the window and reports that it
    gives equivalent results; it prints no formula. Unlike Cosine and CosineRestarts it rises before it falls.
    """

    base_lr: float
    max_lr: float
    stepsize: int

    def __post_init__(self) -> None:
        _settle(self, base_lr=_rate, max_lr=_rate, stepsize=_half_cycle)
        _ascending("base_lr", self.base_lr, self.max_lr)

    @_of_iterations
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
        _settle(self, base_lr=_rate, max_lr=_rate, stepsize=_half_cycle, gamma=_gamma)
        _ascending("base_lr", self.base_lr, self.max_lr)
        if self.decay not in ("bounds", "amplitude"):
            remedy = "'bounds' is the paper's form, 'amplitude' PyTorch's and Keras'"
            raise _refuse("decay", "'bounds' or 'amplitude'", self.decay, remedy)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        _, x = _cycle_and_x(t, self.stepsize)
        height = (self.max_lr - self.base_lr) * np.maximum(0.0, 1 - np.abs(x))
        decayed = np.power(self.gamma, t)
        return (self.base_lr + height) * decayed if self.decay == "bounds" else self.base_lr + height * decayed


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
        _settle(self, base_lr=_rate, max_lr=_rate, stepsize=_half_cycle)
        _ascending("base_lr", self.base_lr, self.max_lr)

    @_of_iterations
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
        _settle(self, schedule=_schedule, milestones=_milestones, gamma=_gamma)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.schedule(t) * _dropped(t, self.milestones, self.gamma)


@dataclass(frozen=True)
class Held:
    """Any schedule, looked up only every `every` iterations and held in between: lr(t) = schedule(t - t % every).

    With the iterations of an epoch it is the LR of Section 3.1's Torch listing, which counts epochs, and so of Table 4.
    """

    schedule: Schedule
    every: int

    def __post_init__(self) -> None:
        _settle(self, schedule=_schedule, every=_duration)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.schedule(t - t % self.every)


@dataclass(frozen=True)
class Phase:
    """One row of Table 2: a schedule and the iteration at which it takes over (Caffe's `start_lr_policy`)."""

    start: int
    schedule: Schedule

    def __post_init__(self) -> None:
        _settle(self, start=_start, schedule=_schedule)


@dataclass(frozen=True)
class Phases:
    """Schedules one after the other: lr(t) = schedule(t - start), of the last phase with start <= t (Table 2).

    Because each phase counts from its own start, its cycle counter restarts, and with it triangular2's
    halving. Starts begin at 0 and increase strictly; the last phase has no end. torch's nearest is `SequentialLR`.
    """

    phases: Sequence[Phase]

    def __post_init__(self) -> None:
        expected = "a non-empty list of Phase(start, schedule)"
        remedy = "write Phase(0, schedule), or in a config a node with `_target_: cyclical_lr.schedules.Phase`"
        if isinstance(self.phases, str) or not isinstance(self.phases, Iterable):
            raise _refuse("phases", expected, self.phases, remedy)
        phases = tuple(self.phases)
        if not phases:
            raise _refuse("phases", expected, self.phases, "the first phase starts at 0")
        for i, phase in enumerate(phases):
            if not isinstance(phase, Phase):
                raise _refuse(f"phases[{i}]", "a Phase", phase, remedy)
        starts = [phase.start for phase in phases]
        if starts[0] != 0:
            raise _refuse("phases[0].start", "0", starts[0], "the first phase holds from the first iteration")
        for i in range(1, len(starts)):
            if starts[i] <= starts[i - 1]:
                expected = f"more than the start before it ({starts[i - 1]})"
                raise _refuse(f"phases[{i}].start", expected, starts[i], "list the phases in the order of their starts")
        object.__setattr__(self, "phases", phases)

    @_of_iterations
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
        _settle(self, schedule=_schedule, factor=_multiple)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return self.schedule(t * self.factor)


# ---- Later policies, for comparison ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from max_lr to min_lr over the run (Loshchilov and Hutter, 2017, without restarts).

    lr(t) = min_lr + (max_lr - min_lr) * (1 + cos(pi * min(1, t / iterations))) / 2. Equal to torch's
    `CosineAnnealingLR(T_max=iterations)` up to t = iterations; after that torch rises again, this stays at min_lr.
    """

    max_lr: float
    iterations: int
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _settle(self, max_lr=_rate, iterations=_duration, min_lr=_rate)
        _ascending("min_lr", self.min_lr, self.max_lr)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return _cosine(self.max_lr, self.min_lr, np.minimum(1.0, t / self.iterations))


def _cosine(start: float, end: float, progress: Rates) -> Rates:
    """From start (progress 0) to end (progress 1) along half a cosine."""
    return end + (start - end) * (1 + np.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class CosineRestarts:
    """SGDR (Loshchilov and Hutter, 2017): half a cosine from max_lr to min_lr, restarted at each period's end.

    The first period lasts `period` iterations, each later one period_mult times its predecessor. Within a period
    lr = min_lr + (max_lr - min_lr) * (1 + cos(pi * position / length)) / 2. Equal to torch's
    `CosineAnnealingWarmRestarts(T_0=period, T_mult=period_mult)` stepped once per iteration.
    """

    max_lr: float
    period: int
    period_mult: int = 1
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _settle(self, max_lr=_rate, period=_duration, period_mult=_multiple, min_lr=_rate)
        _ascending("min_lr", self.min_lr, self.max_lr)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        if self.period_mult == 1:
            return _cosine(self.max_lr, self.min_lr, t % self.period / self.period)
        # Restarts are listed in integers: the closed form has a logarithm, which rounds to the wrong side of some.
        starts, lengths = [0], [self.period]
        while starts[-1] + lengths[-1] <= t.max(initial=0):
            starts.append(starts[-1] + lengths[-1])
            lengths.append(lengths[-1] * self.period_mult)
        current = np.searchsorted(starts, t, side="right") - 1
        return _cosine(self.max_lr, self.min_lr, (t - np.array(starts)[current]) / np.array(lengths)[current])


@dataclass(frozen=True)
class OneCycle:
    """One cycle over the run (Smith and Topin, 2018) in torch's form: cosine up to max_lr, cosine down to almost 0.

    It starts at max_lr / div_factor, reaches max_lr at t = pct_start * iterations - 1 (a real number), and ends at
    max_lr / (div_factor * final_div_factor) at t = iterations - 1. Equal to torch's
    `OneCycleLR(total_steps=iterations, anneal_strategy="cos", three_phase=False)`, whose momentum cycle is not
    imitated; torch raises past the last iteration, this stays at the last value.
    """

    max_lr: float
    iterations: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        _settle(self, max_lr=_rate, iterations=_duration, pct_start=_fraction)
        _settle(self, div_factor=_divisor, final_div_factor=_divisor)

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        first = self.max_lr / self.div_factor
        last = first / self.final_div_factor
        peak = self.pct_start * self.iterations - 1
        falling = _cosine(self.max_lr, last, np.minimum(1.0, (t - peak) / (self.iterations - 1 - peak)))
        if peak <= 0:
            return falling  # a run so short that the rise lies before its first iteration
        return np.where(t <= peak, _cosine(first, self.max_lr, t / peak), falling)


@dataclass(frozen=True)
class WarmupStableDecay:
    """A trapezoid: linear up, constant, linear down (WSD; Hu et al., 2024).

    From min_lr at t = 0 to max_lr at t = warmup, max_lr until t = iterations - decay, and down to min_lr at
    t = iterations, where it stays. warmup and decay are in iterations; 0 leaves that part out.
    """

    max_lr: float
    iterations: int
    warmup: int
    decay: int
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        _settle(self, max_lr=_rate, iterations=_duration, min_lr=_rate)
        _settle(self, warmup=_optional_duration, decay=_optional_duration)
        _ascending("min_lr", self.min_lr, self.max_lr)
        if self.warmup + self.decay > self.iterations:
            expected = f"at most iterations - warmup ({self.iterations - self.warmup})"
            raise _refuse("decay", expected, self.decay, "shorten warmup or decay, or train for more iterations")

    @_of_iterations
    def __call__(self, t: Iterations) -> Rates:
        height = np.ones(t.shape)
        if self.warmup:
            height = np.minimum(height, t / self.warmup)
        if self.decay:
            height = np.minimum(height, np.maximum(0.0, (self.iterations - t) / self.decay))
        return self.min_lr + (self.max_lr - self.min_lr) * height
