"""The paper as data (conf/paper) and the lab cards (conf/experiment): consistent, complete, and Tables 1 to 4."""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

CONF = Path(__file__).parents[1] / "conf"
PAPER = sorted(path.stem for path in (CONF / "paper").glob("*.yaml"))
CARDS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))

# What a control may differ in from the card beside it, as keys of the composed configuration.
CONTROLS = [
    ("cifar10_fixed_25k", "cifar10_fixed", {"iterations", "schedule.milestones"}),
    ("cifar10_fixed_25k_matched", "cifar10_fixed_25k", {"schedule.base_lr"}),
    ("cifar10_tri", "cifar10_tri2", {f"schedule.phases.{phase}.schedule._target_" for phase in range(3)}),
    ("cifar10_tri_no_drops", "cifar10_tri2_no_drops", {"schedule._target_", "schedule.max_lr"}),
    ("cifar10_exp_matched", "cifar10_exp", {"iterations", "schedule.base_lr"}),
    ("cifar10_exp_range_amplitude", "cifar10_exp_range", {"iterations", "schedule.decay"}),
    ("cifar10_exp_range_ss1000", "cifar10_exp_range", {"iterations", "schedule.stepsize"}),
    ("cifar10_exp_range_ss1500", "cifar10_exp_range", {"iterations", "schedule.stepsize"}),
    ("cifar10_exp_range_ss3000", "cifar10_exp_range", {"iterations", "schedule.stepsize"}),
    ("cifar10_range_test_ss2000", "cifar10_range_test", {"iterations", "eval_every", "schedule.stepsize"}),
]
# Controls whose schedule is another policy round, or out of, that of the card beside it.
RESCHEDULED = [
    ("cifar10_decay_drops", "cifar10_decay"),
    ("cifar10_exp_drops", "cifar10_exp"),
    ("cifar10_tri2_no_drops", "cifar10_tri2"),
]
PAPER_CARDS = [
    *("cifar10_fixed", "cifar10_tri2", "cifar10_decay", "cifar10_exp", "cifar10_exp_range"),
    "cifar10_range_test",
]

# Tables 1, 3 and 4, typed in once more by hand.
TABLE1 = [
    ("CIFAR-10", "fixed", 70_000, 81.4),
    ("CIFAR-10", "triangular2", 25_000, 81.4),
    ("CIFAR-10", "decay", 25_000, 78.5),
    ("CIFAR-10", "exp", 70_000, 79.1),
    ("CIFAR-10", "exp_range", 42_000, 82.2),
    ("AlexNet", "fixed", 400_000, 58.0),
    ("AlexNet", "triangular2", 400_000, 58.4),
    ("AlexNet", "exp", 300_000, 56.0),
    ("AlexNet", "exp", 460_000, 56.5),
    ("AlexNet", "exp_range", 300_000, 56.5),
    ("GoogLeNet", "fixed", 420_000, 63.0),
    ("GoogLeNet", "triangular2", 420_000, 64.4),
    ("GoogLeNet", "exp", 240_000, 58.2),
    ("GoogLeNet", "exp_range", 240_000, 60.2),
]
TABLE3 = [
    ("Nesterov", [0.001, 0.006], "fixed", 70_000, 82.1),
    ("Nesterov", [0.001, 0.006], "triangular", 25_000, 81.3),
    ("ADAM", [0.0005, 0.002], "fixed", 70_000, 81.4),
    ("ADAM", [0.0005, 0.002], "triangular", 25_000, 79.8),
    ("ADAM", [0.0005, 0.002], "triangular", 70_000, 81.1),
    ("RMSprop", [0.0001, 0.0003], "fixed", 70_000, 75.2),
    ("RMSprop", [0.0001, 0.0003], "triangular", 25_000, 72.8),
    ("RMSprop", [0.0001, 0.0003], "triangular", 70_000, 75.1),
    ("AdaGrad", [0.003, 0.035], "fixed", 70_000, 74.6),
    ("AdaGrad", [0.003, 0.035], "triangular", 25_000, 76.0),
    ("AdaDelta", [0.01, 0.1], "fixed", 70_000, 67.3),
    ("AdaDelta", [0.01, 0.1], "triangular", 25_000, 67.3),
]
#           at LR 0.1, 0.2, 0.3 and with CLR
TABLE4 = {
    ("CIFAR-10", "ResNet"): [92.8, 93.3, 91.8, 93.6],
    ("CIFAR-10", "SD"): [94.6, 94.5, 94.2, 94.5],
    ("CIFAR-10", "DenseNet"): [94.5, 94.5, 94.2, 94.9],
    ("CIFAR-100", "ResNet"): [71.2, 71.6, 71.9, 72.5],
    ("CIFAR-100", "SD"): [75.2, 75.2, 74.6, 75.4],
    ("CIFAR-100", "DenseNet"): [75.2, 75.3, 74.5, 75.9],
}


@functools.cache
def paper(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / "paper" / f"{name}.yaml").read_text(encoding="utf-8"))


NETWORKS_OF = {
    "figure6": {"Cifar10Sigmoid"},
    "table1_imagenet": {"AlexNet", "GoogLeNet"},
    "figure7": {"AlexNet"},
    "figure11": {"GoogLeNet"},
    "table4": {"ResNet", "StochasticDepth", "DenseNet"},
    "text_densenet_caffe": {"DenseNet"},
}
"""The networks of a family of claims; all others are on cifar10_full."""

CLAIMS = paper("claims")["claims"]
ROWS = {row["id"]: row for table in ("table1", "table3", "table4", "text") for row in paper(table)["rows"]}


def compose(experiment: str) -> dict[str, Any]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("run", overrides=[f"+experiment={experiment}"])
    return OmegaConf.to_container(config)


@pytest.fixture(scope="module")
def configs() -> dict[str, dict[str, Any]]:
    return {card: compose(card) for card in CARDS}


@pytest.fixture(scope="module")
def schedules(configs):
    return {card: hydra.utils.instantiate(OmegaConf.create(config["schedule"])) for card, config in configs.items()}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict):
        items: Iterator[tuple[Any, Any]] = iter(node.items())
    elif isinstance(node, list) and any(isinstance(item, dict) for item in node):
        items = enumerate(node)
    else:
        return {prefix: node}
    return {key: value for name, child in items for key, value in flatten(child, f"{prefix}.{name}".strip(".")).items()}


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    one, two = flatten(ours), flatten(theirs)
    return {key for key in one.keys() | two.keys() if one.get(key, ...) != two.get(key, ...)} - {"experiment"}


def named_experiments(node: Any) -> Iterator[str]:
    """Every experiment that a file of conf/paper names, wherever it stands."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("experiment", "staged"):
                yield value.removesuffix("[precision=bf16]")
            elif key in ("experiments", "controls"):
                yield from value
            else:
                yield from named_experiments(value)
    elif isinstance(node, list):
        for item in node:
            yield from named_experiments(item)


def header(card: str) -> dict[str, str]:
    """The fields of a lab card's header, continuation lines joined."""
    fields: dict[str, str] = {}
    for line in (CONF / "experiment" / f"{card}.yaml").read_text(encoding="utf-8").splitlines()[2:]:
        if not line.startswith("#"):
            break
        if match := re.match(r"# ([A-Z][a-z ]+): +(\S.*)$", line):
            name = match[1]
            fields[name] = match[2]
        elif line != "#":
            fields[name] += " " + line.removeprefix("#").strip()
    return fields


# ---- The paper -------------------------------------------------------------------------------------------------------


def test_table_1_holds_the_papers_numbers():
    rows = paper("table1")["rows"]
    assert [
        (row["dataset"] if row["dataset"] == "CIFAR-10" else row["architecture"], row["policy"], row["iterations"],
         row["accuracy"]) for row in rows
    ] == TABLE1  # fmt: skip
    assert {row["runs"] for row in rows} == {1}


def test_table_3_holds_the_papers_numbers():
    rows = paper("table3")["rows"]
    assert [tuple(row[k] for k in ("lr_type", "bounds", "policy", "iterations", "accuracy")) for row in rows] == TABLE3
    assert {row["runs"] for row in rows} == {1}


def test_table_3_reads_every_25000_iteration_row_in_two_ways():
    for row in paper("table3")["rows"]:
        assert ("staged" in row) == (row["policy"] == "triangular" and row["iterations"] == 25_000), row["id"]


def test_table_4_holds_the_papers_numbers():
    rows = paper("table4")["rows"]
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["architecture"]), []).append(row["accuracy"])
    assert found == TABLE4
    assert {row["runs"] for row in rows} == {5}
    bounds = {(row["architecture"], tuple(row["bounds"])) for row in rows if row["policy"] == "CLR"}
    assert bounds == {("ResNet", (0.1, 0.3)), ("SD", (0.1, 0.3)), ("DenseNet", (0.1, 0.2))}


def test_the_text_holds_the_numbers_that_stand_in_no_table():
    accuracies = {row["experiment"].removeprefix("cifar10_"): row["accuracy"] for row in paper("text")["rows"]}
    assert accuracies == {
        **{"densenet_caffe_lr01": 91.67, "densenet_caffe_lr02": 92.17, "densenet_caffe_lr03": 92.46},
        **{"densenet_caffe_clr": 93.33, "bn_fixed": 60.8, "bn_clr": 72.2},
    }


def test_figure_1_is_digitised_in_order_and_within_its_axes():
    figure = paper("figure1")
    assert {curve["experiment"]: len(curve["points"]) for curve in figure["curves"]} == {
        **{"cifar10_tri2": 12, "cifar10_fixed": 10, "cifar10_exp": 6},
    }
    for curve in figure["curves"]:
        iterations = [point["iteration"] for point in curve["points"]]
        assert iterations == sorted(set(iterations))
        assert iterations[0] > 0 and iterations[-1] <= 70_000
        assert all(50 < point["accuracy"] < 82 for point in curve["points"])
    at = {(curve["experiment"], p["iteration"]): p["accuracy"] for curve in figure["curves"] for p in curve["points"]}
    assert at["cifar10_tri2", 4_000] == 72.3 and at["cifar10_tri2", 24_900] == 81.2
    assert at["cifar10_fixed", 59_000] == 78.2 and at["cifar10_fixed", 60_600] == 80.9
    assert at["cifar10_exp", 50_000] == 79.0


def test_figure_3_has_a_point_for_every_evaluation_of_the_range_test(configs, schedules):
    (curve,) = paper("figure3")["curves"]
    config = configs[curve["experiment"]]
    evaluations = np.arange(0, config["iterations"] + 1, config["eval_every"])
    assert [point["lr"] for point in curve["points"]] == pytest.approx(schedules[curve["experiment"]](evaluations))
    accuracies = [point["accuracy"] for point in curve["points"]]
    assert (accuracies[0], accuracies[1], max(accuracies), accuracies[-1]) == (10.0, 16.0, 50.7, 33.0)


def test_ids_are_unique_within_the_rows_and_within_the_claims():
    rows = [row["id"] for name in ("table1", "table2", "table3", "table4", "text") for row in paper(name)["rows"]]
    claims = [claim["id"] for claim in CLAIMS]
    assert [name for names in (rows, claims) for name, count in Counter(names).items() if count > 1] == []


@pytest.mark.parametrize("name", PAPER)
def test_every_experiment_that_the_paper_names_is_written(name):
    assert set(named_experiments(paper(name))) <= set(CARDS)


# ---- Claims and rules ------------------------------------------------------------------------------------------------


def test_the_rules_have_the_parameters_that_the_design_fixed():
    verdicts = paper("verdicts")
    rules = verdicts["rules"]
    assert set(rules) == {"number", "equal", "greater", "share", "bounds", "cost", "time_to_target"}
    assert (verdicts["seeds"]["none_below"], verdicts["seeds"]["preliminary_below"]) == (3, 10)
    number = rules["number"]
    assert (number["confidence"], number["floor"], number["inconclusive"]) == (0.95, 0.5, 1.5)
    runs = {name: {row["runs"] for row in paper(name)["rows"]} for name in ("table1", "table3", "table4")}
    assert runs == {"table1": {1}, "table3": {1}, "table4": {5}}
    assert (rules["equal"]["alpha"], rules["equal"]["margin"], rules["equal"]["interval"]) == (0.05, 0.5, 0.90)
    assert rules["greater"]["alpha"] == 0.05
    assert rules["time_to_target"]["targets"] == {"cifar10_full": [76, 78, 79, 80, 80.5, 81]}
    assert rules["time_to_target"]["miss"] == float("inf")
    assert all(rule["explanation"] for rule in [*rules.values(), verdicts["seeds"], verdicts["holm"]])


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_a_claim_is_complete_and_decided_by_a_known_rule(claim, configs):
    assert claim["source"] in ("paper", "control")
    assert claim["rule"] in paper("verdicts")["rules"]
    assert claim["place"] and claim["text"] and claim["family"]
    assert len(claim["operands"]) == {"number": 1, "bounds": 1, "cost": 0}.get(claim["rule"], 2)
    assert ("row" in claim) == (claim["rule"] in ("number", "bounds"))
    assert ("ratio" in claim) == ("command" in claim) == (claim["rule"] == "cost")
    assert ("basis" in claim) == (claim["source"] == "paper")
    assert claim.get("basis", "stated") in ("stated", "table", "figure")
    assert set(claim.get("confounds", [])) <= set(paper("claims")["confounds"])
    for operand in claim["operands"] + claim.get("beside", []):
        assert set(operand) == {"experiment", "iteration"}
        if config := configs.get(operand["experiment"].partition("[")[0]):
            assert operand["iteration"] <= config["iterations"]
            assert operand["iteration"] % config["eval_every"] == 0
            network = config["model"]["_target_"].rpartition(".")[2]
            assert network in NETWORKS_OF.get(claim["family"], {"Cifar10Full"})


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c["rule"] == "number"], ids=lambda claim: claim["id"])
def test_a_number_claim_quotes_the_row_that_it_names(claim):
    row, (operand,) = ROWS[claim["row"]], claim["operands"]
    assert f"{row['accuracy']} %" in claim["text"]
    if claim["source"] == "paper":
        assert operand["experiment"] in (row["experiment"], row.get("staged"))
        if row["iterations"]:
            assert operand["iteration"] == row["iterations"]
            assert f"{row['iterations']:,}" in claim["text"]


def test_every_number_of_the_paper_is_a_claim():
    claimed = {(c["row"], c["operands"][0]["experiment"]) for c in CLAIMS if c["rule"] == "number"}
    wanted = {
        (row["id"], row[reading])
        for row in ROWS.values()
        for reading in ("experiment", "staged")
        if reading in row and "accuracy" in row
    }
    assert len(wanted) == 14 + 12 + 5 + 24 + 6  # Table 1; Table 3, staged too; Table 4; text
    assert wanted <= claimed
    assert {row["id"] for row in paper("text")["bounds"]} <= {c["row"] for c in CLAIMS if c["rule"] == "bounds"}


def test_clr_is_compared_with_each_lr_of_table_4():
    compared = {tuple(each["experiment"] for each in c["operands"]): c["rule"] for c in CLAIMS}
    tables = ("table4_", "text_densenet")
    last = [row for row in ROWS.values() if row["id"].startswith(tables) and row["policy"] == "CLR"]
    assert len(last) == 7
    for clr in last:
        for lr in ("lr01", "lr02", "lr03"):
            other = next(r for r in ROWS.values() if r["experiment"] == clr["experiment"].replace("clr", lr))
            rule = "greater" if clr["accuracy"] > other["accuracy"] else "equal"
            assert compared[clr["experiment"], other["experiment"]] == rule


def test_the_compressed_fixed_schedule_stands_beside_every_time_to_target():
    claims = [claim for claim in CLAIMS if claim["rule"] == "time_to_target"]
    assert claims
    for claim in claims:
        shown = {operand["experiment"] for operand in claim["operands"] + claim["beside"]}
        assert {"cifar10_fixed", "cifar10_fixed_25k"} <= shown


def test_every_control_takes_part_in_a_claim():
    compared = {operand["experiment"] for claim in CLAIMS for operand in claim["operands"]}
    assert {control for control, *_ in CONTROLS + RESCHEDULED} <= compared


def test_control_claims_are_families_of_their_own():
    families = {claim["family"] for claim in CLAIMS if claim["source"] == "control"}
    assert families == {"controls", "precision"}
    assert not families & {claim["family"] for claim in CLAIMS if claim["source"] == "paper"}


def test_bf16_claims_compare_an_experiment_with_itself_in_float32():
    claims = [claim for claim in CLAIMS if claim["family"] == "precision"]
    assert len(claims) == 2
    for claim in claims:
        low, high = claim["operands"]
        assert low == {**high, "experiment": f"{high['experiment']}[precision=bf16]"}


# ---- Lab cards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("card", CARDS)
def test_a_lab_card_says_what_it_is_and_how_to_run_it(card):
    package, summary, *_ = (CONF / "experiment" / f"{card}.yaml").read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    assert re.fullmatch(r"# \S.{10,116}\.", summary)
    fields = header(card)
    assert list(fields) == ["Claim", "Paper", "Command", "Expected", "Time", "Chosen here"]
    assert fields["Command"] == f"python scripts/run.py +experiment={card}"


@pytest.mark.parametrize("card", CARDS)
def test_a_lab_card_names_itself_after_its_file(card, configs):
    assert configs[card]["experiment"] == card


@pytest.mark.parametrize(
    "row", [row for row in paper("table1")["rows"] if row["experiment"] in CARDS], ids=lambda row: row["id"]
)
def test_a_lab_card_of_table_1_expects_the_papers_number_and_reaches_its_iteration(row, configs):
    fields = header(row["experiment"])
    assert f"{row['accuracy']} % at {row['iterations']:,} (Table 1)" in fields["Expected"]
    assert row["where"] in fields["Paper"]
    assert configs[row["experiment"]]["iterations"] >= row["iterations"]


def test_every_control_and_every_cifar_row_of_table_1_has_a_lab_card():
    assert {*PAPER_CARDS, *(control for control, *_ in CONTROLS + RESCHEDULED)} <= set(CARDS)
    assert {row["experiment"] for row in paper("table1")["rows"] if row["dataset"] == "CIFAR-10"} <= set(PAPER_CARDS)


def test_the_papers_cards_differ_from_one_another_in_schedule_and_length_alone(configs):
    for card in PAPER_CARDS:
        rest = {key for key in differing(configs[card], configs["cifar10_fixed"]) if not key.startswith("schedule.")}
        assert rest <= ({"iterations", "eval_every"} if card == "cifar10_range_test" else {"iterations"})


@pytest.mark.parametrize(("control", "beside", "keys"), CONTROLS, ids=[control for control, *_ in CONTROLS])
def test_a_control_differs_from_its_card_in_the_stated_respect_alone(control, beside, keys, configs):
    assert differing(configs[control], configs[beside]) == keys


@pytest.mark.parametrize(("control", "beside"), RESCHEDULED, ids=[control for control, _ in RESCHEDULED])
def test_a_control_with_or_without_drops_keeps_the_schedule_of_its_card(control, beside, configs):
    ours, theirs = configs[control], configs[beside]
    assert {k for k in differing(ours, theirs) if not k.startswith("schedule.")} <= {"iterations"}
    assert ours["iterations"] == 25_000
    if control == "cifar10_tri2_no_drops":
        assert ours["schedule"] == theirs["schedule"]["phases"][0]["schedule"]
    else:
        assert ours["schedule"]["schedule"] == theirs["schedule"]


# ---- Learning rates --------------------------------------------------------------------------------------------------

# iteration, LR of the update from it: written out from the paper, not computed.
EXPECTED_LR = {
    "cifar10_fixed": [(0, 0.001), (59_999, 0.001), (60_000, 0.0001), (64_999, 0.0001), (65_000, 1e-5), (69_999, 1e-5)],
    "cifar10_fixed_25k": [(0, 0.001), (15_999, 0.001), (16_000, 0.0001), (21_999, 0.0001), (22_000, 1e-5)],
    "cifar10_fixed_25k_matched": [(0, 0.00194), (15_999, 0.00194), (16_000, 0.000194), (22_000, 1.94e-5)],
    "cifar10_tri2": [
        *((0, 0.001), (1_000, 0.003), (2_000, 0.005), (4_000, 0.001), (6_000, 0.003), (8_000, 0.001)),
        *((10_000, 0.002), (14_000, 0.0015), (15_999, 0.00100025), (16_000, 0.0001), (17_000, 0.0005)),
        *((18_000, 0.0001), (19_000, 0.0003), (21_000, 0.0002), (22_000, 1e-5), (22_500, 5e-5), (23_000, 1e-5)),
        *((23_500, 3e-5), (24_000, 1e-5), (24_500, 2e-5)),
    ],
    "cifar10_tri": [
        *((0, 0.001), (2_000, 0.005), (4_000, 0.001), (6_000, 0.005), (14_000, 0.005), (16_000, 0.0001)),
        *((17_000, 0.0005), (21_000, 0.0005), (22_000, 1e-5), (22_500, 5e-5), (24_500, 5e-5)),
    ],
    "cifar10_tri2_no_drops": [(2_000, 0.005), (6_000, 0.003), (16_000, 0.001), (18_000, 0.00125), (24_000, 0.001)],
    "cifar10_tri_no_drops": [(0, 0.001), (2_000, 0.006), (22_000, 0.006), (24_000, 0.001), (25_000, 0.0035)],
    "cifar10_decay": [(0, 0.007), (2_000, 0.004), (4_000, 0.001), (24_999, 0.001)],
    "cifar10_decay_drops": [(0, 0.007), (2_000, 0.004), (15_999, 0.001), (16_000, 0.0001), (22_000, 1e-5)],
    "cifar10_exp": [(0, 0.001), (42_000, 0.0000805), (70_000, 0.0000150)],
    "cifar10_exp_drops": [(0, 0.001), (16_000, 0.0000383), (22_000, 0.00000267)],
    "cifar10_exp_matched": [(0, 0.0035), (42_000, 0.000282)],
    "cifar10_exp_range": [(0, 0.001), (20_000, 0.000301), (40_000, 0.0000907), (42_000, 0.000483), (70_000, 0.00009)],
    "cifar10_exp_range_amplitude": [(0, 0.001), (20_000, 0.001), (40_000, 0.001), (42_000, 0.001402)],
    "cifar10_exp_range_ss1000": [(1_000, 0.00565), (42_000, 0.0000805)],
    "cifar10_exp_range_ss1500": [(1_500, 0.00548), (42_000, 0.0000805)],
    "cifar10_exp_range_ss3000": [(3_000, 0.00501), (42_000, 0.0000805)],
    "cifar10_range_test": [(0, 0.0), (200, 0.001), (2_000, 0.01), (3_999, 0.019995), (4_000, 0.02)],
    "cifar10_range_test_ss2000": [(0, 0.0), (100, 0.001), (1_000, 0.01), (2_000, 0.02)],
}


@pytest.mark.parametrize("card", EXPECTED_LR)
def test_a_card_trains_at_the_lrs_that_it_states(card, schedules):
    for iteration, lr in EXPECTED_LR[card]:
        assert schedules[card](iteration) == pytest.approx(lr, rel=3e-3), iteration


def test_every_control_and_every_cifar_row_of_table_1_has_expected_lrs():
    assert set(EXPECTED_LR) == {*PAPER_CARDS, *(control for control, *_ in CONTROLS + RESCHEDULED)}


def test_triangular2_restarts_in_each_phase_of_table_2(schedules):
    lr = schedules["cifar10_tri2"]
    phases = paper("table2")["rows"]
    assert [phase["start"] for phase in phases] == [0, 16_000, 22_000]
    assert [phase["max_iter"] for phase in phases] == [16_000, 22_000, 25_000]
    for phase in phases:
        base, top, half, start = (phase[key] for key in ("base_lr", "max_lr", "stepsize", "start"))
        inside = lr(np.arange(start, phase["max_iter"]))
        assert inside[0] == inside.min() == pytest.approx(base)
        assert lr(start + half) == inside.max() == pytest.approx(top)
        cycles = (phase["max_iter"] - start) // (2 * half)
        assert cycles * 2 * half == phase["max_iter"] - start, "a phase ends with a cycle"
        peaks = [base + (top - base) / 2**cycle for cycle in range(cycles)]
        assert [lr(start + (2 * cycle + 1) * half) for cycle in range(cycles)] == pytest.approx(peaks)


def test_clrs_mean_lr_over_its_first_phase_is_that_of_the_matched_control(schedules):
    mean = schedules["cifar10_tri2"](np.arange(16_000)).mean()
    assert round(mean, 5) == 0.00194
    assert schedules["cifar10_fixed_25k_matched"](0) == round(mean, 5)


def test_exp_ranges_mean_lr_is_three_and_a_half_times_exps_and_that_of_the_matched_control(schedules):
    t = np.arange(42_000)
    exp_range, exp, matched = (schedules[f"cifar10_{name}"](t).mean() for name in ("exp_range", "exp", "exp_matched"))
    assert exp_range / exp == pytest.approx(3.5, abs=0.1)
    assert exp_range == pytest.approx(matched, rel=0.02)


def test_42000_is_a_cycles_end_at_the_stepsizes_of_the_controls_and_a_peak_at_that_of_the_row(configs):
    for stepsize in (1_000, 1_500, 3_000):
        assert configs[f"cifar10_exp_range_ss{stepsize}"]["schedule"]["stepsize"] == stepsize
        assert 42_000 % (2 * stepsize) == 0
    stepsize = configs["cifar10_exp_range"]["schedule"]["stepsize"]
    assert 42_000 % (2 * stepsize) == stepsize == 70_000 % (2 * stepsize)
