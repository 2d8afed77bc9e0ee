"""Lab cards of Table 3, of Figure 6, and of the windows, stepsizes and bounds of Section 3."""

from typing import Any

import cards
import pytest
import yaml
from small_runs import CONF

from cyclical_lr import records
from cyclical_lr.records import learning_rates
from cyclical_lr.training.config import check, describe

# Bounds, and the solver's settings beside the LR: Caffe's cifar10_full solver, with Caffe's defaults for what it lacks.
METHODS = {
    "nesterov": (0.001, 0.006, {"momentum": 0.9}),
    "adam": (0.0005, 0.002, {"momentum": 0.9, "momentum2": 0.999, "delta": 1e-8}),
    "rmsprop": (0.0001, 0.0003, {"rms_decay": 0.99, "delta": 1e-8}),
    "adagrad": (0.003, 0.035, {"delta": 1e-8}),
    "adadelta": (0.01, 0.1, {"momentum": 0.9, "delta": 1e-8}),
}
TABLE3 = [
    *(f"cifar10_{method}_{kind}" for method in METHODS for kind in ("fixed", "tri", "tri_staged")),
    *("cifar10_adam_tri_70k", "cifar10_rmsprop_tri_70k"),
]
SIGMOID = [f"cifar10_{network}_{policy}" for network in ("bn", "sigmoid") for policy in ("fixed", "clr")]
# What each may differ in from the card beside it.
VARIANTS = [
    ("cifar10_welch", "cifar10_tri_no_drops", {"schedule._target_"}),
    ("cifar10_hann", "cifar10_tri_no_drops", {"schedule._target_"}),
    *((f"cifar10_tri_no_drops_ss{n}", "cifar10_tri_no_drops", {"iterations", "schedule.stepsize"})
      for n in (1000, 3000, 4000, 5000)),
    ("cifar10_tri_no_drops_third", "cifar10_tri_no_drops", {"schedule.base_lr"}),
    ("cifar10_tri_no_drops_quarter", "cifar10_tri_no_drops", {"schedule.base_lr"}),
    ("cifar10_bn_clr", "cifar10_bn_fixed", {"schedule._target_", "schedule.max_lr", "schedule.stepsize"}),
    ("cifar10_sigmoid_fixed", "cifar10_bn_fixed", {"model.batch_norm", "data.batch_size"}),
    ("cifar10_sigmoid_clr", "cifar10_bn_clr", {"model.batch_norm", "data.batch_size"}),
]  # fmt: skip
CARDS = [*TABLE3, *SIGMOID, *(card for card, *_ in VARIANTS if card not in SIGMOID)]
BESIDE = ["cifar10_fixed", "cifar10_tri", "cifar10_tri_no_drops"]


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, Any]]:
    return {card: cards.plan(card) for card in CARDS + BESIDE}


def rows(table: str) -> list[dict[str, Any]]:
    return yaml.safe_load((CONF / "paper" / f"{table}.yaml").read_text())["rows"]


def of_the_solver(keys: set[str]) -> set[str]:
    return {key for key in keys if key.startswith("solver.")}


# ---- every card ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_accepted_and_ends_with_an_evaluation(card, plans):
    check(plans[card])
    assert plans[card]["iterations"] % plans[card]["eval_every"] == 0


def test_no_two_cards_compute_the_same(plans):
    assert len({records.run_id(describe(plan, 0)) for plan in plans.values()}) == len(CARDS + BESIDE)


@pytest.mark.parametrize(("card", "beside", "keys"), VARIANTS, ids=[card for card, *_ in VARIANTS])
def test_a_variant_differs_from_the_card_beside_it_in_the_stated_respect_alone(card, beside, keys, plans):
    assert cards.differing(plans[card], plans[beside]) == keys


# ---- Table 3 ---------------------------------------------------------------------------------------------------------


def test_every_row_of_table_3_has_its_cards():
    named = [row[key] for row in rows("table3") for key in ("experiment", "staged") if key in row]
    assert sorted(named) == sorted(TABLE3)


@pytest.mark.parametrize("row", rows("table3"), ids=lambda row: row["id"])
def test_a_card_of_table_3_has_the_rows_bounds_length_and_number(row, plans):
    for card in {row["experiment"], row.get("staged", row["experiment"])}:
        plan, lrs = plans[card], learning_rates(plans[card])
        assert plan["iterations"] == row["iterations"]
        low, high = row["bounds"]
        assert lrs[0] == low
        first_phase = lrs[:16_000]
        assert (first_phase.min(), first_phase.max()) == pytest.approx((low, low if "fixed" in card else high))
        assert f"Expected: {row['accuracy']} % at {row['iterations']:,} (Table 3)" in cards.text(card)
        assert f"Paper: {row['where']}" in cards.text(card)


@pytest.mark.parametrize("card", TABLE3)
def test_a_card_of_table_3_has_caffes_solver_and_else_the_settings_of_table_1(card, plans):
    method, kind = card.split("_", 2)[1:]
    plan, (_, _, options) = plans[card], METHODS[method]
    assert plan["solver"] == {
        "_target_": f"cyclical_lr.solvers.caffe_{method}",
        "weight_decay": 0.004,
        "multipliers": True,
        **options,
    }
    beside = {"fixed": "cifar10_fixed", "tri_staged": "cifar10_tri"}.get(kind, "cifar10_tri_no_drops")
    rest = cards.differing(plan, plans[beside])
    rest -= of_the_solver(rest)
    bounds = {key for key in rest if key.startswith("schedule.") and key.endswith(("base_lr", "max_lr"))}
    assert rest - bounds == ({"iterations"} if kind == "tri_70k" else set())


@pytest.mark.parametrize("method", METHODS)
def test_table_3_is_trained_at_these_lrs(method, plans):
    low, high, _ = METHODS[method]
    expected = {
        "fixed": {59_999: low, 60_000: low / 10, 64_999: low / 10, 65_000: low / 100},
        "tri": {2_000: high, 4_000: low, 22_000: high, 24_000: low, 25_000: (low + high) / 2},
        "tri_staged": {
            **{2_000: high, 14_000: high, 16_000: low / 10, 17_000: high / 10, 18_000: low / 10, 21_000: high / 10},
            **{22_000: low / 100, 22_500: high / 100, 23_000: low / 100, 24_500: high / 100},
        },
        "tri_70k": {2_000: high, 68_000: low, 70_000: high},
    }
    for kind, at in expected.items():
        if f"cifar10_{method}_{kind}" in plans:
            lrs = learning_rates(plans[f"cifar10_{method}_{kind}"])
            for iteration, lr in at.items():
                assert lrs[iteration] == pytest.approx(lr), (kind, iteration)


# ---- Figure 6 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", SIGMOID)
def test_a_card_of_figure_6_has_caffes_solver_for_the_sigmoid_networks(card, plans):
    plan = plans[card]
    settings = {"_target_": "cyclical_lr.solvers.caffe_sgd", "momentum": 0.9, "weight_decay": 0.0, "multipliers": True}
    assert plan["solver"] == settings
    assert (plan["iterations"], plan["eval_every"]) == (60_000, 1_000)
    assert (plan["model"]["batch_norm"], plan["data"]["batch_size"]) == ((True, 100) if "bn" in card else (False, 111))
    lrs = learning_rates(plan)
    if "fixed" in card:
        assert set(lrs) == {0.001}
    else:
        assert [lrs[t] for t in (0, 2_000, 58_000, 60_000)] == pytest.approx([0.001, 0.006, 0.006, 0.001])


def test_figure_6_expects_the_papers_numbers():
    for row in rows("text"):
        if row["experiment"] in SIGMOID:
            assert f"Expected: {row['accuracy']} % (Section 4.1.1)" in cards.text(row["experiment"])


# ---- Section 3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        # At 500 and 1,000 the triangle is at 0.00225 and 0.0035.
        ("cifar10_welch", {0: 0.001, 500: 0.0031875, 1_000: 0.00475, 2_000: 0.006, 24_000: 0.001}),
        ("cifar10_hann", {0: 0.001, 500: 0.0017322, 1_000: 0.0035, 2_000: 0.006, 24_000: 0.001}),
        ("cifar10_tri_no_drops_ss1000", {1_000: 0.006, 2_000: 0.001, 24_000: 0.001}),
        ("cifar10_tri_no_drops_ss3000", {3_000: 0.006, 6_000: 0.001, 24_000: 0.001}),
        ("cifar10_tri_no_drops_ss4000", {4_000: 0.006, 8_000: 0.001, 24_000: 0.001}),
        ("cifar10_tri_no_drops_ss5000", {5_000: 0.006, 20_000: 0.001, 30_000: 0.001}),
        ("cifar10_tri_no_drops_third", {0: 0.002, 2_000: 0.006, 24_000: 0.002}),
        ("cifar10_tri_no_drops_quarter", {0: 0.0015, 2_000: 0.006, 24_000: 0.0015}),
    ],
)
def test_a_variant_is_trained_at_these_lrs(card, expected, plans):
    lrs = learning_rates(plans[card])
    assert {t: lrs[t] for t in expected} == pytest.approx(expected, rel=1e-4)
