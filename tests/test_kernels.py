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
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from cyclical_lr import kernels
from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.models.layers import AcrossChannelsLRN, AvgPool2d, MaxPool2d, WithinChannelLRN
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
    torch.set_num_threads(threads)
    for one, *more in zip(results[:3], results[3:6], results[6:], strict=True):
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


def gradients(network: nn.Module, x: torch.Tensor, bf16: bool = False, model: nn.Module | None = None):
    """Of all parameters, with the network called by way of `model`."""
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy((network if model is None else model)(x), torch.arange(len(x)))
    loss.backward()
    return [p.grad for p in network.parameters()]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lrn", ["within_channel", "across_channels"])
def test_the_compiled_network_has_the_same_gradients(lrn, bf16):
    network = Cifar10Full(init="torch", lrn=lrn).to(memory_format=torch.channels_last)
    x = images(3, 32, 32, torch.float32)
    ours = gradients(network, x, bf16)
    theirs = gradients(network, x, bf16, torch.compile(network, backend="eager"))
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).norm() <= (0.05 if bf16 else 1e-5) * our.norm() > 0


@compiled
@pytest.mark.slow
def test_torchs_own_compiler_has_the_same_gradient_of_windows_beyond_the_border():
    layer, x = AvgPool2d(3, 2, ceil_mode=True), images(16, 8, 8, torch.float32)
    torch.testing.assert_close(value_and_gradient(torch.compile(layer), x), value_and_gradient(layer, x))


@compiled
@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_saved_may_come_back_in_another_layout(bf16):
    """As from `torch.autograd.graph.save_on_cpu(pin_memory=True)`, which needs a GPU."""
    network = Cifar10Full(init="torch").to(memory_format=torch.channels_last)
    x = images(3, 32, 32, torch.float32)
    expected = gradients(network, x, bf16)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone().contiguous(), lambda t: t):
        for ours, theirs in zip(gradients(network, x, bf16), expected, strict=True):
            assert (ours - theirs).norm() <= (0.05 if bf16 else 1e-5) * theirs.norm() > 0


@pytest.mark.parametrize("layer", [WithinChannelLRN(3, 0.1), AcrossChannelsLRN(5, 0.1, 0.75)])
def test_normalisation_takes_half_precisions_squares_beyond_its_range(layer):
    x = 100 * images(16, 8, 8, torch.float32)
    for low, high in zip(value_and_gradient(layer, x.half()), value_and_gradient(layer, x), strict=True):
        assert low.dtype == torch.float16
        torch.testing.assert_close(low.float(), high, rtol=2**-9, atol=2**-9)


def test_a_trace_of_operations_is_of_all_of_them():
    network = Cifar10Full(init="torch").to(memory_format=torch.channels_last)
    x = images(3, 32, 32, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(make_fx(network)(x)(x), network(x))


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
