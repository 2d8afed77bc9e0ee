"""What every learning-rate policy is made of: a call over iterations, and arguments that are checked once.

The policies themselves are in `schedules` (the paper's) and `comparators` (later ones).
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast, overload

import numpy as np
import numpy.typing as npt

Iterations = npt.NDArray[np.integer[Any]]
Rates = npt.NDArray[np.float64]
Rule = Callable[[str, Any], Any]


class Schedule(Protocol):
    """What every policy offers, and all that Drops, Held, Phases, Compressed and `ScheduleLR` ask for: lr(t)."""

    @overload
    def __call__(self, t: int | np.integer[Any]) -> float: ...
    @overload
    def __call__(self, t: Iterations) -> Rates: ...


def of_iterations(formula: Callable[[Any, Iterations], Rates]) -> Schedule:
    """Turn a formula over an int64 array of one dimension or more into a schedule's call."""

    # The formula's name, and this call's own signature and docstring.
    @functools.wraps(formula, assigned=("__module__", "__name__", "__qualname__"))
    def call(self: object, t: Any) -> float | Rates:
        """The LR at iterations t, from 0: a float for an int, float64 of t's shape for an array of ints.

        Raises:
            ValueError: t is no int or array of ints, or negative.
        """
        iterations = np.asarray(t)
        if not np.issubdtype(iterations.dtype, np.integer):
            raise ValueError(f"t: expected an int or an array of ints, got {t!r}; count iterations in whole numbers")
        if np.any(iterations < 0) or np.any(iterations > np.iinfo(np.int64).max):
            raise ValueError(f"t: expected iterations from 0 to 2^63 - 1, got {t!r}; the first update has t = 0")
        # Scalars take the arrays' path, since NumPy's and Python's powers may differ in the last bit.
        rates = formula(self, np.atleast_1d(iterations.astype(np.int64)))
        return float(rates[0]) if iterations.ndim == 0 else rates

    del call.__wrapped__
    # mypy binds no `self` to an attribute of a protocol's type, so the methods get exactly Schedule's overloads.
    return cast(Schedule, call)


def settle(policy: Any, **own: Rule) -> None:
    """Replace each field of a frozen dataclass by what its rule makes of it: a plain, hashable value.

    A name means the same in every policy, so its rule is in `RULES`, unless the policy gives its `own`.

    Raises:
        ValueError: a value breaks its rule, or max_lr lies below base_lr or min_lr.
    """
    for field in dataclasses.fields(policy):
        rule = own.get(field.name) or RULES[field.name]
        object.__setattr__(policy, field.name, rule(field.name, getattr(policy, field.name)))
    for key in ("base_lr", "min_lr"):
        lower = getattr(policy, key, 0.0)
        if hasattr(policy, "max_lr") and policy.max_lr < lower:
            remedy = f"raise max_lr or lower {key}; equal bounds are a constant"
            raise refusal("max_lr", f"at least {key} ({lower!r})", policy.max_lr, remedy)


def refusal(key: str, expected: str, value: object, remedy: str) -> ValueError:
    """The error to raise for an argument: every policy words it alike."""
    return ValueError(f"schedule.{key}: expected {expected}, got {value!r}; {remedy}")


def _integer(least: int, expected: str, remedy: str) -> Rule:
    """A rule: an int of at least `least`, or anything that indexes like one."""

    def rule(key: str, value: Any) -> int:
        try:
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise refusal(key, expected, value, f"{remedy}; write an int, such as 2000, not 2000.0 or '2000'") from None
        if number < least:
            raise refusal(key, expected, value, remedy)
        return number

    return rule


def _number(accept: Callable[[float], bool], expected: str, remedy: str) -> Rule:
    def rule(key: str, value: Any) -> float:
        if isinstance(value, (str, bytes, bool, np.bool_)):
            raise refusal(key, expected, value, remedy)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise refusal(key, expected, value, remedy) from None
        if not (math.isfinite(number) and accept(number)):
            raise refusal(key, expected, value, remedy)
        return number

    return rule


def _schedule(key: str, value: Any) -> Schedule:
    if not callable(value) or isinstance(value, type):
        remedy = "give a schedule object, or in a config a node with `_target_: cyclical_lr.schedules.<policy>`"
        raise refusal(key, "a schedule, called with the iteration", value, remedy)
    return cast(Schedule, value)


_milestone = _integer(1, "a positive integer iteration", "list the iterations of the drops")


def _milestones(key: str, value: Any) -> tuple[int, ...]:
    expected = "a list of strictly increasing positive integer iterations"
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise refusal(key, expected, value, "write a list such as [60000, 65000]")
    milestones = tuple(_milestone(f"{key}[{i}]", milestone) for i, milestone in enumerate(value))
    if any(later <= earlier for earlier, later in itertools.pairwise(milestones)):
        raise refusal(key, expected, list(milestones), "sort them and name each drop once")
    return milestones


_rate = _number(lambda n: n >= 0, "a finite learning rate of at least 0", "give a learning rate such as 0.001")
_duration = _integer(1, "a positive integer number of iterations", "give the length in iterations")
_multiple = _integer(1, "a positive integer factor", "1 changes nothing")
optional_duration = _integer(0, "an integer number of iterations of at least 0", "0 leaves this part out")

RULES: dict[str, Rule] = {
    "base_lr": _rate,
    "max_lr": _rate,
    "min_lr": _rate,
    "gamma": _number(
        lambda n: 0 < n <= 1,
        "a factor above 0 and at most 1",
        "1 means no decay, 0.1 a tenth at each drop, 0.99994 a slow decay per iteration",
    ),
    "stepsize": _integer(
        1,
        "a positive integer number of iterations (half a cycle)",
        "the paper advises 2 to 10 times the iterations of an epoch",
    ),
    "milestones": _milestones,
    "schedule": _schedule,
    "every": _duration,
    "first": _integer(0, "an integer of at least 0", "give the number of the first epoch, 0 or 1"),
    "start": _integer(0, "an integer iteration of at least 0", "give the iteration at which the phase begins"),
    "factor": _multiple,
    "iterations": _duration,
    "period": _duration,
    "period_mult": _multiple,
    "pct_start": _number(
        lambda n: 0 < n < 1, "a fraction between 0 and 1, both excluded", "0.3 is 30 % of the iterations"
    ),
    "div_factor": _number(lambda n: n >= 1, "a divisor of at least 1", "25 starts at max_lr / 25"),
    "final_div_factor": _number(lambda n: n >= 1, "a divisor of at least 1", "1e4 ends 10,000 times below the start"),
    "warmup": optional_duration,
}
