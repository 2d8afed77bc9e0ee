"""The first screen's tables: CLR beside other policies, with the claims' own verdicts, and Figure 1's points."""

import pytest
import yaml

from cyclical_lr.report import headline_tables
from cyclical_lr.report.collect import Results, collect
from cyclical_lr.report.report import make_report

OURS, LEAD = "ours [95 %], %", "CLR's lead [90 %], points"
PAPER = "the paper, % (what would fit)"


def beside(paper, results):
    frame = headline_tables.beside_clr(make_report(paper, results))
    return {row["card"]: row for row in frame.to_dict("records")}


def ends(last):
    return {0: 10.0, 25_000: last}


def test_each_policy_of_table_1_and_its_controls_has_a_row_before_it_has_a_run(paper):
    rows = beside(paper, Results({}, {}, ()))
    assert list(rows) == [
        *("cifar10_tri2", "cifar10_fixed", "cifar10_fixed_25k", "cifar10_fixed_25k_matched", "cifar10_decay"),
        *("cifar10_decay_drops", "cifar10_exp", "cifar10_exp_drops", "cifar10_exp_range"),
    ]
    assert [row[PAPER] for row in rows.values()] == ["81.4", "81.4", "", "", "78.5", "", "79.1", "", "82.2"]
    for row in rows.values():
        assert (row[OURS], row["n"], row[LEAD], row["CLR is"]) == ("not run", "0", "", "")
        assert row["verdict"] == ("not run" if row[PAPER] else "")


def test_a_row_has_the_lead_of_clr_with_its_interval_and_what_the_claims_show(paper, tmp_path, add_run):
    for seed in range(3):
        add_run("cifar10_tri2", seed, ends(81.2 + seed / 10))
        add_run("cifar10_fixed", seed, {0: 10.0, 70_000: 81.2 + seed / 10})
        add_run("cifar10_fixed_25k", seed, ends(79.2 + seed / 10))
        add_run("cifar10_fixed_25k_matched", seed, ends(81.2 + seed / 10))
        add_run("cifar10_decay", seed, ends(83.2 + seed / 10))
        add_run("cifar10_exp_drops", seed, ends(80.2 + seed))
    rows = beside(paper, collect(tmp_path))
    assert rows["cifar10_tri2"] == {
        "policy": "CLR",
        "card": "cifar10_tri2",
        "iterations": "25,000",
        OURS: "81.30 [81.05, 81.55]",  # t = 4.302653, s = 0.1, n = 3
        "n": "3",
        PAPER: "81.4 (80.80 to 81.80)",  # at least half a point
        "verdict": "reproduced (preliminary)",
        LEAD: "",
        "CLR is": "",
    }
    said = {card: (row[LEAD], row["CLR is"]) for card, row in rows.items() if row[LEAD]}
    assert said == {
        "cifar10_fixed": ("+0.00 [-0.17, +0.17]", "equal to within ±0.5 (preliminary)"),
        "cifar10_fixed_25k": ("+2.00 [+1.83, +2.17]", "better (preliminary)"),
        "cifar10_fixed_25k_matched": ("+0.00 [-0.17, +0.17]", "equal to within ±0.5 (preliminary)"),
        "cifar10_decay": ("-2.00 [-2.17, -1.83]", "worse (preliminary)"),
        "cifar10_exp_drops": ("+0.10 [-1.57, +1.77]", "inconclusive (preliminary)"),
    }


def test_a_policy_without_a_run_or_without_one_of_clr_beside_it_has_no_lead(paper, tmp_path, add_run):
    add_run("cifar10_decay", 0, ends(77.2))
    add_run("cifar10_tri2_no_drops", 0, ends(77.2))
    row = beside(paper, collect(tmp_path))["cifar10_decay"]
    assert (row[OURS], row["verdict"], row[LEAD], row["CLR is"]) == (
        "77.20 (no interval)",
        "no verdict (n = 1)",
        "",
        "",
    )
    add_run("cifar10_tri2", 0, ends(80.6))
    row = beside(paper, collect(tmp_path))["cifar10_exp"]
    assert (row[OURS], row["verdict"], row[LEAD], row["CLR is"]) == ("not run", "not run", "", "")


def test_what_is_neither_better_nor_equal_is_called_so(paper, tmp_path, add_run):
    for seed in range(10):
        add_run("cifar10_tri2", seed, ends(81.2 + seed / 10))
        add_run("cifar10_fixed", seed, {0: 10.0, 70_000: 83.2 + seed / 10})
    assert beside(paper, collect(tmp_path))["cifar10_fixed"]["CLR is"] == "not equal, CLR lower"


def test_one_seed_has_a_lead_without_interval_and_shows_nothing(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, ends(80.6))
    add_run("cifar10_fixed_25k", 0, ends(80.14))
    add_run("cifar10_fixed_25k", 1, ends(70.0), status="diverged")
    row = beside(paper, collect(tmp_path))["cifar10_fixed_25k"]
    assert (row[OURS], row["n"]) == ("80.14 (no interval)", "1, 1 diverged")
    assert (row[LEAD], row["CLR is"]) == ("+0.46", "no verdict (n = 1)")


FIGURE1 = yaml.safe_load(
    """
    curves:
      - {label: CLR, experiment: cifar10_tri2, points: [
          {iteration: 4000, accuracy: 72.3}, {iteration: 15800, accuracy: 77.5}, {iteration: 16300, accuracy: 79.7},
          {iteration: 60000, accuracy: 80.0}]}
      - {label: fixed, experiment: cifar10_fixed, points: [{iteration: 4000, accuracy: 60.0}]}
    """
)


def test_ours_is_read_at_the_first_evaluation_at_or_after_each_point(tmp_path, add_run, add_caffe_run):
    add_run("cifar10_tri2", 0, {0: 10.0, 4_000: 70.0, 16_000: 76.0, 17_000: 80.0, 25_000: 81.0})
    add_run("cifar10_tri2", 1, {0: 10.0, 4_000: 72.0, 16_000: 78.0, 16_500: 1.0, 17_000: 82.0, 25_000: 81.0})
    add_run("cifar10_fixed_25k", 0, {0: 10.0, 4_000: 60.0, 16_000: 70.0, 25_000: 79.0})
    add_caffe_run({4_000: 71.5, 16_000: 77.5, 17_000: 79.5})
    add_caffe_run({4_000: 72.5, 16_000: 78.5}, "cifar10_tri2-2")
    (along,) = headline_tables.along_the_way(collect(tmp_path), FIGURE1)
    assert along.points == ((4_000, 72.3), (15_800, 77.5), (16_300, 79.7))  # none of ours is at or after 60,000
    assert along.at == (4_000, 16_000, 17_000)  # 16,500 is not common to the seeds
    assert along.ours["cifar10_tri2 (n = 2)"] == (71.0, 77.0, 81.0)
    assert along.ours["cifar10_tri2, Caffe itself (n = 2)"] == (72.0, 78.0, 79.5)
    assert along.ours["cifar10_fixed_25k (n = 1)"][:2] == (60.0, 70.0)
    assert along.ours["cifar10_fixed_25k (n = 1)"][2] != along.ours["cifar10_fixed_25k (n = 1)"][2]


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_that_did_not_finish_has_no_points(tmp_path, add_run, status):
    add_run("cifar10_fixed", 0, {0: 10.0, 4_000: 60.0}, status=status)
    assert headline_tables.along_the_way(collect(tmp_path), FIGURE1) == []
