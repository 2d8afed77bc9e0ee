"""The GPU's layers against PyTorch's own, on the GPU or, where there is none, in Triton's interpreter on the CPU."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cyclical_lr import kernels
from cyclical_lr.models.cifar10_full import Cifar10Full
from cyclical_lr.models.cifar10_sigmoid import Cifar10Sigmoid
from cyclical_lr.models.layers import AvgPool2d, Conv2d, MaxPool2d, WithinChannelLRN
from cyclical_lr.solvers import CaffeNesterov, CaffeSGD, caffe_sgd

gpu_kernels = pytest.importorskip("cyclical_lr.gpu_kernels", reason="needs Triton, which torch has on Linux alone")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cuda" and kernels._on_gpu() is None:
    pytest.skip("they do not run on this GPU, and the layers take PyTorch's", allow_module_level=True)
MULTIPLIED = gpu_kernels.TYPES if DEVICE == "cuda" else (torch.float32,)
"""Triton's interpreter takes a bf16's bits for a whole number where it multiplies matrices."""
NETWORKS = [Cifar10Full, Cifar10Sigmoid, partial(Cifar10Sigmoid, batch_norm=True)][: 3 if DEVICE == "cuda" else 1]
STEPS = 2 if DEVICE == "cuda" else 1  # of which one takes the interpreter half a minute


@pytest.fixture(autouse=True)
def on_this_device(monkeypatch):
    """The layers ask for kernels, and get these."""
    if DEVICE == "cpu":
        ask = kernels.serving
        monkeypatch.setattr(kernels, "serving", lambda x: gpu_kernels if gpu_kernels.takes(x) else ask(x))


def images(n: int, channels: int, height: int, width: int, dtype=torch.float32) -> torch.Tensor:
    """Of few distinct values: equal pixels, zeros and both signs in every window."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (n, channels, height, width), generator=generator)
    return x.to(DEVICE, dtype).to(memory_format=torch.channels_last)


def value_and_gradient(layer, x: torch.Tensor) -> list[torch.Tensor]:
    """Under an upstream gradient of few distinct values; on the CPU."""
    x = x.clone().requires_grad_()
    y = layer(x)
    upstream = torch.randint(-3, 4, y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(upstream.to(y))
    return [y.detach().cpu(), x.grad.cpu()]


@pytest.mark.parametrize("dtype", gpu_kernels.TYPES)
@pytest.mark.parametrize(
    ("kernel", "stride", "ceil_mode", "relu"),
    [(3, 2, True, True), (3, 2, False, False), (2, 3, True, False), (5, 2, True, True), (12, 4, True, False)],
)
def test_pooling_gives_torchs_values_and_gradients(dtype, kernel, stride, ceil_mode, relu):
    x = images(2, 8, 13, 12, dtype)
    rectified = F.relu if relu else nn.Identity()

    ours = value_and_gradient(MaxPool2d(kernel, stride, ceil_mode, relu), x)
    theirs = value_and_gradient(lambda x: rectified(F.max_pool2d(x, kernel, stride, ceil_mode=ceil_mode)), x.cpu())
    assert all(map(torch.equal, ours, theirs))  # sums of few whole numbers

    ours = value_and_gradient(AvgPool2d(kernel, stride, ceil_mode, relu), x)
    exact = x.cpu().double()
    theirs = value_and_gradient(lambda x: F.avg_pool2d(rectified(x), kernel, stride, ceil_mode=ceil_mode), exact)
    rounding = 1e-6 if dtype == torch.float32 else 2**-7
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == dtype and our.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(our.double(), their, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", gpu_kernels.TYPES)
@pytest.mark.parametrize(("size", "beta"), [(3, 0.75), (5, 0.5)])
def test_normalisation_is_the_formulas(monkeypatch, dtype, size, beta):
    x = 40 * images(2, 8, 8, 9, dtype)

    def formula(x: torch.Tensor) -> torch.Tensor:
        return x * (1 + 5e-3 * F.avg_pool2d(x * x, size, 1, size // 2)).pow(-beta)

    layer, expected = WithinChannelLRN(size, 5e-3, beta), value_and_gradient(formula, x.cpu().double())
    rounding = 1e-5 if dtype == torch.float32 else 2**-6
    for our, their in zip(value_and_gradient(layer, x), expected, strict=True):
        assert our.dtype == dtype
        torch.testing.assert_close(our.double(), their, rtol=rounding, atol=rounding)
    monkeypatch.setattr(kernels, "serving", lambda x: None)
    for their, exact in zip(value_and_gradient(layer, x), expected, strict=True):  # and without them
        torch.testing.assert_close(their.double(), exact, rtol=2 * rounding, atol=2 * rounding)


@pytest.mark.parametrize("dtype", MULTIPLIED)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "side", "size"),
    [(2, 3, 32, 9, 5), (2, 32, 32, 7, 3), (1, 32, 64, 5, 5), (1, 64, 16, 6, 3), (3, 16, 16, 6, 1)],
)
def test_a_convolution_gives_torchs_value_and_gradient(monkeypatch, n, inputs, outputs, side, size, bias, dtype):
    monkeypatch.setattr(gpu_kernels, "MANY", 90)  # pixels: both ways to launch
    torch.manual_seed(0)
    layer = Conv2d(inputs, outputs, size, padding=size // 2, bias=bias).to(DEVICE).to(memory_format=torch.channels_last)
    x = images(n, inputs, side, side, dtype)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.to(dtype))  # bf16's own numbers: products are then exact
    options = layer.stride, layer.padding, layer.dilation, layer.groups
    assert gpu_kernels.convolves(x, layer.weight, *options)
    assert gpu_kernels.convolves(x.clone().requires_grad_(), layer.weight, *options) == (inputs > 3)
    upstream = torch.randint(-3, 4, (n, outputs, side, side), generator=torch.Generator().manual_seed(1)).to(x)
    exact_x, exact = x.cpu().double().requires_grad_(), Conv2d(inputs, outputs, size, padding=size // 2, bias=bias)
    exact.load_state_dict(layer.state_dict())
    expected = exact.double()(exact_x)
    expected.backward(upstream.cpu().double())
    y = gpu_kernels.convolve(gpu_kernels.aligned(x), layer.weight, layer.bias)
    dx, dweight, dbias = gpu_kernels.convolve_backward(upstream, gpu_kernels.aligned(x), layer.weight, inputs > 3)
    rounding = 1e-5 if dtype == torch.float32 else 2**-7

    def close(ours: torch.Tensor, theirs: torch.Tensor, share: float) -> bool:
        return (ours.cpu().double() - theirs).norm() <= share * theirs.norm()

    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert close(y, expected.detach(), rounding)
    assert dx is None if inputs == 3 else close(dx, exact_x.grad, rounding)
    assert dweight.dtype == torch.float32 and dweight.stride() == layer.weight.stride()
    assert close(dweight, exact.weight.grad, 1e-5)
    assert exact.bias is None or close(dbias, exact.bias.grad, 1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(32, 32, 5),
        Conv2d(32, 32, 5, padding=2, stride=2),
        Conv2d(32, 32, 5, padding=2, groups=2),
        Conv2d(32, 32, 3, padding=2, dilation=2),
        Conv2d(32, 32, (3, 5), padding=(1, 2)),
        Conv2d(32, 48, 5, padding=2),
        Conv2d(5, 32, 5, padding=2),
        Conv2d(32, 32, 4, padding=2),
        Conv2d(32, 32, 5, padding=2).double(),
    ],
    ids=str,
)
def test_other_convolutions_and_vast_batches_are_left_to_torch(layer):
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.zeros(1, layer.in_channels, 8, 8).to(memory_format=torch.channels_last)
    assert not gpu_kernels.convolves(x, layer.weight, layer.stride, layer.padding, layer.dilation, layer.groups)

    usual = Conv2d(32, 32, 5, padding=2, device="meta").to(memory_format=torch.channels_last)
    for images, taken in ((6400, True), (6401, False)):
        x = torch.empty(images, 32, 32, 32, device="meta", memory_format=torch.channels_last)
        options = usual.stride, usual.padding, usual.dilation, usual.groups
        assert gpu_kernels.convolves(x, usual.weight, *options) == taken


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_a_step_of_sgd_is_caffes(monkeypatch, lr, momentum):
    def trained(fused: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(kernels, "stepping", lambda *_: gpu_kernels if fused else None)
        torch.manual_seed(0)
        params = [torch.randn(32, 3, 5, 5).to(memory_format=torch.channels_last), torch.randn(700), torch.randn(3, 5)]
        params = [p.to(DEVICE).requires_grad_() for p in params]
        solver = CaffeSGD(params, momentum=momentum, weight_decay=0.004)
        for _ in range(3):
            solver.param_groups[0]["lr"] = lr.to(DEVICE) if isinstance(lr, torch.Tensor) else lr
            for p in params:
                p.grad = torch.randn(p.shape).to(DEVICE).to(memory_format=torch.preserve_format)
                p.grad = p.grad.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p.grad
            solver.step()
        return [*params, *(state["velocity"] for state in solver.state.values())]

    for ours, theirs in zip(trained(True), trained(False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_only_its_own_solver_gets_that_step(monkeypatch):
    monkeypatch.setattr(kernels, "stepping", lambda *_: pytest.fail("asked for it"))
    weight = torch.ones(3, requires_grad=True)
    solver = CaffeNesterov([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    solver.step()


@pytest.mark.parametrize("dtype", MULTIPLIED)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_train_alike_with_and_without_them(monkeypatch, network, dtype):
    """A step or two: the weights are apart by rounding, measured against the way that they have gone."""
    x = (60 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))).to(DEVICE)
    y = torch.arange(1, device=DEVICE)
    asked = []

    def trained(own: bool) -> tuple[torch.Tensor, torch.Tensor]:
        found = gpu_kernels if own else None
        monkeypatch.setattr(kernels, "serving", lambda x: asked.append(own) or found)
        monkeypatch.setattr(kernels, "stepping", lambda *_: found)
        monkeypatch.setattr(kernels, "convolving", lambda *these: found if own and found.convolves(*these) else None)
        torch.manual_seed(0)
        model = network(init="torch").to(DEVICE).to(memory_format=torch.channels_last)
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        solver = caffe_sgd(model, weight_decay=0.004)
        for _ in range(STEPS):
            for group in solver.param_groups:
                group["lr"] = 1e-5
            solver.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last)), y)
            loss.backward()
            solver.step()
        return start, torch.cat([p.detach().flatten() for p in model.parameters()])

    start, ours = trained(True)
    assert asked
    _, theirs = trained(False)
    assert (ours - theirs).norm() < (0.05 if dtype == torch.bfloat16 else 1e-3) * (theirs - start).norm()
    assert not torch.equal(ours, theirs)


@pytest.mark.skipif(DEVICE == "cuda", reason="they run here")
def test_where_they_do_not_run_the_layers_are_torchs(caplog):
    kernels._on_gpu.cache_clear()
    with caplog.at_level("INFO"):
        assert kernels._on_gpu() is None
    assert "do not run on this GPU" in caplog.text
    assert kernels.stepping([torch.ones(3)], [torch.ones(3)], [torch.ones(3)]) is None
