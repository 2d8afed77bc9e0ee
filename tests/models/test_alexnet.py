"""bvlc_alexnet and CaffeNet against their prototxts: sizes, fillers, multipliers, order of layers; and their LRN.

What needs no numbers runs on torch's meta device, where a network of 61 million parameters costs nothing.
"""

from pathlib import Path

import caffe_numpy
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from cyclical_lr.models.alexnet import AlexNet
from cyclical_lr.models.layers import AcrossChannelsLRN
from cyclical_lr.solvers import caffe_sgd, param_groups
from cyclical_lr.training.engine import draws, reference_step, seed_step

CONF = Path(__file__).parents[2] / "conf" / "model"
# name: (shape of the weights, standard deviation, bias in bvlc_alexnet, bias in CaffeNet)
BLOBS = {
    "conv1": ((96, 3, 11, 11), 0.01, 0, 0),
    "conv2": ((256, 48, 5, 5), 0.01, 0.1, 1),
    "conv3": ((384, 256, 3, 3), 0.01, 0, 0),
    "conv4": ((384, 192, 3, 3), 0.01, 0.1, 1),
    "conv5": ((256, 192, 3, 3), 0.01, 0.1, 1),
    "fc6": ((4096, 9216), 0.005, 0.1, 1),
    "fc7": ((4096, 4096), 0.005, 0.1, 1),
    "fc8": ((1000, 4096), 0.01, 0, 0),
}
SHAPES = {
    "conv1": (96, 55, 55),
    "reduce1": (96, 27, 27),
    "conv2": (256, 27, 27),
    "reduce2": (256, 13, 13),
    "conv3": (384, 13, 13),
    "conv4": (384, 13, 13),
    "conv5": (256, 13, 13),
    "pool5": (256, 6, 6),
    "fc6": (4096,),
    "fc7": (4096,),
    "fc8": (1000,),
}


@pytest.fixture(scope="module")
def networks() -> dict[bool, AlexNet]:
    """Both networks with their initial weights, by `caffenet`: for tests that leave the weights alone."""
    torch.manual_seed(0)
    return {caffenet: AlexNet(caffenet=caffenet).eval() for caffenet in (False, True)}


def weightless(**choices) -> AlexNet:
    with torch.device("meta"):
        return AlexNet(**choices)


def images(count: int, size: int = 227, scale: float = 60.0) -> Tensor:
    """Noise as large as pixels minus their mean; a fixed draw."""
    return scale * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("caffenet", [False, True])
def test_both_networks_have_the_60965224_parameters_of_the_prototxts(caffenet):
    network = weightless(caffenet=caffenet)
    assert sum(parameter.numel() for parameter in network.parameters()) == 60_965_224
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert shapes == {
        f"{name}.{kind}": shape if kind == "weight" else shape[:1]
        for name, (shape, *_) in BLOBS.items()
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("caffenet", [False, True])
def test_every_blocks_output_has_its_size(caffenet):
    network, found = weightless(caffenet=caffenet), {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, y, name=name: found.__setitem__(name, tuple(y.shape[1:])))
    assert network(torch.empty(2, 3, 227, 227, device="meta")).shape == (2, 1000)
    assert {name: found[name] for name in SHAPES} == SHAPES


def test_224_pixels_give_the_same_sizes_from_the_first_pooling_on_because_it_rounds_up():
    network = weightless(num_classes=7)
    network.conv1.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[2:])))
    network.reduce1.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[2:])))
    sizes: list[tuple[int, ...]] = []
    assert network(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 7)
    assert sizes == [(54, 54), (27, 27)]


def test_images_of_another_size_are_refused_with_their_size():
    with pytest.raises(ValueError, match=r"expected crops of 227 or 224 pixels, got \[1, 3, 256, 256\]"):
        weightless()(torch.empty(1, 3, 256, 256, device="meta"))


@pytest.mark.parametrize("caffenet", [False, True])
def test_each_parameter_is_filled_as_the_prototxt_says(networks, caffenet):
    for name, (_, std, alexnets_bias, caffenets_bias) in BLOBS.items():
        layer = networks[caffenet].get_submodule(name)
        values = layer.weight.detach().flatten()[:400_000]
        assert abs(values.mean().item()) < 5 * std / len(values) ** 0.5, name
        assert values.std().item() == pytest.approx(std, rel=5 / (2 * len(values)) ** 0.5), name
        assert values.abs().max().item() > 3.5 * std, f"{name} has no tail: truncated or uniform"
        assert torch.equal(layer.bias, torch.full_like(layer.bias, caffenets_bias if caffenet else alexnets_bias)), name


def test_weights_learn_at_1_with_decay_and_biases_at_2_without():
    network = weightless()
    groups = {(group["lr_mult"], group["weight_decay"]): group["params"] for group in param_groups(network, 5e-4)}
    weights = [parameter for name, parameter in network.named_parameters() if name.endswith("weight")]
    biases = [parameter for name, parameter in network.named_parameters() if name.endswith("bias")]
    assert groups.keys() == {(1, 5e-4), (2, 0)}
    assert [id(parameter) for parameter in groups[1, 5e-4]] == [id(parameter) for parameter in weights]
    assert [id(parameter) for parameter in groups[2, 0]] == [id(parameter) for parameter in biases]


def by_hand(state: dict[str, Tensor], x: Tensor, pool_first: bool) -> Tensor:
    """The forward pass in evaluation from the prototxt: groups as separate convolutions, torch's own LRN."""

    def conv(name: str, x: Tensor, groups: int = 1, **choices) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        parts = zip(x.chunk(groups, 1), weight.chunk(groups), bias.chunk(groups), strict=True)
        return torch.cat([F.conv2d(*part, **choices) for part in parts], 1).relu()

    def reduce(x: Tensor) -> Tensor:
        steps = [lambda x: F.local_response_norm(x, 5, 1e-4, 0.75, k=1.0), lambda x: F.max_pool2d(x, 3, 2)]
        for step in reversed(steps) if pool_first else steps:
            x = step(x)
        return x

    x = reduce(conv("conv1", x, stride=4))
    x = reduce(conv("conv2", x, groups=2, padding=2))
    x = conv("conv4", conv("conv3", x, padding=1), groups=2, padding=1)
    x = F.max_pool2d(conv("conv5", x, groups=2, padding=1), 3, 2).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
    return F.linear(x, state["fc8.weight"], state["fc8.bias"])


@pytest.mark.parametrize("caffenet", [False, True])
@torch.no_grad()
def test_logits_are_the_prototxts_with_its_groups_and_its_order_of_norm_and_pooling(networks, caffenet):
    network, x = networks[caffenet], images(1, scale=2000.0)  # so large that the norms matter
    state = network.state_dict()
    logits, right, wrong = network(x), by_hand(state, x, caffenet), by_hand(state, x, not caffenet)
    spread = right.std()
    assert (logits - right).abs().max() < 1e-4 * spread
    assert (logits - wrong).abs().max() > 1e-2 * spread


def test_dropout_of_a_half_follows_fc6_and_fc7_in_training_alone_and_obeys_the_seed(networks):
    network = networks[False]
    assert draws(network)
    kept: list[float] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: kept.append((inputs[0] != 0).double().mean().item()))
        for layer in (network.fc6, network.fc7, network.fc8)
    ]
    x = torch.ones(1, 3, 227, 227)
    with torch.no_grad():
        outputs = []
        network.train()
        for seed in (0, 0, 1):
            seed_step(seed, iteration=3)
            outputs.append(network(x))
        network.eval()
        outputs += [network(x), network(x)]
    for hook in hooks:
        hook.remove()
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[3], outputs[4])
    assert not torch.equal(outputs[0], outputs[2]) and not torch.equal(outputs[0], outputs[3])
    for index in (1, 2):  # the inputs of fc7 and fc8; ReLU alone leaves the fractions of the evaluation
        assert kept[index] == pytest.approx(kept[9 + index] / 2, abs=0.05)
    assert kept[0] == kept[9]


def test_a_step_moves_each_blob_by_its_multipliers_and_two_steps_lower_the_loss():
    torch.manual_seed(0)
    network = AlexNet(num_classes=10)
    solver = caffe_sgd(network, momentum=0.9, weight_decay=5e-4)
    x, y, lr = images(2), torch.tensor([3, 8]), 0.01
    before = {name: value.clone() for name, value in network.fc8.state_dict().items()}
    seed_step(0, 0)
    losses = [reference_step(network, solver, x, y, lr)]
    weight, bias = network.fc8.weight, network.fc8.bias
    expected = before["weight"] - lr * (weight.grad + 5e-4 * before["weight"])
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(bias.detach(), before["bias"] - 2 * lr * bias.grad, rtol=0, atol=1e-6)
    assert bias.grad.abs().max() > 0.1
    seed_step(0, 1)
    losses.append(reference_step(network, solver, x, y, lr))
    with torch.no_grad():
        after = F.cross_entropy(network.eval()(x), y)
    assert losses[0].item() == pytest.approx(np.log(10), rel=0.2)
    assert after < losses[1] < losses[0]


@pytest.mark.parametrize("name", ["alexnet", "caffenet"])
def test_the_config_names_every_argument_and_builds_its_network(name):
    config = OmegaConf.create({"data": {"num_classes": 12}, "model": OmegaConf.load(CONF / f"{name}.yaml")})
    assert set(config.model) == {"_target_", "num_classes", "caffenet", "init"}
    with torch.device("meta"):
        network = instantiate(config.model)
    assert isinstance(network, AlexNet)
    assert network.fc8.out_features == 12
    first = network.reduce1[0]
    assert isinstance(first, nn.MaxPool2d if name == "caffenet" else AcrossChannelsLRN)


def test_torchs_initialisation_keeps_the_multipliers():
    network = AlexNet(num_classes=2, init="torch")
    assert network.fc7.weight.abs().max() <= 4096**-0.5 * (1 + 1e-6)
    assert network.fc7.bias.std() > 0
    assert network.fc7.caffe_params["bias"].lr_mult == 2
    with pytest.raises(ValueError, match=r"model\.init.*'gauss'"):
        weightless(init="gauss")


# ---- local response normalisation across channels --------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "size"), [(8, 5), (3, 5), (1, 5), (7, 3), (4, 1)])
@pytest.mark.parametrize(("alpha", "beta"), [(1e-4, 0.75), (2.0, 0.75), (0.5, 0.6)])
def test_the_norm_equals_torchs_with_k_one_and_caffes_formula(channels, size, alpha, beta, memory_format):
    generator = torch.Generator().manual_seed(0)
    x = 30 * torch.randn(2, channels, 4, 5, dtype=torch.float64, generator=generator)
    upstream = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    results = []
    for norm in (AcrossChannelsLRN(size, alpha, beta), nn.LocalResponseNorm(size, alpha, beta, k=1.0)):
        leaf = x.clone(memory_format=memory_format).requires_grad_()
        y = norm(leaf)
        y.backward(upstream)
        results.append((y.detach(), leaf.grad))
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-11, atol=1e-12)
    expected, backward = caffe_numpy.lrn_across_channels(x.numpy(), size, alpha, beta)
    np.testing.assert_allclose(results[0][0].numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(results[0][1].numpy(), backward(upstream.numpy())[0], rtol=1e-6, atol=1e-9)


def test_an_even_window_is_refused():
    with pytest.raises(ValueError, match="odd number of channels, got 4"):
        AcrossChannelsLRN(4, 1e-4, 0.75)
