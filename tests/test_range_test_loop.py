"""The range test in plain torch measures what a plain loop would, and leaves everything as it was."""

import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from cyclical_lr.lr_scheduler import ScheduleLR
from cyclical_lr.range_test import Curve
from cyclical_lr.range_test_loop import lr_range_test
from cyclical_lr.schedules import RangeTest, Triangular
from cyclical_lr.solvers import CaffeSGD, caffe_sgd


def reseed() -> None:
    torch.manual_seed(1)
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002


class Shaken(Dataset[Any]):
    """Blobs, with an augmentation from every global random state."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        drawn = torch.Generator().manual_seed(i)
        shake = 0.1 * (torch.rand(()).item() + random.random() + np.random.rand())  # noqa: NPY002
        return torch.randn(6, generator=drawn) + 2 * (i % 2) + shake, i % 2


def network() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
    net[1].register_buffer("unsaved", torch.zeros(3), persistent=False)
    return net


def accuracy(model: nn.Module) -> float:
    x, y = next(iter(DataLoader(Shaken(), 40)))
    return 100 * float((model(x).argmax(1) == y).float().mean())


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "caffe_sgd": lambda net: caffe_sgd(net, weight_decay=0.004),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=0.1),
}
RAMP = {"min_lr": 0.0, "max_lr": 0.5, "iterations": 23, "eval_every": 5}


def snapshot(net: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, scheduler: Any) -> dict[str, Any]:
    """Everything that the test may not change, tensors as bytes and the identity of each."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (id(value), str(value.dtype), value.detach().numpy().tobytes(), plain(value.grad))
        if isinstance(value, dict):
            return [(key if isinstance(key, (str, int)) else id(key), plain(item)) for key, item in value.items()]
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    numpy = np.random.get_state()  # noqa: NPY002
    return {
        "tensors": [plain(tensor) for tensor in (*net.parameters(), *net.buffers())],
        "modes": [module.training for module in net.modules()],
        "groups": plain(optimizer.param_groups),
        "state": plain(dict(optimizer.state)),
        "scheduler": plain(scheduler.state_dict()),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy],
        "python": random.getstate(),
        "generator": None if loader.generator is None else loader.generator.get_state().numpy().tobytes(),
    }


@pytest.fixture(params=OPTIMIZERS)
def training(request):
    """A network in the middle of its training: buffers full, gradients there, modes mixed, random states anywhere."""
    reseed()
    net = network()
    optimizer = OPTIMIZERS[request.param](net)
    scheduler = ScheduleLR(optimizer, Triangular(0.01, 0.1, 4))
    loader = DataLoader(Shaken(), 8, shuffle=True, generator=torch.Generator().manual_seed(4))
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        scheduler.step()
    net[2].eval()
    return net, optimizer, loader, scheduler


def test_everything_is_as_before_bit_for_bit_when_the_test_returns(training):
    net, optimizer, loader, scheduler = training
    before = snapshot(net, optimizer, loader, scheduler)
    seen: list[float] = []

    def measured(model: nn.Module) -> float:
        seen.append(float(model[0].weight.sum()))
        return accuracy(model)

    found = lr_range_test(net, optimizer, F.cross_entropy, loader, measured, **RAMP)
    assert len(found.lr) == 6 and len(set(seen)) == 6  # it did train
    after = snapshot(net, optimizer, loader, scheduler)
    for key in before:
        assert after[key] == before[key], key


@pytest.mark.parametrize("where", ["loss", "evaluate", "batches", "interrupt"])
def test_everything_is_as_before_bit_for_bit_when_the_test_raises(training, where):
    net, optimizer, loader, scheduler = training
    calls = 0

    def fail_at(place: str, call: int) -> None:
        nonlocal calls
        if place == where:
            calls += 1
            if calls == call:
                raise KeyboardInterrupt if where == "interrupt" else RuntimeError(place)

    def loss(out: Tensor, y: Tensor) -> Tensor:
        fail_at("loss", 7)
        fail_at("interrupt", 7)
        return F.cross_entropy(out, y)

    def measured(model: nn.Module) -> float:
        fail_at("evaluate", 3)
        return accuracy(model)

    def batches() -> Iterator[Any]:
        for batch in loader:
            fail_at("batches", 4)
            yield batch

    given = batches() if where == "batches" else loader
    before = snapshot(net, optimizer, loader, scheduler)
    with pytest.raises(KeyboardInterrupt if where == "interrupt" else RuntimeError):
        lr_range_test(net, optimizer, loss, given, measured, **RAMP)
    after = snapshot(net, optimizer, loader, scheduler)
    if where == "batches":  # the generator is the caller's: what it used up of its loader's generator stays used
        before.pop("generator")
    for key in before:
        assert after[key] == before[key], key


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_and_augmentation_of_the_data_afterwards_are_those_without_a_test(own_generator, workers):
    def batches_after(test: bool) -> list[Any]:
        reseed()
        generator = torch.Generator().manual_seed(4) if own_generator else None
        loader = DataLoader(
            Shaken(), 8, shuffle=True, generator=generator, num_workers=workers, persistent_workers=bool(workers)
        )
        net = network()
        if test:
            lr_range_test(net, caffe_sgd(net), F.cross_entropy, loader, lambda _: 50.0, **RAMP)
        return [(x.tolist(), y.tolist()) for _ in range(2) for x, y in loader]

    assert batches_after(test=True) == batches_after(test=False)


def test_the_curve_is_that_of_a_plain_loop_under_the_ramp():
    torch.manual_seed(0)
    net = nn.Linear(6, 2)
    drawn = [(torch.randn(8, 6) + y[:, None], y) for y in torch.randint(0, 2, (9, 8))]
    optimizer = CaffeSGD(
        [{"params": [net.weight]}, {"params": [net.bias], "lr_mult": 2.0}], momentum=0.9, weight_decay=0.01
    )

    def measured(model: nn.Module) -> float:
        assert not model.training and not torch.is_grad_enabled()
        return 100 * float(torch.cat([model(x).argmax(1) == y for x, y in drawn]).float().mean())

    found = lr_range_test(net, optimizer, F.cross_entropy, drawn, measured, **RAMP, seed=4)

    ramp, accuracies = RangeTest(0.0, 0.5, 23), []
    for t in range(24):
        if t % 5 == 0 or t == 23:
            with torch.no_grad():
                accuracies.append(measured(net.eval()))
        if t < 23:
            x, y = drawn[t % 9]
            optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = ramp(t), 2 * ramp(t)
            optimizer.zero_grad()
            F.cross_entropy(net.train()(x), y).backward()
            optimizer.step()
    assert found == Curve(tuple(ramp(t) for t in (0, 5, 10, 15, 20, 23)), tuple(accuracies), seed=4)
    assert len(set(accuracies)) > 2


def test_mixed_precision_of_the_callers_evaluates_the_weights_in_training():
    torch.manual_seed(0)
    net = nn.Linear(6, 2)
    drawn = [(torch.randn(8, 6) + y[:, None], y) for y in torch.randint(0, 2, (9, 8))]

    def measured(model: nn.Module) -> float:
        return 100 * float(torch.cat([model(x).argmax(1) == y for x, y in drawn]).float().mean())

    found = []
    for cache in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
            found.append(lr_range_test(net, caffe_sgd(net), F.cross_entropy, drawn, measured, **RAMP))
    assert found[0] == found[1] and len(set(found[0].accuracy)) > 2


def test_training_that_diverges_gives_a_nan_tail_and_no_error():
    torch.manual_seed(0)
    net = nn.Linear(6, 1)
    x = torch.randn(8, 6)
    calls = 0

    def explode(out: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return out.square().mean() * (math.inf if calls == 8 else 1.0)

    found = lr_range_test(net, caffe_sgd(net), explode, [(x, x)], lambda _: 50.0, **RAMP)
    assert found.lr[-1] == 0.5 and len(found.lr) == 6
    assert [math.isnan(value) for value in found.accuracy] == [False, False, True, True, True, True]
    assert calls == 8


@pytest.mark.parametrize("every", [1, 5, 23])
def test_an_accuracy_that_is_nan_after_a_step_is_divergence(every):
    """The weights of a step are no longer finite, which no loss has shown yet: the curve up to there is kept."""
    net = nn.Linear(6, 2)
    steps = 0

    def softmax(_: nn.Module) -> float:
        return math.nan if steps > 7 else 50.0

    def counted(out: Tensor, y: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return F.cross_entropy(out, y)

    batches = [(torch.zeros(2, 6), torch.tensor([0, 1]))]
    found = lr_range_test(net, caffe_sgd(net), counted, batches, softmax, **RAMP | {"eval_every": every})
    points = [*range(0, 23, every), 23]
    assert [math.isnan(value) for value in found.accuracy] == [t > 7 for t in points]
    assert steps == next(t for t in points if t > 7)


@pytest.mark.parametrize("accuracy", [None, "high", torch.ones(2)])
def test_an_evaluation_that_returns_no_number_is_refused_by_name(accuracy):
    net, batches = nn.Linear(6, 2), [(torch.zeros(2, 6), torch.tensor([0, 1]))]
    with pytest.raises(ValueError, match=r"^evaluate: expected it to return a number of percent, got "):
        lr_range_test(net, caffe_sgd(net), F.cross_entropy, batches, lambda _: accuracy, **RAMP)


def test_a_loss_that_looks_at_the_model_is_of_the_copy_or_refused():
    net, x, y = nn.Linear(6, 2), torch.randn(8, 6), torch.arange(8) % 2

    def penalised(model: nn.Module, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) + sum(p.square().sum() for p in model.parameters())

    def test(loss_fn: Any) -> Curve:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return lr_range_test(net, optimizer, loss_fn, [(x, y)], lambda model: 50.0, **RAMP)

    with pytest.raises(ValueError, match=r"loss_fn: .*your model's own parameters.*functools\.partial"):
        test(lambda out, y: penalised(net, out, y))
    calls = []

    def later(out: Tensor, y: Tensor) -> Tensor:
        calls.append(None)
        return F.cross_entropy(out, y) if len(calls) < 4 else penalised(net, out, y)

    with pytest.raises(ValueError, match=r"loss_fn: .*your model's own parameters"):
        test(later)
    test(partial(penalised, net))
    assert all(p.grad is None for p in net.parameters())


def test_a_loss_without_a_gradient_is_refused():
    net, batches = nn.Linear(6, 2), [(torch.zeros(2, 6), torch.tensor([0, 1]))]
    with torch.no_grad(), pytest.raises(ValueError, match=r"^loss_fn: expected a loss with a gradient.*no_grad"):
        lr_range_test(net, caffe_sgd(net), F.cross_entropy, batches, lambda _: 50.0, **RAMP)


@pytest.mark.parametrize("hook", ["gradient", "step"])
def test_hooks_that_a_copy_would_lose_are_refused(hook):
    net = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if hook == "gradient":
        net.weight.register_hook(lambda gradient: gradient.clamp(-1, 1))
    else:
        optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(ValueError, match=f"expected none with hooks, got .*{hook} hook"):
        lr_range_test(
            net, optimizer, F.cross_entropy, [(torch.zeros(2, 6), torch.tensor([0, 1]))], lambda _: 50.0, **RAMP
        )


def test_groups_that_lose_lrs_of_their_own_are_told():
    net, batch = nn.Linear(6, 2), (torch.zeros(2, 6), torch.tensor([0, 1]))
    groups = [{"params": [net.weight], "lr": 1e-2}, {"params": [net.bias], "lr": 1e-4}]
    with pytest.warns(UserWarning, match=r"LRs \(0\.01, 0\.0001\) all give way"):
        lr_range_test(net, torch.optim.SGD(groups), F.cross_entropy, [batch], lambda _: torch.tensor(50.0), **RAMP)


def test_what_cannot_be_copied_is_refused_with_another_way():
    net, batch = nn.Linear(6, 2), (torch.zeros(2, 6), torch.tensor([0, 1]))
    net.iterator = iter(DataLoader(Shaken(), 4))
    with pytest.raises(ValueError, match=r"expected what can be deep-copied, .*loop of your own under ScheduleLR"):
        lr_range_test(net, torch.optim.SGD(net.parameters(), lr=0.1), F.cross_entropy, [batch], lambda _: 50.0, **RAMP)


def test_the_loop_of_ones_own_that_is_named_as_another_way_gives_the_same_curve():
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Linear(6, 2)
        return net, torch.optim.SGD(net.parameters(), lr=0.1)

    def correct(net: nn.Module) -> float:
        return 100 * float((net(images).argmax(1) == labels).float().mean())

    batches = list(DataLoader(Shaken(), 4))
    images, labels = map(torch.cat, zip(*batches, strict=True))
    net, optimizer = fresh()
    theirs = lr_range_test(net, optimizer, F.cross_entropy, batches, correct, **RAMP | {"eval_every": 1})
    net, optimizer = fresh()
    scheduler = ScheduleLR(optimizer, RangeTest(0.0, 0.5, 23))
    lrs, accuracies = [], []
    for t in range(24):
        lrs.append(scheduler.get_last_lr()[0])
        accuracies.append(correct(net))
        x, y = batches[t % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        scheduler.step()
    assert Curve(tuple(lrs), tuple(accuracies)) == theirs and len(set(accuracies)) > 2


def test_a_perfect_accuracy_that_was_rounded_up_is_100():
    net, batch = nn.Linear(6, 2), (torch.zeros(2, 6), torch.tensor([0, 1]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    found = lr_range_test(net, optimizer, F.cross_entropy, [batch], lambda _: 100.00001, **RAMP)
    assert set(found.accuracy) == {100.0}


def test_a_loss_with_parameters_of_its_own_is_copied_too():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, out: Tensor, y: Tensor) -> Tensor:
            return (self.scale * F.cross_entropy(out, y)).square()

    torch.manual_seed(0)
    net, loss = nn.Linear(6, 2), Scaled()
    optimizer = torch.optim.SGD([*net.parameters(), *loss.parameters()], lr=0.1)
    lr_range_test(net, optimizer, loss, [(torch.randn(8, 6), torch.arange(8) % 2)], lambda _: 50.0, **RAMP)
    assert loss.scale.item() == 1 and loss.scale.grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": iter([(torch.zeros(2, 6), torch.tensor([0, 1]))] * 4)}, "batches: expected 23 batches, got 4"),
        ({"batches": []}, "batches: expected 23 batches, got 0; there is none in it"),
        ({"batches": [{"x": 1, "y": 2}]}, r"batches: expected pairs \(x, y\), got a dict; make pairs"),
        ({"batches": [(1, 2, 3)]}, r"batches: expected pairs \(x, y\), got a tuple of 3"),
        ({"batches": [torch.zeros(2, 6)]}, r"batches: expected pairs \(x, y\), got a Tensor"),
        ({"loss_fn": lambda out, y: (out.sum(), y)}, "loss_fn: expected a scalar tensor, got tuple"),
        (
            {"loss_fn": partial(F.cross_entropy, reduction="none")},
            r"loss_fn: expected a scalar tensor, got a tensor of shape \(2,\); return the mean",
        ),
        ({"optimizer": caffe_sgd(nn.Linear(6, 2))}, "optimizer: expected one over the model's parameters"),
        (
            {"optimizer": ScheduleLR(caffe_sgd(nn.Linear(6, 2)), RangeTest(0.0, 0.5, 23))},
            "optimizer: .* got ScheduleLR",
        ),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, "optimizer: .* no closure, got LBFGS"),
        ({"evaluate": None}, "evaluate: expected a function of the model .*, got None"),
        ({"evaluate": lambda _: 150.0}, "evaluate: expected an accuracy in percent, 0 to 100, got 150.0"),
        ({"evaluate": lambda _: math.nan}, "evaluate: expected an accuracy in percent"),
        ({"eval_every": 0}, "eval_every: expected a whole number of iterations >= 1, got 0"),
        ({"eval_every": 2.5}, "eval_every: expected a whole number of iterations >= 1, got 2.5"),
        ({"iterations": True}, "iterations: expected a whole number of iterations >= 1, got True"),
        ({"max_lr": -1.0}, "min_lr, max_lr: expected LRs with 0 <= min_lr < max_lr, got .* and -1.0"),
        ({"min_lr": 0.5, "max_lr": 0.5}, "min_lr, max_lr: expected .* got 0.5 and 0.5"),
        ({"max_lr": "high"}, "min_lr, max_lr: expected .* and 'high'"),
        ({"max_lr": math.inf}, "min_lr, max_lr: expected .* and inf"),
    ],
)
def test_unusable_arguments_are_refused_with_a_remedy(change, message):
    net = nn.Linear(6, 2)
    arguments = {
        "batches": [(torch.zeros(2, 6), torch.tensor([0, 1]))],
        "evaluate": lambda _: 50.0,
        "model": net,
        "optimizer": caffe_sgd(net),
        "loss_fn": F.cross_entropy,
    }
    with pytest.raises(ValueError, match=message):
        lr_range_test(**arguments | RAMP | change)
