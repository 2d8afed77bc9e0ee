"""Table 3's methods against Caffe's solvers in NumPy (`caffe_numpy`), ten steps through a changing LR, in float64.

As in test_solvers.py, what is compared is the way travelled from the initial weights. The network is a small one with
the multipliers of cifar10_full's last layers, its gradients are NumPy's too.
"""

import caffe_numpy
import numpy as np
import pytest
import torch
from caffe_numpy import inner_product, relu, softmax_loss
from torch import nn

from cyclical_lr.models.layers import Param, caffe_layer
from cyclical_lr.solvers import (
    caffe_adadelta,
    caffe_adagrad,
    caffe_adam,
    caffe_nesterov,
    caffe_rmsprop,
    param_groups,
    set_lr,
    torch_sgd,
)

WEIGHT_DECAY, BATCH, STEPS = 0.004, 8, 10
MULTIPLIERS = {"0.weight": (1.0, 1.0), "0.bias": (2.0, 1.0), "2.weight": (1.0, 250.0), "2.bias": (2.0, 0.0)}
# Of each method's peak LR: a triangle with a stepsize of 3 from a fifth of it, and a tenth of that from step 7 on.
TRIANGLE_THEN_DROP = (1 / 5, 7 / 15, 11 / 15, 1.0, 11 / 15, 7 / 15, 1 / 5, 7 / 150, 11 / 150, 1 / 10)
CONSTANT = (1 / 5,) * STEPS

# Caffe's type: the port, its options, a peak LR at which ten steps change the weights visibly.
METHODS = {
    "Nesterov": (caffe_nesterov, {"momentum": 0.9}, 0.1),
    "Adam": (caffe_adam, {"momentum": 0.9, "momentum2": 0.999, "delta": 1e-8}, 0.05),
    "RMSProp": (caffe_rmsprop, {"rms_decay": 0.99, "delta": 1e-8}, 0.01),
    "AdaGrad": (caffe_adagrad, {"delta": 1e-8}, 0.1),
    "AdaDelta": (caffe_adadelta, {"momentum": 0.9, "delta": 1e-8}, 100.0),
}
OTHER_OPTIONS = {
    "Nesterov": {"momentum": 0.5},
    "Adam": {"momentum": 0.5, "momentum2": 0.9, "delta": 0.1},
    "RMSProp": {"rms_decay": 0.5, "delta": 0.1},
    "AdaGrad": {"delta": 0.1},
    "AdaDelta": {"momentum": 0.5, "delta": 1e-4},
}


def start() -> tuple[caffe_numpy.Parameters, list[tuple[np.ndarray, np.ndarray]]]:
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (6, 5), "0.bias": (6,), "2.weight": (3, 6), "2.bias": (3,)}
    parameters = {name: rng.normal(0, 1, shape) for name, shape in shapes.items()}
    return parameters, [(rng.normal(0, 1, (BATCH, 5)), rng.integers(0, 3, BATCH)) for _ in range(STEPS)]


def reference_gradients(parameters: caffe_numpy.Parameters, x: np.ndarray, labels: np.ndarray):
    hidden, hidden_back = inner_product(x, parameters["0.weight"], parameters["0.bias"])
    active, active_back = relu(hidden)
    logits, logits_back = inner_product(active, parameters["2.weight"], parameters["2.bias"])
    _, loss_back = softmax_loss(logits, labels)
    g = {}
    d, g["2.weight"], g["2.bias"] = logits_back(*loss_back())
    _, g["0.weight"], g["0.bias"] = hidden_back(*active_back(d))
    return g


def reference_travels(method: str, options: dict[str, float], lrs, multipliers=MULTIPLIERS) -> caffe_numpy.Parameters:
    parameters, batches = start()
    if method == "Nesterov":
        reference = caffe_numpy.CaffeSGD(parameters, multipliers, options["momentum"], WEIGHT_DECAY, nesterov=True)
    else:
        reference = caffe_numpy.CaffeAdaptive(method, parameters, multipliers, WEIGHT_DECAY, **options)
    for lr, (x, labels) in zip(lrs, batches, strict=True):
        reference.step(reference_gradients(reference.parameters, x, labels), lr)
    return {name: value - parameters[name] for name, value in reference.parameters.items()}


def network() -> nn.Module:
    """The small network in float64, at its starting weights."""
    first, last = nn.Linear(5, 6), nn.Linear(6, 3)
    caffe_layer(first, Param(), Param(lr_mult=2))
    caffe_layer(last, Param(decay_mult=250), Param(lr_mult=2, decay_mult=0))
    model = nn.Sequential(first, nn.ReLU(), last).double()
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in start()[0].items()})
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, lrs, first: int = 0) -> None:
    for lr, (x, labels) in zip(lrs, start()[1][first : first + len(lrs)], strict=True):
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(labels)).backward()
        optimizer.step()


def port_travels(solver, lrs) -> caffe_numpy.Parameters:
    model = network()
    train(model, solver(model), lrs)
    return {name: value.detach().numpy() - start()[0][name] for name, value in model.named_parameters()}


def largest_gap(actual: caffe_numpy.Parameters, expected: caffe_numpy.Parameters) -> float:
    """Largest difference of any parameter's way, over the largest way of that parameter."""
    assert actual.keys() == expected.keys() == MULTIPLIERS.keys()
    assert min(np.abs(way).max() for way in expected.values()) > 1e-3, (
        "hardly moved: the comparison would prove nothing"
    )
    return max(float(np.abs(actual[name] - expected[name]).max() / np.abs(expected[name]).max()) for name in expected)


def lrs_of(method: str, shape=TRIANGLE_THEN_DROP) -> tuple[float, ...]:
    return tuple(METHODS[method][2] * part for part in shape)


# ---- ten steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_ten_steps_under_a_changing_lr_equal_caffes(method):
    solver, options, _ = METHODS[method]
    lrs = lrs_of(method)
    actual = port_travels(lambda model: solver(model, **options, weight_decay=WEIGHT_DECAY), lrs)
    assert largest_gap(actual, reference_travels(method, options, lrs)) < 1e-6
    defaults = port_travels(lambda model: solver(model, weight_decay=WEIGHT_DECAY), lrs)
    assert largest_gap(defaults, actual) == 0, "the options of METHODS are the defaults"


@pytest.mark.parametrize("method", METHODS)
def test_every_option_takes_part(method):
    solver, options, _ = METHODS[method]
    lrs = lrs_of(method)
    for name, value in OTHER_OPTIONS[method].items():
        other = {**options, name: value}
        actual = port_travels(lambda model, other=other: solver(model, **other, weight_decay=WEIGHT_DECAY), lrs)
        expected = reference_travels(method, other, lrs)
        assert largest_gap(actual, expected) < 1e-6, name
        assert largest_gap(reference_travels(method, options, lrs), expected) > 1e-2, name


@pytest.mark.parametrize("method", METHODS)
def test_without_multipliers_all_parameters_share_lr_and_decay(method):
    solver, options, _ = METHODS[method]
    lrs, alike = lrs_of(method), dict.fromkeys(MULTIPLIERS, (1.0, 1.0))
    actual = port_travels(lambda model: solver(model, weight_decay=WEIGHT_DECAY, multipliers=False), lrs)
    expected = reference_travels(method, options, lrs, alike)
    assert largest_gap(actual, expected) < 1e-6
    assert largest_gap(reference_travels(method, options, lrs), expected) > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_a_solver_restored_from_its_state_goes_on_bit_for_bit(method):
    solver = METHODS[method][0]
    lrs = lrs_of(method)
    straight = network()
    train(straight, solver(straight, weight_decay=WEIGHT_DECAY), lrs)

    stopped, resumed = network(), network()
    first = solver(stopped, weight_decay=WEIGHT_DECAY)
    train(stopped, first, lrs[:6])
    second = solver(resumed, weight_decay=WEIGHT_DECAY)
    resumed.load_state_dict(stopped.state_dict())
    second.load_state_dict(first.state_dict())
    train(resumed, second, lrs[6:], first=6)
    for name, value in straight.named_parameters():
        assert torch.equal(resumed.get_parameter(name), value), name


# ---- torch's own methods: SGD and three more are the same, two differ ------------------------------------------------


@pytest.mark.parametrize(
    ("method", "torchs"),
    [
        ("RMSProp", lambda groups: torch.optim.RMSprop(groups, lr=0.0, alpha=0.99, eps=1e-8)),
        ("AdaGrad", lambda groups: torch.optim.Adagrad(groups, lr=0.0, eps=1e-8)),
        ("AdaDelta", lambda groups: torch.optim.Adadelta(groups, lr=0.0, rho=0.9, eps=1e-8)),
    ],
)
def test_torchs_rmsprop_adagrad_and_adadelta_compute_the_same(method, torchs):
    lrs = lrs_of(method)
    ours = port_travels(lambda model: METHODS[method][0](model, weight_decay=WEIGHT_DECAY), lrs)
    assert largest_gap(port_travels(lambda model: torchs(param_groups(model, WEIGHT_DECAY)), lrs), ours) < 1e-12


@pytest.mark.parametrize("nesterov", [False, True])
def test_torchs_sgd_computes_the_same_as_torch_sgd(nesterov):
    def torchs(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(param_groups(model, WEIGHT_DECAY), lr=0.0, momentum=0.9, nesterov=nesterov)

    lrs = lrs_of("Nesterov")
    ours = port_travels(lambda model: torch_sgd(model, 0.9, WEIGHT_DECAY, nesterov), lrs)
    assert largest_gap(port_travels(torchs, lrs), ours) < 1e-12


def test_torchs_nesterov_ends_elsewhere_after_a_changing_lr_and_in_the_same_place_under_a_constant_one():
    def torchs(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(param_groups(model, WEIGHT_DECAY), lr=0.0, momentum=0.9, nesterov=True)

    options = METHODS["Nesterov"][1]
    changing, constant = lrs_of("Nesterov"), lrs_of("Nesterov", CONSTANT)
    gap = largest_gap(port_travels(torchs, changing), reference_travels("Nesterov", options, changing))
    assert gap == pytest.approx(0.48, rel=0.02)
    assert largest_gap(port_travels(torchs, constant), reference_travels("Nesterov", options, constant)) < 1e-6


def test_torchs_adam_differs_by_the_place_of_delta_alone():
    def torchs(eps: float):
        return lambda model: torch.optim.Adam(param_groups(model, WEIGHT_DECAY), lr=0.0, eps=eps)

    lrs = lrs_of("Adam")
    for delta, gap in ((1e-12, 1.44e-9), (1e-8, 1.44e-5), (1e-4, 0.103)):
        expected = reference_travels("Adam", {"momentum": 0.9, "delta": delta}, lrs)
        assert largest_gap(port_travels(torchs(delta), lrs), expected) == pytest.approx(gap, rel=0.02)


def test_adams_delta_comes_before_the_bias_correction():
    weight = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(weight.weight)
    optimizer = caffe_adam(weight, delta=1e-8)
    set_lr(optimizer, 1.0)
    weight.weight.grad = torch.full_like(weight.weight, 1e-8)
    optimizer.step()
    # m = 1e-9, sqrt(v) = 1e-8 sqrt(0.001), correction = sqrt(0.001) / 0.1; after it the step would be one half.
    root = 0.001**0.5
    assert weight.weight.item() == pytest.approx(-(root / 0.1) * 1e-9 / (1e-8 * root + 1e-8), rel=1e-9)
    assert weight.weight.item() == pytest.approx(-0.0307, rel=1e-2)


def test_adams_first_correction_keeps_its_digits_in_float32():
    """1 - 0.999 in float32 is wrong in the fifth digit."""
    weight = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(weight.weight)
    optimizer = caffe_adam(weight)
    set_lr(optimizer, 1.0)
    weight.weight.grad = torch.ones_like(weight.weight)
    optimizer.step()
    assert weight.weight.item() == pytest.approx(-1.0, rel=2e-6)


def test_adam_counts_every_step_of_a_group_whichever_of_its_parameters_have_a_gradient():
    weights = nn.ParameterList(nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    alone = nn.ParameterList([nn.Parameter(torch.zeros(1, dtype=torch.float64))])
    for parameters, late in ((weights, 1), (alone, 0)):
        optimizer = caffe_adam(parameters)
        set_lr(optimizer, 0.1)
        for step in range(6):
            parameters[late].grad = torch.full_like(parameters[late], 1.0 + step)
            if late and step >= 3:
                parameters[0].grad = torch.ones_like(parameters[0])
            optimizer.step()
    assert torch.equal(weights[1], alone[0]) and weights[0].item() != 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adam_refuses_parameters_of_a_type_that_cannot_count_its_steps(dtype):
    model = nn.Linear(2, 1).to(dtype)
    optimizer = caffe_adam(model)
    model.weight.grad = torch.ones_like(model.weight)
    with pytest.raises(ValueError, match="expected float32 or float64, got torch"):
        optimizer.step()


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "key", "value"),
    [
        *((solver, "momentum", 1.0) for solver in (caffe_nesterov, caffe_adam, caffe_adadelta)),
        *((solver, "delta", 0.0) for solver in (caffe_adam, caffe_rmsprop, caffe_adagrad, caffe_adadelta)),
        (caffe_adam, "momentum2", -0.1),
        (caffe_rmsprop, "rms_decay", 1.5),
        *((solver, "weight_decay", -1.0) for solver, *_ in METHODS.values()),
        (caffe_adam, "momentum", None),
        (caffe_adam, "weight_decay", None),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(solver, key, value):
    with pytest.raises(ValueError, match=rf"solver\.{key}.*{value}"):
        solver(network(), **{key: value})
