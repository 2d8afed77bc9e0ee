"""The fast engine equals the reference step: the same program, run without a graph where there is no GPU."""

import contextlib
import copy
import functools
import itertools
import json
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_runs import WithDropout
from torch import nn
from torch.nn import functional as F

from cyclical_lr.data.cifar import ImageSet
from cyclical_lr.models.alexnet import AlexNet
from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.models.cifar10_sigmoid import Cifar10Sigmoid
from cyclical_lr.models.densenet import DenseNet
from cyclical_lr.models.googlenet import GoogLeNet
from cyclical_lr.models.resnet import ResNet
from cyclical_lr.models.stochastic_depth import StochasticDepth
from cyclical_lr.records import ConfigError
from cyclical_lr.solvers import (
    caffe_adadelta,
    caffe_adagrad,
    caffe_adam,
    caffe_nesterov,
    caffe_rmsprop,
    caffe_sgd,
    set_lr,
    torch_sgd,
)
from cyclical_lr.training.engine import (
    FastEngine,
    check_file,
    choose_engine,
    code_of_a_step,
    draws,
    exact_arithmetic,
    layout,
    reference_step,
    seed_step,
    unsuited,
)

exact_arithmetic()
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LRS = [1e-4 * (1 + t % 5) for t in range(20)]
NETWORKS = {
    "cifar10_full": Cifar10Full,
    "cifar10_sigmoid": Cifar10Sigmoid,
    "cifar10_sigmoid_bn": lambda: Cifar10Sigmoid(batch_norm=True),
    "resnet": lambda: ResNet(depth=8),
    "stochastic_depth": lambda: StochasticDepth(depth=8),
    "densenet": lambda: DenseNet(depth=7),
    "densenet_caffe": lambda: DenseNet(depth=7, form="caffe", drop_rate=0.2),
    "with_dropout": WithDropout,
}
CAFFES = {
    "sgd": caffe_sgd,
    "nesterov": caffe_nesterov,
    "adam": caffe_adam,
    "rmsprop": caffe_rmsprop,
    "adagrad": caffe_adagrad,
    "adadelta": caffe_adadelta,
}
SOLVERS = {**CAFFES, "torch_sgd": functools.partial(torch_sgd, momentum=0.9, nesterov=True)}
PAIRS = [
    *itertools.product(("cifar10_full", "cifar10_sigmoid", "cifar10_sigmoid_bn"), CAFFES),
    *itertools.product(("cifar10_full", "resnet", "stochastic_depth", "densenet", "with_dropout"), ("torch_sgd",)),
    ("densenet_caffe", "nesterov"),
]


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


def check_equal(
    network: str, solver: str, device: str, augment: str = "none", adapt: Callable[[FastEngine], None] = lambda _: None
) -> None:  # in the precision of the caller's autocast
    """Twelve iterations of two seeds on both engines: the same weights, the same state of the solvers, bit for bit."""
    networks, solvers = make_runs(network, solver, device)
    others, other_solvers = make_runs(network, solver, device)
    indices, train_set = batches(2, 12, device), images(device, augment)
    seeds = (5, 6) if draws(networks[0]) or draws(train_set) else ()
    sums = [torch.zeros((), dtype=torch.float64, device=device) for _ in networks]
    engine = FastEngine(networks, solvers, train_set, LRS, sums, seeds)
    adapt(engine)
    for start, end in ((0, 5), (5, 6), (6, 12)):  # a shorter block, then one that needs more memory
        engine(start, indices[:, start:end])
        if device == "cuda":  # as Lightning does where another trainer starts
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()

    expected = [0.0, 0.0]
    for t, (m, other) in itertools.product(range(12), enumerate(others)):
        if seeds:
            seed_step(seeds[m], t)
        x, y = train_set(indices[m, t])
        expected[m] += float(reference_step(other, other_solvers[m], x, y, LRS[t]))

    assert_same(networks, solvers, others, other_solvers, tolerance=0)
    assert [float(total) for total in sums] == pytest.approx(expected, rel=1e-12)
    assert not torch.equal(next(networks[0].parameters()), next(networks[1].parameters()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("network", "solver"), PAIRS)
def test_blocks_of_the_fast_engine_leave_what_single_reference_steps_leave(network, solver, device):
    check_equal(network, solver, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("network", "solver"),
    [("cifar10_full", "sgd"), ("cifar10_sigmoid_bn", "sgd"), *(pair for pair in PAIRS if pair[1] == "torch_sgd")],
)
def test_in_bf16_too(network, solver, device):
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):  # as Lightning's
        check_equal(network, solver, device)


@pytest.mark.parametrize(
    ("network", "device"), itertools.product([name for name in NETWORKS if name != "with_dropout"], DEVICES[1:])
)
def test_a_device_computes_what_the_cpu_does(network, device):
    (ours,), _ = make_runs(network, "sgd", device, seeds=(0,))
    (theirs,), _ = make_runs(network, "sgd", "cpu", seeds=(0,))
    losses = []
    for model, where in ((ours, device), (theirs, "cpu")):
        x, y = images(where)(torch.arange(32, device=where))
        if draws(model):  # devices draw differently
            model.eval()
        losses.append(F.cross_entropy(model(x), y))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)
    for (name, ours_), theirs_ in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        distance = (ours_.grad.cpu() - theirs_.grad).norm() / theirs_.grad.norm()
        assert distance < 1e-2, f"{name}: {distance}"


@pytest.mark.parametrize(("solver", "device"), itertools.product(SOLVERS, DEVICES[1:]))
def test_a_solver_computes_on_a_device_what_it_does_on_the_cpu(solver, device):
    generator, ended = torch.Generator().manual_seed(0), []
    steps = [torch.randn(5, 4, generator=generator) for _ in LRS]
    for where in (device, "cpu"):
        layer = torch.nn.Linear(4, 5, bias=False).to(where)
        torch.nn.init.constant_(layer.weight, 0.5)
        optimizer = SOLVERS[solver](layer, weight_decay=0.004)
        for lr, gradient in zip(LRS, steps, strict=True):
            set_lr(optimizer, torch.tensor(lr, dtype=torch.float64, device=where))
            layer.weight.grad = gradient.clone().to(where)
            optimizer.step()
        ended.append(layer.weight.detach().cpu())
    assert not torch.equal(ended[1], torch.full((5, 4), 0.5))
    torch.testing.assert_close(*ended, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_augmented_images_are_those_of_the_reference(device):
    check_equal("resnet", "torch_sgd", device, "crop_flip")


def test_channels_stand_last_but_in_float32_on_a_gpu():
    cpu, gpu, net = torch.device("cpu"), torch.device("cuda"), nn.Conv2d(3, 32, 5)
    assert layout(gpu, "32-true", net) == torch.contiguous_format
    others = [(gpu, "bf16-mixed", net), (cpu, "32-true", net), (cpu, "bf16-mixed", net), (gpu, "32-true", AlexNet())]
    assert {layout(*other) for other in others} == {torch.channels_last}


def test_a_step_is_seeded_as_by_torch():
    seed_step(3, 141)
    drawn = torch.rand(4)
    torch.manual_seed(torch.initial_seed())
    assert torch.equal(drawn, torch.rand(4))
    seed_step(3, 142)
    assert not torch.equal(drawn, torch.rand(4))


def test_networks_that_draw_are_known():
    drawing = (AlexNet(), GoogLeNet(), StochasticDepth(depth=8), DenseNet(depth=7, drop_rate=0.2))
    still = (Cifar10Full(), Cifar10Sigmoid(batch_norm=True), ResNet(depth=8), DenseNet(depth=7))
    assert [list(map(draws, networks)) for networks in (drawing, still)] == [[True] * 4, [False] * 4]


def test_a_steps_seed_is_that_of_every_version():
    seeds = []
    for step in ((3, 141, 0), (3, 142, 0), (3, 141, 1)):
        seed_step(*step)
        seeds.append(torch.initial_seed())
    assert seeds == [926104270, 2406282810, 4003190279]


def test_what_a_step_draws_is_neither_an_epochs_order_nor_another_ranks():
    torch.manual_seed(int(np.random.SeedSequence((3, 141)).generate_state(1)[0]))  # as data/order.py
    seeds = {torch.initial_seed()}
    for rank in range(3):
        seed_step(3, 141, rank)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 4


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"fast_equals_reference": True, "versions": {"torch": torch.__version__.partition("+")[0]}}, "fast"),
        ({"fast_equals_reference": False, "versions": {"torch": torch.__version__.partition("+")[0]}}, "reference"),
        ({"fast_equals_reference": True, "versions": {"torch": "1.0"}}, "reference"),
        ({"fast_equals_reference": True, "versions": {"torch": "2.110.0"}}, "reference"),  # all of it counts
        ({"fast_equals_reference": True}, "reference"),
        (None, "reference"),
    ],
)
def test_auto_takes_the_fast_engine_where_a_check_with_this_torch_says_that_it_is_right(
    monkeypatch, tmp_path, found, chosen
):
    monkeypatch.setattr("cyclical_lr.training.engine.CHECKS", tmp_path)
    cpu = torch.device("cpu")
    if found is not None:
        check_file(cpu).write_text(json.dumps(found))
    (network,), solvers = make_runs("cifar10_full", "sgd", "cpu", seeds=(0,))
    assert choose_engine("auto", solvers, images("cpu"), cpu) == chosen
    assert choose_engine("auto", solvers, images("cpu"), cpu, foreign=True) == "reference"
    foreign = [torch.optim.Adam(network.parameters())]
    assert choose_engine("auto", foreign, images("cpu"), cpu) == "reference"
    with pytest.raises(ConfigError, match="engine=fast: Adam does not take its LR as a tensor"):
        choose_engine("fast", foreign, images("cpu"), cpu)


def test_auto_says_that_the_code_changed_after_the_check(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("cyclical_lr.training.engine.CHECKS", tmp_path)
    cpu = torch.device("cpu")
    _, solvers = make_runs("cifar10_full", "sgd", "cpu", seeds=(0,))
    found = {"fast_equals_reference": True, "versions": {"torch": torch.__version__.partition("+")[0]}}
    for code, said in ((code_of_a_step(), False), ("another", True), (None, True)):
        caplog.clear()
        check_file(cpu).write_text(json.dumps(found if code is None else {**found, "code": code}))
        with caplog.at_level("INFO"):
            assert choose_engine("auto", solvers, images("cpu"), cpu) == "fast"
        assert ("before the code changed" in caplog.text) == said


class Stream:
    """In place of a CUDA stream: the runs whose work stands before what comes next on it."""

    def __init__(self, *runs: int) -> None:
        self.runs, self.before = set(runs), set()

    def wait_stream(self, other: "Stream") -> None:
        self.before |= other.before


@pytest.fixture
def here(monkeypatch) -> Stream:
    """The stream on which the caller is; entering another one puts its run's work there."""

    @contextlib.contextmanager
    def stream(entered: Stream):
        yield
        entered.before |= entered.runs

    current = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return current


def test_runs_on_streams_do_not_wait_for_each_other_and_what_follows_waits_for_all(here):
    networks, solvers = make_runs("cifar10_full", "sgd", "cpu", seeds=(0, 1, 2))
    engine = FastEngine(networks, solvers, images("cpu"), LRS, [torch.zeros((), dtype=torch.float64) for _ in networks])
    engine.streams = [Stream(run) for run in range(3)]
    engine(0, batches(3, 2, "cpu"))
    assert [stream.before for stream in engine.streams] == [{0}, {1}, {2}]
    assert here.before == {0, 1, 2}


def test_graphs_come_after_the_warm_up_and_again_where_a_block_needs_more_memory(monkeypatch, here):
    captured = []

    def capture(engine: FastEngine, run: int) -> types.SimpleNamespace:
        captured.append((run, engine.indices.shape[1], engine.warm))
        return types.SimpleNamespace(replay=lambda: engine._step(run))

    def adapt(engine: FastEngine) -> None:
        engine.streams = [Stream(0, 1)] * 2

    monkeypatch.setattr(FastEngine, "_capture", capture)
    check_equal("with_dropout", "torch_sgd", "cpu", adapt=adapt)
    assert captured == [(0, 5, 3), (1, 5, 3), (0, 6, 6), (1, 6, 6)]


def test_a_network_that_draws_on_the_host_is_not_captured(monkeypatch):
    """On a CPU the device's generator is the host's."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", types.SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())

    def capture(network: str) -> None:
        (model,), (solver,) = make_runs(network, "torch_sgd", "cpu", seeds=(0,))
        engine = FastEngine([model], [solver], images("cpu"), LRS, [torch.zeros((), dtype=torch.float64)], [0])
        engine.streams = [Stream(0)]
        engine.indices = batches(1, 1, "cpu")
        engine._capture(0)

    capture("resnet")
    with pytest.raises(ConfigError, match=r"draws random numbers on the host.*use engine=reference"):
        capture("with_dropout")


def test_each_iteration_uses_its_own_learning_rate_and_samples():
    (network,), (solver,) = make_runs("cifar10_full", "sgd", "cpu", seeds=(0,))
    start = copy.deepcopy(network.state_dict())
    engine = FastEngine([network], [solver], images("cpu"), [0.0, 0.0, 1e-4], [torch.zeros((), dtype=torch.float64)])
    engine(0, batches(1, 2, "cpu"))
    assert all(torch.equal(start[name], value) for name, value in network.state_dict().items())
    engine(2, batches(1, 1, "cpu"))
    assert not torch.equal(start["conv1.weight"], network.conv1.weight)


def test_the_fast_engine_takes_the_studys_solvers_and_refuses_one_that_reads_its_lr_on_the_host():
    (network,) = make_runs("cifar10_full", "sgd", "cpu", seeds=(0,))[0]
    for solver in SOLVERS.values():
        assert unsuited([solver(network)], images("cpu")) == ""
    assert unsuited([torch.optim.Adam(network.parameters())], images("cpu")) == (
        "Adam does not take its LR as a tensor"
    )
