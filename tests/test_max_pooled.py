"""The gradients of a network's first layers in one kernel, `layers.max_pooled`, against those of the layers."""

import pytest
import torch
from test_kernels import compiled, images
from torch import nn

from cyclical_lr import kernels
from cyclical_lr.models.layers import Conv2d, MaxPool2d, max_pooled

pytestmark = compiled
NODE, SEPARATE = "_CompiledConvolveMaxPoolBackward", {"_CompiledMaxPoolBackward", "ReluBackward0"}


def block(channels: int = 32, window: int = 3, apart: int = 2, relu: bool = True, **options):
    torch.manual_seed(0)
    conv = Conv2d(**{"in_channels": 3, "out_channels": channels, "kernel_size": 5, "padding": 2, **options})
    return conv.to(memory_format=torch.channels_last), MaxPool2d(window, apart, ceil_mode=True, relu=relu)


def one_by_one(conv: Conv2d, pool: MaxPool2d, x: torch.Tensor) -> torch.Tensor:
    return pool(nn.Conv2d.forward(conv, x))


def outcome(layers, x: torch.Tensor, pooled=max_pooled) -> list[torch.Tensor]:
    """The value, and the gradients of weight and, where there is one, bias, under a random upstream gradient."""
    conv, pool = layers
    conv.zero_grad()
    y = pooled(conv, pool, x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype))
    return [y.detach(), *(p.grad for p in conv.parameters())]


def node(layers, x: torch.Tensor) -> str:
    return type(max_pooled(*layers, x).grad_fn).__name__


@pytest.mark.parametrize(("channels", "bias", "relu"), [(32, True, True), (16, False, False), (48, True, False)])
@pytest.mark.parametrize(("window", "apart"), [(3, 2), (2, 2), (3, 1), (2, 3), (5, 2), (1, 1)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 12), (5, 5)])
def test_value_and_gradients_are_those_of_the_layers(height, width, window, apart, channels, bias, relu):
    layers = block(channels, window, apart, relu, bias=bias)
    for dtype, rounding in ((torch.float64, 0), (torch.float32, 1e-5), (torch.bfloat16, 0.02)):  # float64: all exact
        x = images(3, height, width, dtype)
        for layer in layers:
            layer.to(dtype)
        assert node(layers, x) == NODE
        ours, theirs = outcome(layers, x), outcome(layers, x, one_by_one)
        assert len(ours) == 2 + bias and torch.equal(ours[0], theirs[0])
        assert ours[0].is_contiguous(memory_format=torch.channels_last)
        for our, their in zip(ours[1:], theirs[1:], strict=True):
            assert our.dtype == dtype and (our - their).norm() <= rounding * their.norm()
            assert their.abs().max() > 0


def test_under_autocast_too_where_the_gradients_are_float32():
    layers, x = block(), 40 * images(3, 32, 32, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = outcome(layers, x), outcome(layers, x, one_by_one)
        assert node(layers, x) == node(layers, x.bfloat16()) == NODE
    assert ours[0].dtype == torch.bfloat16 and torch.equal(ours[0], theirs[0])
    for our, their in zip(ours[1:], theirs[1:], strict=True):
        assert our.dtype == torch.float32 and (our - their).norm() <= 0.01 * their.norm()
    with torch.autocast("cpu", torch.float16):
        assert max_pooled(*layers, x.bfloat16()).dtype == torch.float16


def test_the_number_of_threads_changes_no_bit():
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(outcome(block(), images(3, 32, 32, torch.float32, count=7)))
    torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


def test_an_empty_batch_has_gradients_of_zero():
    assert all((each == 0).all() for each in outcome(block(), images(3, 32, 32, torch.float32)[:0])[1:])


def test_weights_may_lie_otherwise_in_memory():
    layers, x = block(), images(3, 7, 12, torch.float32)
    layers[0].weight.data = layers[0].weight.data.contiguous()
    assert node(layers, x) == NODE
    for ours, theirs in zip(outcome(layers, x), outcome(layers, x, one_by_one), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [
        *({"stride": 2}, {"padding": 1}, {"padding": 3}, {"padding": "same"}, {"padding_mode": "circular"}),
        *({"kernel_size": 3}, {"kernel_size": 7}, {"dilation": 2}, {"in_channels": 6}, {"out_channels": 24}),
    ],
    ids=str,
)
def test_other_convolutions_are_left_to_the_layers(options):
    layers = block(**options)
    x = images(layers[0].in_channels, 32, 32, torch.float32)
    assert node(layers, x) in SEPARATE
    assert torch.equal(max_pooled(*layers, x), layers[1](layers[0](x)))


def test_other_images_are_left_to_the_layers():
    layers, x = block(), images(3, 32, 32, torch.float32)
    assert node(layers, x.contiguous()) in SEPARATE and node(layers, x[:, :, :2, :2]) in SEPARATE
    with torch.no_grad():
        assert max_pooled(*layers, x).grad_fn is None
    wanted = x.clone().requires_grad_()
    max_pooled(*layers, wanted).sum().backward()
    assert wanted.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match="type"):
        max_pooled(*layers, x.bfloat16())
    assert node([layer.half() for layer in layers], x.half()) in SEPARATE
    assert node([layer.to("meta") for layer in layers], x.half().to("meta")) in SEPARATE


class Doubling(Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kind", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_layers_with_hooks_are_called(which, kind, everywhere):
    layers, x, seen = block(), images(3, 32, 32, torch.float32), []
    owner, name = (nn.modules.module, "module_") if everywhere else (layers[which], "")
    hook = getattr(owner, f"register_{name}{kind}_hook")(lambda module, *_: seen.append(module))
    max_pooled(*layers, x).sum().backward()
    hook.remove()
    assert layers[which] in seen
    assert node(layers, x) == NODE


def test_what_stands_in_a_layers_place_is_called():
    layers, x = block(), images(3, 32, 32, torch.float32)
    conv, pool = layers
    doubled = pool(2 * conv(x))
    doubling = Doubling(3, 32, 5, padding=2)
    doubling.load_state_dict(conv.state_dict())
    assert torch.equal(max_pooled(doubling, pool, x), doubled)
    assert node((conv, nn.MaxPool2d(3, 2)), x) == "MaxPool2DWithIndicesBackward0"
    own = conv.forward
    conv.forward = lambda x: 2 * own(x)
    assert torch.equal(max_pooled(conv, pool, x), doubled)


def test_a_frozen_weight_or_bias_gets_no_gradient():
    for name in ("weight", "bias"):
        conv, pool = block()
        conv.get_parameter(name).requires_grad_(False)
        max_pooled(conv, pool, images(3, 32, 32, torch.float32)).sum().backward()
        assert [each for each, p in conv.named_parameters() if p.grad is None] == [name]


def test_there_is_no_second_derivative():
    conv, pool = block()
    y = max_pooled(conv, pool, images(3, 32, 32, torch.float32)).square().sum()
    (gradient,) = torch.autograd.grad(y, conv.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_run_knows_that_they_ran():
    kernels.begin_run()
    max_pooled(*block(), images(3, 32, 32, torch.float32))
    assert kernels.kind() == "compiled"
