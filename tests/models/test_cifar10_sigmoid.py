"""Figure 6's networks and Caffe's BatchNorm against NumPy (`caffe_numpy`), values and gradients, in float64."""

import caffe_numpy
import numpy as np
import pytest
import torch
from caffe_numpy import average_pool, convolution, inner_product, max_pool, sigmoid, softmax_loss
from torch import nn

from cyclical_lr.models.cifar10_sigmoid import Cifar10Sigmoid
from cyclical_lr.models.layers import CaffeBatchNorm

BATCH = 3
# The prototxts' fields of each blob: shape, standard deviation of the filler, lr_mult, decay_mult.
PLAIN = {
    "conv1.weight": ((32, 3, 5, 5), 1e-4, 1, 1),
    "conv1.bias": ((32,), 0.0, 2, 1),
    "conv2.weight": ((32, 32, 5, 5), 0.01, 1, 1),
    "conv2.bias": ((32,), 0.0, 2, 1),
    "conv3.weight": ((64, 32, 5, 5), 0.01, 1, 1),
    "conv3.bias": ((64,), 0.0, 1, 1),
    "ip1.weight": ((10, 1024), 0.01, 1, 0),
    "ip1.bias": ((10,), 0.0, 2, 0),
}
NORMALISED = {
    "conv1.weight": ((32, 3, 5, 5), 1e-4, 1, 1),
    "conv2.weight": ((32, 32, 5, 5), 0.01, 1, 1),
    "conv3.weight": ((64, 32, 5, 5), 0.01, 1, 1),
    "ip1.weight": ((10, 1024), 0.01, 1, 1),
    "ip1.bias": ((10,), 0.0, 1, 0),
}
TABLES = {False: PLAIN, True: NORMALISED}


def lively_parameters(rng: np.random.Generator, batch_norm: bool) -> caffe_numpy.Parameters:
    """Weights under which the sigmoids are neither all linear nor all saturated."""
    std = {"conv1": 0.002, "conv2": 0.1, "conv3": 0.1, "ip1": 0.1}
    return {name: rng.normal(0, std[name.split(".")[0]], shape) for name, (shape, *_) in TABLES[batch_norm].items()}


def reference(parameters: caffe_numpy.Parameters, images: np.ndarray, labels: np.ndarray, batch_norm: bool):
    """Logits, loss and the gradient of every parameter, in training."""

    def bias(name: str) -> np.ndarray:
        return parameters.get(f"{name}.bias", np.zeros(len(parameters[f"{name}.weight"])))

    def norm(x: np.ndarray):
        return caffe_numpy.batch_norm(x) if batch_norm else (x, lambda dy: (dy,))

    blocks = {
        "conv1": (max_pool, norm, sigmoid),
        "conv2": (norm, sigmoid, average_pool),
        "conv3": (norm, sigmoid, average_pool),
    }
    x, backs = images, []
    for name, layers in blocks.items():
        x, conv_back = convolution(x, parameters[f"{name}.weight"], bias(name), pad=2)
        layer_backs = []
        for layer in layers:
            x, back = layer(x)
            layer_backs.append(back)
        backs.append((name, conv_back, layer_backs))
    logits, ip1_back = inner_product(x, parameters["ip1.weight"], bias("ip1"))
    loss, loss_back = softmax_loss(logits, labels)

    g: caffe_numpy.Parameters = {}
    d, g["ip1.weight"], g["ip1.bias"] = ip1_back(*loss_back())
    for name, conv_back, layer_backs in reversed(backs):
        for back in reversed(layer_backs):
            (d,) = back(d)
        d, g[f"{name}.weight"], g[f"{name}.bias"] = conv_back(d)
    return logits, loss, {name: g[name] for name in parameters}


def port_with(parameters: caffe_numpy.Parameters, batch_norm: bool) -> Cifar10Sigmoid:
    model = Cifar10Sigmoid(batch_norm=batch_norm).double()
    for name, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(parameters[name].copy())
    return model


@pytest.mark.parametrize("batch_norm", [False, True])
def test_logits_loss_and_all_gradients_equal_the_reference(batch_norm):
    rng = np.random.default_rng(0)
    parameters = lively_parameters(rng, batch_norm)
    images, labels = caffe_numpy.images_like_cifar(rng, BATCH)
    model = port_with(parameters, batch_norm)
    logits = model(torch.from_numpy(images))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()

    expected_logits, expected_loss, expected = reference(parameters, images, labels, batch_norm)
    np.testing.assert_allclose(logits.detach().numpy(), expected_logits, rtol=1e-6)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-9)
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert gradients.keys() == expected.keys() == TABLES[batch_norm].keys()
    for name, gradient in gradients.items():
        scale = np.abs(expected[name]).max()
        assert scale > 1e-6, f"{name} is nearly zero: the comparison would prove nothing"
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-6, atol=1e-9 * scale, err_msg=name)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_blobs_are_those_of_the_prototxt(batch_norm):
    torch.manual_seed(0)
    model = Cifar10Sigmoid(batch_norm=batch_norm)
    multipliers = {
        f"{layer}.{kind}": (param.lr_mult, param.decay_mult)
        for layer, module in model.named_children()
        for kind, param in getattr(module, "caffe_params", {}).items()
    }
    table = TABLES[batch_norm]
    assert multipliers == {name: fields[2:] for name, fields in table.items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == (89_450 if batch_norm else 89_578)
    for name, parameter in model.named_parameters():
        shape, std, *_ = table[name]
        assert parameter.shape == shape
        if std == 0:
            assert torch.all(parameter == 0)
        else:
            assert parameter.std().item() == pytest.approx(std, rel=5 / np.sqrt(2 * parameter.numel()))


def test_its_choices_are_those_of_cifar10_full():
    assert Cifar10Sigmoid(num_classes=100)(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    assert Cifar10Sigmoid(ceil_mode=False).ip1.in_features == 576
    assert Cifar10Sigmoid(init="torch").conv1.weight.std() > 0.01
    with pytest.raises(ValueError, match=r"init.*kaiming"):
        Cifar10Sigmoid(init="kaiming")


# ---- BatchNorm's statistics ------------------------------------------------------------------------------------------


def batches(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 5, (1, 4, 1, 1))
    return [rng.normal(0, 1 + step, (6, 4, 3, 5)) + offsets * step for step in range(1, count + 1)]


@pytest.mark.parametrize("seen", [0, 1, 2, 7])
@pytest.mark.parametrize("fraction", [0.999, 0.5])
def test_evaluation_uses_the_corrected_averages_of_the_training_batches(seen, fraction):
    *training, held_out = batches(seen + 1)
    port, expected = CaffeBatchNorm(4, moving_average_fraction=fraction).double(), caffe_numpy.BatchNormStatistics(4)
    for batch in training:
        port(torch.from_numpy(batch))
        expected.see(batch, fraction)
    port.eval()
    evaluated = [port(torch.from_numpy(held_out)).numpy() for _ in range(2)]
    np.testing.assert_allclose(evaluated[0], expected.normalise(held_out), rtol=1e-9)
    np.testing.assert_array_equal(evaluated[0], evaluated[1], err_msg="evaluation must leave the averages alone")


def test_torchs_own_batch_norm_with_the_same_fraction_evaluates_differently_at_first():
    *training, held_out = (torch.from_numpy(batch) for batch in batches(8))
    port, torchs = CaffeBatchNorm(4).double(), nn.BatchNorm2d(4, affine=False, momentum=0.001).double()
    for batch in training:
        assert torch.equal(port(batch), torchs(batch))
    gap = (port.eval()(held_out) - torchs.eval()(held_out)).abs().max() / port(held_out).abs().max()
    assert gap > 1


def test_before_any_training_the_network_evaluates_to_finite_logits():
    model = Cifar10Sigmoid(batch_norm=True).eval()
    images, _ = caffe_numpy.images_like_cifar(np.random.default_rng(0), 2)
    logits = model(torch.from_numpy(images).float())
    assert torch.isfinite(logits).all()


def test_the_averages_travel_in_the_state_dict_and_are_no_parameters():
    model, restored = Cifar10Sigmoid(batch_norm=True), Cifar10Sigmoid(batch_norm=True)
    images = torch.from_numpy(caffe_numpy.images_like_cifar(np.random.default_rng(0), 4)[0]).float()
    with torch.no_grad():
        for _ in range(3):
            model(images)
    restored.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images), restored.eval()(images))
    assert set(model.state_dict()) - {name for name, _ in model.named_parameters()} == {
        f"bn{layer}.{name}" for layer in (1, 2, 3) for name in ("mean", "variance", "total")
    }
