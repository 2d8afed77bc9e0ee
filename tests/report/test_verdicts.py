"""The rules of conf/paper/verdicts.yaml on worked examples."""

import copy
import dataclasses
import math
import re
import shutil
from pathlib import Path

import cards
import pytest
import yaml

from cyclical_lr.records import ConfigError, CurveRow
from cyclical_lr.report import verdicts
from cyclical_lr.report.collect import Cell, Results, collect
from cyclical_lr.report.paper import read_paper
from cyclical_lr.report.times import common_grid
from cyclical_lr.report.verdicts import Finding

CONF = Path(__file__).parents[2] / "conf"


def cell(*values, **counts):
    return Cell("a label", 25_000, tuple(range(len(values))), values, values, **counts)


def spaced(mean, half, n):
    """n values around a mean, half of them `half` below and half above (one at the mean where n is odd)."""
    return cell(*([mean - half] * (n // 2) + [mean] * (n % 2) + [mean + half] * (n // 2)))


# ---- number ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (81.0, "reproduced"),
        (81.5, "reproduced"),
        (80.5, "reproduced"),
        (81.51, "not reproduced"),
        (80, "not reproduced"),
    ],
)
def test_a_small_spread_cannot_reject_a_number_within_the_floor(paper, value, verdict):
    found = verdicts.number(paper, cell(*[81.0] * 10), value, 1)
    assert (found.verdict, found.preliminary, found.n) == (verdict, False, 10)
    assert found.prediction == (80.5, 81.5)
    assert found.difference == pytest.approx(81 - value)
    assert found.interval == pytest.approx((80.5 - value, 81.5 - value))


@pytest.mark.parametrize(("value", "verdict"), [(82.0, "reproduced"), (82.01, "not reproduced")])
def test_a_number_is_judged_by_the_prediction_interval_for_one_run(paper, value, verdict):
    # 80.6 five times and 81.4 five times: mean 81, s = 0.4 sqrt(10/9) = 0.421637; t = 2.262157 at 9 degrees of freedom.
    half = 2.262157 * 0.421637 * math.sqrt(1 + 1 / 10)
    found = verdicts.number(paper, spaced(81, 0.4, 10), value, 1)
    assert found.verdict == verdict
    assert found.prediction == pytest.approx((81 - half, 81 + half), abs=1e-5)
    assert half == pytest.approx(1.00035, abs=1e-4)
    assert found.interval == pytest.approx((81 - half - value, 81 + half - value), abs=1e-5)
    assert found.confidence == 0.95 and found.p is None


def test_table_4_gives_a_mean_of_five_runs_and_so_a_narrower_interval(paper):
    half = 2.262157 * 0.421637 * math.sqrt(1 / 5 + 1 / 10)
    found = verdicts.number(paper, spaced(81, 0.4, 10), 81.6, 5)
    assert half == pytest.approx(0.5224, abs=1e-4)
    assert found.prediction == pytest.approx((81 - half, 81 + half), abs=1e-5)
    assert found.verdict == "not reproduced"


@pytest.mark.parametrize("value", [81.0, 90.0])
def test_too_wide_an_interval_is_inconclusive_whatever_the_number(paper, value):
    # n = 3, s = 0.4: 4.302653 * 0.4 * sqrt(4/3) = 1.987 > 1.5.
    found = verdicts.number(paper, spaced(81, 0.4, 3), value, 1)
    assert found.prediction.half_width == pytest.approx(1.9873, abs=1e-4)
    assert (found.verdict, found.text) == ("inconclusive", "inconclusive (preliminary)")


def test_just_below_the_limit_an_interval_decides(paper):
    found = verdicts.number(paper, spaced(81, 0.3, 3), 81.0, 1)
    assert found.prediction.half_width == pytest.approx(1.4905, abs=1e-4)
    assert found.text == "reproduced (preliminary)"


# ---- Numbers of seeds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (1, "no verdict (n = 1)"),
        (2, "no verdict (n = 2)"),
        (3, "reproduced (preliminary)"),
        (9, "reproduced (preliminary)"),
        (10, "reproduced"),
    ],
)
def test_fewer_than_three_seeds_give_no_verdict_and_fewer_than_ten_a_preliminary_one(paper, n, text):
    ours, many = cell(*[81.0] * n), cell(*[80.9] * 12)
    assert verdicts.number(paper, ours, 81.0, 1).text == text
    for found in (verdicts.equal(paper, ours, many), verdicts.greater(paper, ours, many)):
        assert (found.text, found.n) == (text, n)
    assert verdicts.equal(paper, many, ours).text == text


def test_a_cell_without_any_run_is_not_run(paper):
    none, many = cell(), cell(*[81.0] * 10)
    for found in (
        verdicts.number(paper, none, 81.0, 1),
        verdicts.equal(paper, many, none),
        verdicts.greater(paper, none, many),
        verdicts.greater(paper, none, cell(81.0)),
    ):
        assert found.text == "not run" and found.p is None


def test_runs_that_give_no_value_are_no_verdict_rather_than_not_run(paper):
    for without_value in (cell(diverged=2), cell(failed=1), cell(unmeasured=(0, 1))):
        assert verdicts.number(paper, without_value, 81.0, 1).text == "no verdict (n = 0)"


# ---- Diverged runs ---------------------------------------------------------------------------------------------------


def test_a_cell_with_a_diverged_run_is_never_reproduced(paper):
    diverged = cell(*[81.0] * 10, diverged=1)
    lower = cell(*[80.0] * 10)
    assert verdicts.number(paper, diverged, 81.0, 1).verdict == "inconclusive"
    assert verdicts.equal(paper, diverged, cell(*[81.0] * 10)).verdict == "inconclusive"
    assert verdicts.greater(paper, diverged, lower).verdict == "inconclusive"
    assert verdicts.greater(paper, cell(*[82.0] * 10), diverged).verdict == "inconclusive"


def test_a_diverged_run_does_not_save_a_claim_from_its_numbers(paper):
    diverged = cell(*[81.0] * 10, diverged=1)
    assert verdicts.number(paper, diverged, 70.0, 1).verdict == "not reproduced"
    assert verdicts.equal(paper, diverged, cell(*[85.0] * 10)).verdict == "not reproduced"
    assert verdicts.greater(paper, diverged, cell(*[85.0] * 10)).verdict == "contradicted"


# ---- equal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "verdict"),
    # s = 0.105409 on both sides, se = 0.047141, 18 degrees of freedom, t = 1.734064: the interval is +- 0.081745.
    [
        (0.0, "reproduced"),  # inside
        (0.41, "reproduced"),
        (0.43, "inconclusive"),  # straddling the margin
        (0.57, "inconclusive"),
        (0.59, "not reproduced"),  # outside
        (-0.41, "reproduced"),
        (-0.43, "inconclusive"),
        (-0.59, "not reproduced"),
    ],
)
def test_equal_by_where_the_interval_of_the_difference_lies(paper, difference, verdict):
    found = verdicts.equal(paper, spaced(81 + difference, 0.1, 10), spaced(81, 0.1, 10))
    assert found.verdict == verdict
    assert found.difference == pytest.approx(difference)
    assert found.interval == pytest.approx((difference - 0.081745, difference + 0.081745), abs=1e-5)
    assert found.confidence == 0.90
    assert (found.p <= 0.05) == (verdict == "reproduced")


def test_a_difference_that_is_merely_not_significant_is_no_evidence_of_equality(paper):
    found = verdicts.equal(paper, spaced(81, 2, 4), spaced(81, 2, 4))
    assert found.difference == 0 and found.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [(81, 81, "reproduced"), (81.4, 81, "reproduced"), (81.5, 81, "inconclusive"), (81.6, 81, "not reproduced")],
)
def test_equal_without_any_spread(paper, a, b, verdict):
    assert verdicts.equal(paper, cell(*[a] * 10), cell(*[b] * 10)).verdict == verdict


def test_equal_rests_on_the_corrected_p(paper):
    a, b = spaced(81, 0.1, 10), spaced(81, 0.1, 10)
    assert verdicts.equal(paper, a, b, p_adjusted=0.05).verdict == "reproduced"
    assert verdicts.equal(paper, a, b, p_adjusted=0.0501).verdict == "inconclusive"


# ---- greater ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "verdict"),
    # The one-sided test's bound is the 90 % interval's: 0.081745 as above.
    [
        (0.09, "reproduced"),
        (0.07, "inconclusive"),
        (0, "inconclusive"),
        (-0.07, "inconclusive"),
        (-0.09, "contradicted"),
    ],
)
def test_greater_by_a_one_sided_test_in_both_directions(paper, difference, verdict):
    found = verdicts.greater(paper, spaced(81 + difference, 0.1, 10), spaced(81, 0.1, 10))
    assert found.verdict == verdict
    assert found.p + found.p_opposite == pytest.approx(1)
    assert found.interval == pytest.approx((difference - 0.081745, difference + 0.081745), abs=1e-5)
    assert found.confidence == pytest.approx(0.90)


@pytest.mark.parametrize(("a", "verdict"), [(81.01, "reproduced"), (81.0, "inconclusive"), (80.99, "contradicted")])
def test_greater_without_any_spread_and_a_tie(paper, a, verdict):
    assert verdicts.greater(paper, cell(*[a] * 10), cell(*[81.0] * 10)).verdict == verdict


def test_greater_rests_on_the_corrected_p_in_both_directions(paper):
    a, b = cell(*[81.0] * 10), cell(*[80.0] * 10)
    assert verdicts.greater(paper, a, b, 0.0501, 1).verdict == "inconclusive"
    assert verdicts.greater(paper, b, a, 1, 0.05).verdict == "contradicted"
    assert verdicts.greater(paper, b, a, 1, 0.0501).verdict == "inconclusive"


# ---- All claims together ---------------------------------------------------------------------------------------------


def claim(name, rule, a, b, family="one", **more):
    operands = [{"experiment": each, "iteration": 2000} for each in (a, b)]
    return {"id": name, "source": "paper", "rule": rule, "operands": operands, "family": family} | more


def with_claims(paper, *claims):
    return dataclasses.replace(paper, claims=list(claims))


def add_cell(add_run, label, *values, **changes):
    for seed, value in enumerate(values):
        add_run(label, seed, {0: 10.0, 1000: value - 5, 2000: value}, **changes)


def by_id(decided):
    return {verdict.id: verdict.finding for verdict in decided}


def test_without_any_run_every_claim_is_not_run(paper):
    decided = verdicts.decide(paper, Results({}, {}, ()))
    assert [verdict.id for verdict in decided] == [each["id"] for each in paper.claims]
    assert {verdict.finding.text for verdict in decided} == {"not run"}


def test_holm_is_taken_within_a_family_over_all_of_its_claims(paper, tmp_path, add_run):
    add_cell(add_run, "a", 81.0, 81.1, 81.2, 81.3)
    add_cell(add_run, "b", 80.8, 80.9, 81.0, 81.1)
    claims = [claim("first", "greater", "a", "b"), claim("second", "greater", "a", "b", family="two")]
    alone = by_id(verdicts.decide(with_claims(paper, *claims), collect(tmp_path)))
    p = alone["first"].p
    assert 0.05 / 3 < p < 0.05  # significant alone, not among three
    assert alone["first"].p_adjusted == alone["second"].p_adjusted == p
    assert alone["first"].text == "reproduced (preliminary)"

    # Claims that were never run, of either rule, make the family larger; a measurement does not.
    claims += [claim("third", "greater", "a", "absent"), claim("fourth", "equal", "absent", "b")]
    claims += [claim("fifth", "time_to_target", "a", "b")]
    together = by_id(verdicts.decide(with_claims(paper, *claims), collect(tmp_path)))
    assert together["first"].p == p and together["first"].p_adjusted == pytest.approx(3 * p)
    assert together["second"].p_adjusted == p
    assert together["first"].text == "inconclusive (preliminary)"
    assert together["third"].text == together["fourth"].text == "not run"


def test_holm_steps_down_over_rules_of_both_kinds(paper, tmp_path, add_run):
    add_cell(add_run, "a", 81.0, 81.1, 81.2, 81.3)
    add_cell(add_run, "b", 80.8, 80.9, 81.0, 81.1)
    claims = [claim("greater", "greater", "a", "b"), claim("equal", "equal", "a", "b")]
    found = by_id(verdicts.decide(with_claims(paper, *claims), collect(tmp_path)))
    smaller, larger = sorted(found.values(), key=lambda each: each.p)
    assert smaller.p < larger.p
    assert smaller.p_adjusted == pytest.approx(2 * smaller.p)
    assert larger.p_adjusted == pytest.approx(max(2 * smaller.p, larger.p))


def test_the_opposite_direction_is_corrected_over_a_family_of_the_same_size(paper, tmp_path, add_run):
    add_cell(add_run, "a", 81.0, 81.1, 81.2, 81.3)
    add_cell(add_run, "b", 80.8, 80.9, 81.0, 81.1)
    claims = [claim("wrong", "greater", "b", "a"), claim("right", "greater", "a", "b")]
    claims += [claim("same", "equal", "a", "b")]
    found = by_id(verdicts.decide(with_claims(paper, *claims), collect(tmp_path)))
    assert found["wrong"].p_opposite == found["right"].p
    assert found["wrong"].p_opposite_adjusted == pytest.approx(3 * found["wrong"].p_opposite)
    assert found["wrong"].verdict == "inconclusive" and found["same"].p_opposite is None


def test_a_claim_below_three_seeds_and_one_with_a_diverged_run_take_part_with_p_1(paper, tmp_path, add_run):
    add_cell(add_run, "a", *[81.0] * 4)
    add_cell(add_run, "b", *[80.0] * 4)
    add_cell(add_run, "two seeds", *[70.0] * 2)
    add_cell(add_run, "diverging", *[60.0] * 4)
    add_run("diverging", 9, {0: 10.0}, status="diverged")
    claims = [claim(f"above {label}", "greater", "a", label) for label in ("b", "two seeds", "diverging")]
    found = by_id(verdicts.decide(with_claims(paper, *claims), collect(tmp_path)))
    assert (found["above b"].p, found["above b"].p_adjusted, found["above b"].verdict) == (0, 0, "reproduced")
    assert found["above two seeds"].p is None and found["above two seeds"].text == "no verdict (n = 2)"
    assert (found["above diverging"].p, found["above diverging"].p_adjusted) == (0, 1)
    assert found["above diverging"].verdict == "inconclusive"


def test_a_diverged_run_does_not_hide_that_the_opposite_is_so(paper, tmp_path, add_run):
    add_cell(add_run, "a", *[80.0] * 4)
    add_cell(add_run, "b", *[81.0] * 4)
    add_run("a", 9, {0: 10.0}, status="diverged")
    only = with_claims(paper, claim("a above b", "greater", "a", "b"))
    (finding,) = by_id(verdicts.decide(only, collect(tmp_path))).values()
    assert (finding.p_adjusted, finding.p_opposite_adjusted, finding.verdict) == (1, 0, "contradicted")


def test_a_claim_has_its_cells_and_its_controls_at_the_iteration_of_its_first_operand(paper, tmp_path, add_run):
    add_cell(add_run, "a", 81.0, 82.0, 83.0)
    add_cell(add_run, "b", 80.0, 80.0, 80.0)
    add_cell(add_run, "control", 79.0)
    add_run("b", 7, {0: 10.0}, status="diverged")
    claims = [claim("one", "greater", "a", "b", controls=["control", "absent"])]
    (verdict,) = verdicts.decide(with_claims(paper, *claims), collect(tmp_path))
    assert [(each.label, each.iteration, each.values) for each in verdict.cells] == [
        *(("a", 2000, (81.0, 82.0, 83.0)), ("b", 2000, (80.0, 80.0, 80.0))),
    ]
    assert [(each.label, each.values) for each in verdict.controls] == [("control", (79.0,)), ("absent", ())]
    assert verdict.remarks == ("b: 1 diverged",)


def test_the_papers_headline_from_files_to_verdict(paper, tmp_path, add_run):
    for seed in range(3):
        add_run("cifar10_tri2", seed, {0: 10.0, 24_000: 80.0, 25_000: 81.2 + seed / 10})
        add_run("cifar10_tri2[precision=bf16]", seed, {0: 10.0, 25_000: 50.0}, precision="bf16")
        add_run("cifar10_fixed", seed, {0: 10.0, 25_000: 70.0, 70_000: 81.1 + seed / 10})
    found = by_id(verdicts.decide(paper, collect(tmp_path)))
    assert found["table1_tri2"].text == "reproduced (preliminary)"
    assert found["table1_tri2"].difference == pytest.approx(81.3 - 81.4)
    assert found["table1_tri2_equals_fixed"].difference == pytest.approx(0.1)
    assert found["table1_tri2_beats_decay"].text == "not run"
    # 20,000 was not evaluated.
    assert found["figure1_tri2_above_fixed"].text == "no verdict (n = 0)"
    # t = (0.5 - 0.1) / sqrt(2 * 0.01 / 3) = 4.899 at 4 degrees of freedom; Holm counts all of table1's p-values.
    t = 0.4 / math.sqrt(0.02 / 3)
    p = 0.5 - 0.375 * (t / math.sqrt(1 + t * t / 4)) * (1 - t * t / (12 * (1 + t * t / 4)))
    family = [each for each in paper.claims if each["family"] == "table1" and each["rule"] in ("equal", "greater")]
    equals = found["table1_tri2_equals_fixed"]
    assert equals.p == pytest.approx(p, abs=1e-6)
    assert equals.p_adjusted == pytest.approx(len(family) * p, abs=1e-5)


# ---- Time to target --------------------------------------------------------------------------------------------------


def test_time_to_target_is_measured_and_gives_no_verdict(paper, tmp_path, add_run):
    slow = {0: 10.0, 1000: 60.0, 2000: 70.0, 3000: 76.0, 4000: 75.0, 5000: 75.0, 6000: 77.0, 7000: 77.0}
    for seed in range(3):
        add_run("cifar10_tri2", seed, {0: 10.0, 1000: 70.0, 2000: 77.0, 3000: 78.0, 4000: 78.5})
        add_run("cifar10_fixed", seed, slow)
    add_run("cifar10_fixed", 3, {0: 10.0, 1000: 10.0}, status="diverged")
    add_run("cifar10_fixed", 4, {0: 10.0, 1000: 10.0}, status="failed")
    decided = {verdict.id: verdict for verdict in verdicts.decide(paper, collect(tmp_path))}
    verdict = decided["table1_tri2_time_to_target"]
    assert verdict.finding == Finding("measured", 0)  # none of the cells reaches the iteration that the claim names
    at = {(time.label, time.target, time.unit): time for time in verdict.times}
    assert len(verdict.times) == 4 * 6 * 2

    a, b = at["cifar10_tri2", 76, "iterations"], at["cifar10_fixed", 76, "iterations"]
    assert (a.role, a.times, a.median, a.reached) == ("A", (2000, 2000, 2000), 2000, 3)
    # The evaluation at 3,000 is a blip; the diverged run is a miss, the failed one takes no part.
    assert (b.role, b.times, b.median, b.reached) == ("B", (6000, 6000, 6000, math.inf), 6000, 3)
    assert b.speed_up == 3 and b.interval == (3, math.inf) and math.isnan(a.speed_up)
    seconds = at["cifar10_fixed", 76, "train_seconds"]
    assert seconds.median == 6000 * 0.05  # what a made-up curve takes
    assert seconds.speed_up == 3

    missed = at["cifar10_fixed", 78, "iterations"]
    assert (missed.median, missed.speed_up) == (math.inf, math.inf)
    both_missed = at["cifar10_fixed", 80, "iterations"]
    assert math.isnan(both_missed.speed_up) and math.isnan(both_missed.interval.low)
    beside = at["cifar10_fixed_25k", 76, "iterations"]
    assert (beside.role, beside.times) == ("beside", ()) and math.isnan(beside.median) and math.isnan(beside.speed_up)


def test_runs_are_cut_at_the_iteration_that_the_claim_names(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, {0: 10.0, 24_000: 75.0, 25_000: 79.0, 26_000: 79.0})
    decided = {verdict.id: verdict for verdict in verdicts.decide(paper, collect(tmp_path))}
    at = {(time.label, time.target, time.unit): time for time in decided["table1_tri2_time_to_target"].times}
    assert at["cifar10_tri2", 76, "iterations"].times == (math.inf,)
    assert decided["table1_tri2_time_to_target"].finding.text == "not run"


def test_a_finer_grid_of_evaluations_is_no_advantage(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, {0: 10.0, **dict.fromkeys(range(200, 4001, 200), 77.0)})
    add_run("cifar10_fixed", 0, {0: 10.0, 1000: 77.0, 2000: 77.0, 3000: 77.0, 4000: 77.0, 5000: 77.0})
    decided = {verdict.id: verdict for verdict in verdicts.decide(paper, collect(tmp_path))}
    at = {(time.label, time.target, time.unit): time for time in decided["table1_tri2_time_to_target"].times}
    assert at["cifar10_tri2", 76, "iterations"].times == at["cifar10_fixed", 76, "iterations"].times == (1000,)


def test_a_run_that_ended_does_not_take_later_evaluations_from_the_grid():
    curves = [[0, 1000, 2000], [0, 500, 1000, 1500, 2000, 2500, 3000], []]
    rows = [[CurveRow(t, 0, 0, 0, 0, 0) for t in curve] for curve in curves]
    assert sorted(common_grid(rows)) == [0, 1000, 2000, 2500, 3000]
    assert common_grid([]) == frozenset()


# ---- Reading conf/paper ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rule": "less"},
            "table1_fixed.rule: expected one of number, equal, greater, share, bounds, cost, time_to_target",
        ),
        ({"operands": []}, "table1_fixed.operands: number compares 1, got 0"),
        ({"row": "table9"}, "table1_fixed.row: expected one of table1_cifar10_fixed, "),
        ({"row": "table2_phase1"}, "table1_fixed.row: expected one of table1_cifar10_fixed, "),
        ({"rule": "bounds"}, "table1_fixed.row: expected one of bounds_cifar10, "),
        ({"rule": "cost", "operands": [], "ratio": "b_over_a"}, "table1_fixed.ratio: expected one of clr_over_fixed, "),
    ],
)
def test_a_claim_that_no_rule_can_decide_is_refused(tmp_path, changes, message):
    shutil.copytree(CONF / "paper", tmp_path, dirs_exist_ok=True)
    claims = yaml.safe_load((tmp_path / "claims.yaml").read_text())
    assert claims["claims"][0]["id"] == "table1_fixed"
    claims["claims"][0] |= changes
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(claims))
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_paper(tmp_path)


def test_parameters_come_from_the_yaml(paper):
    lenient = copy.deepcopy(dict(paper.verdicts))
    lenient["rules"]["number"] |= {"floor": 3.0, "inconclusive": 4.0}
    lenient["rules"]["equal"] |= {"margin": 2.0}
    lenient["rules"]["greater"] |= {"alpha": 0.5}
    lenient["seeds"] |= {"none_below": 2, "preliminary_below": 2}
    other = dataclasses.replace(paper, verdicts=lenient)
    a, b = cell(82.0, 82.2), cell(81.0, 81.2)
    assert verdicts.number(other, a, 85.0, 1).text == "reproduced"
    assert verdicts.equal(other, cell(82.0, 82.02), cell(81.0, 81.02)).text == "reproduced"
    assert verdicts.greater(other, a, b).text == "reproduced" and verdicts.greater(other, a, b).confidence == 0


# ---- Where cycles end ------------------------------------------------------------------------------------------------


@pytest.fixture
def at_ends(paper, tmp_path, add_run):
    """By claim, what its rule says where cycles end: by the iterations, joined."""

    def ask(claim, runs):
        for experiment, values in runs.items():
            for seed in range(3):
                rows = {0: 10.0, **{t: value + seed / 20 for t, value in values.items()}}
                add_run(experiment, seed, rows, config={"schedule": cards.plan(experiment)["schedule"]})
        (verdict,) = [each for each in verdicts.decide(paper, collect(tmp_path)) if each.id == claim]
        return {"+".join(str(cell.iteration) for cell in cells): finding.verdict for cells, finding in verdict.at_ends}

    return ask


EXP_RANGE = {40_000: 82.2, 42_000: 79.0, 44_000: 80.0, 68_000: 82.2, 70_000: 79.0}


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ("table1_exp_range", {"40000": "reproduced", "44000": "not reproduced"}),
        ("table1_exp_range_beats_fixed", {"40000+70000": "reproduced", "44000+70000": "contradicted"}),
        ("text_exp_range_no_gain", {"68000+40000": "reproduced"}),  # 72,000 was not run
    ],
)
def test_a_claim_read_in_mid_cycle_is_asked_where_cycles_end_too(at_ends, claim, said):
    assert at_ends(claim, {"cifar10_exp_range": EXP_RANGE, "cifar10_fixed": {70_000: 81.5}}) == said


def test_a_claim_that_is_about_the_middle_of_a_cycle_is_not(at_ends):
    runs = {"cifar10_tri_no_drops": {24_000: 78.0, 25_000: 76.0}}
    assert at_ends("text_stop_at_cycle_end", runs) == {}
    assert at_ends("control_section31_24k", runs) == {}
