"""The LR range test (Section 3.3, Figure 3): from accuracies under a rising LR to (base_lr, max_lr).

The paper reads base_lr off where the accuracy starts to rise, and max_lr off where it slows, turns ragged or falls.
Each of these words is a rule here, with every threshold in `Thresholds`. Where a curve does not show what a rule looks
for, the rule gives None and says why. A curve of your own model is measured in plain torch by
`range_test_loop.lr_range_test`, in Lightning by `training.range_test.LRRangeTest`:

    print(report([curve], stepsize=2000))

Two cautions. LR and iterations rise together, so a longer test finds a lower base_lr: compare tests of one length. And
every LR read off is one that was tried: the distance between two evaluations is an uncertainty of its own.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from cyclical_lr.schedules import RangeTest

if TYPE_CHECKING:  # a training loop of your own needs no Hydra
    from cyclical_lr.records import CurveRow, Record

Array = np.ndarray[Any, Any]
Found = tuple[float | None, str]
"""What a rule says: the LR, None where the curve does not show it, and why."""

# Curves ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One range test: at each evaluation the LR reached and the accuracy in percent; NaN once training has diverged.

    Raises:
        ValueError: fewer than two points, LRs that do not rise, accuracies outside 0 to 100, NaN but at the end.
    """

    lr: tuple[float, ...]
    accuracy: tuple[float, ...]
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", tuple(float(value) for value in self.lr))
        object.__setattr__(self, "accuracy", tuple(float(value) for value in self.accuracy))
        if len(self.lr) != len(self.accuracy) or len(self.lr) < 2:
            raise ValueError(
                f"curve: expected an accuracy for each of two or more LRs, got {len(self.lr)} LRs and "
                f"{len(self.accuracy)} accuracies; evaluate more often"
            )
        if not all(a < b for a, b in zip(self.lr, self.lr[1:], strict=False)):
            raise ValueError(f"curve.lr: expected LRs that rise, got {self.lr}; give the ramp's half of a test only")
        if not all(0 <= value < math.inf for value in self.lr):
            raise ValueError(f"curve.lr: expected finite LRs from 0, got {self.lr}; leave the others out")
        finite = [not math.isnan(value) for value in self.accuracy]
        if sorted(finite, reverse=True) != finite:
            raise ValueError(f"curve.accuracy: expected NaN at the end only, got {self.accuracy}; evaluate again")
        if not all(0 <= value <= 100 for value in self.accuracy if not math.isnan(value)):
            raise ValueError(f"curve.accuracy: expected percent, 0 to 100, got {self.accuracy}; convert first")


def curve_of(record: "Record", rows: "Sequence[CurveRow]") -> Curve:
    """The curve of a finished run of the study under `schedule=range_test`, up to where its LR stops rising.

    With a NaN at the LR where it diverged.
    """
    schedule, compress = record.config["schedule"], record.config.get("compress", 1)
    end = schedule.get("stepsize", math.inf)
    points = [(row.lr, row.test_accuracy) for row in rows if row.iteration * compress <= end]
    if record.status == "diverged" and record.iterations * compress <= end:
        ramp = RangeTest(schedule["base_lr"], schedule["max_lr"], end)
        points.append((ramp(record.iterations * compress), math.nan))
    return Curve(tuple(lr for lr, _ in points), tuple(accuracy for _, accuracy in points), record.seed)


# Rules ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """What the rules call a rise, a slowdown, ragged and a fall. None was tuned to reproduce the paper's choice.

    Args:
        chance: accuracy in percent without learning; None takes the curve's first, measured before any update where
            the test starts at iteration 0.
        min_rise: points above chance that the best accuracy must have, or nothing was learnt; None stands for ten times
            `noise`, 5 points over 10,000 test images.
        margin: fraction of the rise (best minus chance) at which the accuracy has started to rise.
        slowdown: slope after the knee over slope before it, below which the rise has slowed.
        noise: standard error of one accuracy in points: 50 / sqrt(n) at 50 % over n test images, 0.5 for 10,000.
        roughness: standard errors of a difference, sqrt(2) * noise, above which the noise does not explain it: a fall
            and a rise after it, each above, make the curve ragged. 4 because a peak and a trough are extremes of some
            twenty evaluations, which pure noise spreads by nearly 3 of them.
        fall: fraction of the rise by which the accuracy must lie below the best so far to have fallen, and by no less
            than `step`.
        sustained: evaluations that make a trend: for an onset, for a fall, and on either side of a knee.

    Raises:
        ValueError: a threshold that no curve can meet, or that every curve meets.
    """

    chance: float | None = None
    min_rise: float | None = None
    margin: float = 0.1
    slowdown: float = 0.5
    noise: float = 0.5
    roughness: float = 4.0
    fall: float = 0.1
    sustained: int = 3

    def __post_init__(self) -> None:
        def check(key: str, fits: Callable[[Any], bool], expected: str) -> None:
            value, default = getattr(self, key), type(self).__dataclass_fields__[key].default
            try:
                fine = (value is None and default is None) or fits(value)
            except TypeError:  # no number
                fine = False
            if not fine:
                raise ValueError(f"thresholds.{key}: expected {expected}, got {value!r}; the default is {default}")

        check("chance", lambda x: 0 <= x < 100, "percent, from 0 to below 100, or None")
        for key in ("margin", "fall", "slowdown"):
            check(key, lambda x: 0 < x < 1, "a fraction between 0 and 1, both excluded")
        for key in ("noise", "roughness"):
            check(key, lambda x: 0 < x < math.inf, "a number above 0")
        check("min_rise", lambda x: 0 < x < math.inf, "a number above 0, or None")
        check("sustained", lambda x: isinstance(x, Integral) and int(x) >= 2, "an integer of at least 2")

    @property
    def learnt(self) -> float:
        """Points above chance below which nothing was learnt."""
        return 10 * self.noise if self.min_rise is None else self.min_rise

    @property
    def step(self) -> float:
        """Points by which two accuracies must differ for the noise not to explain it."""
        return self.roughness * math.sqrt(2) * self.noise


@dataclass(frozen=True)
class _Rise:
    """The finite part of a curve from its onset on. `foot` is the index of the last evaluation before the onset."""

    lr: Array
    accuracy: Array
    foot: int
    height: float  # best minus chance, in points
    diverged: str


def _rise(curve: Curve, thresholds: Thresholds) -> _Rise | str:
    """The rise, or why there is none."""
    finite = np.isfinite(curve.accuracy)
    lr, accuracy = np.asarray(curve.lr)[finite], np.asarray(curve.accuracy)[finite]
    diverged = "" if finite.all() else f"training diverged by LR {_short(curve.lr[len(lr)])}"
    if not len(lr):
        return "no onset: the accuracy is NaN from the first LR on; start at a lower one"
    chance = accuracy[0] if thresholds.chance is None else thresholds.chance
    height = float(accuracy.max() - chance)
    after = f", and {diverged}" if diverged else ""
    if accuracy.max() <= 1:
        return f"no onset: the highest accuracy is {accuracy.max():.2f} %{after}; if these are fractions, give percent"
    if height < thresholds.learnt:
        unchanged = len(accuracy) > 1 and accuracy.min() == accuracy.max()
        flat = " (it never changes: is it that of the model in training?)" if unchanged else ""
        wider = "test a wider range of LRs, or longer"
        if diverged:
            wider = "test up to a lower LR, and evaluate more often"
        return (
            f"no onset: the accuracy stays below {chance + thresholds.learnt:.1f} %, {thresholds.learnt:g} points "
            f"above {chance:.1f} %{after}; "
            f"{wider if chance + thresholds.learnt <= 100 else 'start from untrained weights, or give min_rise'}{flat}"
        )
    above = accuracy >= chance + thresholds.margin * height
    last = len(lr) - thresholds.sustained
    onset = next((i for i in range(last + 1) if above[i : i + thresholds.sustained].all()), None)
    if onset is None:
        few = f"but not for {thresholds.sustained} evaluations"
        return f"no onset: the accuracy rises to {accuracy.max():.1f} %, {few}{after}; evaluate more often"
    if onset == 0:
        return f"no onset: the accuracy is {accuracy[0]:.1f} % at the first LR, {_short(lr[0])}; start at a lower one"
    return _Rise(lr, accuracy, onset - 1, height, diverged)


def _onset(rise: _Rise, thresholds: Thresholds) -> Found:
    """Where the accuracy has started to rise: above chance by `margin` of the rise, and it stays there."""
    lr, accuracy = rise.lr[rise.foot : rise.foot + 2], rise.accuracy[rise.foot : rise.foot + 2]
    reason = (
        f"the accuracy passes {thresholds.margin:.0%} of its rise of {rise.height:.1f} points between "
        f"{_short(lr[0])} ({accuracy[0]:.1f} %) and {_short(lr[1])} ({accuracy[1]:.1f} %)"
    )
    return float(lr[1]), reason


def _plateau(rise: _Rise, thresholds: Thresholds) -> Found:
    """Where the rise slows: the knee of two straight lines, if they fit better than one (by BIC).

    They are fitted from the last evaluation before the onset to the last that the noise does not tell from the best, up
    to a sustained fall.
    """
    risen = rise.accuracy[: _fall(rise, thresholds)]
    end = int(np.flatnonzero(risen >= risen.max() - thresholds.step)[-1]) + 1
    x, y = rise.lr[rise.foot : end], rise.accuracy[rise.foot : end]
    n, side = len(x), thresholds.sustained
    if n < 2 * side - 1:
        return None, f"no knee to look for: {n} evaluations in the rise, {2 * side - 1} needed; evaluate more often"

    def fit(*columns: Array) -> tuple[Array, float]:
        design = np.stack([np.ones(n), *columns], axis=1)
        coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
        return coefficients, float(np.square(y - design @ coefficients).sum())

    x = (x - x[0]) / (x[-1] - x[0])  # LRs of 1e-4 would leave the fit badly conditioned
    knees = []
    for k in range(side - 1, n - side + 1):
        (_, before, bend), error = fit(x, np.maximum(0, x - x[k]))
        if before > 0 and bend < 0:
            knees.append((error, k, 1 + bend / before))
    error, knee, ratio = min(knees, default=(0.0, 0, 1.0))
    if ratio >= thresholds.slowdown:
        return None, f"no plateau: nowhere does the slope drop below {thresholds.slowdown:g} of what it was"
    line = fit(x)[1]
    # Rounding is all that is left of a perfectly straight rise: it must not count as a knee.
    exact = 1e-12 * float(np.square(y - y.mean()).sum())
    if line <= exact or n * math.log(max(error, exact) / line) + 2 * math.log(n) >= 0:
        return None, "no plateau: one straight line fits the rise as well as two"
    return float(rise.lr[rise.foot + knee]), f"the slope drops to {ratio:.2f} of what it was"


def _raggedness(rise: _Rise, thresholds: Thresholds) -> Found:
    """The peak before the first fall and recovery that both exceed the noise."""
    size = thresholds.step
    peak = rise.foot
    trough: int | None = None
    for i in range(rise.foot + 1, len(rise.lr)):
        if trough is None:
            if rise.accuracy[i] > rise.accuracy[peak]:
                peak = i
            elif rise.accuracy[i] < rise.accuracy[peak] - size:
                trough = i
        elif rise.accuracy[i] < rise.accuracy[trough]:
            trough = i
        elif rise.accuracy[i] > rise.accuracy[trough] + size:
            a, b, c = rise.accuracy[[peak, trough, i]]
            reason = f"the accuracy goes from {a:.1f} to {b:.1f} to {c:.1f} %, each way by more than {size:.1f} points"
            return float(rise.lr[peak]), reason
    return None, f"not ragged: no fall and recovery of more than {size:.1f} points each"


def _drop(rise: _Rise, thresholds: Thresholds) -> Found:
    """The best accuracy before the first sustained fall, or before training diverged."""
    start = _fall(rise, thresholds)
    if start is None:
        best = rise.lr[int(rise.accuracy.argmax())]
        reason = f"no fall for {thresholds.sustained} evaluations up to LR {_short(rise.lr[-1])}"
        return None, f"{reason} (best at {_short(best)}); test up to a higher LR"
    best = int(rise.accuracy[:start].argmax())
    if start < len(rise.lr):
        how = f"falls by {thresholds.fall:.0%} of its rise from LR {_short(rise.lr[start])} on"
    else:
        how = f"is the best before {rise.diverged}"
    return float(rise.lr[best]), f"the accuracy, {rise.accuracy[best]:.1f} %, {how}"


def _fall(rise: _Rise, thresholds: Thresholds) -> int | None:
    """Index at which the first sustained fall from the running best starts; divergence is one."""
    depth = max(thresholds.fall * rise.height, thresholds.step)
    low = rise.accuracy < np.maximum.accumulate(rise.accuracy) - depth
    for i in range(rise.foot + 1, len(low) + bool(rise.diverged)):
        window = low[i : i + thresholds.sustained]
        if window.all() and (len(window) == thresholds.sustained or rise.diverged):
            return i
    return None


def _earliest(rise: _Rise, thresholds: Thresholds) -> Found:
    """The lowest LR at which the rise slows, turns ragged or falls: the paper's sentence."""
    readings = {name: rule(rise, thresholds) for name, rule in CEILINGS.items()}
    found = {name: lr for name, (lr, _) in readings.items() if lr is not None}
    if not found:
        return None, "; ".join(reason for _, reason in readings.values())
    name = min(found, key=found.__getitem__)
    return found[name], f"{name}: {readings[name][1]}"


CEILINGS = {"plateau": _plateau, "raggedness": _raggedness, "drop": _drop}
MAX_RULES: Mapping[str, Callable[[_Rise, Thresholds], Found]] = {"earliest": _earliest, **CEILINGS}
"""How max_lr is read off the rise of a curve: what the paper names, and the first of them."""
DIVISORS = {"third": 3, "quarter": 4}
BASE_RULES = ("onset", *DIVISORS)
"""How base_lr is found: where the accuracy starts to rise, or the paper's rule of thumb, max_lr / 3 or / 4."""


# Bounds over seeds ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """One bound as one rule reads it off one seed's curve: lr is None where the curve does not show it."""

    lr: float | None
    reason: str
    seed: int | None = None


@dataclass(frozen=True)
class Bound:
    """One bound over the seeds: `lr` is the median of those that show it, None unless more than half do.

    `spread` is the lowest and highest LR over the seeds, None where fewer than two show it.
    """

    rule: str
    lr: float | None
    spread: tuple[float, float] | None
    readings: tuple[Reading, ...]
    reason: str


@dataclass(frozen=True)
class Bounds:
    """What a range test suggests, with where each bound comes from."""

    base: Bound
    max: Bound

    @property
    def base_lr(self) -> float | None:
        """None where the curve shows none."""
        return self.base.lr

    @property
    def max_lr(self) -> float | None:
        """None where the curve shows none."""
        return self.max.lr

    @property
    def usable(self) -> bool:
        """Whether both were found, and in order."""
        return self.base.lr is not None and self.max.lr is not None and self.base.lr < self.max.lr

    @property
    def rule(self) -> str:
        return f"{self.base.rule}, {self.max.rule}"

    @property
    def reason(self) -> str:
        return f"base_lr: {self.base.reason}. max_lr: {self.max.reason}"


def check_rules(base_rule: str, max_rule: str) -> None:
    """Refuse what `find_bounds` would, before a test is run.

    Raises:
        ValueError: an unknown rule.
    """
    for key, rule, rules in (("base_rule", base_rule, BASE_RULES), ("max_rule", max_rule, tuple(MAX_RULES))):
        if rule not in rules:
            raise ValueError(f"{key}: expected one of {', '.join(rules)}, got {rule!r}")


def find_bounds(
    curves: Curve | Sequence[Curve],
    base_rule: str = "onset",
    max_rule: str = "earliest",
    thresholds: Thresholds | None = None,
) -> Bounds:
    """(base_lr, max_lr) from one curve per seed, each read on its own.

    Args:
        curves: of the same test; or one.
        base_rule: one of BASE_RULES; `third` and `quarter` divide each seed's max_lr.
        max_rule: one of MAX_RULES.
        thresholds: None stands for `Thresholds()`.
    Raises:
        ValueError: no curve, or an unknown rule.
    """
    thresholds, curves = Thresholds() if thresholds is None else thresholds, _listed(curves)
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds: expected Thresholds(...) or None, got {thresholds!r}")
    if not curves:
        raise ValueError("curves: expected one or more, got none; run the range test first")
    check_rules(base_rule, max_rule)
    ceilings = [_read(MAX_RULES[max_rule], curve, thresholds) for curve in curves]
    if base_rule == "onset":
        floors = [_read(_onset, curve, thresholds) for curve in curves]
    else:
        floors = [_fraction(ceiling, DIVISORS[base_rule]) for ceiling in ceilings]
    return Bounds(_over_seeds(base_rule, floors), _over_seeds(max_rule, ceilings))


def _listed(curves: Curve | Sequence[Curve]) -> Sequence[Curve]:
    listed = [curves] if isinstance(curves, Curve) else list(curves)
    if strangers := [curve for curve in listed if not isinstance(curve, Curve)]:
        raise ValueError(f"curves: expected Curve(lr, accuracy), one per seed, got a {type(strangers[0]).__name__}")
    return listed


def _read(rule: Callable[[_Rise, Thresholds], Found], curve: Curve, thresholds: Thresholds) -> Reading:
    rise = _rise(curve, thresholds)
    lr, reason = (None, rise) if isinstance(rise, str) else rule(rise, thresholds)
    return Reading(lr, reason, curve.seed)


def _fraction(ceiling: Reading, divisor: int) -> Reading:
    if ceiling.lr is None:
        return Reading(None, "no max_lr to divide", ceiling.seed)
    return Reading(ceiling.lr / divisor, f"max_lr / {divisor}", ceiling.seed)


def _over_seeds(rule: str, readings: Sequence[Reading]) -> Bound:
    found = sorted(reading.lr for reading in readings if reading.lr is not None)
    enough = 2 * len(found) > len(readings)
    if len(readings) == 1:
        reason = readings[0].reason
    else:
        other = [reading for reading in readings if (reading.lr is None) == enough]
        reason = f"{len(found)} of {len(readings)} seeds show it"
        if other:
            reason += f"; {'not' if enough else 'only'} seed " + ", ".join(
                f"{'?' if o.seed is None else o.seed} ({o.reason})" for o in other
            )
        elif not found:
            reason += f": {'; '.join(dict.fromkeys(reading.reason for reading in readings))}"
    spread = (found[0], found[-1]) if len(found) > 1 else None
    return Bound(rule, float(np.median(found)) if enough else None, spread, tuple(readings), reason)


def overrides(bounds: Bounds, stepsize: int) -> str:
    """Hydra overrides for a triangular schedule between the bounds, ready to paste.

    Args:
        bounds: with both bounds.
        stepsize: half a cycle, in iterations; the paper advises 2 to 10 times the iterations of an epoch.
    Raises:
        ValueError: a bound is missing, or they are not in order.
    """
    base_lr, max_lr = _short(bounds.base_lr), _short(bounds.max_lr)
    if not bounds.usable:
        raise ValueError(
            f"bounds: expected base_lr < max_lr, got {base_lr} and {max_lr} ({bounds.reason}); choose another rule or "
            "read the curve yourself"
        )
    return f"schedule=triangular schedule.base_lr={base_lr} schedule.max_lr={max_lr} schedule.stepsize={stepsize}"


def report(
    curves: Curve | Sequence[Curve],
    stepsize: int,
    base_rule: str = "onset",
    max_rule: str = "earliest",
    thresholds: Thresholds | None = None,
) -> str:
    """What every rule says, the bounds of the chosen two, and the schedule between them or why there is none.

    For people to read: the schedule as an object and as Hydra overrides.

    Raises:
        ValueError: as `find_bounds`.
    """
    curves = _listed(curves)
    if isinstance(stepsize, bool) or not isinstance(stepsize, Integral) or stepsize < 1:
        raise ValueError(f"stepsize: expected a whole number of iterations >= 1, got {stepsize!r}")
    chosen = find_bounds(curves, base_rule, max_rule, thresholds)
    seeds = "1 seed" if len(curves) == 1 else f"{len(curves)} seeds"
    lines = [f"LR range test, {seeds}, LR {_short(curves[0].lr[0])} to {_short(curves[0].lr[-1])}"]
    read = [("base_lr", find_bounds(curves, rule, max_rule, thresholds).base) for rule in BASE_RULES]
    read += [("max_lr", find_bounds(curves, base_rule, rule, thresholds).max) for rule in MAX_RULES]
    missing: dict[str, str] = {}
    for name, bound in read:
        first = bound.rule if bound.lr is not None else missing.setdefault(bound.reason, bound.rule)
        lines.append(_line(name, bound if first == bound.rule else replace(bound, reason=f"as for {first}")))
    noise = (thresholds or Thresholds()).noise
    known = f"{noise:g} points, as of {(50 / noise) ** 2:,.0f} images"
    lines.append(f"  accuracies are taken to be known to {known}; of n, give Thresholds(noise=50 / sqrt(n))")
    if not chosen.usable:
        why = ", for the reasons above; read the curve yourself"
        if chosen.base_lr is not None and chosen.max_lr is not None:
            why = f" (base_lr {_short(chosen.base_lr)} is not below max_lr {_short(chosen.max_lr)})"
            why += "; evaluate more often, or read the curve yourself"
        return "\n".join([*lines, f"  by {chosen.rule}: no suggestion{why}"])
    bounds = f"base_lr={_short(chosen.base_lr)}, max_lr={_short(chosen.max_lr)}, stepsize={stepsize}"
    lines.append(f"  by {chosen.rule}: Triangular({bounds})")
    return "\n".join([*lines, f"  as overrides: {overrides(chosen, stepsize)}"])


def _line(name: str, bound: Bound) -> str:
    spread = f" [{_short(bound.spread[0])}, {_short(bound.spread[1])}]" if bound.spread else ""
    line = f"  {name:<8} {bound.rule:<11} {_short(bound.lr) + spread:<18} {bound.reason}"
    return textwrap.fill(line, 118, subsequent_indent=" " * 42)


def _short(lr: float | None) -> str:
    return "none" if lr is None else f"{lr:.6g}"
