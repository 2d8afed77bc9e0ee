"""The rules that read more than one accuracy a seed: shares of a rise, bounds of range tests, times of an iteration."""

import json
import math
from pathlib import Path

import cards
import pytest
import yaml

from cyclical_lr.range_test import Curve
from cyclical_lr.report import headline, markup, tables, verdicts
from cyclical_lr.report.collect import Cell, Results, collect
from cyclical_lr.report.report import Report

CONF = Path(__file__).parents[2] / "conf"


# ---- share -----------------------------------------------------------------------------------------------------------


def at(*values, seeds=None):
    seeds = tuple(range(len(values))) if seeds is None else seeds
    return Cell("a label", 12_000, seeds, values, values)


@pytest.mark.parametrize(
    ("early", "text"),
    [
        ((76.0, 76.0, 76.0), "reproduced (preliminary)"),
        ((73.0, 73.0, 73.0), "reproduced (preliminary)"),  # 63 of 70 points: exactly nine tenths
        ((72.9, 72.9, 72.9), "not reproduced (preliminary)"),
        ((71.0, 73.0, 75.0), "inconclusive (preliminary)"),
    ],
)
def test_most_of_the_way_is_nine_tenths_of_the_rise_above_chance(paper, early, text):
    found, (ratio,) = verdicts.share(paper, at(*early), at(80.0, 80.0, 80.0))
    assert (found.text, found.n) == (text, 3)
    assert ratio.value == pytest.approx((sum(early) / 3 - 10) / 70)


def test_a_share_is_taken_seed_by_seed(paper):
    # Seeds apart by 10 points, each at 0.95 of its own end: together they would spread far more.
    late = (60.0, 70.0, 80.0)
    early = tuple(10 + 0.95 * (value - 10) for value in late)
    found, (ratio,) = verdicts.share(paper, at(*early[::-1], seeds=(2, 1, 0)), at(*late))
    assert found.verdict == "reproduced" and ratio.interval == pytest.approx((0.95, 0.95))
    assert verdicts.share(paper, at(*early, seeds=(2, 3, 4)), at(*late))[0].text == "no verdict (n = 1)"
    assert verdicts.share(paper, at(), at(*late))[0].text == "not run"


def test_a_seed_that_learns_nothing_has_no_share(paper):
    found, (ratio,) = verdicts.share(paper, at(10.0, 73.0, 73.0, 73.0), at(10.0, 80.0, 80.0, 80.0))
    assert (found.text, found.n) == ("inconclusive (preliminary)", 3) and ratio.value == pytest.approx(0.9)
    assert verdicts.share(paper, at(72.0, 72.0, 72.0, 72.0), at(10.0, 80.0, 80.0, 80.0))[0].verdict == "not reproduced"


def test_a_share_counts_the_seeds_that_both_have(paper):
    found, _ = verdicts.share(paper, at(*[76.0] * 5), at(*[80.0] * 5, seeds=range(2, 7)))
    assert (found.text, found.n) == ("reproduced (preliminary)", 3)


def test_beside_a_share_stands_what_earlier_cycles_had(paper, tmp_path, add_run):
    config = {"schedule": cards.plan("cifar10_tri_no_drops")["schedule"]}
    for seed in range(3):
        values = {4_000: 73.0, 8_000: 75.0, 12_000: 76.6, 24_000: 80.0}
        add_run("cifar10_tri_no_drops", seed, {0: 10.0, **values}, config=config)
    (found,) = [each for each in verdicts.decide(paper, collect(tmp_path)) if each.id == "text_three_cycles"]
    assert [each.name for each in found.ratios] == ["share of the rise", "at 4,000", "at 8,000"]
    assert [each.value for each in found.ratios] == pytest.approx([66.6 / 70, 63 / 70, 65 / 70])


# ---- bounds ----------------------------------------------------------------------------------------------------------

PAPERS_CHOICE = {"base_lr": 0.001, "max_lr": 0.006}


def tent(onset, top, seed=0):
    """Up by 4 points per evaluation from an LR on, in units of 0.001, to a top, and down again."""
    heights = [max(0, min(i - onset, 2 * top - onset - i)) for i in range(21)]
    return Curve(tuple(0.001 * i for i in range(21)), tuple(10.0 + 4 * height for height in heights), seed)


def test_the_papers_own_figure_3_shows_the_bounds_that_the_paper_chose(paper):
    figure = yaml.safe_load((CONF / "paper" / "figure3.yaml").read_text())
    points = figure["curves"][0]["points"]
    curve = Curve(tuple(point["lr"] for point in points), tuple(point["accuracy"] for point in points))
    found, ceilings, fitting = verdicts.bounds(paper, [curve] * 10, paper.bounds["bounds_cifar10"])
    assert fitting[1] == pytest.approx((0.003, 0.015))
    assert (found.text, found.n) == ("reproduced", 10)
    assert [each.max_lr for each in ceilings.values()] == pytest.approx([0.004, 0.008, 0.014])


@pytest.mark.parametrize(
    ("onset", "top", "verdict"),
    [
        (0, 6, "reproduced"),
        (0, 7, "reproduced"),  # an evaluation off
        (0, 8, "not reproduced"),
        (0, 5, "reproduced"),
        (0, 4, "not reproduced"),
        (1, 6, "reproduced"),
        (2, 6, "not reproduced"),
        (0, 25, "not reproduced"),  # rises to the end: nothing to read max_lr off
    ],
)
def test_bounds_are_reproduced_to_within_an_evaluation(paper, onset, top, verdict):
    found, *_ = verdicts.bounds(paper, [tent(onset, top)] * 10, PAPERS_CHOICE)
    assert found.text == verdict


def test_an_evaluation_is_as_wide_as_the_widest(paper):
    # From 0.006 on an evaluation each 0.002: the top, at 0.008, is one of these off.
    fine = tent(0, 8)
    places = [*range(7), *range(8, 21, 2)]
    curve = Curve(tuple(fine.lr[i] for i in places), tuple(fine.accuracy[i] for i in places), 0)
    found, bounds, _ = verdicts.bounds(paper, [curve] * 10, PAPERS_CHOICE)
    assert (bounds["drop"].max_lr, found.text) == (pytest.approx(0.008), "reproduced")


def test_a_range_over_seeds_holds_what_lies_between(paper):
    curves = [tent(onset, 6, seed) for seed, onset in enumerate((3, 3, 0))]
    assert verdicts.bounds(paper, curves, PAPERS_CHOICE)[0].text == "reproduced (preliminary)"
    assert verdicts.bounds(paper, [*curves[:2], tent(3, 6)], PAPERS_CHOICE)[0].verdict == "not reproduced"
    assert verdicts.bounds(paper, curves[:2], PAPERS_CHOICE)[0].text == "no verdict (n = 2)"
    assert verdicts.bounds(paper, [], PAPERS_CHOICE)[0].text == "not run"


def test_a_range_test_that_diverges_is_a_curve_and_one_that_failed_is_not(paper, tmp_path, add_run):
    add_ramp(add_run, tent(0, 6), 0)
    add_ramp(add_run, tent(0, 6), 1, until=8, status="diverged", iterations=1700)
    add_ramp(add_run, tent(0, 6), 2, until=5, status="failed")
    add_ramp(add_run, tent(0, 6), 3, until=0, status="diverged", iterations=0)
    curves = verdicts.range_tests(collect(tmp_path), "cifar10_range_test")
    assert [len(curve.lr) for curve in curves] == [21, 10]
    assert math.isnan(curves[1].accuracy[-1]) and curves[1].lr[-1] == pytest.approx(0.0085)


def add_ramp(add_run, curve, seed, until=20, **changes):
    """A run of Figure 3's ramp with a curve's accuracies."""
    schedule = {"_target_": "cyclical_lr.schedules.RangeTest", "base_lr": 0.0, "max_lr": 0.02, "stepsize": 4000}
    config = {"model": {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full"}, "schedule": schedule, "seed": seed}
    accuracies = dict(zip(range(0, 200 * until + 1, 200), curve.accuracy, strict=False))
    lrs = {200 * i: lr for i, lr in enumerate(curve.lr)}
    add_run("cifar10_range_test", seed, accuracies, lrs=lrs, config=config, **changes)


# ---- cost ------------------------------------------------------------------------------------------------------------

ROUNDS = 20


def benchmark(**clr_over_fixed):
    """Milliseconds of each method: 100 at a constant LR (sgd: 90), under CLR that times a factor and 1 % of jitter."""
    jitter = [1 + 0.01 * (-1) ** i for i in range(ROUNDS)]
    fixed = {"sgd": 90.0, "nesterov": 90.0, **dict.fromkeys(("adam", "rmsprop", "adagrad", "adadelta"), 100.0)}
    return {
        "device": "a cpu",
        "milliseconds": {
            method: {
                "fixed": [ms] * ROUNDS,
                "clr": [ms * clr_over_fixed.get(method, 1.0) * each for each in jitter],
            }
            for method, ms in fixed.items()
        },
    }


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "reproduced"),
        ({"adam": 1.005, "sgd": 0.995}, "reproduced"),
        ({"adam": 1.02}, "inconclusive"),
        ({"adam": 0.98}, "inconclusive"),
        ({"adam": 1.05}, "not reproduced"),
        ({"adam": 0.95}, "not reproduced"),
        ({"adam": 1.02, "sgd": 1.05}, "not reproduced"),
    ],
)
def test_no_extra_computation_is_within_two_percent_for_every_method(paper, changes, verdict):
    found, ratios = verdicts.cost(paper, [benchmark(**changes)], "clr_over_fixed")
    assert (found.text, found.n, len(ratios)) == (verdict, ROUNDS, 6)
    assert {each.name: each.value for each in ratios}["adam on a cpu"] == pytest.approx(changes.get("adam", 1.0))
    both, more = verdicts.cost(paper, [benchmark(), benchmark(**changes)], "clr_over_fixed")
    assert (both.text, len(more)) == (verdict, 12)


def test_the_rounds_of_several_machines_are_counted_by_the_fewest(paper):
    shorter = benchmark()
    for times in shorter["milliseconds"].values():
        for ms in times.values():
            del ms[12:]
    for both in ([benchmark(), shorter], [shorter, benchmark()]):
        assert verdicts.cost(paper, both, "clr_over_fixed")[0].n == 12


@pytest.mark.parametrize(("sgd", "verdict"), [(1.0, "reproduced"), (1.11, "inconclusive"), (1.2, "not reproduced")])
def test_adaptive_methods_are_set_against_sgd_under_clr(paper, sgd, verdict):
    found, ratios = verdicts.cost(paper, [benchmark(sgd=sgd)], "adaptive_over_sgd")
    assert found.text == verdict
    assert [each.name.split()[0] for each in ratios] == ["adam", "rmsprop", "adagrad", "adadelta"]
    assert ratios[0].value == pytest.approx(100 / 90 / sgd, rel=1e-3)
    assert verdicts.cost(paper, [], "adaptive_over_sgd")[0].text == "not run"


def test_what_the_benchmark_left_decides_the_claims_on_cost(paper, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "solvers-a-cpu.json").write_text(json.dumps(benchmark()))
    broken = benchmark()
    broken["milliseconds"]["adam"]["clr"].pop()
    (tmp_path / "benchmarks" / "solvers-broken.json").write_text(json.dumps(broken))
    (tmp_path / "benchmarks" / "solvers-empty.json").write_text("{}")
    results = collect(tmp_path)
    assert len(results.benchmarks) == 1 and len(results.problems) == 2
    assert "solvers-broken.json is not a result of benchmarks/solvers.py" in results.problems[0]
    found = {verdict.id: verdict.finding for verdict in verdicts.decide(paper, results)}
    assert found["table3_no_extra_computation"].text == "reproduced"
    assert found["table3_adaptive_methods_cost_more"].text == "reproduced"


def test_milliseconds_stand_in_a_table_with_the_claims_ratios(paper, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "solvers-a-cpu.json").write_text(json.dumps(benchmark(adam=1.3)))
    results = collect(tmp_path)
    frame = tables.cost_table(results, verdicts.decide(paper, results))
    assert frame["method"].tolist() == list(benchmark()["milliseconds"]) and set(frame["rounds"]) == {ROUNDS}
    adam, sgd = (frame[frame["method"] == name].iloc[0] for name in ("adam", "sgd"))
    assert adam["clr"] / adam["fixed"] == pytest.approx(1.3, rel=0.02) and adam["clr_over_fixed"] == pytest.approx(1.3)
    assert math.isnan(sgd["adaptive_over_sgd"]) and adam["adaptive_over_sgd"] > 1
    text = markup.markdown("Cost", markup.presented(paper, "cost", frame))
    assert "## a cpu" in text and "| 1.3000 [1.2870, 1.3130] |" in text
    assert tables.cost_table(Results({}, {}, ()), []).empty


# ---- What a reader sees ----------------------------------------------------------------------------------------------


def test_each_of_these_claims_shows_what_was_measured(paper, tmp_path, add_run):
    for seed in range(3):
        add_ramp(add_run, tent(0, 6), seed)
        add_run("cifar10_tri_no_drops", seed, {0: 10.0, 12_000: 76.0, 24_000: 80.0})
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "solvers-a-cpu.json").write_text(json.dumps(benchmark()))
    results = collect(tmp_path)
    report = Report(paper, results, verdicts.decide(paper, results), tables={})
    page = markup.claims_page(paper, results, report.verdicts)
    lines = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert (
        "base_lr 0.001, max_lr 0.006 by drop; a base_lr of 0 to 0.002 and a max_lr of 0.005 to 0.007 would fit; n = "
        "3 | **reproduced (preliminary)**"
    ) in lines["figure3_bounds"]
    assert "share of the rise 0.943 [0.943, 0.943] (90%) | **reproduced (preliminary)**" in lines["text_three_cycles"]
    said = "on a cpu: sgd 1.0000 [0.9900, 1.0100], nesterov 1.0000 [0.9900, 1.0100], adam"
    assert said in lines["table3_no_extra_computation"]
    *_, bounds, same, more = headline.found(report)
    assert bounds == (
        "**The LR range test** (`cifar10_range_test`, n = 3) points to a base_lr of 0.001 and a max_lr of 0.006 by "
        "rule (none by plateau and raggedness; the paper: 0.001 and 0.006): reproduced (preliminary); a max_lr of "
        "0.005 to 0.007 would fit."
    )
    ratios = " Ratios of CPU time {0} to {0} on cifar10_full; by method and machine: {1} reproduced."
    assert (
        same.startswith("**Cost**: “CLR needs")
        and "method”: reproduced. " in same
        and same.endswith(ratios.format("1.000", 6))
    )
    assert (
        more.startswith("**Cost**: “Methods that")
        and "CLR”: reproduced. " in more
        and more.endswith(ratios.format("1.111", 4))
    )


@pytest.mark.parametrize("side", [0, 1])
def test_a_share_of_a_cell_with_a_diverged_run_is_never_reproduced(paper, side):
    early, late = (76.0, 76.0, 76.0), (80.0, 80.0, 80.0)
    cells = [
        Cell("a label", 12_000, (0, 1, 2), values, values, diverged=number == side)
        for number, values in enumerate((early, late))
    ]
    assert verdicts.share(paper, *cells)[0].verdict == "inconclusive"


@pytest.mark.parametrize(("base_lr", "verdict"), [(0.003, "reproduced"), (0.004, "not reproduced")])
def test_a_base_lr_may_lie_an_evaluation_above_the_highest_onset(paper, base_lr, verdict):
    curves = [tent(onset, 6, seed) for seed, onset in enumerate((0, 0, 1))]  # onsets: 0.001, 0.001 and 0.002
    assert verdicts.bounds(paper, curves, {"base_lr": base_lr, "max_lr": 0.006})[0].verdict == verdict


@pytest.mark.parametrize("damage", [lambda ms: ms.pop("sgd"), lambda ms: ms["adam"]["fixed"].__setitem__(0, 0.0)])
def test_a_benchmark_without_sgd_or_with_a_time_of_zero_is_named_and_left_out(tmp_path, damage):
    (tmp_path / "benchmarks").mkdir()
    broken = benchmark()
    damage(broken["milliseconds"])
    (tmp_path / "benchmarks" / "solvers-broken.json").write_text(json.dumps(broken))
    results = collect(tmp_path)
    assert results.benchmarks == () and "solvers-broken.json is not a result of" in results.problems[0]
