"""The rules find what was built into a curve, and say so where nothing was."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclical_lr.range_test import (
    BASE_RULES,
    MAX_RULES,
    Bounds,
    Curve,
    Thresholds,
    curve_of,
    find_bounds,
    overrides,
    report,
)
from cyclical_lr.records import CurveRow, Record
from cyclical_lr.schedules import Triangular

LRS = tuple(0.001 * i for i in range(21))


def curve(accuracy: Callable[[float], float] | list[float], seed: int = 0, noise: float = 0.0) -> Curve:
    """Over LRs 0 to 0.02 by 0.001; a function takes the LR in units of 0.001."""
    values = [accuracy(i) for i in range(21)] if callable(accuracy) else accuracy
    jitter = np.random.default_rng(seed).normal(0, noise, len(values)) if noise else np.zeros(len(values))
    return Curve(LRS[: len(values)], tuple(np.clip(np.asarray(values) + jitter, 0, 100)), seed)


def by(rule: str, *curves: Curve, **thresholds: Any) -> float | None:
    """The LR that a rule gives, in units of 0.001."""
    limits = Thresholds(**thresholds)
    bounds = find_bounds(curves, base_rule=rule, thresholds=limits) if rule in BASE_RULES else None
    lr = bounds.base_lr if bounds else find_bounds(curves, max_rule=rule, thresholds=limits).max_lr
    return None if lr is None else round(1000 * lr, 9)


def knee(i: float) -> float:
    """Chance to 3, then 10 points per step up to 50 at 7, then half a point per step."""
    return 10 + 10 * min(max(i - 3, 0), 4) + 0.5 * max(i - 7, 0)


def tent(i: float) -> float:
    """4 points per step from 1 up to 46 at 10, then down as fast."""
    return 10 + 4 * max(9 - abs(i - 10), 0)


def zigzag(i: float) -> float:
    """4 points per step from 1; from 8 on every other evaluation is 8 points lower."""
    return straight(i) - 8 * (i > 8 and i % 2 == 1)


def straight(i: float) -> float:
    """4 points per step from 1 on."""
    return 10 + 4 * max(i - 1, 0)


# Curves whose answer is known by construction -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (knee, {"onset": 4, "plateau": 7, "raggedness": None, "drop": None, "earliest": 7}),
        (tent, {"onset": 2, "plateau": None, "raggedness": None, "drop": 10, "earliest": 10}),
        (zigzag, {"onset": 3, "raggedness": 8, "drop": None, "earliest": 8}),
        (straight, {"onset": 3, "plateau": None, "raggedness": None, "drop": None, "earliest": None}),
        (lambda i: 10 + 0.2 * i * i, {"plateau": None, "drop": None, "earliest": None}),
        (lambda i: 10.0, dict.fromkeys(["onset", "third", "plateau", "raggedness", "drop", "earliest"])),
    ],
    ids=["knee", "tent", "zigzag", "straight", "ever steeper", "flat"],
)
def test_each_rule_finds_what_was_built_in_and_nothing_else(shape, expected):
    assert {rule: by(rule, curve(shape)) for rule in expected} == expected


@pytest.mark.parametrize("seed", range(10))
def test_noise_of_the_stated_size_moves_no_bound_by_more_than_an_evaluation(seed):
    """0.5 points is what 10,000 test images leave open, and what `noise` says by default."""
    assert by("onset", curve(knee, seed, 0.5)) == 4
    assert by("plateau", curve(knee, seed, 0.5)) == pytest.approx(7, abs=1)
    assert by("raggedness", curve(knee, seed, 0.5)) is None
    assert by("drop", curve(tent, seed, 0.5)) == pytest.approx(10, abs=1)
    assert by("earliest", curve(lambda i: 10.0, seed, 0.5)) is None
    assert by("plateau", curve(lambda i: 10 + 2 * i, seed, 0.5)) is None


def test_the_rule_of_thumb_divides_max_lr():
    assert by("third", curve(tent)) == round(10 / 3, 9)
    assert by("quarter", curve(tent)) == 2.5
    bounds = find_bounds([curve(knee)], "quarter", "drop")
    assert bounds.base_lr is None and bounds.base.reason == "no max_lr to divide"


def test_one_low_evaluation_is_not_a_drop():
    values = [tent(min(i, 10)) for i in range(21)]
    values[14] -= 20
    assert by("drop", curve(values)) is None
    values[15] -= 20
    assert by("drop", curve(values)) is None
    values[16] -= 20
    assert by("drop", curve(values)) == 10


def test_one_high_evaluation_is_not_an_onset():
    values = [10.0] * 21
    values[8] = 30
    assert by("onset", curve(values)) is None
    assert "not for 3 evaluations" in find_bounds([curve(values)]).base.reason
    values[12:] = [30.0] * 9
    assert by("onset", curve(values)) == 12


@pytest.mark.parametrize("end", [[40.0, math.nan], [30.0, 40.0, math.nan], [30.0, 40.0]])
def test_fewer_evaluations_than_a_rise_takes_are_none_at_the_end_of_a_curve_either(end):
    values = [10.0] * 9 + end
    assert by("onset", curve(values)) is None
    assert find_bounds([curve(values)], "third").max_lr is None


def test_a_fall_without_recovery_is_not_ragged_nor_is_one_within_the_noise():
    assert by("raggedness", curve(tent)) is None
    assert by("raggedness", curve(zigzag), noise=3.0) is None
    assert by("raggedness", curve(zigzag), roughness=9.0) is None
    falls = [tent(i) + 1.5 * (i > 10 and i % 2) - 4 * (i > 10) for i in range(21)]
    falls[16] = falls[15] + 1.0  # a recovery, of a point
    assert by("raggedness", curve(falls)) is None


def test_what_comes_after_a_sustained_fall_counts_for_no_rule():
    recovered = [knee(i) if i < 13 else 20 if i < 17 else 60 for i in range(21)]
    assert by("plateau", curve(recovered)) == 7
    assert by("drop", curve([10, 20, 30, 40, 50, 46, 30, 30, 30, 44, 60, 60])) == 4


def test_a_fall_in_steps_is_ragged_by_its_depth_and_a_recovery_by_its_height():
    assert by("raggedness", curve([10, 20, 30, 40, 50, 46, 40, 44, 44, 44])) == 4


def test_a_knee_needs_as_many_evaluations_as_a_trend_has_on_either_side():
    assert by("plateau", curve([10, 30, 50, 51, 52])) == 2
    assert by("plateau", curve([10, 30, 50, 51])) is None


@pytest.mark.parametrize(("after", "found"), [(1.0, None), (0.0, 10)])
def test_a_knee_has_to_be_worth_its_two_parameters(after, found):
    """From a slope of 2 to one of `after`, under a wave of 3 points: at 1 a knee fits better, and not by enough."""
    bent = curve(lambda i: 10 + 2 * min(i, 10) + after * max(i - 10, 0) + 3 * (-1) ** i)
    assert by("plateau", bent) == found


# Every threshold is an argument ---------------------------------------------------------------------------------------


def test_thresholds_move_the_rules_that_they_belong_to():
    assert by("onset", curve(knee), margin=0.6) == 6
    assert by("onset", curve(knee), chance=25.0) == 5
    assert by("onset", curve(knee), min_rise=50.0) is None
    assert by("onset", curve(knee), chance=1.0) is None  # it is above chance from the first LR on
    assert by("plateau", curve(knee), slowdown=0.04) is None
    assert by("drop", curve(tent), fall=0.95) is None
    assert by("drop", curve([*map(tent, range(14))]), sustained=4) is None


def test_thresholds_grow_with_the_noise():
    assert by("onset", curve(knee)) == by("onset", curve(knee), noise=1.0)
    assert by("onset", curve(lambda i: min(10.0 + i, 30.0)), noise=3.0) is None  # 20 points are less than ten of 3
    assert by("drop", curve(tent)) is not None and by("drop", curve(tent), noise=20.0, min_rise=1.0) is None
    noisy = np.random.default_rng(0)
    for _ in range(50):  # chance alone, over 100 images, in two classes
        accuracies = noisy.binomial(100, 0.5, 21).astype(float)
        assert find_bounds([Curve(LRS, tuple(accuracies))], thresholds=Thresholds(noise=5.0)).base_lr is None


@pytest.mark.parametrize(
    ("threshold", "value"),
    [
        ("chance", 100.0),
        ("min_rise", 0.0),
        ("margin", 1.0),
        ("slowdown", 0.0),
        ("noise", -1.0),
        ("roughness", math.nan),
        ("fall", 0.0),
        ("sustained", 1),
        ("sustained", 2.5),
        ("noise", math.inf),
        ("margin", None),
        ("chance", "x"),
    ],
)
def test_a_threshold_that_decides_nothing_is_refused_by_name(threshold, value):
    with pytest.raises(ValueError, match=f"thresholds.{threshold}: expected .*got {value!r}; the default is"):
        Thresholds(**{threshold: value})


# Curves that show nothing, and broken ones ----------------------------------------------------------------------------


def test_a_curve_without_a_ceiling_says_so():
    bounds = find_bounds([curve(straight)])
    assert bounds.base_lr == 0.003 and bounds.max_lr is None
    for part in ("no plateau", "not ragged", "no fall for 3 evaluations up to LR 0.02", "test up to a higher LR"):
        assert part in bounds.max.reason


def test_fractions_are_told_from_percent():
    bounds = find_bounds(curve(lambda i: tent(i) / 100))
    assert bounds.base_lr is None and "if these are fractions, give percent" in bounds.base.reason


def test_one_curve_is_a_test_of_one_seed():
    assert find_bounds(curve(tent)) == find_bounds([curve(tent)])
    assert report(curve(tent), 2000) == report([curve(tent)], 2000)


def test_a_flat_curve_says_that_nothing_was_learnt():
    bounds = find_bounds([curve(lambda i: 10.0)])
    assert (bounds.base_lr, bounds.max_lr) == (None, None)
    assert "no onset: the accuracy stays below 15.0 %, 5 points above 10.0 %" in bounds.reason
    assert "is it that of the model in training?" in bounds.reason
    assert "of the model in training" not in find_bounds([curve(lambda i: 10.0 + i % 2)]).reason


def test_a_flat_curve_that_ends_in_divergence_asks_for_a_lower_lr():
    reason = find_bounds([curve([10.0] + [math.nan] * 20)]).base.reason
    assert "and training diverged by LR 0.001; test up to a lower LR, and evaluate more often" in reason


def test_a_report_says_why_bounds_are_no_schedule():
    found = report(Curve((0.0, 0.25, 0.5, 0.75, 1.0), (32.8, 77.7, 71.1, 69.5, 60.2)), stepsize=32)
    assert "by onset, earliest: no suggestion (base_lr 0.25 is not below max_lr 0.25); evaluate more often" in found


def test_a_curve_that_starts_near_the_top_has_no_room_to_rise():
    bounds = find_bounds([curve(lambda i: 97.0)])
    assert "start from untrained weights, or give min_rise" in bounds.reason


def test_curves_may_come_from_a_generator_and_need_no_seed():
    curves = [Curve(LRS, tuple(map(float, map(knee, range(21))))), Curve(LRS, (10.0,) * 21)]
    assert find_bounds(each for each in curves) == find_bounds(curves)
    assert "only seed ? (" in find_bounds(curves[:1] * 2 + curves[1:] * 2).max.reason or "seed ? (" in report(
        curves, 10
    )
    for stepsize in (0, None, 2.5, True):
        with pytest.raises(ValueError, match="stepsize: expected a whole number"):
            report(curves, stepsize)


def test_divergence_is_a_drop_from_the_best_before_it():
    rising = [10.0 + 4 * i for i in range(9)]
    assert by("drop", curve(rising + [math.nan] * 12)) == 8
    bounds = find_bounds([curve([*rising, 15.0, *[math.nan] * 11])], max_rule="drop")
    assert bounds.max_lr == 0.008 and "from LR 0.009 on" in bounds.reason
    assert "training diverged by LR 0.009" in find_bounds([curve([*rising, math.nan])]).reason


def test_a_curve_that_diverges_without_learning_has_no_bounds():
    bounds = find_bounds([curve([10.0, 10.5, *[math.nan] * 19])])
    assert (bounds.base_lr, bounds.max_lr) == (None, None)
    assert "training diverged by LR 0.002" in bounds.reason
    assert "NaN from the first LR on" in find_bounds([curve([math.nan] * 21)]).reason


@pytest.mark.parametrize(
    ("lr", "accuracy", "message"),
    [
        ([0.0], [10.0], "two or more LRs, got 1 LRs"),
        ([0.0, 1.0], [10.0], "got 2 LRs and 1 accuracies"),
        ([0.0, 1.0, 0.5], [10.0] * 3, "expected LRs that rise"),
        ([0.0, 1.0, 2.0], [10.0, math.nan, 10.0], "NaN at the end only"),
        ([0.0, 1.0], [10.0, 101.0], "expected percent"),
        ([0.0, 1.0], [10.0, math.inf], "expected percent"),
        ([-1.0, 1.0], [10.0, 20.0], "finite LRs from 0"),
        ([0.0, math.inf], [10.0, 20.0], "finite LRs from 0"),
    ],
)
def test_what_is_no_curve_is_refused(lr, accuracy, message):
    with pytest.raises(ValueError, match=message):
        Curve(lr, accuracy)


@settings(max_examples=60)
@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=30),
    st.integers(0, 3),
    st.sampled_from(BASE_RULES),
    st.sampled_from(sorted(MAX_RULES)),
)
def test_any_curve_gives_tried_lrs_or_a_reason(values, diverged, base_rule, max_rule):
    accuracies = values + [math.nan] * diverged
    lrs = np.linspace(1e-4, 3e-4, len(accuracies)).tolist()
    bounds = find_bounds([Curve(tuple(lrs), tuple(accuracies))], base_rule, max_rule)
    assert bounds.max_lr is None or bounds.max_lr in lrs
    assert bounds.base_lr is None or base_rule != "onset" or bounds.base_lr in lrs
    assert bounds.base.reason and bounds.max.reason
    assert report([Curve(tuple(lrs), tuple(accuracies))], 2000, base_rule, max_rule)


@settings(max_examples=25)
@given(st.floats(1e-6, 1e3), st.floats(0, 50))
def test_bounds_scale_with_the_lr_axis_and_ignore_the_level(scale, level):
    for shape in (knee, tent, zigzag):
        heights = [shape(i) / 2 for i in range(21)]
        before = find_bounds([curve(heights)])
        moved = Curve(tuple(scale * lr for lr in LRS), tuple(level + height for height in heights))
        after = find_bounds([moved])
        for a, b in ((before.base_lr, after.base_lr), (before.max_lr, after.max_lr)):
            assert (a is None) == (b is None)
            assert a is None or b == pytest.approx(scale * a)


# Seeds ----------------------------------------------------------------------------------------------------------------


def shifted(by: int, seed: int) -> Curve:
    return curve(lambda i: tent(i - by) if i > by else 10.0, seed)


def test_bounds_are_the_median_over_seeds_with_their_range():
    bounds = find_bounds([shifted(0, 7), shifted(3, 8), shifted(1, 9)], max_rule="drop")
    assert bounds.max_lr == pytest.approx(0.011) and bounds.max.spread == pytest.approx((0.010, 0.013))
    assert bounds.base_lr == pytest.approx(0.003) and bounds.base.spread == pytest.approx((0.002, 0.005))
    assert [reading.seed for reading in bounds.max.readings] == [7, 8, 9]
    assert bounds.max.reason == "3 of 3 seeds show it"


def test_a_bound_that_half_of_the_seeds_lack_is_none_and_the_reason_names_seeds():
    flat = [curve(lambda i: 10.0, seed) for seed in (4, 5)]
    bounds = find_bounds([shifted(0, 1), *flat], max_rule="drop")
    assert bounds.max_lr is None and bounds.max.spread is None
    assert bounds.max.reason.startswith("1 of 3 seeds show it; only seed 1 (the accuracy, 46.0 %, falls")
    bounds = find_bounds([shifted(0, 1), shifted(1, 2), flat[0]], max_rule="drop")
    assert bounds.max_lr == pytest.approx(0.0105)
    assert bounds.max.reason.startswith("2 of 3 seeds show it; not seed 4 (no onset")
    assert find_bounds([shifted(0, 1), flat[0]], max_rule="drop").max_lr is None


def test_unknown_rules_and_no_curves_are_refused():
    with pytest.raises(ValueError, match="base_rule: expected one of onset, third, quarter, got 'half'"):
        find_bounds([curve(tent)], base_rule="half")
    with pytest.raises(ValueError, match="max_rule: expected one of earliest, plateau, raggedness, drop, got 'onset'"):
        find_bounds([curve(tent)], max_rule="onset")
    with pytest.raises(ValueError, match="expected one or more, got none"):
        find_bounds([])


def test_what_are_no_curves_or_thresholds_is_refused():
    curve = Curve((0.0, 0.1), (10.0, 20.0))
    with pytest.raises(ValueError, match=r"curves: expected Curve\(lr, accuracy\), one per seed, got a tuple"):
        find_bounds([((0.0, 0.1), (10.0, 20.0))])
    for read in (find_bounds, lambda curve, thresholds: report(curve, 2000, thresholds=thresholds)):
        with pytest.raises(ValueError, match=r"thresholds: expected Thresholds\(\.\.\.\) or None, got \{'noise': 1\}"):
            read(curve, thresholds={"noise": 1})


# What a person reads --------------------------------------------------------------------------------------------------


def test_overrides_give_the_bounds_to_hydra():
    from hydra import compose, initialize_config_dir

    text = overrides(find_bounds([shifted(0, 1)], max_rule="drop"), stepsize=2000)
    assert text == "schedule=triangular schedule.base_lr=0.002 schedule.max_lr=0.01 schedule.stepsize=2000"
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        schedule = dict(compose("run", text.split()).schedule)
    assert schedule.pop("_target_").endswith(".Triangular")
    assert Triangular(**schedule) == Triangular(0.002, 0.01, 2000)


def test_overrides_refuse_missing_and_crossed_bounds():
    with pytest.raises(ValueError, match=r"expected base_lr < max_lr, got 0\.003 and none .*no plateau"):
        overrides(find_bounds([curve(straight)]), 2000)
    found = find_bounds([curve(tent)])
    with pytest.raises(ValueError, match=r"expected base_lr < max_lr, got 0\.01 and 0\.002"):
        overrides(Bounds(base=found.max, max=found.base), 2000)


def test_the_report_gives_the_reason_of_several_rules_once():
    flat = report(curve(lambda t: 10.0), 2000)
    assert flat.count("no onset: the accuracy stays below") == flat.count("no max_lr to divide") == 1
    assert flat.count(" as for onset") == len(MAX_RULES) and flat.count(" as for third") == 1


def test_the_report_shows_every_rule_and_the_overrides_or_why_there_are_none():
    text = report([shifted(0, 1), shifted(2, 2)], 2000, "onset", "drop")
    lines = text.splitlines()
    assert lines[0] == "LR range test, 2 seeds, LR 0 to 0.02"
    assert [line.split()[1] for line in lines[1:-3] if line[2] != " "] == [*BASE_RULES, *MAX_RULES]
    assert max(map(len, lines)) <= 118
    assert "0.011 [0.01, 0.012]" in text
    assert "0.5 points, as of 10,000 images;" in lines[-3]
    assert "1 points, as of 2,500 images;" in report(curve(tent), 2000, thresholds=Thresholds(noise=1.0))
    assert lines[-2] == "  by onset, drop: Triangular(base_lr=0.003, max_lr=0.011, stepsize=2000)"
    assert lines[-1] == (
        "  as overrides: schedule=triangular schedule.base_lr=0.003 schedule.max_lr=0.011 schedule.stepsize=2000"
    )
    assert report([curve(tent)], 2000, max_rule="plateau").endswith(
        "by onset, plateau: no suggestion, for the reasons above; read the curve yourself"
    )


def test_the_papers_figure_3_read_by_every_rule():
    """The paper chose 0.001 to 0.006. Nothing is tuned to give that; this pins what the defaults do give."""
    figure = yaml.safe_load((Path(__file__).parents[1] / "conf/paper/figure3.yaml").read_text())
    points = figure["curves"][0]["points"]
    paper = Curve(tuple(point["lr"] for point in points), tuple(point["accuracy"] for point in points))
    rules = ("onset", "third", "quarter", "plateau", "raggedness", "drop", "earliest")
    found = {rule: by(rule, paper) for rule in rules}
    assert found == {
        "onset": 1,
        "third": pytest.approx(4 / 3),
        "quarter": 1,
        "plateau": 4,
        "raggedness": 8,
        "drop": 14,
        "earliest": 4,
    }


# Curves of the study's own runs ---------------------------------------------------------------------------------------


def row(iteration: int, lr: float, accuracy: float) -> CurveRow:
    return CurveRow(iteration, lr, 1.0, 1.0, accuracy, 0.0)


def record(status: str, iterations: int, **config: Any) -> Record:
    schedule = {"_target_": "cyclical_lr.schedules.RangeTest", "base_lr": 0.0, "max_lr": 0.02, "stepsize": 4000}
    fields: dict[str, Any] = dict.fromkeys(Record.__dataclass_fields__)
    return Record(
        **fields | {"seed": 3, "status": status, "iterations": iterations, "config": {"schedule": schedule} | config}
    )


def test_a_record_and_its_rows_make_a_curve():
    rows = [row(0, 0.0, 10.0), row(200, 0.001, 16.0)]
    assert curve_of(record("done", 200), rows) == Curve((0.0, 0.001), (10.0, 16.0), 3)
    diverged = curve_of(record("diverged", 300), rows)
    assert diverged.lr == (0.0, 0.001, 0.0015) and math.isnan(diverged.accuracy[2])
    assert curve_of(record("diverged", 150, compress=2), rows).lr == (0.0, 0.001, 0.0015)


def test_the_curve_ends_where_the_lr_stops_rising():
    rows = [row(0, 0.0, 10.0), row(1000, 0.01, 40.0), row(2000, 0.02, 50.0), row(3000, 0.01, 60.0)]
    assert curve_of(record("done", 3000, compress=2), rows).lr == (0.0, 0.01, 0.02)
    assert curve_of(record("diverged", 2000, compress=2), rows[:2]).lr == (0.0, 0.01, 0.02)


@pytest.mark.parametrize(("depth", "found"), [(2.8, None), (2.9, 10)])
def test_what_the_noise_explains_is_four_standard_errors_of_a_difference(depth, found):
    """4 * sqrt(2) * 0.5 = 2.83 points, down and up again."""
    assert Thresholds().step == pytest.approx(2.8284, abs=1e-4)
    values = [straight(i) if i <= 10 else 46 - depth * (i % 2) for i in range(21)]
    assert by("raggedness", curve(values)) == found


def test_a_plateau_is_looked_for_up_to_what_the_noise_does_not_tell_from_the_best():
    assert by("plateau", curve([10, 10, 20, 30, 40, 50, 49, 49.5, 49, 49.5, 49])) == 5


def test_an_accuracy_at_the_edge_counts_as_risen():
    assert by("onset", curve([0.0, *[5.0] * 20])) == 1  # ten times the noise above chance, no less
    assert by("onset", curve([0.0, 10.0, 10.0, 10.0, 100.0, 100.0])) == 1  # a tenth of the rise


def test_fractions_up_to_one_are_told_from_percent():
    assert "if these are fractions" in find_bounds(curve(lambda i: tent(i) / 46)).base.reason


@pytest.mark.parametrize("threshold", [{"chance": 0.0}, {"sustained": 2}])
def test_the_least_of_a_threshold_is_allowed(threshold):
    Thresholds(**threshold)


def test_a_perfect_accuracy_is_percent():
    Curve((0.0, 1.0), (0.0, 100.0))
