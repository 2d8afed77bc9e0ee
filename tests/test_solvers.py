"""Caffe's SGD against SGDSolver in NumPy (`caffe_numpy`), step by step through a changing LR, in float64.

What is compared is the way travelled from the initial weights: ten steps move most weights by less than their own
tolerance, so that equal weights alone would prove little.
"""

import functools

import caffe_numpy
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.solvers import CaffeSGD, caffe_sgd, set_lr, torch_sgd

MOMENTUM, WEIGHT_DECAY, BATCH = 0.9, 0.004, 4
# A triangle between 0.001 and 0.005 with a stepsize of 3, and a tenth of it from iteration 7 on.
THIRD = 0.004 / 3
TRIANGLE_THEN_DROP = (
    *(0.001, 0.001 + THIRD, 0.001 + 2 * THIRD, 0.005, 0.001 + 2 * THIRD, 0.001 + THIRD, 0.001),
    *(0.1 * (0.001 + THIRD), 0.1 * (0.001 + 2 * THIRD), 0.0005),
)
CONSTANT = (0.001,) * 10


@functools.cache
def start() -> tuple[caffe_numpy.Parameters, list[tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(0)
    return caffe_numpy.lively_parameters(rng), [caffe_numpy.images_like_cifar(rng, BATCH) for _ in range(10)]


@functools.cache
def port_travels(solver, lrs: tuple[float, ...]) -> caffe_numpy.Parameters:
    """Final minus initial weights of the port under `solver(model)`."""
    parameters, batches = start()
    model = Cifar10Full().double()
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in parameters.items()}, strict=True)
    optimizer = solver(model)
    for lr, (images, labels) in zip(lrs, batches, strict=True):
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        optimizer.step()
    return {name: value.detach().numpy() - parameters[name] for name, value in model.named_parameters()}


@functools.cache
def reference_travels(
    solver, lrs: tuple[float, ...], multipliers: bool = True, nesterov: bool = False
) -> caffe_numpy.Parameters:
    parameters, batches = start()
    table = caffe_numpy.MULTIPLIERS if multipliers else dict.fromkeys(parameters, (1.0, 1.0))
    reference = solver(parameters, table, MOMENTUM, WEIGHT_DECAY, nesterov)
    for lr, (images, labels) in zip(lrs, batches, strict=True):
        _, _, gradients = caffe_numpy.cifar10_full(reference.parameters, images, labels)
        reference.step(gradients, lr)
    return {name: value - parameters[name] for name, value in reference.parameters.items()}


def relative_gap(actual: caffe_numpy.Parameters, expected: caffe_numpy.Parameters) -> dict[str, float]:
    """Largest difference of each parameter's way, over the largest way of that parameter."""
    assert actual.keys() == expected.keys()
    return {
        name: float(np.abs(actual[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected
    }


def caffe(model: nn.Module) -> torch.optim.Optimizer:
    return caffe_sgd(model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def torch_form(model: nn.Module) -> torch.optim.Optimizer:
    return torch_sgd(model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


# ---- ten steps of the whole network ----------------------------------------------------------------------------------


def test_ten_steps_under_a_changing_lr_equal_caffes():
    gaps = relative_gap(
        port_travels(caffe, TRIANGLE_THEN_DROP), reference_travels(caffe_numpy.CaffeSGD, TRIANGLE_THEN_DROP)
    )
    assert max(gaps.values()) < 1e-6, gaps


def test_torchs_form_ends_elsewhere_after_a_changing_lr_and_in_the_same_place_under_a_constant_one():
    caffe_way = port_travels(caffe, TRIANGLE_THEN_DROP)
    assert min(relative_gap(port_travels(torch_form, TRIANGLE_THEN_DROP), caffe_way).values()) > 1e-2
    gaps = relative_gap(port_travels(torch_form, CONSTANT), port_travels(caffe, CONSTANT))
    assert max(gaps.values()) < 1e-6, gaps


def test_torchs_form_with_multipliers_equals_its_formula_under_a_changing_lr():
    gaps = relative_gap(
        port_travels(torch_form, TRIANGLE_THEN_DROP),
        reference_travels(caffe_numpy.TorchSGD, TRIANGLE_THEN_DROP),
    )
    assert max(gaps.values()) < 1e-6, gaps


def test_without_multipliers_all_parameters_share_lr_and_decay():
    def plain(model: nn.Module) -> torch.optim.Optimizer:
        return caffe_sgd(model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, multipliers=False)

    expected = reference_travels(caffe_numpy.CaffeSGD, TRIANGLE_THEN_DROP, multipliers=False)
    gaps = relative_gap(port_travels(plain, TRIANGLE_THEN_DROP), expected)
    assert max(gaps.values()) < 1e-6, gaps
    assert max(relative_gap(port_travels(caffe, TRIANGLE_THEN_DROP), expected).values()) > 1e-2


def test_nesterov_equals_caffes_nesterov_under_a_constant_lr():
    def nesterov(model: nn.Module) -> torch.optim.Optimizer:
        return torch_sgd(model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)

    expected = reference_travels(caffe_numpy.CaffeSGD, CONSTANT, nesterov=True)
    gaps = relative_gap(port_travels(nesterov, CONSTANT), expected)
    assert max(gaps.values()) < 1e-6, gaps


# ---- the update alone ------------------------------------------------------------------------------------------------


def one_weight() -> tuple[nn.Module, nn.Parameter]:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    return model, model.weight


def test_at_a_drop_caffes_velocity_keeps_the_old_lr():
    model, weight = one_weight()
    optimizer = caffe_sgd(model, momentum=0.5, weight_decay=0.0)
    positions = []
    for lr in (1.0, 1.0, 0.1):
        set_lr(optimizer, lr)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        positions.append(weight.item())
    # V = 1; then 0.5 * 1 + 1 = 1.5; then 0.5 * 1.5 + 0.1 = 0.85 (torch's form: 0.1 * 1.75 = 0.175).
    np.testing.assert_allclose(positions, [1.0, -0.5, -1.35])


def test_weight_decay_joins_the_gradient_before_the_lr():
    model, weight = one_weight()
    optimizer = caffe_sgd(model, momentum=0.5, weight_decay=0.25)
    for lr, expected in ((0.1, 1.95), (0.2, 1.95 - (0.5 * 0.05 + 0.2 * 0.25 * 1.95))):
        set_lr(optimizer, lr)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert weight.item() == pytest.approx(expected, rel=1e-12)


def test_a_zero_lr_coasts_on_the_velocity_and_recovers():
    model, weight = one_weight()
    optimizer = caffe_sgd(model, momentum=0.5)
    positions = []
    for lr in (0.0, 1.0, 0.0, 1.0):
        set_lr(optimizer, lr)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        positions.append(weight.item())
    # V = 0, 1, 0.5, 1.25: a port that rescales torch's buffer by lr_prev / lr_now divides by zero here.
    np.testing.assert_allclose(positions, [2.0, 1.0, 0.5, -0.75])


@pytest.mark.parametrize("solver", [caffe_sgd, torch_sgd])
def test_groups_carry_the_multiplied_lr_and_decay_of_each_parameter(solver):
    model = Cifar10Full()
    optimizer = solver(model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    set_lr(optimizer, 0.001)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["lr_mult"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names) == 8
    expected = {
        "conv1.weight": (0.001, 1, 0.004),
        "conv1.bias": (0.002, 2, 0.004),
        "conv2.weight": (0.001, 1, 0.004),
        "conv2.bias": (0.002, 2, 0.004),
        "conv3.weight": (0.001, 1, 0.004),
        "conv3.bias": (0.001, 1, 0.004),
        "ip1.weight": (0.001, 1, 1.0),
        "ip1.bias": (0.002, 2, 0.0),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values), name
    set_lr(optimizer, 0.005)
    assert {group["lr"] / group["lr_mult"] for group in optimizer.param_groups} == {0.005}
    plain = solver(model, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, multipliers=False)
    assert {(group["lr_mult"], group["weight_decay"]) for group in plain.param_groups} == {(1.0, 0.004)}
    assert sum(len(group["params"]) for group in plain.param_groups) == 8


@pytest.mark.parametrize("solver", [caffe_sgd, torch_sgd])
def test_a_network_without_caffes_settings_gets_plain_multipliers(solver):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 5, 5))
    optimizer = solver(model, momentum=0.9, weight_decay=1e-4)
    assert {(group["lr_mult"], group["weight_decay"]) for group in optimizer.param_groups} == {(1.0, 1e-4)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_weight_that_layers_share_is_in_one_group_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    (group,) = caffe_sgd(model, momentum=0.9, weight_decay=0.0).param_groups
    assert group["params"] == [model[0].weight, model[0].bias, model[1].bias]


@pytest.mark.parametrize("replaced", ["parametrized", "pruned"])
def test_multipliers_of_what_is_no_parameter_any_more_are_missed(replaced):
    model = Cifar10Full()
    if replaced == "parametrized":
        nn.utils.parametrizations.weight_norm(model.ip1)
    else:
        prune.identity(model.ip1, "weight")
    with pytest.raises(ValueError, match=r"^model: expected \w*Linear's 'weight' to be a parameter.*multipliers=False"):
        caffe_sgd(model, weight_decay=0.004)
    caffe_sgd(model, weight_decay=0.004, multipliers=False)


@pytest.mark.parametrize("solver", [caffe_sgd, torch_sgd])
def test_a_solver_restored_from_its_state_goes_on_bit_for_bit(solver):
    def run(model, optimizer, lrs):
        for lr in lrs:
            set_lr(optimizer, lr)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    inputs = torch.randn(8, 5)
    straight = nn.Linear(5, 3)
    stopped = nn.Linear(5, 3)
    stopped.load_state_dict(straight.state_dict())
    whole = solver(straight, momentum=0.9, weight_decay=0.004)
    run(straight, whole, TRIANGLE_THEN_DROP)

    first = solver(stopped, momentum=0.9, weight_decay=0.004)
    run(stopped, first, TRIANGLE_THEN_DROP[:7])
    resumed = nn.Linear(5, 3)
    resumed.load_state_dict(stopped.state_dict())
    second = solver(resumed, momentum=0.9, weight_decay=0.004)
    second.load_state_dict(first.state_dict())
    run(resumed, second, TRIANGLE_THEN_DROP[7:])
    assert torch.equal(resumed.weight, straight.weight) and torch.equal(resumed.bias, straight.bias)


def test_a_closure_computes_its_gradients_in_the_step():
    weight = torch.nn.Parameter(torch.ones(1))
    solver = CaffeSGD([weight], lr=0.1, momentum=0.0)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert solver.step(closure) == 1 and weight.item() == pytest.approx(0.8)


@pytest.mark.parametrize(("key", "value"), [("lr", -1.0), ("momentum", 5.0), ("weight_decay", "much")])
def test_a_group_of_its_own_is_checked_too(key, value):
    with pytest.raises(ValueError, match=rf"solver\.{key}: expected a number .*, got {value!r}"):
        CaffeSGD([{"params": [torch.ones(2, requires_grad=True)], key: value}], lr=0.1)


def test_an_lr_on_the_device_is_rounded_to_no_other_parameters_type():
    """A parameter of float32 steps as if alone, beside one of bfloat16 in the same group."""
    half, whole = (torch.ones(1, dtype=kind, requires_grad=True) for kind in (torch.bfloat16, torch.float32))
    solver = CaffeSGD([half, whole], lr=0.0)
    set_lr(solver, torch.tensor(0.1))
    half.grad, whole.grad = torch.ones_like(half), torch.ones_like(whole)
    solver.step()
    assert whole.item() == torch.tensor(0.9).item() and half.item() == pytest.approx(0.9, abs=0.005)
