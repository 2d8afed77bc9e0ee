"""Table 1's ImageNet lab cards and their range tests: recipes, learning rates, and what a full run needs."""

import json
import re
from typing import Any

import cards
import pytest
import torch
import yaml
from small_runs import CONF
from torch.utils.flop_counter import FlopCounterMode

from cyclical_lr import records
from cyclical_lr.records import build
from cyclical_lr.report.ending import suggested_stepsize
from cyclical_lr.training.config import check, compose_config, describe, plain

KINDS = ("range_test", "fixed", "tri2", "exp", "exp_range")
NETWORKS = ("alexnet", "googlenet")
CARDS = [f"imagenet_{network}_{kind}" for network in NETWORKS for kind in KINDS]
TRAIN, VAL = 1_281_167, 50_000  # images of ILSVRC 2012
EPOCH = {"alexnet": 5_005, "googlenet": 10_009}  # iterations, as the paper has them

# iteration, LR of the update from it: written out from the paper, not computed.
EXPECTED_LR = {
    "alexnet_range_test": [(0, 0.0), (10_000, 0.01), (40_000, 0.04)],
    "alexnet_fixed": [(0, 0.01), (179_999, 0.01), (180_000, 0.001), (299_999, 0.001), (300_000, 1e-4), (399_999, 1e-4)],
    "alexnet_tri2": [
        *((0, 0.01), (30_000, 0.015), (60_000, 0.01), (90_000, 0.0125), (120_000, 0.01), (150_000, 0.01125)),
        *((180_000, 0.001), (210_000, 0.0015), (270_000, 0.00125), (300_000, 1e-4), (330_000, 1.5e-4)),
    ],
    "alexnet_exp": [(0, 0.01), (300_000, 0.00223), (460_000, 0.001003)],
    "alexnet_exp_range": [(0, 0.006), (30_000, 0.01205), (60_000, 0.004445), (300_000, 0.001339)],
    "googlenet_range_test": [(0, 0.001), (20_000, 0.033), (40_000, 0.065)],
    "googlenet_fixed": [(0, 0.01), (180_000, 0.001), (300_000, 1e-4), (419_999, 1e-4)],
    "googlenet_tri2": [
        *((0, 0.01), (30_000, 0.026), (90_000, 0.018), (150_000, 0.014), (180_000, 0.001), (210_000, 0.0026)),
        *((300_000, 1e-4), (330_000, 2.6e-4), (390_000, 1.8e-4), (420_000, 1e-4)),
    ],
    "googlenet_exp": [(0, 0.01), (240_000, 0.0000823)],
    "googlenet_exp_range": [(0, 0.01), (20_000, 0.01743), (40_000, 0.004493), (240_000, 0.0000823)],
}


@pytest.fixture(scope="module")
def plans() -> dict[str, dict[str, Any]]:
    return {card: cards.plan(card) for card in CARDS}


def network_of(card: str) -> str:
    return card.split("_")[1]


@pytest.mark.parametrize("card", CARDS)
def test_a_card_trains_at_the_lrs_that_the_paper_states(card, plans):
    schedule = build(plans[card]["schedule"])
    for iteration, lr in EXPECTED_LR[card.removeprefix("imagenet_")]:
        assert schedule(iteration) == pytest.approx(lr, rel=2e-3), iteration


@pytest.mark.parametrize("card", CARDS)
def test_the_cards_of_a_network_differ_in_schedule_and_length_alone(card, plans):
    ours, theirs = plans[card], plans[f"imagenet_{network_of(card)}_fixed"]
    same = {key for key in ours if ours[key] == theirs[key]}
    assert same >= ours.keys() - {"experiment", "schedule", "iterations"}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_range_test_suggests_the_stepsize_that_the_paper_trains_with(network, plans):
    test = f"imagenet_{network}_range_test"
    suggested = suggested_stepsize(test, plans[test]["schedule"]["stepsize"], CONF)
    phases = plans[f"imagenet_{network}_tri2"]["schedule"]["phases"]
    assert {suggested} == {phase["schedule"]["stepsize"] for phase in phases} == {30_000}
    assert suggested_stepsize("cifar10_range_test", 4_000, CONF) == 2_000


def test_recipes_are_those_of_caffes_solvers_and_nets(plans):
    alexnet, googlenet = (plans[f"imagenet_{network}_fixed"] for network in NETWORKS)
    for plan, decay in ((alexnet, 0.0005), (googlenet, 0.0002)):
        check(plan)
        caffe = {"_target_": "cyclical_lr.solvers.caffe_sgd", "momentum": 0.9, "multipliers": True}
        assert plan["solver"] == {**caffe, "weight_decay": decay}
        assert plan["model"]["num_classes"] == plan["data"]["num_classes"] == 1000
        assert (plan["data"]["train_images"], plan["data"]["test_images"]) == (TRAIN, VAL)
        assert plan["data"]["mirror"] and not plan["data"]["shuffle"]
    assert (alexnet["data"]["batch_size"], alexnet["data"]["crop"], alexnet["data"]["mean"]) == (256, 227, "image")
    caffes_mean_values = [104, 117, 123]  # blue, green, red
    assert (googlenet["data"]["batch_size"], googlenet["data"]["crop"]) == (128, 224)
    assert googlenet["data"]["mean"] == caffes_mean_values[::-1]
    assert not alexnet["model"]["caffenet"] and googlenet["model"]["auxiliary"]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_batch_is_the_one_that_the_papers_epoch_has(network, plans):
    assert TRAIN / plans[f"imagenet_{network}_fixed"]["data"]["batch_size"] == pytest.approx(EPOCH[network], abs=1)


def test_caffenet_is_an_override_with_a_label_of_its_own(plans):
    ours = describe(plain(compose_config(CONF, ["+experiment=imagenet_alexnet_tri2", "model=caffenet"])), 0)
    theirs = describe(plans["imagenet_alexnet_tri2"], 0)
    assert records.label("imagenet_alexnet_tri2", ours, theirs) == "imagenet_alexnet_tri2[model.caffenet=True]"


def test_the_study_of_table_1_has_every_imagenet_row_once():
    rows = yaml.safe_load((CONF / "paper" / "table1.yaml").read_text())["rows"]
    wanted = {row["experiment"] for row in rows if row["dataset"] == "ImageNet"}
    listed = yaml.safe_load((CONF / "study" / "table1_imagenet.yaml").read_text())["experiments"]
    assert len(listed) == len(set(listed)) == 8 and set(listed) == wanted


# What a full run needs ------------------------------------------------------------------------------------------------


def flops(plan: dict[str, Any], backward: bool) -> int:
    """FLOPs per image, counted by torch on tensors without memory."""
    size = plan["data"]["crop"]
    with torch.device("meta"):
        network, images = build(plan["model"]).train(backward), torch.empty(1, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        out = network(images)
        if backward:
            sum(head.sum() for head in (out if isinstance(out, tuple) else (out,))).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("card", CARDS)
def test_a_card_states_images_epochs_flops_and_hours_as_they_are(card, plans):
    plan, text = plans[card], cards.text(card)
    iterations, size = plan["iterations"], plan["data"]["batch_size"]
    images, evaluations = iterations * size, iterations // plan["eval_every"] + 1
    forward, evaluation = FORWARD[network_of(card)], EVALUATION[network_of(card)]
    training = 3 * forward - FIRST_LAYER[network_of(card)]
    seen = f"{images / 1e6:.2f} million images, {images / TRAIN:.1f} epochs"
    assert f"{iterations:,} iterations of {size} are {seen}" in text
    assert f"at {training / 1e9:.3f} GFLOPs an image ({forward / 1e9:.3f} forward by" in text
    more = f"{evaluations * VAL * evaluation / 1e15:.0f} more for {evaluations} evaluations of 50,000"
    assert f"{images * training / 1e15:.0f} PFLOPs, and {more}" in text
    gpu = json.loads(cards.H200.read_text())["imagenet"][f"imagenet_{network_of(card)}_tri2"]
    rates = {precision: gpu[precision]["images_per_second"] for precision in ("float32", "bf16")}
    on_gpu = [f"{images / 3600 / rate:.1f}" for rate in rates.values()]
    assert (
        f"{images / 3600:,.0f} hours divided by the images trained per second: on an NVIDIA H200 {on_gpu[0]} hours in "
        f"float32 ({rates['float32']:,.0f} per second) and {on_gpu[1]} in bf16 ({rates['bf16']:,.0f}), by 20 iterations"
    ) in text
    rate, days = re.search(r"trains ([\d.]+) per second of its time \(batches of 32\): (\d+) days", text).groups()
    assert images / float(rate) / 86_400 == pytest.approx(int(days), abs=0.51)


FORWARD = {"alexnet": 1_448_813_632, "googlenet": 3_182_088_192}  # in training, auxiliary heads included
EVALUATION = {"alexnet": 1_448_813_632, "googlenet": 3_165_343_744}
FIRST_LAYER = {"alexnet": 2 * 96 * 3 * 11**2 * 55**2, "googlenet": 2 * 64 * 3 * 7**2 * 112**2}  # has no images to train


@pytest.mark.parametrize("network", NETWORKS)
def test_the_flops_are_those_that_torch_counts(network, plans):
    plan = plans[f"imagenet_{network}_fixed"]
    assert flops(plan, backward=False) == EVALUATION[network]
    counted = flops(plan, backward=True)
    excess = 0
    if network == "alexnet":  # the counter takes the weights' gradients of grouped convolutions for ungrouped ones
        grouped = {"conv2": (48, 256, 5, 27), "conv4": (192, 384, 3, 13), "conv5": (192, 256, 3, 13)}
        excess = sum(2 * inputs * outputs * k**2 * side**2 for inputs, outputs, k, side in grouped.values())
    assert counted - excess == 3 * FORWARD[network] - FIRST_LAYER[network]
