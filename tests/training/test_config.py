"""Every lab card, as far as a config goes: it composes, it is checked, its LRs can be computed."""

import json
from copy import deepcopy

import cards
import numpy as np
import pytest
import torch
from small_runs import CONF

from cyclical_lr import records
from cyclical_lr.training.config import check, describe
from cyclical_lr.training.engine import reference_step

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def changed(name, **values):
    """The card with other values, a key's dot written as two underscores."""
    plan = deepcopy(cards.plan(name))
    for path, value in values.items():
        *groups, key = path.split("__")
        node = plan
        for group in groups:
            node = node[group]
        node[key] = value
    return plan


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_passes_the_check_and_has_lrs(name):
    plan = cards.plan(name)
    check(plan)
    assert plan["experiment"] == name
    lrs = records.learning_rates(describe(plan, 0))
    assert lrs.shape == (plan["iterations"] // plan["compress"] + 1,)
    assert np.isfinite(lrs).all() and (lrs >= 0).all() and 0 < lrs.max() < 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiments_label_is_its_name_until_its_numbers_are_changed(name):
    unchanged = describe(cards.plan(name), 0)
    elsewhere = changed(name, threads=1, eval_every=7, checkpoint_seconds=1, runs_dir="x", data__eval_batch_size=9)
    assert records.label(name, describe(elsewhere, 3), unchanged) == name
    longer = describe(changed(name, iterations=cards.plan(name)["iterations"] + cards.plan(name)["compress"]), 0)
    assert records.label(name, longer, unchanged) == f"{name}[iterations={longer['iterations']}]"


def test_experiments_are_different_runs():
    ids = {name: records.run_id(describe(cards.plan(name), 0)) for name in EXPERIMENTS}
    assert len(set(ids.values())) == len(EXPERIMENTS) >= 18


def test_each_network_takes_its_first_iterations_with_each_solver_of_its_cards():
    pairs = {}
    for name in EXPERIMENTS:
        plan = cards.plan(name)
        pairs.setdefault(json.dumps([plan["model"], plan["solver"]], sort_keys=True), name)
    assert len(pairs) > 15
    for name in pairs.values():
        plan, side = cards.plan(name), cards.plan(name)["data"].get("crop", 32)
        torch.manual_seed(0)
        network = records.build(plan["model"]).to(memory_format=torch.channels_last)
        solver = records.build(plan["solver"], network)
        before = {key: value.detach().clone() for key, value in network.named_parameters()}
        for lr in records.learning_rates(describe(plan, 0))[[1000, 1001]]:
            x = 50 * torch.randn(2, 3, side, side).to(memory_format=torch.channels_last)
            loss = reference_step(network, solver, x, torch.randint(plan["data"]["num_classes"], (2,)), lr)
            assert torch.isfinite(loss), name
        for key, value in network.named_parameters():
            if value.ndim > 1:  # a bias may still be 0: behind ReLUs that gave nothing, or in a block that was left out
                assert not torch.equal(value, before[key]), f"{name}: {key}"
        assert torch.isfinite(network.eval()(x)).all(), name


def test_compress_samples_the_schedule():
    whole, half = (records.learning_rates(describe(changed("cifar10_tri2", compress=n), 0)) for n in (1, 2))
    np.testing.assert_allclose(half, whole[::2], rtol=1e-12)
