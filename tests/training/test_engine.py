"""The fast engine equals the reference step: the same program, run without a graph where there is no GPU."""

import copy
import itertools

import pytest
import torch
from torch import nn

from cyclical_lr.data.cifar import ImageSet
from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.models.cifar10_sigmoid import Cifar10Sigmoid
from cyclical_lr.models.resnet import ResNet
from cyclical_lr.solvers import (
    caffe_adadelta,
    caffe_adagrad,
    caffe_adam,
    caffe_nesterov,
    caffe_rmsprop,
    caffe_sgd,
    torch_sgd,
)
from cyclical_lr.training.engine import FastEngine, exact_arithmetic, reference_step, unsuited

torch.set_num_threads(1)
exact_arithmetic()
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LRS = [1e-4 * (1 + t % 5) for t in range(20)]
NETWORKS = {
    "cifar10_full": Cifar10Full,
    "cifar10_sigmoid": Cifar10Sigmoid,
    "cifar10_sigmoid_bn": lambda: Cifar10Sigmoid(batch_norm=True),
}
SOLVERS = {
    "sgd": caffe_sgd,
    "nesterov": caffe_nesterov,
    "adam": caffe_adam,
    "rmsprop": caffe_rmsprop,
    "adagrad": caffe_adagrad,
    "adadelta": caffe_adadelta,
}


def make_runs(network, solver, device: str, seeds=(0, 1)):
    networks = []
    for seed in seeds:
        torch.manual_seed(seed)
        networks.append(NETWORKS[network]().to(device, memory_format=torch.channels_last))
    return networks, [SOLVERS[solver](model, weight_decay=0.004) for model in networks]


def images(device: str, augment: str = "none") -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (64,), generator=generator)
    return ImageSet(pixels, labels, torch.tensor(120.0), augment=augment).to(device)


def batches(runs: int, iterations: int, device: str) -> torch.Tensor:
    """A different order for every run: [runs, iterations, 4]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 64, (runs, iterations, 4), generator=generator).to(device)


def assert_same(networks, solvers, others, other_solvers, tolerance: float) -> None:
    for network, other in zip(networks, others, strict=True):
        for (name, ours), theirs in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0, msg=lambda text, n=name: f"{n}: {text}")
    for solver, other in zip(solvers, other_solvers, strict=True):
        for ours, theirs in zip(solver.state.values(), other.state.values(), strict=True):
            assert ours and ours.keys() == theirs.keys()
            for name in ours:
                torch.testing.assert_close(ours[name], theirs[name], rtol=tolerance, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("network", "solver"), list(itertools.product(NETWORKS, SOLVERS)))
def test_blocks_of_the_fast_engine_leave_what_single_reference_steps_leave(network, solver, device):
    networks, solvers = make_runs(network, solver, device)
    others, other_solvers = make_runs(network, solver, device)
    indices, train_set = batches(2, 12, device), images(device)
    sums = [torch.zeros((), dtype=torch.float64, device=device) for _ in networks]
    engine = FastEngine(networks, solvers, train_set, LRS, sums)
    for start, end in ((0, 5), (5, 6), (6, 12)):  # a shorter block, then one that needs more memory
        engine(start, indices[:, start:end])

    expected = [0.0, 0.0]
    for t, (m, other) in itertools.product(range(12), enumerate(others)):
        x, y = train_set(indices[m, t])
        expected[m] += float(reference_step(other, other_solvers[m], x, y, LRS[t]))

    assert_same(networks, solvers, others, other_solvers, tolerance=0)
    assert [float(total) for total in sums] == pytest.approx(expected, rel=1e-12)
    assert not torch.equal(next(networks[0].parameters()), next(networks[1].parameters()))


def test_each_iteration_uses_its_own_learning_rate_and_samples():
    (network,), (solver,) = make_runs("cifar10_full", "sgd", "cpu", seeds=(0,))
    start = copy.deepcopy(network.state_dict())
    engine = FastEngine([network], [solver], images("cpu"), [0.0, 0.0, 1e-4], [torch.zeros((), dtype=torch.float64)])
    engine(0, batches(1, 2, "cpu"))
    assert all(torch.equal(start[name], value) for name, value in network.state_dict().items())
    engine(2, batches(1, 1, "cpu"))
    assert not torch.equal(start["conv1.weight"], network.conv1.weight)


@pytest.mark.parametrize(
    ("network", "solver", "augment", "reason"),
    [
        *((Cifar10Full(), solver, "none", "") for solver in SOLVERS.values()),
        (Cifar10Full(), caffe_sgd, "crop_flip", "draws random numbers"),
        (Cifar10Full(), torch_sgd, "none", "SGD does not take its LR as a tensor"),
        (ResNet(depth=20, num_classes=10), caffe_sgd, "none", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", type(value).__name__),
)
def test_runs_that_a_graph_cannot_hold_are_told_from_those_that_it_can(network: nn.Module, solver, augment, reason):
    told = unsuited([network], [solver(network)], images("cpu", augment))
    assert reason in told and bool(told) == bool(reason)
