"""Stochastic Depth: which branches are left out, what that does to them, and what evaluation makes of it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cyclical_lr.models.resnet import ResNet
from cyclical_lr.models.stochastic_depth import StochasticDepth
from cyclical_lr.training.engine import reference_step, seed_step


@pytest.fixture
def small() -> StochasticDepth:
    """Three blocks, with running statistics that are not those at construction."""
    torch.manual_seed(0)
    network = StochasticDepth(depth=8)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.bias.uniform_(-0.5, 0.5)
    return network


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def statistics(branch: nn.Module) -> list[torch.Tensor]:
    return [s.clone() for bn in (branch.bn1, branch.bn2) for s in (bn.running_mean, bn.running_var)]


def by_hand(network: StochasticDepth, x: torch.Tensor, gates: list[float]) -> torch.Tensor:
    """The network with given gates, from its layers; batch norms in evaluation."""
    x = F.relu(network.bn(network.conv(x)))
    for gate, branch, shortcut in zip(gates, network.branches, network.shortcuts, strict=True):
        inner = F.relu(branch.bn1(branch.conv1(x)))
        x = F.relu(shortcut(x) + gate * branch.bn2(branch.conv2(inner)))
    return network.fc(x.mean((2, 3)))


def test_it_is_as_large_as_the_resnet_of_its_depth():
    network, resnet = StochasticDepth(num_classes=100), ResNet(num_classes=100, depth=110)
    assert sorted(p.shape for p in network.parameters()) == sorted(p.shape for p in resnet.parameters())
    assert sum(p.numel() for p in StochasticDepth().parameters()) == 1_727_962
    assert len(network.branches) == 54


def test_each_block_has_the_published_output():
    network, shapes = StochasticDepth(depth=20).eval(), []
    for branch in network.branches:
        branch.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    assert network(images(2)).shape == (2, 10)
    assert shapes == [(2, 16, 32, 32)] * 3 + [(2, 32, 16, 16)] * 3 + [(2, 64, 8, 8)] * 3


def test_survival_falls_linearly_to_one_minus_the_death_rate():
    survival = StochasticDepth().survival
    assert survival[[0, 26, 53]].tolist() == pytest.approx([1 - 0.5 / 54, 1 - 0.5 * 27 / 54, 0.5])
    torch.testing.assert_close(survival.diff(), torch.full((53,), -0.5 / 54), atol=1e-6, rtol=0)
    assert StochasticDepth(depth=8, death_rate=0.0).survival.tolist() == [1, 1, 1]


def test_a_block_is_left_out_as_often_as_its_death_rate_says():
    torch.manual_seed(0)
    network = StochasticDepth(depth=20, death_rate=0.8)
    drawn = torch.stack([network.gates() for _ in range(4000)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    deviation = (network.survival * (1 - network.survival) / len(drawn)).sqrt()
    assert ((drawn.mean(0) - network.survival).abs() < 4 * deviation).all()
    # Each block has its own draw: correlations of 4,000 independent ones are below 4 / sqrt(4000).
    assert (torch.corrcoef(drawn.T) - torch.eye(9)).abs().max() < 0.064


def test_in_evaluation_each_branch_counts_by_its_survival_probability(small):
    small.eval()
    survival = [1 - 0.5 / 3, 1 - 0.5 * 2 / 3, 0.5]
    torch.testing.assert_close(small(images()), by_hand(small, images(), survival))
    assert torch.equal(small(images()), small(images()))


def test_in_training_a_branch_is_there_for_the_whole_batch_or_for_none_of_it(small):
    small.eval()
    small.training = True  # batch norms stay in evaluation: only the gates are of interest
    outcomes = {bits: by_hand(small, images(), [float(b) for b in bits]) for bits in ("000", "001", "010", "011")}
    outcomes |= {f"1{bits[1:]}": by_hand(small, images(), [1.0, *map(float, bits[1:])]) for bits in outcomes}
    seen = set()
    for _ in range(60):
        logits = small(images())
        seen |= {bits for bits, expected in outcomes.items() if torch.allclose(logits, expected, atol=1e-5)}
        assert any(torch.allclose(logits, expected, atol=1e-5) for expected in outcomes.values())
    assert len(seen) >= 6


def test_evaluation_is_the_expectation_of_training(small):
    # Where no ReLU cuts, the logits are linear in the last gate, whose probability is one half.
    with torch.no_grad():
        small.survival[:2] = 1
        small.branches[2].bn2.bias.fill_(50)
    small.eval()
    expectation = small(images())
    small.training = True
    drawn = torch.stack([small(images()) for _ in range(40)])
    left_out, there = by_hand(small, images(), [1, 1, 0]), by_hand(small, images(), [1, 1, 1])
    for logits in drawn:
        assert torch.allclose(logits, left_out, rtol=1e-4) or torch.allclose(logits, there, rtol=1e-4)
    torch.testing.assert_close(expectation, (left_out + there) / 2, rtol=1e-4, atol=1e-5)
    assert 8 < sum(torch.allclose(logits, there, rtol=1e-4) for logits in drawn) < 32


def test_a_block_that_is_left_out_learns_nothing_but_decays_and_keeps_its_statistics(small):
    small.survival.copy_(torch.tensor([1.0, 0.0, 1.0]))
    solver = torch.optim.SGD(small.parameters(), lr=0.0, momentum=0.9, weight_decay=0.01)
    before = [statistics(branch) for branch in small.branches]
    weight = small.branches[1].conv1.weight
    was, bn_was = weight.detach().clone(), small.branches[1].bn2.bias.detach().clone()
    reference_step(small, solver, images(), torch.arange(4), lr=0.1)
    assert not weight.grad.any(), "0, and not missing"
    torch.testing.assert_close(weight.detach(), was * (1 - 0.1 * 0.01))
    torch.testing.assert_close(small.branches[1].bn2.bias.detach(), bn_was * (1 - 0.1 * 0.01))
    for block, branch in enumerate(small.branches):
        same = [torch.equal(a, b) for a, b in zip(before[block], statistics(branch), strict=True)]
        assert same == [block == 1] * 4
    assert small.branches[0].conv1.weight.grad.any() and small.branches[2].conv1.weight.grad.any()


def test_a_block_that_is_there_moves_its_statistics_as_any_batch_norm(small):
    branch, x = small.branches[0], torch.randn(4, 16, 8, 8)
    plain = copy.deepcopy(branch)
    expected = plain.bn2(plain.conv2(F.relu(plain.bn1(plain.conv1(x)))))
    torch.testing.assert_close(branch(x, torch.tensor(1.0)), expected)
    for ours, theirs in zip(statistics(branch), statistics(plain), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_left_out_depends_on_the_seed_and_the_iteration_alone():
    network = StochasticDepth()

    def drawn(seed, iteration):
        seed_step(seed, iteration)
        return network.gates().tolist()

    assert network.stochastic
    first = drawn(3, 10)
    torch.rand(7)
    assert drawn(3, 10) == first
    assert drawn(3, 11) != first and drawn(4, 10) != first


def test_initial_weights_are_the_originals():
    torch.manual_seed(0)
    network = StochasticDepth(depth=56)
    norms = torch.cat([m.weight.detach() for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= norms.min() < 0.01 and 0.99 < norms.max() < 1
    assert norms.mean().item() == pytest.approx(0.5, abs=0.03)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            std = (2 / (9 * module.in_channels)) ** 0.5
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(std, rel=5 / (2 * module.weight.numel()) ** 0.5)
    assert 0 < network.fc.bias.abs().max() <= 1 / 8
    assert network.fc.weight.abs().max() <= 1 / 8


def test_nothing_of_the_death_rate_is_in_a_checkpoint():
    assert set(StochasticDepth(depth=8).state_dict()) == set(StochasticDepth(depth=8, death_rate=0.0).state_dict())
    assert not any("survival" in name for name in StochasticDepth(depth=8).state_dict())


def test_a_norm_without_momentum_is_refused():
    with pytest.raises(ValueError, match=r"^momentum: expected a number, got None"):
        torch.optim.swa_utils.update_bn([torch.zeros(2, 3, 32, 32)], StochasticDepth(depth=8))


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_a_death_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match=rf"model\.death_rate: expected a probability in \[0, 1\), got {rate}"):
        StochasticDepth(death_rate=rate)
