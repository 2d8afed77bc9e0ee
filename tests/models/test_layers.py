"""The port's layers against Caffe's formulas in NumPy (`caffe_numpy`), values and gradients, in float64."""

import caffe_numpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cyclical_lr.models.layers import (
    AvgPool2d,
    Constant,
    Conv2d,
    Gaussian,
    MaxPool2d,
    Param,
    WithinChannelLRN,
    Xavier,
    caffe_layer,
)


def assert_agree(actual, expected: np.ndarray, rtol: float = 1e-6) -> None:
    """Element by element; the absolute part only forgives what float64 cancellation leaves."""
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-11 * np.abs(expected).max())


def torch_value_and_gradients(layer, *inputs: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, ...]:
    tensors = [torch.from_numpy(value.copy()).requires_grad_() for value in inputs]
    output = layer(*tensors)
    output.backward(torch.from_numpy(upstream))
    return output.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)


def central_differences(layer, *inputs: np.ndarray, upstream: np.ndarray, step: float = 1e-5) -> list[np.ndarray]:
    """d sum(upstream * layer(inputs)) / d inputs, one element at a time."""
    gradients = []
    for index, value in enumerate(inputs):
        gradient = np.zeros_like(value)
        for element in np.ndindex(value.shape):
            sums = []
            for sign in (1.0, -1.0):
                moved = value.copy()
                moved[element] += sign * step
                sums.append((layer(*inputs[:index], moved, *inputs[index + 1 :])[0] * upstream).sum())
            gradient[element] = (sums[0] - sums[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def check_against_reference(port, reference, *inputs: np.ndarray) -> None:
    expected, backward = reference(*inputs)
    upstream = np.random.default_rng(7).normal(0, 1, np.shape(expected))
    actual, *gradients = torch_value_and_gradients(port, *inputs, upstream=upstream)
    assert actual.shape == np.shape(expected)
    assert_agree(actual, expected)
    for gradient, expected_gradient in zip(gradients, backward(upstream), strict=True):
        assert_agree(gradient, expected_gradient)


def distinct(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Values of both signs, 0.02 or more apart and 0.01 or more from zero: no step crosses a kink of max or ReLU."""
    count = int(np.prod(shape))
    return (rng.permutation(count).reshape(shape) - count // 2 + 0.5) * 0.02


REFERENCE_LAYERS = {
    "convolution": (
        lambda x, w, b: caffe_numpy.convolution(x, w, b, pad=2),
        [(2, 2, 5, 4), (3, 2, 5, 5), (3,)],
    ),
    "max_pool": (caffe_numpy.max_pool, [(2, 2, 6, 7)]),
    "average_pool": (caffe_numpy.average_pool, [(2, 2, 6, 7)]),
    "relu": (caffe_numpy.relu, [(2, 2, 3, 3)]),
    # A large alpha, so that the slope through the norm is as large as the direct one.
    "lrn_within_channel": (lambda x: caffe_numpy.lrn_within_channel(x, 3, 2.0, 0.75), [(2, 2, 4, 5)]),
    "lrn_across_channels": (lambda x: caffe_numpy.lrn_across_channels(x, 5, 2.0, 0.75), [(2, 7, 2, 3)]),
    "inner_product": (caffe_numpy.inner_product, [(2, 2, 2, 3), (4, 12), (4,)]),
    "softmax_loss": (lambda logits: caffe_numpy.softmax_loss(logits, np.array([0, 3, 1])), [(3, 4)]),
}


@pytest.mark.parametrize("name", REFERENCE_LAYERS)
def test_the_references_own_gradients_are_the_slopes_of_its_outputs(name):
    layer, shapes = REFERENCE_LAYERS[name]
    rng = np.random.default_rng(0)
    inputs = [distinct(rng, *shape) for shape in shapes]
    output, backward = layer(*inputs)
    upstream = rng.normal(0, 1, np.shape(output)) if np.ndim(output) else np.float64(1.0)
    slopes = central_differences(layer, *inputs, upstream=upstream)
    for analytic, slope in zip(backward(upstream), slopes, strict=True):
        np.testing.assert_allclose(analytic, slope, rtol=1e-5, atol=1e-7)


# ---- pooling ---------------------------------------------------------------------------------------------------------


def test_pooling_rounds_32_16_8_to_16_8_4_and_windows_at_the_border_divide_by_their_real_pixels():
    ones_then_border = np.zeros((1, 1, 4, 4))
    ones_then_border[:, :, 2:, 2:] = 6.0
    average, _ = caffe_numpy.average_pool(ones_then_border)
    # Windows start at 0 and 2: the first covers 3x3 pixels, the last 2x2, where all four are 6.
    np.testing.assert_allclose(average[0, 0], [[6 / 9, 2.0], [2.0, 6.0]])
    port = AvgPool2d(3, 2, ceil_mode=True)
    assert_agree(port(torch.from_numpy(ones_then_border)), average)
    assert [caffe_numpy.pooled_size(size, 3, 2) for size in (32, 16, 8)] == [16, 8, 4]
    assert [caffe_numpy.pooled_size(size, 3, 2, ceil_mode=False) for size in (32, 15, 7)] == [15, 7, 3]


POOLS = {
    "max": (MaxPool2d(3, 2, ceil_mode=True), caffe_numpy.max_pool),
    "average": (AvgPool2d(3, 2, ceil_mode=True), caffe_numpy.average_pool),
}


@pytest.mark.parametrize("size", [32, 16, 8, 7, 15, 33])
@pytest.mark.parametrize("kind", POOLS)
def test_pooling_equals_caffes_in_value_and_gradient(kind, size):
    port, reference = POOLS[kind]
    check_against_reference(port, reference, np.random.default_rng(size).normal(0, 100, (2, 3, size, size)))


@settings(max_examples=25, deadline=None)
@given(height=st.integers(2, 13), width=st.integers(2, 13), kind=st.sampled_from(sorted(POOLS)))
def test_pooling_equals_caffes_on_any_oblong_image(height, width, kind):
    port, reference = POOLS[kind]
    check_against_reference(port, reference, np.random.default_rng(1).normal(0, 1, (1, 2, height, width)))


def test_of_equal_pixels_the_first_in_reading_order_gets_the_gradient_of_max_pooling():
    check_against_reference(MaxPool2d(3, 2, ceil_mode=True), caffe_numpy.max_pool, np.ones((1, 2, 8, 8)))


def test_normalisation_in_bf16_keeps_the_precision_of_its_input():
    x = 30 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rounded = x.bfloat16().requires_grad_()
    exact = rounded.detach().double().requires_grad_()
    low, high = WithinChannelLRN()(rounded), WithinChannelLRN()(exact)
    low.sum().backward()
    high.sum().backward()
    assert low.dtype == rounded.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), high, rtol=2**-7, atol=1e-3)
    torch.testing.assert_close(rounded.grad.double(), exact.grad, rtol=2**-5, atol=1e-2)


# ---- local response normalisation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 8), (5, 7), (1, 1), (2, 3)])
@pytest.mark.parametrize("pixel_scale", [1.0, 150.0])
def test_within_channel_norm_equals_caffes_in_value_and_gradient(height, width, pixel_scale):
    x = np.random.default_rng(0).normal(0, pixel_scale, (2, 4, height, width))
    check_against_reference(WithinChannelLRN(), caffe_numpy.lrn_within_channel, x)


@pytest.mark.parametrize(("size", "alpha", "beta"), [(3, 1.0, 0.75), (5, 0.3, 0.5), (7, 2.0, 1.5)])
def test_within_channel_norm_takes_its_size_alpha_and_beta_from_its_arguments(size, alpha, beta):
    x = np.random.default_rng(0).normal(0, 2, (2, 3, 8, 9))
    port = WithinChannelLRN(size=size, alpha=alpha, beta=beta)
    check_against_reference(port, lambda value: caffe_numpy.lrn_within_channel(value, size, alpha, beta), x)


def test_within_channel_norm_counts_zero_padding_in_its_divisor():
    x = torch.full((1, 1, 4, 4), 3.0, dtype=torch.float64)
    y = WithinChannelLRN(size=3, alpha=1.0, beta=1.0)(x)
    # Squares are 9; a corner sees four of them, an edge six, the middle nine, each over nine.
    assert y[0, 0, 0, 0].item() == pytest.approx(3 / (1 + 4))
    assert y[0, 0, 0, 1].item() == pytest.approx(3 / (1 + 6))
    assert y[0, 0, 1, 1].item() == pytest.approx(3 / (1 + 9))


def test_within_channel_norm_does_not_mix_channels():
    x = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    x[:, 0] = 100.0
    x[:, 1] = 1e-3
    alone = WithinChannelLRN(alpha=1.0)(x[:, 1:])
    assert torch.equal(WithinChannelLRN(alpha=1.0)(x)[:, 1:], alone)


@pytest.mark.parametrize(("size", "alpha", "beta"), [(5, 1e-4, 0.75), (3, 5e-5, 0.75)])
def test_torchs_norm_across_channels_with_k_one_is_caffes(size, alpha, beta):
    x = np.random.default_rng(0).normal(0, 100, (2, 8, 5, 5))
    port = nn.LocalResponseNorm(size, alpha, beta, k=1.0)
    check_against_reference(port, lambda value: caffe_numpy.lrn_across_channels(value, size, alpha, beta), x)


# ---- convolution, inner product, loss --------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "outputs", "size"), [(3, 32, 32), (32, 32, 16), (32, 64, 8), (2, 3, 7)])
def test_convolution_with_pad_2_equals_caffes_in_value_and_gradient(channels, outputs, size):
    rng = np.random.default_rng(size)
    x = rng.normal(0, 50, (2, channels, size, size))
    weight, bias = rng.normal(0, 0.1, (outputs, channels, 5, 5)), rng.normal(0, 1, outputs)
    layer = Conv2d(channels, outputs, 5, padding=2)
    check_against_reference(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x),
        lambda x, w, b: caffe_numpy.convolution(x, w, b, pad=2),
        *(x, weight, bias),
    )


@pytest.mark.parametrize(
    "options",
    [
        *({"padding": 2}, {"stride": 4}, {"padding": 1, "groups": 2}, {"dilation": 2}),
        *({"padding": "same"}, {"padding": 2, "padding_mode": "reflect"}),
    ],
)
def test_a_convolution_is_torchs_but_for_rounding(options):
    layer = Conv2d(4, 6, 5, **options).to(memory_format=torch.channels_last)
    torchs = nn.Conv2d(4, 6, 5, **options).to(memory_format=torch.channels_last)
    torchs.load_state_dict(layer.state_dict())
    x = torch.randn(20, 4, 16, 16).to(memory_format=torch.channels_last)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [convolve(leaf) for convolve, leaf in zip((layer, torchs), inputs, strict=True)]
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(upstream)
    assert torch.equal(*outputs) and torch.equal(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(layer.weight.grad, torchs.weight.grad, rtol=1e-5, atol=1e-4)
    exact = upstream.double().sum((0, 2, 3))
    most = upstream.abs().sum((0, 2, 3)) * 1e-6
    assert ((layer.bias.grad - exact).abs() < most).all() and ((torchs.bias.grad - exact).abs() < most).all()


@pytest.mark.parametrize("case", ["no gradient for the input", "frozen weight", "frozen bias", "bf16", "no bias"])
def test_a_convolution_gives_gradients_where_torchs_does(case):
    layer = Conv2d(3, 4, 3, bias=case != "no bias")
    torchs = nn.Conv2d(3, 4, 3, bias=case != "no bias")
    torchs.load_state_dict(layer.state_dict())
    x = torch.randn(5, 3, 8, 8)
    inputs = [x.clone().requires_grad_(case != "no gradient for the input") for _ in range(2)]
    for convolve, leaf in zip((layer, torchs), inputs, strict=True):
        for name, parameter in convolve.named_parameters():
            parameter.requires_grad_(case != f"frozen {name}")
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "bf16"):
            output = convolve(leaf)
        assert output.dtype == (torch.bfloat16 if case == "bf16" else torch.float32)
        output.float().square().sum().backward()
    for ours, theirs in zip([inputs[0], *layer.parameters()], [inputs[1], *torchs.parameters()], strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_inner_product_equals_caffes_and_flattens_channels_first():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(0, 5, (3, 64, 4, 4)), rng.normal(0, 0.1, (10, 1024)), rng.normal(0, 1, 10)
    check_against_reference(
        lambda x, w, b: nn.functional.linear(x.flatten(1), w, b), caffe_numpy.inner_product, *(x, weight, bias)
    )


def test_softmax_loss_is_the_mean_over_the_batch():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 8, (7, 10)), rng.integers(0, 10, 7)
    check_against_reference(
        lambda z: nn.functional.cross_entropy(z, torch.from_numpy(labels)),
        lambda z: caffe_numpy.softmax_loss(z, labels),
        logits,
    )
    even, _ = caffe_numpy.softmax_loss(np.zeros((7, 10)), labels)
    assert even == pytest.approx(np.log(10))


# ---- fillers and per-parameter settings ------------------------------------------------------------------------------


def filled(filler, make=lambda: nn.Conv2d(8, 96, 5, groups=2)) -> np.ndarray:
    """19,200 weights; fan_in 100 per group, fan_out 2400 (1200 per group), so that the fans cannot be confused."""
    torch.manual_seed(0)
    return caffe_layer(make(), weight=Param(filler), bias=Param(Constant(0.0))).weight.detach().double().numpy()


def assert_moments(weights: np.ndarray, std: float) -> None:
    count = weights.size
    assert abs(weights.mean()) < 5 * std / np.sqrt(count)
    assert weights.std() == pytest.approx(std, rel=5 / np.sqrt(2 * count))


def assert_normal(weights: np.ndarray, std: float) -> None:
    assert_moments(weights, std)
    within_one = np.mean(np.abs(weights) < std)
    assert within_one == pytest.approx(0.6827, abs=5 * np.sqrt(0.6827 * 0.3173 / weights.size))
    assert np.abs(weights).max() > 3 * std, "no tail: truncated or uniform"


@pytest.mark.parametrize("std", [1e-4, 0.01, 0.1])
def test_gaussian_filler_is_normal_with_the_given_std(std):
    assert_normal(filled(Gaussian(std)), std)


def test_xavier_filler_is_uniform_within_the_root_of_three_over_fan_in():
    weights, bound = filled(Xavier()), np.sqrt(3 / 100)
    assert_moments(weights, bound / np.sqrt(3))
    assert 0.999 * bound < np.abs(weights).max() <= bound * (1 + 1e-6)
    assert np.mean(np.abs(weights) < bound / 2) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(weights.size))


def test_fan_in_of_an_inner_product_is_its_number_of_inputs():
    weights = filled(Xavier(), make=lambda: nn.Linear(64, 300))
    assert 0.999 * np.sqrt(3 / 64) < np.abs(weights).max() <= np.sqrt(3 / 64) * (1 + 1e-6)


def test_a_layer_keeps_the_filler_and_multipliers_of_each_parameter():
    weight, bias = Param(Gaussian(0.01), decay_mult=250.0), Param(Constant(0.2), lr_mult=2.0, decay_mult=0.0)
    layer = caffe_layer(nn.Linear(4, 3), weight=weight, bias=bias)
    assert layer.caffe_params == {"weight": weight, "bias": bias}
    assert (weight.lr_mult, weight.decay_mult, bias.lr_mult, bias.decay_mult) == (1.0, 250.0, 2.0, 0.0)
    assert (Param(Xavier()).lr_mult, Param(Xavier()).decay_mult) == (1.0, 1.0)
    assert torch.all(layer.bias == torch.tensor(0.2))
    assert layer.weight.requires_grad and layer.bias.requires_grad
