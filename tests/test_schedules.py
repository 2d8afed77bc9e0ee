"""The paper's LR policies against tables to check by eye, against torch where the two agree, and as cycles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rates import ITERATIONS, TABLE_2, bounds, every, torch_rates

from cyclical_lr.schedules import (
    Compressed,
    Decay,
    Drops,
    Exp,
    ExpRange,
    Fixed,
    Hann,
    Held,
    MultiStep,
    Phase,
    Phases,
    RangeTest,
    Triangular,
    Triangular2,
    Welch,
)

# ---- Tables to check by eye ------------------------------------------------------------------------------------------


def test_fixed_is_constant():
    assert every(Fixed(0.01), 4) == [0.01, 0.01, 0.01, 0.01]


def test_multistep_drops_at_the_milestone_itself():
    assert every(MultiStep(1.0, [2, 5], gamma=0.5), 7) == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_figure_1_fixed_drops_at_60k_and_65k():
    fixed = MultiStep(0.001, [60000, 65000])
    t = np.array([0, 59999, 60000, 64999, 65000, 69999])
    np.testing.assert_allclose(fixed(t), [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-15)


def test_triangular_climbs_and_falls_in_equal_steps():
    assert every(Triangular(1, 5, stepsize=4), 17) == [1, 2, 3, 4, 5, 4, 3, 2, 1, 2, 3, 4, 5, 4, 3, 2, 1]


def test_triangular_with_stepsize_one_alternates():
    assert every(Triangular(1, 5, stepsize=1), 5) == [1, 5, 1, 5, 1]


def test_triangular2_halves_after_each_cycle():
    rates = every(Triangular2(1, 9, stepsize=4), 26)
    assert rates[:8] == [1, 3, 5, 7, 9, 7, 5, 3]
    assert rates[8:16] == [1, 2, 3, 4, 5, 4, 3, 2]
    assert rates[16:24] == [1, 1.5, 2, 2.5, 3, 2.5, 2, 1.5]
    assert rates[24:] == [1, 1.25]


def test_triangular2_ends_at_base_lr_instead_of_overflowing():
    assert Triangular2(1, 9, stepsize=1)(2 * 10**6 + 1) == 1.0


def test_welch_is_a_parabola():
    # (1 - x^2) * 16 for x = -1, -3/4, -1/2, ...: 0, 7, 12, 15, 16.
    assert every(Welch(1, 17, stepsize=4), 10) == [1, 8, 13, 16, 17, 16, 13, 8, 1, 8]


def test_hann_is_a_raised_cosine():
    # (1 + cos(pi x)) / 2 for x = -1, -2/3, -1/3, 0: 0, 1/4, 3/4, 1.
    np.testing.assert_allclose(every(Hann(1, 5, stepsize=3), 8), [1, 2, 4, 5, 4, 2, 1, 2], rtol=1e-14)


def test_exp_range_of_the_paper_decays_both_bounds():
    # The triangle 1 2 3 2 1 2 3 times 1, 1/2, 1/4, ...
    expected = [1, 2 / 2, 3 / 4, 2 / 8, 1 / 16, 2 / 32, 3 / 64]
    assert every(ExpRange(1, 3, stepsize=2, gamma=0.5), 7) == expected


def test_exp_range_amplitude_keeps_base_lr():
    # 1 plus the triangle 0 1 2 1 0 1 2 times 1, 1/2, 1/4, ...
    expected = [1, 1 + 1 / 2, 1 + 2 / 4, 1 + 1 / 8, 1, 1 + 1 / 32, 1 + 2 / 64]
    assert every(ExpRange(1, 3, stepsize=2, gamma=0.5, decay="amplitude"), 7) == expected


@pytest.mark.parametrize(("t", "bounds", "amplitude"), [(20000, 0.000301, 0.001), (42000, 0.000483, 0.001402)])
def test_the_two_readings_of_exp_range_differ(t, bounds, amplitude):
    arguments = {"base_lr": 0.001, "max_lr": 0.006, "stepsize": 2000, "gamma": 0.99994}
    assert ExpRange(**arguments)(t) == pytest.approx(bounds, abs=5e-7)
    assert ExpRange(**arguments, decay="amplitude")(t) == pytest.approx(amplitude, abs=5e-7)


def test_decay_falls_once_and_stays():
    assert every(Decay(1, 5, stepsize=4), 7) == [5, 4, 3, 2, 1, 1, 1]


def test_decay_of_table_1():
    decay = Decay(base_lr=0.001, max_lr=0.007, stepsize=4000)
    np.testing.assert_allclose(decay(np.array([0, 2000, 4000, 24999])), [0.007, 0.004, 0.001, 0.001], rtol=1e-14)


def test_exp_halves_each_iteration_with_gamma_one_half():
    assert every(Exp(8, gamma=0.5), 5) == [8, 4, 2, 1, 0.5]


def test_exp_of_table_1_at_70k():
    assert Exp(1.0, gamma=0.99994)(70000) == pytest.approx(0.0150, abs=5e-5)


def test_range_test_climbs_once_and_stays():
    assert every(RangeTest(0, 4, stepsize=4), 7) == [0, 1, 2, 3, 4, 4, 4]


def test_drops_multiply_whatever_is_inside():
    # The triangle 4 8 12 8 4 8 12, halved from 3 on and again from 5 on.
    assert every(Drops(Triangular(4, 12, stepsize=2), [3, 5], gamma=0.5), 7) == [4, 8, 12, 4, 2, 2, 3]


def test_held_repeats_the_value_at_the_start_of_each_stretch():
    # The triangle 1 2 3 4 5 4 3 2 1, of which every third value is seen.
    assert every(Held(Triangular(1, 5, stepsize=4), every=3), 9) == [1, 1, 1, 4, 4, 4, 3, 3, 3]
    assert every(Held(Triangular(1, 5, stepsize=4), every=3, first=1), 6) == [4, 4, 4, 3, 3, 3]


def test_held_by_epoch_is_the_papers_torch_listing_which_counts_epochs():
    # Table 4's ResNet: 391 iterations an epoch, a cycle of 16.4 epochs.
    held = Held(Triangular(0.1, 0.3, stepsize=3206), every=391)
    from_1 = Held(Triangular(0.1, 0.3, stepsize=3206), every=391, first=1)
    for epoch in range(164):
        cycle = math.floor(1 + epoch / 16.4)
        lr = 0.1 + 0.2 * max(0.0, 1 - abs(epoch / 8.2 - 2 * cycle + 1))
        # 3,206 stands for 8.2 x 391 = 3,206.2, which after ten cycles is four iterations, a hundredth of an epoch.
        assert held(np.array([391 * epoch, 391 * epoch + 390])) == pytest.approx([lr, lr], abs=0.2 * 4 / 3206)
        assert epoch == 0 or from_1(391 * (epoch - 1)) == held(391 * epoch)


def test_phases_restart_the_cycle_and_the_halving():
    phases = Phases([Phase(0, Triangular2(1, 5, stepsize=2)), Phase(6, Triangular2(10, 50, stepsize=2))])
    # The first phase is left in the middle of its second cycle, which is half as high.
    assert every(phases, 6) == [1, 3, 5, 3, 1, 2]
    assert phases(np.arange(6, 14)).tolist() == [10, 30, 50, 30, 10, 20, 30, 20]


@pytest.mark.parametrize(
    ("t", "rate"),
    [
        (0, 0.001),
        (2000, 0.005),
        (4000, 0.001),
        (6000, 0.003),
        (15999, 0.001 + 0.004 / 8 / 2000),  # one iteration before the end of the fourth cycle
        (16000, 0.0001),
        (17000, 0.0005),
        (22000, 0.00001),
        (22500, 0.00005),
        (24999, 0.00001 + 0.00004 / 4 / 500),  # one iteration before the end of the third
    ],
)
def test_table_2_at_its_corners(t, rate):
    assert TABLE_2(t) == pytest.approx(rate, rel=1e-12)


def test_mean_lr_of_table_2s_first_phase():
    assert TABLE_2(np.arange(16000)).mean() == pytest.approx(0.00194, abs=5e-6)


def test_compressed_visits_every_factorth_value():
    assert every(Compressed(Triangular(1, 5, stepsize=4), factor=2), 6) == [1, 3, 5, 3, 1, 3]


# ---- Equality with torch where it agrees -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "mode"),
    [
        (Triangular(0.001, 0.006, 70), "triangular"),
        (Triangular2(0.001, 0.006, 70), "triangular2"),
        (ExpRange(0.001, 0.006, 70, gamma=0.999, decay="amplitude"), "exp_range"),
    ],
)
def test_equals_torch_cyclic_lr(ours, mode):
    def make(optimizer):
        return torch.optim.lr_scheduler.CyclicLR(
            optimizer, 0.001, 0.006, step_size_up=70, mode=mode, gamma=0.999, cycle_momentum=False
        )

    np.testing.assert_allclose(every(ours, 1000), torch_rates(make, 1000), rtol=1e-10)


def test_equals_torch_multi_step_lr():
    def make(optimizer):
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 45], gamma=0.1)

    np.testing.assert_allclose(every(MultiStep(0.1, [30, 45]), 60), torch_rates(make, 60, lr=0.1), rtol=1e-12)


def test_equals_torch_exponential_lr():
    def make(optimizer):
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.999)

    np.testing.assert_allclose(every(Exp(0.1, 0.999), 1000), torch_rates(make, 1000, lr=0.1), rtol=1e-10)


def test_equals_the_papers_torch_listing():
    # Section 3.1's listing, which counts cycles from 1 and in floating point.
    stepsize, base, top = 7, 0.001, 0.006
    expected = []
    for t in range(200):
        cycle = math.floor(1 + t / (2 * stepsize))
        x = abs(t / stepsize - 2 * cycle + 1)
        expected.append(base + (top - base) * max(0.0, 1 - x))
    np.testing.assert_allclose(every(Triangular(base, top, stepsize), 200), expected, rtol=1e-12)


# ---- Properties ------------------------------------------------------------------------------------------------------

CYCLIC = [Triangular, Triangular2, Welch, Hann]


@given(bounds(), st.integers(1, 5000), ITERATIONS, st.sampled_from([Triangular, Welch, Hann]))
def test_cycles_repeat_exactly(low_high, stepsize, t, policy):
    schedule = policy(*low_high, stepsize)
    assert schedule(t) == schedule(t + 2 * stepsize)


@given(bounds(), st.integers(1, 5000), st.integers(0, 200), st.sampled_from(CYCLIC))
def test_cycles_begin_and_end_at_base_lr(low_high, stepsize, cycle, policy):
    low, high = low_high
    assert policy(low, high, stepsize)(2 * stepsize * cycle) == low


@given(bounds(), st.integers(1, 5000), st.integers(0, 30), st.sampled_from(CYCLIC))
def test_cycles_peak_in_their_middle(low_high, stepsize, cycle, policy):
    low, high = low_high
    height = (high - low) / 2**cycle if policy is Triangular2 else high - low
    assert policy(low, high, stepsize)((2 * cycle + 1) * stepsize) == pytest.approx(low + height, rel=1e-12)


@given(bounds(), st.integers(1, 5000), ITERATIONS, st.sampled_from([Triangular, Triangular2]))
def test_triangles_never_jump(low_high, stepsize, t, policy):
    low, high = low_high
    schedule = policy(low, high, stepsize)
    assert abs(schedule(t + 1) - schedule(t)) <= (high - low) / stepsize + 1e-12


@given(bounds(), st.integers(1, 500), st.integers(0, 499), st.sampled_from(CYCLIC))
def test_cycles_are_symmetric(low_high, stepsize, offset, policy):
    schedule = policy(*low_high, stepsize)
    offset %= stepsize
    assert schedule(stepsize - offset) == schedule(stepsize + offset)


@given(bounds(), st.integers(1, 5000), ITERATIONS)
def test_equal_bounds_are_a_constant(low_high, stepsize, t):
    rate = low_high[1]
    for policy in [*CYCLIC, Decay, RangeTest]:
        assert policy(rate, rate, stepsize)(t) == rate


@given(bounds(), st.integers(1, 5000), st.floats(0.99, 1), ITERATIONS)
def test_exp_range_of_the_paper_oscillates_between_two_exps(low_high, stepsize, gamma, t):
    low, high = low_high
    rate = ExpRange(low, high, stepsize, gamma)(t)
    slack = 1e-12
    assert Exp(low, gamma)(t) - slack <= rate <= Exp(high, gamma)(t) + slack
