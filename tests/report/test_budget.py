"""Policies under one budget: which rows stand side by side, in which order, and how far from the paper's CLR."""

import math

import pytest
from scipy import stats

from cyclical_lr.report import budget, latex, markup
from cyclical_lr.report.collect import Results, collect

CIFAR10_FULL = {"_target_": "cyclical_lr.models.cifar10_full.Cifar10Full", "num_classes": 10}


def ends_at(accuracy, end=25_000):
    return {0: 10.0, 16_000: 77.0, end: accuracy}


def config(**changes):
    """A config as in records of the same label: what a budget is made of can be changed."""
    data = {"name": changes.pop("data", "cifar10"), "batch_size": changes.pop("batch_size", 100)}
    return {"model": CIFAR10_FULL, "schedule": {}, "data": data, "iterations": 25_000, "seed": 0, **changes}


@pytest.fixture
def own(paper, tmp_path, add_run):
    """Three seeds of the headline, two of a schedule of one's own, one of a control, and one that diverged."""
    for seed, accuracy in enumerate((81.0, 81.3, 81.5)):
        add_run("cifar10_tri2", seed, ends_at(accuracy), config=config())
    for seed, accuracy in enumerate((82.0, 82.4)):
        add_run("my_sawtooth", seed, ends_at(accuracy), config=config())
    add_run("cifar10_fixed_25k", 0, ends_at(79.4), config=config())
    add_run("mine[schedule.max_lr=9]", 0, {0: 10.0}, status="diverged", config=config())
    return lambda: budget.budget_table(paper, collect(tmp_path))


def rows_of(frame, **values):
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame.to_dict("records")


def test_labels_stand_from_the_best_mean_down_and_what_has_none_last(own):
    frame = own()
    labels = ["my_sawtooth", "cifar10_tri2", "cifar10_fixed_25k", "mine[schedule.max_lr=9]"]
    # The diverged run of 25,000 planned iterations is among those that ran them.
    assert frame["label"].tolist() == labels and set(frame["iterations"]) == {25_000}
    assert frame["n"].tolist() == [2, 3, 1, 0]
    assert rows_of(frame, label=labels[-1])[0]["remarks"] == "1 diverged"


def test_a_difference_is_to_the_papers_clr_run_with_welchs_interval(own):
    frame = own()
    assert set(frame["reference"]) == {"cifar10_tri2"}
    (row,) = rows_of(frame, label="my_sawtooth")
    welch = stats.ttest_ind((82.0, 82.4), (81.0, 81.3, 81.5), equal_var=False).confidence_interval(0.95)
    assert row["difference"] == pytest.approx(82.2 - (81.0 + 81.3 + 81.5) / 3)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((welch.low, welch.high))
    (reference,) = rows_of(frame, label="cifar10_tri2")
    assert math.isnan(reference["difference"])
    (single,) = rows_of(frame, label="cifar10_fixed_25k")
    assert single["difference"] < 0 and math.isinf(single["difference_low"])  # one seed shows no interval


@pytest.mark.parametrize(
    ("accuracies", "changes"),
    [
        (ends_at(85.0, end=30_000), {}),
        (ends_at(85.0), {"config": config(data="cifar100")}),
        (ends_at(85.0), {"config": config(batch_size=50)}),
        (ends_at(85.0), {"config": config(model={**CIFAR10_FULL, "ceil_mode": False})}),
        (ends_at(85.0), {"config": config(model={"_target_": "elsewhere.Network", "depth": 9})}),
    ],
    ids=["more iterations", "another set", "another batch", "another network", "a network that is not here"],
)
def test_a_run_with_another_budget_stands_elsewhere(paper, tmp_path, add_run, accuracies, changes):
    for label in ("cifar10_tri2", "mine"):
        add_run(label, 0, ends_at(81.0), config=config())
    for label in ("other", "another"):
        add_run(label, 0, accuracies, **changes)
    frame = budget.budget_table(paper, collect(tmp_path))
    sections = [group["label"].tolist() for _, group in frame.groupby("section", sort=False)]
    assert sorted(sections) == [["another", "other"], ["cifar10_tri2", "mine"]]
    assert set(frame[frame["label"].isin(["other", "another"])]["reference"]) == {""}  # no CLR run to compare with
    assert frame["difference"].notna().sum() == 1


def test_what_a_claim_reads_there_and_goes_on_stands_beside_those_that_end(paper, tmp_path, add_run):
    for label in ("cifar10_tri2", "mine"):
        add_run(label, 0, ends_at(81.0))
    for label in ("cifar10_exp", "cifar10_fixed"):  # a claim compares the first with `exp_drops` at 25,000
        add_run(label, 0, {**ends_at(77.0), 70_000: 80.0})
    frame = budget.budget_table(paper, collect(tmp_path))
    remarks = {row["label"]: row["remarks"] for row in rows_of(frame, iterations=25_000)}
    assert remarks == {"cifar10_tri2": "", "mine": "", "cifar10_exp": "goes on to 70,000"}
    (row,) = rows_of(frame, iterations=25_000, label="cifar10_exp")
    assert (row["mean"], row["best"]) == (77.0, 77.0)


def test_the_reference_is_the_clr_run_with_the_fewest_overrides(paper, tmp_path, add_run):
    for label in ("cifar10_tri2[data.shuffle=True,precision=bf16]", "cifar10_tri2[precision=bf16]", "mine"):
        add_run(label, 0, ends_at(81.0))
    assert set(budget.budget_table(paper, collect(tmp_path))["reference"]) == {"cifar10_tri2[precision=bf16]"}


def test_a_label_alone_with_its_budget_has_nothing_to_be_compared_with(paper, tmp_path, add_run):
    add_run("cifar10_tri2", 0, ends_at(81.0))
    ramp = {"_target_": "cyclical_lr.schedules.RangeTest", "base_lr": 0.0, "max_lr": 0.02, "stepsize": 25_000}
    add_run("a range test", 0, ends_at(81.0), config={"schedule": ramp})  # whose end is no accuracy
    assert budget.budget_table(paper, collect(tmp_path)).empty


def test_the_table_as_text_names_the_budget_and_the_reference(paper, own):
    shown = markup.presented(paper, "budget", own())
    text = markup.markdown(markup.TITLES["budget"], shown)
    assert "## cifar10 in batches of 100, Cifar10Full, 25,000 iterations" in text
    assert "| my_sawtooth | 82.20 [" in text and "| +0.93 [" in text
    assert "| the reference |" in text and "no interval" in text and "1 diverged" in text


def test_without_runs_it_is_still_a_table(paper):
    frame = budget.budget_table(paper, Results({}, {}, ()))
    assert frame.columns.tolist() == list(budget.BUDGET)
    shown = markup.presented(paper, "budget", frame)
    assert markup.markdown("t", shown) == "# t\n" and r"less CLR's~[95~\% interval]" in latex.latex("t", shown)


def test_what_a_claim_reads_there_with_another_budget_does_not_stand_beside(paper, tmp_path, add_run):
    for label in ("cifar10_tri2", "mine"):
        add_run(label, 0, ends_at(81.0), config=config())
    add_run("cifar10_exp", 0, {**ends_at(77.0), 70_000: 80.0}, config=config(data="cifar100"))
    assert set(budget.budget_table(paper, collect(tmp_path))["label"]) == {"cifar10_tri2", "mine"}
