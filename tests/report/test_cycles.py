"""Where cycles end and LRs drop, and what is said of a run that is read elsewhere."""

import cards
import pytest

from cyclical_lr import schedules
from cyclical_lr.report import cycles
from cyclical_lr.report.collect import collect

CYCLE = schedules.Triangular(0.001, 0.006, 100)
PHASES = schedules.Phases([schedules.Phase(0, CYCLE), schedules.Phase(500, schedules.Fixed(0.0001))])
WARM_UP = schedules.Phases([schedules.Phase(0, schedules.RangeTest(0, 0.001, 100)), schedules.Phase(100, CYCLE)])
STEPS = schedules.Phases(
    [schedules.Phase(0, schedules.MultiStep(0.1, [5])), schedules.Phase(10, schedules.Fixed(1e-4))]
)


@pytest.mark.parametrize(
    ("schedule", "iterations", "ends", "drops"),
    [
        (CYCLE, 700, [200, 400, 600], []),
        (CYCLE, 600, [200, 400, 600], []),
        (CYCLE, 199, [], []),
        (schedules.ExpRange(0.001, 0.006, 100, 0.9), 450, [200, 400], []),
        (schedules.Drops(CYCLE, [250, 900]), 500, [200, 400], [250]),
        (PHASES, 1_000, [200, 400], [500]),
        (PHASES, 300, [200], []),
        (WARM_UP, 400, [300], []),
        (STEPS, 20, [], [5, 10]),
        (schedules.Drops(STEPS, [15]), 20, [], [5, 10, 15]),
        (schedules.Compressed(schedules.MultiStep(0.1, [7]), 2), 4, [], []),
        (schedules.Held(schedules.Drops(CYCLE, [250, 410]), 40), 500, [200, 400], [280, 440]),
        (schedules.Held(schedules.Drops(CYCLE, [250, 900]), 40, first=1), 500, [160, 360], [240]),
        (schedules.Held(CYCLE, 30, first=10), 90, [], []),
        (schedules.MultiStep(0.1, [50, 70]), 70, [], [50]),
        (schedules.Decay(0.001, 0.007, 100), 500, [], []),
        (schedules.Compressed(schedules.Drops(CYCLE, [250, 900]), 50), 20, [4, 8, 12, 16, 20], [5, 18]),
    ],
)
def test_cycle_ends_and_drops_are_those_of_the_schedule(schedule, iterations, ends, drops):
    assert cycles.cycle_ends(schedule, iterations) == ends
    assert cycles.drops(schedule, iterations) == drops
    for end in ends:
        assert schedule(end - 1) > schedule(end)
    for drop in drops:
        assert schedule(drop) < schedule(drop - 1)


ROWS = {0: 10.0, 20_000: 78.0, 24_000: 80.0, 25_000: 75.0, 28_000: 81.0}


@pytest.mark.parametrize(
    ("experiment", "iteration", "said"),
    [
        ("cifar10_exp_range", 25_000, "mid-cycle (80.00 at 24,000 and 81.00 at 28,000, where cycles end)"),
        ("cifar10_tri_no_drops", 25_000, "mid-cycle (80.00 at 24,000, where cycles end)"),
        ("cifar10_exp_range", 42_000, "mid-cycle"),  # neither end was evaluated
        ("cifar10_exp_range", 1_000, "mid-cycle"),  # in the first half of the first cycle
        ("cifar10_exp_range", 24_000, ""),
        ("cifar10_tri_no_drops", 24_160, ""),  # an LR 1.4 times that of a cycle's end
        ("cifar10_tri_no_drops", 24_240, "mid-cycle (80.00 at 24,000, where cycles end)"),  # 1.6 times
        ("cifar10_tri2", 25_000, ""),  # its LR has dropped
        ("cifar10_tri2_no_drops", 25_000, ""),  # its cycles have shrunk
        ("cifar10_fixed", 25_000, ""),
    ],
)
def test_a_run_that_is_read_in_mid_cycle_is_told_with_what_it_has_at_the_cycles_ends(
    add_run, tmp_path, experiment, iteration, said
):
    longer = {} if experiment == "cifar10_exp_range" else {28_000}
    rows = {t: accuracy for t, accuracy in ROWS.items() if t not in longer}
    add_run(experiment, 0, rows, config={"schedule": cards.plan(experiment)["schedule"]})
    assert cycles.mid_cycle(collect(tmp_path), experiment, iteration) == said
    assert cycles.mid_cycle(collect(tmp_path), "not run", iteration) == ""


@pytest.mark.parametrize(
    ("iteration", "said"),
    [(22_000, "mid-cycle (78.00 at 20,000 and 80.00 at 24,000, where cycles end)"), (22_001, "")],
)
def test_where_the_lr_is_about_to_drop_it_has_not_dropped(add_run, tmp_path, iteration, said):
    cycle = {"_target_": "cyclical_lr.schedules.Triangular", "base_lr": 0.001, "max_lr": 0.006, "stepsize": 2000}
    drops = {"_target_": "cyclical_lr.schedules.Drops", "schedule": cycle, "milestones": [22_000]}
    add_run("mine", 0, ROWS, config={"schedule": drops})
    assert cycles.mid_cycle(collect(tmp_path), "mine", iteration) == said


@pytest.mark.parametrize("policy", [schedules.Triangular, schedules.Triangular2, schedules.Welch, schedules.Hann])
def test_every_cyclical_policy_has_ends_of_cycles(policy):
    assert cycles.cycle_ends(policy(0.001, 0.006, 100), 500) == [200, 400]


def test_a_compressed_run_is_in_mid_cycle_where_its_own_schedule_is(add_run, tmp_path):
    cycle = {"_target_": "cyclical_lr.schedules.Triangular", "base_lr": 0.001, "max_lr": 0.006, "stepsize": 20_000}
    add_run("mine", 0, ROWS, config={"schedule": cycle, "compress": 10})
    results = collect(tmp_path)
    assert cycles.mid_cycle(results, "mine", 24_000) == ""
    said = "mid-cycle (80.00 at 24,000 and 81.00 at 28,000, where cycles end)"
    assert cycles.mid_cycle(results, "mine", 25_000) == said
