"""GoogLeNet against bvlc_googlenet's table, its auxiliary heads, and the loss that weighs them.

What needs no numbers runs on torch's meta device.
"""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from cyclical_lr.models.googlenet import AuxiliaryHead, GoogLeNet, Inception
from cyclical_lr.solvers import caffe_sgd, param_groups
from cyclical_lr.training.engine import draws, reference_step, seed_step

CONF = Path(__file__).parents[2] / "conf" / "model"
SHAPES = {
    "stem.0": (64, 112, 112),
    "stem.1": (64, 56, 56),
    "stem.3": (64, 56, 56),
    "stem.4": (192, 56, 56),
    "stem": (192, 28, 28),
    "inception_3a": (256, 28, 28),
    "inception_3b": (480, 28, 28),
    "pool3": (480, 14, 14),
    "inception_4a": (512, 14, 14),
    "inception_4b": (512, 14, 14),
    "inception_4c": (512, 14, 14),
    "inception_4d": (528, 14, 14),
    "inception_4e": (832, 14, 14),
    "pool4": (832, 7, 7),
    "inception_5a": (832, 7, 7),
    "inception_5b": (1024, 7, 7),
    "pool5": (1024, 1, 1),
    "classifier": (1000,),
    "auxiliary_4a.pool": (512, 4, 4),
    "auxiliary_4a.conv": (128, 4, 4),
    "auxiliary_4a.fc": (1024,),
    "auxiliary_4d.pool": (528, 4, 4),
    "auxiliary_4d.conv": (128, 4, 4),
    "auxiliary_4d.classifier": (1000,),
}
# Channels of each block's convolutions: 1x1; 1x1 and 3x3; 1x1 and 5x5; 1x1 after the pooling.
BLOCKS = {
    "inception_3a": (64, 96, 128, 16, 32, 32),
    "inception_3b": (128, 128, 192, 32, 96, 64),
    "inception_4a": (192, 96, 208, 16, 48, 64),
    "inception_4b": (160, 112, 224, 24, 64, 64),
    "inception_4c": (128, 128, 256, 24, 64, 64),
    "inception_4d": (112, 144, 288, 32, 64, 64),
    "inception_4e": (256, 160, 320, 32, 128, 128),
    "inception_5a": (256, 160, 320, 32, 128, 128),
    "inception_5b": (384, 192, 384, 48, 128, 128),
}
CLASSIFIERS = {"classifier", "auxiliary_4a.classifier", "auxiliary_4d.classifier"}


def weightless(**choices) -> GoogLeNet:
    with torch.device("meta"):
        return GoogLeNet(**choices)


def images(count: int) -> Tensor:
    return 60 * torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("auxiliary", "count"), [(True, 13_378_280), (False, 6_998_552)])
def test_the_number_of_parameters_with_and_without_auxiliary_heads(auxiliary, count):
    assert sum(parameter.numel() for parameter in weightless(auxiliary=auxiliary).parameters()) == count


def test_every_blocks_output_has_its_size():
    network, found = weightless(), {}
    for name in SHAPES:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _, __, y, name=name: found.__setitem__(name, tuple(y.shape[1:])))
    heads = network(torch.empty(2, 3, 224, 224, device="meta"))
    assert [tuple(head.shape) for head in heads] == [(2, 1000)] * 3
    assert found == SHAPES


@pytest.mark.parametrize("name", BLOCKS)
def test_each_inception_block_has_the_channels_of_its_branches(name):
    block = weightless().get_submodule(name)
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    assert tuple(conv.out_channels for conv in convolutions) == BLOCKS[name]
    assert [conv.kernel_size[0] for conv in convolutions] == [1, 1, 3, 1, 5, 1]


def test_an_inception_block_puts_its_four_rectified_branches_side_by_side():
    torch.manual_seed(0)
    block = Inception(5, 3, (2, 4), (2, 6), 7, init="torch").double()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    kept = x.clone()

    def conv(x: Tensor, branch: nn.Module, index: int) -> Tensor:
        layer = [module for module in branch.modules() if isinstance(module, nn.Conv2d)][index]
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[2] // 2).relu()

    expected = [
        conv(x, block.direct, 0),
        conv(conv(x, block.three, 0), block.three, 1),
        conv(conv(x, block.five, 0), block.five, 1),
        conv(F.max_pool2d(x, 3, 1, padding=1), block.pooled, 0),
    ]
    torch.testing.assert_close(block(x), torch.cat(expected, 1))
    assert torch.equal(x, kept), "a branch has written into what the others read"


def test_auxiliary_heads_are_computed_in_training_alone():
    network, x = weightless(num_classes=4), torch.empty(1, 3, 224, 224, device="meta")
    calls: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, AuxiliaryHead):
            module.register_forward_hook(lambda module, _, __: calls.append(module))
    assert isinstance(network.train()(x), tuple)
    assert calls == [network.auxiliary_4a, network.auxiliary_4d]
    assert network.eval()(x).shape == (1, 4)
    assert len(calls) == 2


def test_without_auxiliary_heads_training_returns_logits():
    network = weightless(num_classes=4, auxiliary=False)
    assert network.train()(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 4)


def test_each_head_reads_the_block_that_it_stands_on():
    network, seen = weightless(), {}
    for name in ("inception_4a", "inception_4d"):
        network.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, y))
    for name in ("auxiliary_4a", "auxiliary_4d"):
        network.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0]))
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert seen["auxiliary_4a"] is seen["inception_4a"]
    assert seen["auxiliary_4d"] is seen["inception_4d"]


def test_images_of_another_size_are_refused_with_their_size():
    with pytest.raises(ValueError, match=r"expected crops of 224 pixels, got \[1, 3, 227, 227\]"):
        weightless()(torch.empty(1, 3, 227, 227, device="meta"))


def test_dropout_drops_what_the_prototxt_says():
    network = weightless()
    ratios = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert ratios == {"drop5": 0.4, "auxiliary_4a.drop": 0.7, "auxiliary_4d.drop": 0.7}
    assert draws(network)


def test_weights_learn_at_1_with_decay_and_biases_at_2_without():
    network = weightless()
    groups = {(group["lr_mult"], group["weight_decay"]): group["params"] for group in param_groups(network, 2e-4)}
    assert groups.keys() == {(1, 2e-4), (2, 0)}
    for kind, key in (("weight", (1, 2e-4)), ("bias", (2, 0))):
        named = [parameter for name, parameter in network.named_parameters() if name.endswith(kind)]
        assert [id(parameter) for parameter in groups[key]] == [id(parameter) for parameter in named]


def test_weights_are_xaviers_and_biases_start_at_a_fifth_except_the_classifiers():
    torch.manual_seed(0)
    layers = {name: module for name, module in GoogLeNet().named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert len(layers) == 3 + 9 * 6 + 1 + 2 * 3
    for name, layer in layers.items():
        values = layer.weight.detach()
        bound, count = math.sqrt(3 / values[0].numel()), values.numel()
        assert 1 - 20 / count < values.abs().max().item() / bound <= 1 + 1e-6, name
        # A uniform variable's square has a relative standard deviation of sqrt(0.8).
        assert values.std().item() == pytest.approx(bound / 3**0.5, rel=5 * 0.8**0.5 / 2 / count**0.5), name
        assert abs(values.mean().item()) < 5 * bound / (3 * count) ** 0.5, name
        assert torch.equal(layer.bias, torch.full_like(layer.bias, 0.0 if name in CLASSIFIERS else 0.2)), name


def test_two_steps_train_all_three_heads_with_a_loss_of_one_and_two_times_three_tenths():
    torch.manual_seed(0)
    network = GoogLeNet(num_classes=10)
    solver = caffe_sgd(network, momentum=0.9, weight_decay=2e-4)
    x, y = images(2), torch.tensor([3, 8])
    seed_step(0, 0)
    with torch.no_grad():
        main, first, second = (F.cross_entropy(head, y) for head in network(x))
    losses = []
    for iteration in range(2):
        seed_step(0, iteration)
        losses.append(reference_step(network, solver, x, y, lr=0.001))
        assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())
    assert network.loss_weights == (1, 0.3, 0.3)
    assert losses[0].item() == pytest.approx((main + 0.3 * first + 0.3 * second).item(), rel=1e-6)
    assert losses[1].isfinite()
    with torch.no_grad():
        assert F.cross_entropy(network.eval()(x), y) < main


def test_the_config_names_every_argument_and_builds_the_network():
    config = OmegaConf.create({"data": {"num_classes": 12}, "model": OmegaConf.load(CONF / "googlenet.yaml")})
    assert set(config.model) == {"_target_", "num_classes", "auxiliary", "init"}
    with torch.device("meta"):
        network = instantiate(config.model)
    assert isinstance(network, GoogLeNet)
    assert network.auxiliary_4d.classifier.out_features == network.classifier.out_features == 12


# ---- the loss of a network with several heads (training.engine) ------------------------------------------------------


class Heads(nn.Module):
    """As many linear classifiers as there are weights; one without weights returns its logits bare."""

    def __init__(self, loss_weights: tuple[float, ...], heads: int) -> None:
        super().__init__()
        self.loss_weights = loss_weights
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return tuple(head(x) for head in self.heads) if self.loss_weights else self.heads[0](x)


def gradients(loss_weights: tuple[float, ...], heads: int) -> tuple[Tensor, list[Tensor], Heads]:
    torch.manual_seed(0)
    network, x, y = Heads(loss_weights, heads).double(), torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 1, 0])
    loss = reference_step(network, caffe_sgd(network, momentum=0.0, weight_decay=0.0), x, y, lr=0.0)
    alone = [F.cross_entropy(head(x), y) for head in network.heads]
    return loss, alone, network


def test_a_head_counts_by_its_weight_in_the_loss_and_in_its_gradients():
    loss, alone, network = gradients((1.0, 0.3, 0.5), heads=3)
    torch.testing.assert_close(loss, alone[0] + 0.3 * alone[1] + 0.5 * alone[2])
    for head, own, weight in zip(network.heads, alone, network.loss_weights, strict=True):
        (expected,) = torch.autograd.grad(own, head.weight)
        torch.testing.assert_close(head.weight.grad, weight * expected)


def test_logits_outside_a_tuple_have_the_plain_loss_to_the_bit():
    loss, (alone,), _ = gradients((), heads=1)
    assert torch.equal(loss, alone.detach())


def test_more_heads_than_weights_are_refused():
    with pytest.raises(ValueError, match="zip"):
        gradients((1.0, 0.3), heads=3)


def test_princetons_fillers_are_gaussian_but_for_1x1_convolutions_and_biases_start_at_zero():
    network = GoogLeNet(num_classes=10, init="princeton")
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))
    stds = {
        "stem.0.0": 0.015, "stem.4.0": 0.02, "inception_3a.three.1.0": 0.04, "inception_5b.three.1.0": 0.04,
        "inception_3b.five.1.0": 0.08, "classifier": 0.01, "auxiliary_4a.fc": 0.01, "auxiliary_4d.classifier": 0.01,
    }  # fmt: skip
    for name, std in stds.items():
        weight = network.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(std, rel=0.05) and weight.abs().max() > 3 * std
    direct = network.inception_4b.direct[0].weight
    assert direct.abs().max() <= math.sqrt(3 / 512)  # Xavier's bound
    with pytest.raises(ValueError, match=r"^model\.init: expected 'caffe', 'princeton' or 'torch'"):
        weightless(init="typo")
