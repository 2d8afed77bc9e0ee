"""Learning-rate policies later than the paper, to stand beside it under one budget: annealing, one cycle, a trapezoid.

They are pure functions of the iteration, called, checked and refused as those in `schedules` are.
"""

import math
from dataclasses import dataclass

import numpy as np

from cyclical_lr.policy import Iterations, Rates, of_iterations, optional_duration, refusal, settle


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
        settle(self)

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        return _cosine(self.max_lr, self.min_lr, np.minimum(1.0, t / self.iterations))


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
        settle(self)

    @of_iterations
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
        settle(self)

    @of_iterations
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
        settle(self, decay=optional_duration)
        if self.warmup + self.decay > self.iterations:
            expected = f"at most iterations - warmup ({self.iterations - self.warmup})"
            raise refusal("decay", expected, self.decay, "shorten warmup or decay, or train for more iterations")

    @of_iterations
    def __call__(self, t: Iterations) -> Rates:
        height = np.ones(t.shape)
        if self.warmup:
            height = np.minimum(height, t / self.warmup)
        if self.decay:
            height = np.minimum(height, np.maximum(0.0, (self.iterations - t) / self.decay))
        return self.min_lr + (self.max_lr - self.min_lr) * height


def _cosine(start: float, end: float, progress: Rates) -> Rates:
    """From start (progress 0) to end (progress 1) along half a cosine."""
    return end + (start - end) * (1 + np.cos(math.pi * progress)) / 2
