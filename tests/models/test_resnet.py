"""ResNet against the publication: sizes, shapes, shortcut A, the original's initial weights, and a few iterations."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cyclical_lr.models.resnet import Block, ResNet, Shortcut
from cyclical_lr.solvers import torch_sgd
from cyclical_lr.training.engine import reference_step


def conv_and_norm(inputs: int, outputs: int) -> int:
    return 9 * inputs * outputs + 2 * outputs


def parameters_by_hand(depth: int, num_classes: int) -> int:
    """He et al., 2016, Section 4.2: a first layer, 2n layers of 16, 32 and 64 filters each, and the classifier."""
    n = (depth - 2) // 6
    stages = (
        2 * n * conv_and_norm(16, 16),
        conv_and_norm(16, 32) + (2 * n - 1) * conv_and_norm(32, 32),
        conv_and_norm(32, 64) + (2 * n - 1) * conv_and_norm(64, 64),
    )
    return conv_and_norm(3, 16) + sum(stages) + 65 * num_classes


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)  # He et al., Table 6
def test_a_depth_has_the_published_number_of_parameters(depth, millions):
    for num_classes in (10, 100):
        network = ResNet(num_classes, depth)
        assert sum(p.numel() for p in network.parameters()) == parameters_by_hand(depth, num_classes)
    assert parameters_by_hand(depth, 10) / 1e6 == pytest.approx(millions, abs=0.03 if depth == 110 else 0.005)


def test_the_default_is_depth_56_with_the_stated_number_of_parameters():
    network = ResNet()
    assert sum(p.numel() for p in network.parameters()) == 853_018
    # One layer per convolution and one for the classifier.
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()) == 56


def test_each_block_has_the_published_output():
    network, shapes = ResNet(num_classes=100, depth=20), []
    for module in network.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 100)
    assert shapes == [(2, 16, 32, 32)] * 3 + [(2, 32, 16, 16)] * 3 + [(2, 64, 8, 8)] * 3


def test_a_block_adds_its_branch_to_the_shortcut_before_the_last_relu():
    block = Block(16, 32).eval()
    torch.nn.init.uniform_(block.bn1.bias, -1, 1)
    torch.nn.init.uniform_(block.bn2.bias, -1, 1)
    x = torch.randn(2, 16, 8, 8)
    inner = F.relu(block.bn1(F.conv2d(x, block.conv1.weight, stride=2, padding=1)))
    branch = block.bn2(F.conv2d(inner, block.conv2.weight, stride=1, padding=1))
    halved = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 16, 4, 4)], 1)
    torch.testing.assert_close(block(x), (halved + branch).clamp(min=0))
    assert (halved + branch).min() < -0.1, "the ReLU would have nothing to do"


def test_shortcut_a_is_the_identity_or_every_second_pixel_and_zeros_as_the_new_channels():
    x = torch.randn(2, 16, 6, 6)
    assert torch.equal(Shortcut(16, 16)(x), x)
    halved = Shortcut(16, 32)(x)
    assert halved.shape == (2, 32, 3, 3)
    assert torch.equal(halved[:, :16], x[:, :, ::2, ::2])
    assert not halved[:, 16:].any()


def test_a_window_of_two_averages_instead():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert Shortcut(1, 2, window=2)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]], [[0, 0], [0, 0]]]]


def test_initial_weights_are_the_originals():
    torch.manual_seed(0)
    network = ResNet()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            std = (2 / (9 * module.out_channels)) ** 0.5
            values = module.weight.detach()
            assert module.bias is None
            assert values.std().item() == pytest.approx(std, rel=5 / (2 * values.numel()) ** 0.5)
            assert abs(values.mean().item()) < 5 * std / values.numel() ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
            assert (module.eps, module.momentum) == (1e-5, 0.1)
    assert not network.fc.bias.any()
    # Torch7's default for a classifier of 64 inputs: uniform on +-1/8.
    assert network.fc.weight.abs().max() <= 1 / 8
    assert network.fc.weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


def test_five_iterations_are_those_of_a_network_written_apart():
    """At the LR of Table 4's recipe, whose losses jump at first: what they jump to is not the port's doing."""
    torch.manual_seed(0)
    network = ResNet(depth=20).double()
    weights = [p.detach().clone().requires_grad_() for p in network.parameters()]
    solver = torch_sgd(network, momentum=0.9, weight_decay=1e-4, nesterov=True)
    other = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    losses = []
    for _ in range(5):
        x, y = torch.randn(16, 3, 32, 32, dtype=torch.float64), torch.randint(10, (16,))
        losses.append(float(reference_step(network, solver, x, y, 0.1)))
        loss = F.cross_entropy(in_functions(x, weights, blocks=3), y)
        other.zero_grad()
        loss.backward()
        other.step()
        assert losses[-1] == pytest.approx(loss.item(), rel=1e-9)
    assert max(losses) > 5
    for ours, theirs in zip(network.parameters(), weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def in_functions(x, weights, blocks):
    """He et al., 2016, Section 4.2, of weights in the order of the layers."""
    rest = iter(weights)

    def conv_bn(x, stride=1):
        x = F.conv2d(x, next(rest), stride=stride, padding=1)
        return F.batch_norm(x, None, None, next(rest), next(rest), training=True)

    x = F.relu(conv_bn(x))
    for stage in range(3):
        for block in range(blocks):
            smaller = stage > 0 and block == 0
            branch = conv_bn(F.relu(conv_bn(x, 2 if smaller else 1)))
            if smaller:
                x = x[:, :, ::2, ::2]
                x = torch.cat([x, torch.zeros_like(x)], 1)
            x = F.relu(x + branch)
    x = F.linear(x.mean((2, 3)), next(rest), next(rest))
    assert next(rest, None) is None
    return x


def test_a_seed_fixes_the_weights_and_another_gives_others():
    def seeded(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in ResNet(depth=8).parameters() if p.ndim > 1])

    assert torch.equal(seeded(0), seeded(0))
    assert not torch.isclose(seeded(0), seeded(1)).all()


@pytest.mark.parametrize("depth", [2, 18, 54, 57, -4])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth):
    with pytest.raises(ValueError, match=rf"model\.depth: expected 6n \+ 2, .*, got {depth}"):
        ResNet(depth=depth)
