"""The later LR policies against tables to check by eye, and against torch where the two agree."""

import math

import numpy as np
import pytest
import torch
from rates import every, torch_rates

from cyclical_lr.comparators import Cosine, CosineRestarts, OneCycle, WarmupStableDecay


def test_cosine_falls_and_stays():
    # cos of 0, 60, 120, 180 degrees: 1, 1/2, -1/2, -1.
    np.testing.assert_allclose(every(Cosine(4, iterations=3), 6), [4, 3, 1, 0, 0, 0], atol=1e-15)


def test_cosine_restarts_after_each_longer_period():
    # A period of 2 (4, 2), one of 4 (at 0, 45, 90 and 135 degrees), one of 8 that begins at t = 6.
    s = math.sqrt(0.5)
    expected = [4, 2, 4, 2 + 2 * s, 2, 2 - 2 * s, 4]
    np.testing.assert_allclose(every(CosineRestarts(4, period=2, period_mult=2), 7), expected, atol=1e-15)


def test_one_cycle_rises_to_max_lr_and_ends_far_below_its_start():
    # Rise from 1 over 0.5 * 6 - 1 = 2 iterations, fall to 1/2 over the 3 iterations from there to t = 5.
    cycle = OneCycle(5, iterations=6, pct_start=0.5, div_factor=5, final_div_factor=2)
    expected = [1, 3, 5, 0.5 + 4.5 * 0.75, 0.5 + 4.5 * 0.25, 0.5, 0.5]
    np.testing.assert_allclose(every(cycle, 7), expected, rtol=1e-14)


@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_one_cycle_too_short_to_rise_begins_with_the_fall(iterations):
    # With pct_start 0.1 and 10 iterations the peak is at t = 0, where torch divides by zero.
    rates = every(OneCycle(4, iterations, pct_start=0.1, div_factor=2, final_div_factor=2), iterations)
    assert all(1 <= rate <= 4 for rate in rates)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1)


def test_warmup_stable_decay_is_a_trapezoid():
    assert every(WarmupStableDecay(4, iterations=9, warmup=2, decay=4), 11) == [0, 2, 4, 4, 4, 4, 3, 2, 1, 0, 0]


def test_warmup_stable_decay_without_warmup_and_decay_is_constant():
    assert every(WarmupStableDecay(4, iterations=3, warmup=0, decay=0), 5) == [4, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("ours", "make"),
    [
        (
            OneCycle(0.1, 500),
            lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=500),
        ),
        (
            OneCycle(0.1, 333, pct_start=0.2, div_factor=10, final_div_factor=100),
            lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.1, total_steps=333, pct_start=0.2, div_factor=10, final_div_factor=100
            ),
        ),
        (
            OneCycle(0.1, 2),
            lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2),
        ),
    ],
    ids=["defaults", "own arguments", "two iterations"],
)
def test_equals_torch_one_cycle_lr(ours, make):
    # torch sets a momentum cycle up beside it unless told not to; only the LR is compared.
    def without_momentum(optimizer):
        optimizer.param_groups[0]["momentum"] = 0.9
        return make(optimizer)

    iterations = ours.iterations - 1  # torch refuses a step past the last
    np.testing.assert_allclose(every(ours, iterations), torch_rates(without_momentum, iterations), rtol=1e-10)


def test_equals_torch_cosine_annealing_lr_until_it_rises_again():
    def make(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300, eta_min=0.01)

    # torch computes each value from the one before, which adds up rounding.
    np.testing.assert_allclose(every(Cosine(0.1, 300, min_lr=0.01), 301), torch_rates(make, 301, lr=0.1), rtol=1e-8)


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_equals_torch_cosine_annealing_warm_restarts(mult):
    def make(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, mult, eta_min=0.01)

    ours = CosineRestarts(0.1, period=10, period_mult=mult, min_lr=0.01)
    np.testing.assert_allclose(every(ours, 500), torch_rates(make, 500, lr=0.1), rtol=1e-10)


def test_warmup_and_decay_must_fit_into_the_run():
    with pytest.raises(ValueError, match=r"schedule\.decay: expected at most iterations - warmup \(40\), got 41; "):
        WarmupStableDecay(0.1, iterations=100, warmup=60, decay=41)
    WarmupStableDecay(0.1, iterations=100, warmup=60, decay=40)
