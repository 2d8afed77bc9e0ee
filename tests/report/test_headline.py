"""The first screen's sentences: no number without its n, no interval that is not there, no verdict of their own."""

import re

import cards
import pytest

from cyclical_lr import records
from cyclical_lr.report import headline
from cyclical_lr.report.collect import Results, collect
from cyclical_lr.report.report import make_report


def found(paper, results):
    """The sentences about accuracy; the two after them are about cost (test_measured_rules.py)."""
    *sentences, same, more = headline.found(make_report(paper, results))
    assert same.startswith("**Cost**: “CLR needs") and more.startswith("**Cost**: “Methods that")
    assert same.endswith("”: not run.") and more.endswith("”: not run.")
    return sentences


def curve(last, at_drop=76.0):
    return {0: 10.0, 4_000: 70.0, 16_000: at_drop, 24_000: last, 25_000: last}


def test_without_a_run_the_sentences_say_not_run(paper):
    sentences = found(paper, Results({}, {}, ()))
    assert sentences == [
        "**LR drops** add at 25,000 (claims of this study's own): to CLR not run; to `decay` not run; to `exp` not run."
    ]
    lead = headline.lead(make_report(paper, Results({}, {}, ())))
    ours = sum(claim["source"] == "paper" for claim in paper.claims)
    assert (
        lead == f"0 runs so far. Of the paper's {ours} claims (10 restate Table 3's for staged schedules, which the "
        f"paper leaves open): {ours} not run."
    )


def test_a_target_that_most_clr_runs_miss_is_not_the_highest_that_they_reach(paper, tmp_path, add_run):
    for seed, last in enumerate((80.1, 80.2, 81.2)):
        add_run("cifar10_tri2", seed, curve(last))
    *_, times = found(paper, collect(tmp_path))
    assert times.startswith("**Iterations** to 80 %, the highest target that most CLR runs reach")


def lrs_of(card):
    """What the lab card computes, as the first screen prints it."""
    return [float(f"{lr:.3g}") for lr in records.learning_rates(cards.plan(card))]


def test_what_the_policies_are_said_to_be_is_what_their_cards_compute():
    said = dict(re.findall(r"(?:^|[.:] )([\w' ]+?)(?: is triangular2,|:) (.*?)(?=\. |\.$)", headline.POLICIES))
    clr, fixed, matched, decay, exp, both = (
        lrs_of(f"cifar10_{card}") for card in ("tri2", "fixed", "fixed_25k_matched", "decay", "exp", "exp_range")
    )
    assert said["CLR"].startswith("0.001 to 0.005 and back in 4,000 iterations, the amplitude halved with each cycle")
    assert [clr[at] for at in (0, 2_000, 4_000, 6_000, 8_000)] == [0.001, 0.005, 0.001, 0.003, 0.001]
    assert (
        "tenth from 16,000 on and a hundredth from 22,000 on (the drops), in cycles of 2,000 and 1,000" in said["CLR"]
    )
    assert [clr[at] for at in (15_999, 16_000, 18_000, 21_999, 22_000, 23_000)] == [
        *(0.001, 0.0001, 0.0001, 0.0001, 0.00001, 0.00001)
    ]
    assert max(clr[16_000:22_000]) == clr[17_000] and max(clr[22_000:]) == clr[22_500]
    assert said["fixed"] == "0.001, with drops at 60,000 and 65,000"
    assert [fixed[at] for at in (0, 59_999, 60_000, 65_000)] == [0.001, 0.001, 0.0001, 0.00001]
    assert said["CLR's mean LR"] == "0.00194, that of its first 16,000"
    assert matched[0] == 0.00194 == pytest.approx(sum(clr[:16_000]) / 16_000, abs=5e-6)
    assert said["decay"] == "0.007 to 0.001 in 4,000, then constant"
    assert [decay[at] for at in (0, 2_000, 4_000, 25_000)] == [0.007, 0.004, 0.001, 0.001]
    assert said["exp"] == "0.001, times 0.99994 per iteration"
    assert exp[10_000] == float(f"{0.001 * 0.99994**10_000:.3g}")
    assert said["exp_range"] == "0.001 to 0.006 and back in 4,000, both bounds times 0.99994 per iteration"
    assert both[2_000] == float(f"{0.006 * 0.99994**2_000:.3g}") and both[4_000] == exp[4_000]


def test_in_short_says_on_which_side_of_each_control_clr_is(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, curve(80.0))
    for label, last in (("fixed_25k", 79.0), ("fixed_25k_matched", 80.5)):
        add_run(f"cifar10_{label}", 0, curve(last))
    add_run("cifar10_fixed", 0, {0: 10.0, 70_000: 82.0})
    said = headline.short(make_report(paper, collect(tmp_path)))
    assert said == (
        "In short: on CIFAR-10 with Caffe's cifar10_full, CLR ends after 25,000 iterations at 80.00 % test accuracy "
        "(the paper: 81.4), 1.00 points above the fixed policy "
        "with the same budget and drops (n = 1 there), 0.50 points below that policy at CLR's mean LR (n = 1 there), "
        "and 2.00 points below the fixed policy after its 70,000 iterations (n = 1 there)."
    )
    for seed in range(1, 10):
        for label, last in (("tri2", 80.0), ("fixed_25k", 79.0)):
            add_run(f"cifar10_{label}", seed, curve(last))
    assert "budget and drops, 0.50" in headline.short(make_report(paper, collect(tmp_path)))
    for seed in range(1, 10):
        add_run("cifar10_fixed_25k_matched", seed, curve(80.0 + seed / 100))
    said = headline.short(make_report(paper, collect(tmp_path)))
    assert "that policy at CLR's mean LR (equal to within ±0.5), and 2.00 points below" in said


def test_the_tally_tells_what_it_would_be_where_cycles_end(paper, tmp_path, add_run):
    config = {"schedule": cards.plan("cifar10_exp_range")["schedule"]}
    for seed in range(3):
        values = {40_000: 82.0 + seed / 5, 42_000: 79.0 + seed / 5, 44_000: 82.2}
        add_run("cifar10_exp_range", seed, {0: 10.0, **values}, config=config)
    report = make_report(paper, collect(tmp_path))
    said = headline.lead(report)
    assert headline.machines(report).startswith("Runs by device: a cpu 3; ")
    assert (
        " Of those read in mid-cycle, at a stepsize chosen here, 1 not reproduced (preliminary) would be reproduced "
        "where cycles end."
    ) in said


def test_the_rules_are_told_by_their_own_numbers(paper):
    said = headline.rules(make_report(paper, Results({}, {}, ())))
    assert all(part in said for part in ("95 % prediction", "at least ±0.5", "wider than ±1.5", "within ±0.5"))
    assert all(part in said for part in ("p ≤ 0.05", "Fewer than 3", "fewer than 10"))


def test_one_seed_gives_numbers_without_interval_or_verdict(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, curve(80.6, 78.59))
    add_run("cifar10_fixed_25k", 0, curve(80.14, 76.49))
    add_run("cifar10_tri2_no_drops", 0, curve(79.5))
    drops, times = found(paper, collect(tmp_path))
    assert drops == (
        "**LR drops** add at 25,000 (claims of this study's own): to CLR +1.10 points (n = 1, no interval): "
        "no verdict (n = 1); to `decay` not run; to `exp` not run. Before the first, at 16,000: 78.59 "
        "(`cifar10_tri2`), 76.49 (`cifar10_fixed_25k`) %."
    )
    assert times == (
        "**Iterations** to 80.5 %, the highest target that most CLR runs reach (medians): `cifar10_tri2` 24,000 (1 of "
        "1 runs), `cifar10_fixed_25k` never (0 of 1 runs)."
    )


def test_a_target_that_others_reach_and_clr_does_not_is_told_too(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, curve(80.6))
    add_run("cifar10_fixed", 0, {**curve(76.0), 62_000: 82.0, 70_000: 82.0})
    said = found(paper, collect(tmp_path))[-1]
    assert "`cifar10_tri2` 24,000 (1 of 1 runs), `cifar10_fixed` 62,000 (1 of 1 runs; CLR's speed-up x2.58" in said
    assert said.endswith(" To 81 %: `cifar10_tri2` never (0 of 1 runs), `cifar10_fixed` 62,000 (1 of 1 runs).")


def test_several_seeds_give_intervals_and_the_verdicts_of_the_rules(paper, tmp_path, add_run):
    for seed in range(3):
        add_run("cifar10_tri2", seed, curve(81.2 + seed / 10))
        add_run("cifar10_fixed_25k", seed, curve(79.2 + seed / 10))
        add_run("cifar10_tri2_no_drops", seed, curve(79.2 + seed / 10))
        add_run("cifar10_decay_drops", seed, curve(79.2))
    add_run("cifar10_decay", 0, curve(77.2))
    drops, times = found(paper, collect(tmp_path))
    assert "to CLR +2.00 [+1.83, +2.17] points (n = 3, 90 % interval): reproduced (preliminary); to `decay`" in drops
    assert "to `decay` +2.00 points (n = 1, no interval): no verdict (n = 1); to `exp`" in drops  # the fewer of 3 and 1
    assert times == (  # the last evaluation has no next one, and cannot count
        "**Iterations** to 81 %, the highest target that most CLR runs reach (medians): `cifar10_tri2` 24,000 (3 of 3 "
        "runs), `cifar10_fixed_25k` never (0 of 3 runs)."
    )


def test_runs_of_caffe_itself_stand_beside_the_ports(paper, tmp_path, add_run, add_caffe_run):
    for seed in range(3):
        add_run("cifar10_tri2", seed, curve(81.2 + seed / 10))  # a new run is expected within [80.80, 81.80]
    add_run("cifar10_fixed_25k", 0, curve(79.0))
    add_caffe_run({0: 10.0, 25_000: 79.5}, "cifar10_fixed_25k-1")
    add_caffe_run({0: 10.0, 25_000: 81.5})
    add_caffe_run({0: 10.0, 25_000: 81.9}, "cifar10_tri2-2")
    assert found(paper, collect(tmp_path))[0] == (
        "**Caffe itself** ends at 81.50 and 81.90 % under the LRs of `cifar10_tri2` (a new run of the port is expected "
        "within [80.80, 81.80]), at 79.50 % under the LRs of `cifar10_fixed_25k`."
    )


def test_half_a_run_of_caffe_itself_has_no_sentence(paper, tmp_path, add_run, add_caffe_run):
    add_run("cifar10_tri2", 0, curve(81.2))
    add_caffe_run({0: 10.0, 4_000: 70.0})
    assert not any("Caffe itself" in sentence for sentence in found(paper, collect(tmp_path)))


def test_bf16_has_a_sentence_where_it_and_float32_were_run(paper, tmp_path, add_run):
    for seed in range(3):
        add_run("cifar10_tri2", seed, curve(81.2 + seed / 10))
        add_run("cifar10_tri2[precision=bf16]", seed, curve(81.1 + seed / 10), precision="bf16")
        add_run("cifar10_fixed_25k[precision=bf16]", seed, curve(79.1 + seed / 10), precision="bf16")
    *_, tri2 = found(paper, collect(tmp_path))  # the other has no float32 beside it
    assert tri2 == (
        "**In bfloat16** `cifar10_tri2` ends at 81.20 %, -0.10 [-0.27, +0.07] points (n = 3, 90 % interval) from "
        "float32. That they are equal to within ±0.5, a claim of this study's own: reproduced (preliminary)."
    )


def test_other_constant_lrs_later_policies_and_each_missed_detail_have_a_sentence(paper, tmp_path, add_run):
    for seed in range(2):
        add_run("cifar10_tri2", seed, curve(80 + seed))
        add_run("cifar10_fixed_25k[schedule.base_lr=0.002]", seed, curve(80.5 + seed))
    add_run("cifar10_fixed_25k[schedule.base_lr=0.0005]", 0, curve(76.8))
    add_run("cifar10_fixed_25k", 0, curve(79.4))
    add_run("cifar10_one_cycle", 0, curve(81.5))
    add_run("cifar10_tri2[model.lrn=none]", 1, curve(79.5))
    add_run("cifar10_tri2[model.init=torch]", 0, {0: 10.0}, status="diverged")
    sentences = found(paper, collect(tmp_path))
    others = (
        "76.80 at 0.0005 (n = 1), 81.00 at 0.002 (n = 2); CLR 80.50; why n differs: "
        "[DEVIATIONS.md](DEVIATIONS.md#what-took-more-than-one-try)"
    )
    near = (
        "That CLR spares the search for an LR, the paper's promise, is judged by no rule: of these and those of the "
        "controls in the first table, 1 of 3 LRs come within 0.5 points of it."
    )
    assert (
        f"**Other constant LRs** with CLR's budget and drops (`+study=constant_lr`, in %): {others}. {near}"
        in sentences
    )
    later = "81.50 by one-cycle (n = 1; CLR 80.50)"
    assert f"**Later policies** in CLR's budget (`+study=modern`, in %): {later}." in sentences
    assert sentences[-1] == (
        "**Caffe's details** got wrong, one or several at a time, in points: no LRN -1.00, PyTorch's weights diverges "
        "(n = 1, from the mean of the port's 2). The port's own seeds span 1.00 points."
    )


def test_seeds_that_diverged_are_told_wherever_a_number_is(paper, tmp_path, add_run):
    for label in ("cifar10_tri2", "cifar10_fixed_25k[schedule.base_lr=0.005]", "cifar10_tri2[model.init=torch]"):
        add_run(label, 0, curve(80.0))
        add_run(label, 1, curve(80.0), status="diverged")
    add_run("cifar10_tri2[precision=bf16]", 0, curve(79.0), precision="bf16")
    for seed in (1, 2):
        add_run("cifar10_tri2[precision=bf16]", seed, curve(79.0), status="diverged", precision="bf16")
    sentences = " ".join(found(paper, collect(tmp_path)))
    assert "points (n = 1, no interval) from float32 (2 diverged, in float32 1 diverged). That they are" in sentences
    assert "80.00 at 0.005 (1 diverged) (n = 1; CLR 80.00)" in sentences
    assert "PyTorch's weights +0.00 (1 diverged)" in sentences


def test_what_is_read_in_mid_cycle_stands_beside_the_cycles_ends(paper, tmp_path, add_run):
    config = {"schedule": cards.plan("cifar10_exp_range")["schedule"]}
    for seed in range(3):
        values = {40_000: 81.4, 42_000: 79.6 + seed / 10, 44_000: 81.5}
        add_run("cifar10_exp_range", seed, {0: 10.0, **values}, config=config)
        add_run("cifar10_fixed", seed, {0: 10.0, 70_000: 81.9 + seed / 10})
    (sentence,) = [each for each in found(paper, collect(tmp_path)) if "exp_range" in each]
    assert sentence == (
        "**exp_range**: at the stepsize chosen here 42,000, where the paper reads it, is mid-cycle (81.40 at 40,000 "
        "and 81.50 at 44,000, where cycles end); that it is above the fixed policy at 70,000, as the order of the "
        "paper's rows has it: contradicted (preliminary); where cycles end, uncorrected: contradicted "
        "at 40,000, contradicted at 44,000."
    )


def test_the_claims_that_the_sentences_rest_on_exist(paper):
    claims = {claim["id"]: claim["rule"] for claim in paper.claims}
    assert (claims[headline.EQUAL], claims[headline.TIMES]) == ("equal", "time_to_target")
    assert [claims[name] for name in headline.DROPS.values()] == ["greater"] * 3
    assert [claims[name] for name in headline.PRECISION] == ["equal"] * 2
    for control in headline.AT_CLRS_BUDGET:
        name = control.removeprefix("cifar10_")
        assert [claims[f"control_tri2_{how}_{name}"] for how in ("equals", "beats")] == ["equal", "greater"]
