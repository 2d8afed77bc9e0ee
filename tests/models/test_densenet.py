"""DenseNet against the publication: sizes, shapes, connections, dropout; and what its Caffe form has of Caffe."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from cyclical_lr.models.densenet import DenseNet, Layer, Scale, caffe_norm
from cyclical_lr.training.engine import draws

BC = {"depth": 100, "bottleneck": True, "compression": 0.5}


def parameters_by_hand(num_classes: int, layers: int, k: int = 12, bottleneck: bool = False, kept: int = 1) -> int:
    """Huang et al., 2017, Section 3; kept is 1 / compression."""
    channels = 2 * k if bottleneck else 16
    total = 27 * channels
    for block in range(3):
        for _ in range(layers):
            if bottleneck:
                total += 2 * channels + channels * 4 * k + 2 * 4 * k + 9 * 4 * k * k
            else:
                total += 2 * channels + 9 * channels * k
            channels += k
        if block < 2:
            total += 2 * channels + channels * (channels // kept)
            channels //= kept
    return total + 2 * channels + (channels + 1) * num_classes


@pytest.mark.parametrize("num_classes", [10, 100])
@pytest.mark.parametrize(
    ("arguments", "layers", "kept", "millions"),
    [({}, 12, 1, 1.0), (BC, 16, 2, 0.8), ({"drop_rate": 0.2, "form": "caffe"}, 12, 1, 1.0)],
    ids=["40-12", "BC-100-12", "Caffe"],
)
def test_it_has_the_published_number_of_parameters(arguments, layers, kept, millions, num_classes):
    count = sum(p.numel() for p in DenseNet(num_classes, **arguments).parameters())
    assert count == parameters_by_hand(num_classes, layers, bottleneck="bottleneck" in arguments, kept=kept)
    if num_classes == 10:
        assert count == (1_019_722 if layers == 12 else 769_162)
        assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "shapes", "depth"),
    [
        ({}, [(16, 32), (160, 32), (160, 16), (304, 16), (304, 8), (448, 8)], 40),
        (BC, [(24, 32), (216, 32), (108, 16), (300, 16), (150, 8), (342, 8)], 100),
        ({"form": "caffe"}, [(16, 32), (160, 32), (160, 16), (304, 16), (304, 8), (448, 8)], 40),
    ],
    ids=["40-12", "BC-100-12", "Caffe"],
)
def test_each_block_has_the_published_output(arguments, shapes, depth):
    network, found = DenseNet(**arguments).eval(), []
    for name in ("conv", "block1", "transition1", "block2", "transition2", "block3"):
        network.get_submodule(name).register_forward_hook(lambda _, __, y: found.append(tuple(y.shape)))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert found == [(2, channels, side, side) for channels, side in shapes]
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()) == depth


def test_a_layer_passes_its_input_on_and_adds_growth_rate_channels():
    for bottleneck in (False, True):
        layer, x = Layer(16, 12, bottleneck, 0.0, nn.BatchNorm2d), torch.randn(2, 16, 8, 8)
        before = x.clone()
        y = layer(x)
        assert y.shape == (2, 28, 8, 8)
        assert torch.equal(y[:, :16], before)


def test_a_layer_sees_every_layer_before_it_in_its_block():
    torch.manual_seed(0)
    block = DenseNet().block1
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    outputs = [block[0](x)]
    for layer in block[1:]:
        outputs.append(layer(outputs[-1]))
        outputs[-2].retain_grad()
    outputs[-1][:, -12:].sum().backward()
    for earlier in [x, *outputs[:-1]]:
        assert earlier.grad.abs().amax((0, 2, 3)).min() > 0


@pytest.mark.parametrize(
    ("arguments", "sites"), [({}, 3 * 12 + 2), (BC, 3 * 16 * 2 + 2), ({"form": "caffe"}, 3 * 12 + 2)]
)
def test_dropout_follows_each_convolution_but_the_first(arguments, sites):
    network = DenseNet(**arguments, drop_rate=0.2)
    dropouts = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in dropouts] == [0.2] * sites
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for first, second in itertools.pairwise(module):
                assert isinstance(first, nn.Conv2d) == isinstance(second, nn.Dropout)
    assert not any(isinstance(m, nn.Dropout) for m in DenseNet(**arguments).modules())


def test_it_draws_while_it_trains_only_with_dropout_and_never_in_evaluation():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    plain, dropping = DenseNet(depth=7), DenseNet(depth=7, drop_rate=0.2)
    assert (draws(plain), draws(dropping)) == (False, True)
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(dropping(x), dropping(x))
    dropping.eval()
    assert torch.equal(dropping(x), dropping(x))


@pytest.mark.parametrize("form", ["torch7", "caffe"])
def test_initial_weights_are_those_of_the_form(form):
    torch.manual_seed(0)
    network = DenseNet(form=form)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] ** 2
            fan = area * (module.in_channels if form == "caffe" else module.out_channels)
            values = module.weight.detach()
            assert module.bias is None
            assert values.std().item() == pytest.approx((2 / fan) ** 0.5, rel=5 / (2 * values.numel()) ** 0.5)
        elif isinstance(module, (nn.BatchNorm2d, Scale)):
            assert isinstance(module, Scale if form == "caffe" else nn.BatchNorm2d)
            assert (module.weight == 1).all() and (module.bias == 0).all()
    bound = ((3 if form == "caffe" else 1) / 448) ** 0.5
    assert 0.99 * bound < network.fc.weight.abs().max() <= bound
    assert network.fc.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not network.fc.bias.any()


def test_the_caffe_form_normalises_and_then_scales_each_channel():
    rng, channels = np.random.default_rng(0), 3
    norm, x = caffe_norm(channels).double(), rng.normal(2, 3, (5, channels, 4, 4))
    factors, biases = np.array([0.5, 1.0, 2.0]), np.array([0.1, -0.2, 0.3])
    batch_norm, scale = norm
    with torch.no_grad():
        scale.weight.copy_(torch.from_numpy(factors))
        scale.bias.copy_(torch.from_numpy(biases))
    normed = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    expected = normed * factors[:, None, None] + biases[:, None, None]
    np.testing.assert_allclose(norm(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-6, atol=1e-9)
    assert (batch_norm.moving_average_fraction, batch_norm.eps) == (0.999, 1e-5)
    assert [name for name, _ in norm.named_parameters()] == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 41}, r"model\.depth: expected 3n \+ 4, such as 40, got 41"),
        ({"depth": 4}, r"model\.depth: expected 3n \+ 4, such as 40, got 4"),
        ({"depth": 40 + 3, "bottleneck": True}, r"model\.depth: expected 6n \+ 4, such as 100, got 43"),
        ({"compression": 0.0}, r"model\.compression: expected .*, got 0\.0"),
        ({"compression": 1.5}, r"model\.compression: expected .*, got 1\.5"),
        ({"compression": 0.001}, r"model\.compression: expected to keep some of .*, got 0\.001"),
        ({"growth_rate": 0}, r"model\.growth_rate: expected .*, got 0"),
        ({"drop_rate": 1.0}, r"model\.drop_rate: expected .*, got 1\.0"),
        ({"form": "torch"}, r"model\.form: expected 'torch7' or 'caffe', got 'torch'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(arguments, message):
    with pytest.raises(ValueError, match=message):
        DenseNet(**arguments)
