"""The statistics behind the verdicts of conf/paper/verdicts.yaml, on top of scipy's distributions and tests.

A sample holds one value per seed. Where a formula has no value, it is settled here rather than left to a nan:

- n = 0: an interval is (nan, nan). n = 1: there is no spread to measure, so an interval is (-inf, inf).
- All values equal: the spread is exactly zero, and an interval is the point itself.
- A test with fewer than two values on either side shows nothing: p = 1.
- Zero spread on both sides: p = 0 where the means lie on the side that is to be shown, 1 where they do not or tie.
- Values nearer to each other than `ROUNDING` tie: 100 * 0.57 must not miss 57.
- A target that is never reached has time infinity; a ratio of two infinities, or of two zeros, is nan: undefined.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Sample = ArrayLike
Floats = NDArray[np.float64]
ROUNDING = 1e-9


class Interval(NamedTuple):
    """A closed interval, in the unit of the values."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def holds(self, value: float) -> bool:
        return self.low - ROUNDING <= value <= self.high + ROUNDING


UNKNOWN = Interval(-np.inf, np.inf)
UNDEFINED = Interval(np.nan, np.nan)


def mean(sample: Sample) -> float:
    """The mean; nan for an empty sample. Equal values have exactly that mean."""
    x = _values(sample)
    if not len(x):
        return np.nan
    return float(x[0] if np.ptp(x) == 0 else x.mean())


def std(sample: Sample) -> float:
    """The standard deviation with n - 1; exactly 0 where all values are equal, nan below two values."""
    x = _values(sample)
    if len(x) < 2:
        return np.nan
    return 0.0 if np.ptp(x) == 0 else float(x.std(ddof=1))


# One sample -----------------------------------------------------------------------------------------------------------


def mean_interval(sample: Sample, confidence: float) -> Interval:
    """Confidence interval of the mean, from Student's t with n - 1 degrees of freedom."""
    return prediction_interval(sample, np.inf, confidence)


def prediction_interval(sample: Sample, runs: float, confidence: float, floor: float = 0.0) -> Interval:
    """Where the mean of `runs` new runs is expected: mean +- t s sqrt(1/runs + 1/n), taken as at least +-`floor`."""
    x = _values(sample)
    n, centre = len(x), mean(x)
    if n < 2:
        return UNKNOWN if n else UNDEFINED
    half = max(float(stats.t.ppf((1 + confidence) / 2, n - 1) * std(x) * np.sqrt(1 / runs + 1 / n)), floor)
    return Interval(centre - half, centre + half)


def median_interval(sample: Sample, confidence: float) -> Interval:
    """Confidence interval of the median between two order statistics, whatever the distribution.

    The narrowest such interval, symmetric in rank, of at least that confidence; (-inf, inf) where there is none.
    """
    x = _values(sample)
    if not len(x):
        return UNDEFINED
    low, high = stats.quantile_test(x, p=0.5).confidence_interval(confidence)
    return UNKNOWN if np.isnan(low) or np.isnan(high) else Interval(float(low), float(high))


# Two samples: Welch ---------------------------------------------------------------------------------------------------


def difference_interval(a: Sample, b: Sample, confidence: float) -> Interval:
    """Welch's confidence interval of mean(a) - mean(b)."""
    a, b = _values(a), _values(b)
    difference = mean(a) - mean(b)
    if min(len(a), len(b)) < 2:
        return UNKNOWN if min(len(a), len(b)) else UNDEFINED
    if std(a) == std(b) == 0:
        return Interval(difference, difference)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
    return Interval(float(low), float(high))


def welch_greater(a: Sample, b: Sample, margin: float = 0.0) -> float:
    """p-value of Welch's one-sided test; small where mean(a) is above mean(b) + margin."""
    a, b = _values(a), _values(b)
    if min(len(a), len(b)) < 2:
        return 1.0
    above = mean(a) - (mean(b) + margin)
    sa, sb = std(a), std(b)
    if sa == sb == 0:
        return 0.0 if above > ROUNDING else 1.0
    test = stats.ttest_ind_from_stats(above, sa, len(a), 0.0, sb, len(b), equal_var=False, alternative="greater")
    return float(test.pvalue)


def tost(a: Sample, b: Sample, margin: float) -> float:
    """p-value of equivalence by two one-sided Welch tests: small where |mean(a) - mean(b)| is below `margin`."""
    return max(welch_greater(a, b, -margin), welch_greater(b, a, -margin))


def holm(p: Sample) -> Floats:
    """p-values [k] adjusted by Holm's step-down procedure over their family, in the order given."""
    p = _values(p)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


# Time to target -------------------------------------------------------------------------------------------------------


def time_to_target(times: Sample, accuracies: Sample, target: float) -> float:
    """Time of the first evaluation at or above `target` whose next one is at or above it too; infinity without one.

    Args:
        times, accuracies: [k], one per evaluation, in the order of training. The last one has no next and cannot count.
    """
    reached = _values(accuracies) >= target - ROUNDING
    held = np.flatnonzero(reached[:-1] & reached[1:])
    return float(_values(times)[held[0]]) if len(held) else np.inf


def median(times: Sample) -> float:
    """The median, infinities included; nan for an empty sample."""
    times = _values(times)
    return float(np.median(times)) if len(times) else np.nan


def ratio(b: float, a: float) -> float:
    """b / a for times from 0 to infinity: how often a fits into b. nan where that is undefined."""
    return float(_ratio(np.float64(b), np.float64(a)))


def bootstrap_ratio_of_medians(b: Sample, a: Sample, resamples: int, confidence: float, seed: int) -> Interval:
    """Percentile bootstrap interval of median(b) / median(a), resampling the seeds of each side on their own.

    scipy's bootstrap interpolates between resamples, which infinities do not survive; here an end is a value that a
    resample had. A resample whose ratio is undefined counts as 0 for the lower end and as infinity for the upper one.
    Below two seeds on either side there is nothing to resample: (nan, nan).
    """
    a, b = _values(a), _values(b)
    if min(len(a), len(b)) < 2:
        return UNDEFINED
    rng = np.random.default_rng(seed)
    medians_b, medians_a = (np.median(rng.choice(x, (resamples, len(x))), axis=1) for x in (b, a))
    ratios = _ratio(medians_b, medians_a)
    low = np.quantile(np.nan_to_num(ratios, nan=0.0, posinf=np.inf), (1 - confidence) / 2, method="lower")
    high = np.quantile(np.nan_to_num(ratios, nan=np.inf, posinf=np.inf), (1 + confidence) / 2, method="higher")
    return Interval(float(low), float(high))


def _ratio(b: Any, a: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return b / a


def _values(sample: Sample) -> Floats:
    return np.asarray(sample, dtype=np.float64)
