"""The compiled layers against PyTorch's own and against Caffe's formulas in NumPy, in every type that they take."""

import os
import shutil
import subprocess
import sys

import caffe_numpy
import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from cyclical_lr import kernels
from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.models.layers import AvgPool2d, Conv2d, MaxPool2d, WithinChannelLRN, max_pooled
from cyclical_lr.solvers import caffe_sgd

FLOATS = [torch.float32, torch.float64, torch.bfloat16]
FITTING = torch.zeros(1, 16, 4, 4).to(memory_format=torch.channels_last)
compiled = pytest.mark.skipif(
    kernels.serving(FITTING) is None, reason=f"needs a C++ compiler (c++ of GCC) on Linux, and {kernels.SWITCH} unset"
)


def images(channels: int, height: int, width: int, dtype=torch.float64, count: int = 3) -> torch.Tensor:
    """Channels last, of few distinct values: equal pixels, zeros and both signs in every window."""
    values = np.random.default_rng(0).integers(-3, 4, (count, channels, height, width))
    return torch.from_numpy(values).to(dtype).to(memory_format=torch.channels_last)


def value_and_gradient(layer, x: torch.Tensor, rounded: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Under a random upstream gradient, which was `rounded` to another type first."""
    x = x.clone().requires_grad_()
    y = layer(x)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(rounded or y.dtype)
    y.backward(upstream.to(y.dtype))
    return y.detach(), x.grad


@pytest.mark.skipif(
    not (shutil.which(kernels.COMPILER[0]) and sys.platform.startswith("linux"))
    or os.environ.get(kernels.SWITCH) == "off"
    or "clang" in subprocess.run([*kernels.COMPILER, "--version"], capture_output=True, text=True).stdout,
    reason="no GCC, or switched off",
)
def test_a_machine_with_a_compiler_has_them():
    assert kernels.serving(FITTING) is kernels


@compiled
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 12), (5, 5)])
def test_pooling_gives_torchs_values_and_gradients(height, width, kernel, stride, ceil_mode, relu):
    for dtype in FLOATS:
        x = images(32, height, width, dtype)
        assert kernels.takes(x)
        ours = value_and_gradient(MaxPool2d(kernel, stride, ceil_mode, relu), x)

        def theirs(x: torch.Tensor) -> torch.Tensor:
            y = F.max_pool2d(x, kernel, stride, ceil_mode=ceil_mode)
            return F.relu(y) if relu else y

        expected = value_and_gradient(theirs, x)
        assert torch.equal(ours[0], expected[0])
        if dtype == torch.bfloat16:  # PyTorch rounds after each window that a pixel is the maximum of
            exact = value_and_gradient(theirs, x.double(), dtype)[1]
            torch.testing.assert_close(ours[1].double(), exact, rtol=2**-8, atol=0)
        else:
            assert torch.equal(ours[1], expected[1])
        assert ours[0].is_contiguous(memory_format=torch.channels_last)

        ours = value_and_gradient(AvgPool2d(kernel, stride, ceil_mode, relu), x)
        rectified = F.relu if relu else nn.Identity()
        expected = value_and_gradient(
            lambda x, f=rectified: F.avg_pool2d(f(x), kernel, stride, ceil_mode=ceil_mode), x.double(), dtype
        )
        rounding = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2**-6}[dtype]
        for our, their in zip(ours, expected, strict=True):
            assert our.dtype == dtype
            torch.testing.assert_close(our.double(), their, rtol=rounding, atol=rounding)


def gradients(layers, x: torch.Tensor, pooled=max_pooled) -> list[torch.Tensor]:
    """Of weight and, where there is one, bias, under a random upstream gradient; with the value in front."""
    conv, pool = layers
    conv.zero_grad()
    y = pooled(conv, pool, x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    return [y.detach(), *(p.grad for p in conv.parameters())]


def one_by_one(conv: nn.Conv2d, pool: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return pool(nn.Conv2d.forward(conv, x))


def first_block(channels: int = 32, kernel: int = 3, stride: int = 2, bias: bool = True, relu: bool = True, **options):
    torch.manual_seed(0)
    conv = Conv2d(3, channels, 5, padding=2, bias=bias, **options)
    return conv.to(memory_format=torch.channels_last), MaxPool2d(kernel, stride, ceil_mode=True, relu=relu)


@compiled
@pytest.mark.parametrize(("channels", "bias", "relu"), [(32, True, True), (16, False, False), (48, True, False)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (5, 2), (1, 1)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 12), (5, 5)])
def test_the_first_blocks_gradients_are_those_of_its_layers(height, width, kernel, stride, channels, bias, relu):
    layers = first_block(channels, kernel, stride, bias, relu)
    for dtype, rounding in (
        (torch.float64, 0),
        (torch.float32, 1e-5),
        (torch.bfloat16, 0.02),
    ):  # float64 has room for all
        x = images(3, height, width, dtype)
        for layer in layers:
            layer.to(dtype)
        ours, theirs = gradients(layers, x), gradients(layers, x, one_by_one)
        assert len(ours) == 2 + bias and torch.equal(ours[0], theirs[0])
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        for our, their in zip(ours[1:], theirs[1:], strict=True):
            assert our.dtype == dtype and (our - their).norm() <= rounding * their.norm()
            assert their.abs().max() > 0


@compiled
def test_the_first_block_is_one_node_under_autocast_too_whose_gradients_are_float32():
    layers, x = first_block(), 40 * images(3, 32, 32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients(layers, x), gradients(layers, x, one_by_one)
        assert type(max_pooled(*layers, x).grad_fn).__name__ == "_CompiledConvolveMaxPoolBackward"
    assert ours[0].dtype == torch.bfloat16 and torch.equal(ours[0], theirs[0])
    for our, their in zip(ours[1:], theirs[1:], strict=True):
        assert our.dtype == torch.float32 and (our - their).norm() <= 0.01 * their.norm()


@compiled
def test_an_empty_batch_has_gradients_of_zero():
    assert all((each == 0).all() for each in gradients(first_block(), images(3, 32, 32, torch.float32)[:0])[1:])


@compiled
def test_the_first_blocks_layers_are_asked_where_they_do_more_than_their_classes():
    def node(layers, x: torch.Tensor) -> str:
        return type(max_pooled(*layers, x).grad_fn).__name__

    x = images(3, 32, 32, torch.float32)
    assert node(first_block(), x) == "_CompiledConvolveMaxPoolBackward"
    layers, seen = first_block(), []
    hook = layers[0].register_forward_hook(lambda *_: seen.append("hook"))
    assert node(layers, x) == "_CompiledMaxPoolBackward" and seen == ["hook"]
    hook.remove()
    assert node(layers, x) == "_CompiledConvolveMaxPoolBackward"
    with torch.no_grad():
        assert max_pooled(*layers, x).grad_fn is None
    assert node((nn.Sequential(layers[0]), layers[1]), x) == "_CompiledMaxPoolBackward"
    assert node((layers[0], nn.MaxPool2d(3, 2)), x) == "MaxPool2DWithIndicesBackward0"
    for other in (
        first_block(stride=2, padding_mode="circular"),
        first_block(dilation=2, channels=32),
        first_block(channels=24),
    ):
        assert node(other, x) in ("_CompiledMaxPoolBackward", "ReluBackward0")
    wanted = x.clone().requires_grad_()
    max_pooled(*layers, wanted).sum().backward()
    assert wanted.grad.abs().sum() > 0
    assert node(layers, x.contiguous()) == "_CompiledMaxPoolBackward"


@compiled
def test_a_frozen_weight_or_bias_gets_no_gradient():
    for name in ("weight", "bias"):
        layers = first_block()
        layers[0].get_parameter(name).requires_grad_(False)
        max_pooled(*layers, images(3, 32, 32, torch.float32)).sum().backward()
        assert [each for each, p in layers[0].named_parameters() if p.grad is None] == [name]


@compiled
@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 9), (4, 3)])
@pytest.mark.parametrize(("size", "beta"), [(3, 0.75), (5, 0.75), (3, 0.5)])
def test_normalisation_equals_caffes_in_value_and_gradient(channels, height, width, size, beta):
    x = 40 * images(channels, height, width)
    assert kernels.takes(x)
    layer = WithinChannelLRN(size, 5e-3, beta)
    actual = value_and_gradient(layer, x)
    expected, backward = caffe_numpy.lrn_within_channel(x.numpy(), size, 5e-3, beta)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    np.testing.assert_allclose(actual[0], expected, rtol=1e-12)
    np.testing.assert_allclose(actual[1], backward(upstream.numpy())[0], rtol=1e-9, atol=1e-12)
    for dtype, rounding in ((torch.float32, 1e-5), (torch.bfloat16, 2**-6)):  # of numbers that bf16 holds exactly
        for low, high in zip(value_and_gradient(layer, x.to(dtype)), actual, strict=True):
            assert low.dtype == dtype
            torch.testing.assert_close(low.double(), high, rtol=rounding, atol=rounding)


@compiled
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_not_a_number_stays_so(dtype):
    x = images(16, 8, 8, dtype)
    x[1, 3, 4, 4] = torch.nan
    for layer in (MaxPool2d(3, 2, True, relu=True), AvgPool2d(3, 2, True, relu=True), WithinChannelLRN()):
        value, gradient = value_and_gradient(layer, x)
        assert value[1, 3].isnan().any() and not value[0].isnan().any() and not value[1, 4].isnan().any()
        assert gradient[1, 3].isfinite().any() and gradient[0].isfinite().all()
    winner = kernels.max_pool(x, kernels.Pooling(3, 2, True, relu=True))[1]
    assert winner[1, 1, 1, 3] == 8  # of the window of rows and columns 2 to 4, which ends in it


@compiled
def test_the_number_of_threads_changes_no_bit():
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for layer in (MaxPool2d(3, 2, True, relu=True), AvgPool2d(3, 2, True, relu=True), WithinChannelLRN()):
            results.append(value_and_gradient(layer, images(32, 16, 16, torch.float32)))
        results.append(gradients(first_block(), images(3, 32, 32, torch.float32, count=7)))
    torch.set_num_threads(threads)
    for one, *more in zip(results[:4], results[4:8], results[8:], strict=True):
        for other in more:
            assert all(map(torch.equal, one, other))


@compiled
@pytest.mark.parametrize("x", [images(3, 8, 8), images(16, 8, 8).contiguous(), images(16, 8, 8).half()])
def test_other_tensors_are_left_to_torch(x):
    assert not kernels.takes(x)
    torch.testing.assert_close(MaxPool2d(3, 2, True, relu=True)(x), F.relu(F.max_pool2d(x, 3, 2, ceil_mode=True)))


def test_the_network_can_be_exported():
    network = Cifar10Full().to(memory_format=torch.channels_last)
    x = images(3, 32, 32, torch.float32)
    torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lrn", ["within_channel", "across_channels"])
def test_the_compiled_network_has_the_same_gradients(lrn, bf16):
    network = Cifar10Full(init="torch", lrn=lrn).to(memory_format=torch.channels_last)
    x = images(3, 32, 32, torch.float32)

    def found(network: nn.Module) -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(x), torch.arange(3))
        loss.backward()
        return [p.grad for p in network.parameters()]

    for theirs, ours in zip(found(torch.compile(network, backend="eager")), found(network), strict=True):
        assert (ours - theirs).norm() <= (0.05 if bf16 else 1e-5) * ours.norm() > 0


def test_the_network_can_be_traced_and_takes_tensors_without_memory():
    network = Cifar10Full().to(memory_format=torch.channels_last)
    x = images(3, 32, 32, torch.float32)
    torch.testing.assert_close(torch.jit.trace(network, x)(x), network(x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert network(mode.from_tensor(x)).shape == (3, 10)


@compiled
@pytest.mark.parametrize("bf16", [False, True])
def test_the_network_trains_alike_with_and_without_them(monkeypatch, bf16):
    """Ten steps: the weights are apart by rounding, measured against the way that they have gone."""
    x = 60 * torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 10

    def trained() -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        network = Cifar10Full(init="torch").to(memory_format=torch.channels_last)
        start = torch.cat([p.detach().flatten() for p in network.parameters()])
        solver = caffe_sgd(network, weight_decay=0.004)
        for group in solver.param_groups:
            group["lr"] = 1e-5
        for _ in range(10):
            solver.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(network(x.to(memory_format=torch.channels_last)), y)
            loss.backward()
            solver.step()
        return start, torch.cat([p.detach().flatten() for p in network.parameters()])

    start, ours = trained()
    monkeypatch.setattr(kernels, "_library", lambda: None)
    _, theirs = trained()
    way = (theirs - start).norm()
    assert way > 0
    assert not torch.equal(ours, theirs)  # else both were the same code
    assert (ours - theirs).norm() < (0.05 if bf16 else 1e-4) * way


@pytest.mark.parametrize("why", ["off", "no compiler", "a compiler that fails", "a compiler of another tongue"])
def test_without_them_the_layers_are_torchs(why, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "CXX": ""}
    if why == "off":
        environment[kernels.SWITCH] = "off"
    else:
        environment["PATH"] = str(tmp_path)
    if why == "a compiler that fails":
        (tmp_path / "c++").write_text("#!/bin/sh\necho no such flag >&2\nexit 1\n")
        (tmp_path / "c++").chmod(0o755)
    if why == "a compiler of another tongue":
        (tmp_path / "c++").write_text("#!/bin/sh\nprintf '\\377\\376' >&2\nprintf '\\377'\n[ $# = 1 ]\n")
        (tmp_path / "c++").chmod(0o755)
    code = (
        "import logging, torch; logging.basicConfig(level=logging.INFO);"
        "from cyclical_lr import kernels; from cyclical_lr.models.layers import MaxPool2d;"
        "x = torch.ones(1, 16, 4, 4).to(memory_format=torch.channels_last);"
        "print(kernels.kind(), MaxPool2d(2, 2)(x).sum().item(), kernels.kind())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["none", "64.0", "torch"]
    assert ("take longer" in done.stderr) == (why != "off")
    assert ("no such flag" in done.stderr) == (why == "a compiler that fails")


@compiled
def test_processes_that_start_together_build_one_whole_library(tmp_path):
    code = (
        "import torch; from cyclical_lr import kernels; from cyclical_lr.models.layers import MaxPool2d;"
        "MaxPool2d(2, 2)(torch.ones(1, 16, 4, 4).to(memory_format=torch.channels_last)); print(kernels.kind())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["compiled"] * 3
    assert [file.suffix for file in (tmp_path / "cyclical_lr").iterdir()] == [".so"]


@compiled
@pytest.mark.parametrize(("low", "high", "rounded"), [(1.0, 1 + 2**-7, 1.0), (1 + 2**-7, 1 + 2**-6, 1 + 2**-6)])
def test_bf16_rounds_to_the_nearest_and_ties_to_even(low, high, rounded):
    rows = torch.tensor([low, high], dtype=torch.bfloat16)[:, None].expand(1, 16, 2, 2)
    x = rows.contiguous(memory_format=torch.channels_last)
    y = kernels.average_pool(x, kernels.Pooling(2, 2, ceil_mode=False, relu=False))
    assert y.float().unique().tolist() == [rounded]
