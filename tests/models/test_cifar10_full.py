"""cifar10_full against the same network in NumPy (`caffe_numpy`), its initialisation, and its multipliers.

Values and gradients are compared in float64 with weights large enough that every layer matters
(`caffe_numpy.lively_parameters`); the prototxt's table is `caffe_numpy.CIFAR10_FULL`.
"""

import caffe_numpy
import numpy as np
import pytest
import torch
from torch import nn

from cyclical_lr.models.cifar10_full import Cifar10Full

NAMES = list(caffe_numpy.CIFAR10_FULL)
BATCH = 3


def port_with(parameters: caffe_numpy.Parameters, **choices) -> Cifar10Full:
    """The port in float64 with every parameter set; strict names, so that none keeps its initial value."""
    model = Cifar10Full(**choices).double()
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in parameters.items()}, strict=True)
    return model


def logits_loss_gradients(
    model: nn.Module, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, float, caffe_numpy.Parameters]:
    logits = model(torch.from_numpy(images))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    loss.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return logits.detach().numpy(), loss.item(), gradients


def assert_agree(actual: np.ndarray, expected: np.ndarray, name: str) -> None:
    scale = np.abs(expected).max()
    assert scale > 1e-4, f"{name} is nearly zero: the comparison would prove nothing"
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-11 * scale, err_msg=name)


def assert_network_agrees(model: nn.Module, parameters, images, labels, **choices) -> None:
    logits, loss, gradients = logits_loss_gradients(model, images, labels)
    expected_logits, expected_loss, expected_gradients = caffe_numpy.cifar10_full(parameters, images, labels, **choices)
    assert_agree(logits, expected_logits, "logits")
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert gradients.keys() == expected_gradients.keys()
    for name in NAMES:
        assert_agree(gradients[name], expected_gradients[name], name)


@pytest.mark.parametrize("seed", [0, 1])
def test_logits_loss_and_all_gradients_equal_the_reference(seed):
    rng = np.random.default_rng(seed)
    parameters, (images, labels) = caffe_numpy.lively_parameters(rng), caffe_numpy.images_like_cifar(rng, BATCH)
    assert_network_agrees(port_with(parameters), parameters, images, labels)


def test_channels_last_memory_changes_nothing():
    rng = np.random.default_rng(2)
    parameters, (images, labels) = caffe_numpy.lively_parameters(rng), caffe_numpy.images_like_cifar(rng, BATCH)
    model = port_with(parameters).to(memory_format=torch.channels_last)
    assert_network_agrees(model, parameters, images, labels)


@pytest.mark.parametrize(
    ("ceil_mode", "lrn"),
    [(True, "across_channels"), (True, "none"), (False, "within_channel"), (False, "across_channels")],
)
def test_each_deviation_from_caffe_is_what_its_name_says(ceil_mode, lrn):
    rng = np.random.default_rng(3)
    parameters = caffe_numpy.lively_parameters(rng, ip1_inputs=1024 if ceil_mode else 64 * 3 * 3)
    images, labels = caffe_numpy.images_like_cifar(rng, 2)
    model = port_with(parameters, ceil_mode=ceil_mode, lrn=lrn)
    assert_network_agrees(model, parameters, images, labels, ceil_mode=ceil_mode, lrn=lrn)


def test_the_norms_change_the_answer_so_that_a_wrong_one_cannot_pass():
    rng = np.random.default_rng(3)
    parameters, (images, _) = caffe_numpy.lively_parameters(rng), caffe_numpy.images_like_cifar(rng, 2)
    within, across, none = (
        port_with(parameters, lrn=lrn)(torch.from_numpy(images)).detach()
        for lrn in ("within_channel", "across_channels", "none")
    )
    for one, other in ((within, across), (within, none), (across, none)):
        assert (one - other).abs().max() > 0.05 * within.abs().max()


def test_float32_agrees_with_the_reference_to_its_own_precision():
    rng = np.random.default_rng(4)
    parameters, (images, labels) = caffe_numpy.lively_parameters(rng), caffe_numpy.images_like_cifar(rng, BATCH)
    logits, _, _ = logits_loss_gradients(port_with(parameters).float(), images.astype(np.float32), labels)
    expected, _, _ = caffe_numpy.cifar10_full(parameters, images, labels)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def test_the_network_behaves_the_same_in_training_and_evaluation():
    rng = np.random.default_rng(5)
    images = torch.from_numpy(caffe_numpy.images_like_cifar(rng, 2)[0])
    model = port_with(caffe_numpy.lively_parameters(rng))
    assert torch.equal(model.train()(images), model.eval()(images))


# ---- initialisation and multipliers ----------------------------------------------------------------------------------


def seeded(seed: int = 0, **choices) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: parameter.detach() for name, parameter in Cifar10Full(**choices).named_parameters()}


def test_parameters_have_the_names_shapes_and_number_of_the_prototxt():
    shapes = {name: tuple(parameter.shape) for name, parameter in seeded().items()}
    assert shapes == {name: shape for name, (shape, *_) in caffe_numpy.CIFAR10_FULL.items()}
    per_layer = {
        layer: sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(layer))
        for layer in ("conv1", "conv2", "conv3", "ip1")
    }
    assert per_layer == {"conv1": 2_432, "conv2": 25_632, "conv3": 51_264, "ip1": 10_250}
    assert sum(per_layer.values()) == 89_578


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_is_filled_as_the_prototxt_says(name):
    values, std = seeded()[name].double().numpy(), caffe_numpy.CIFAR10_FULL[name][1]
    if std == 0.0:
        assert not values.any()
        return
    assert abs(values.mean()) < 5 * std / np.sqrt(values.size)
    assert values.std() == pytest.approx(std, rel=5 / np.sqrt(2 * values.size))
    assert np.abs(values).max() > 2.5 * std, "no tail: truncated or uniform"


def test_every_parameter_carries_the_prototxts_multipliers():
    model = Cifar10Full()
    found = {
        f"{layer}.{kind}": (param.lr_mult, param.decay_mult)
        for layer, module in model.named_children()
        if hasattr(module, "caffe_params")
        for kind, param in module.caffe_params.items()
    }
    assert found == {
        "conv1.weight": (1, 1),
        "conv1.bias": (2, 1),
        "conv2.weight": (1, 1),
        "conv2.bias": (2, 1),
        "conv3.weight": (1, 1),
        "conv3.bias": (1, 1),
        "ip1.weight": (1, 250),
        "ip1.bias": (2, 0),
    }
    assert found == caffe_numpy.MULTIPLIERS


def test_a_seed_fixes_the_weights_and_another_gives_others():
    first, again, other = seeded(0), seeded(0), seeded(1)
    for name in NAMES:
        assert torch.equal(first[name], again[name])
        if name.endswith("weight"):
            assert not torch.equal(first[name], other[name])
            assert not torch.isclose(first[name].flatten()[:10], other[name].flatten()[:10]).any()


def test_layers_do_not_share_their_random_numbers():
    weights = {name: value.flatten()[:50] / value.std() for name, value in seeded().items() if name.endswith("weight")}
    names = list(weights)
    for index, name in enumerate(names):
        for other in names[index + 1 :]:
            assert not torch.isclose(weights[name], weights[other], rtol=1e-2).all()


def test_floor_pooling_leaves_three_by_three_pixels_to_the_classifier():
    assert seeded(ceil_mode=False)["ip1.weight"].shape == (10, 576)
    assert seeded(ceil_mode=True)["ip1.weight"].shape == (10, 1024)


def test_the_number_of_classes_sets_the_outputs():
    model = Cifar10Full(num_classes=100)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
    assert model.ip1.weight.shape == (100, 1024)


def test_torchs_initialisation_is_torchs_own_and_keeps_caffes_multipliers():
    default = seeded(init="torch")
    for name, fan_in in {"conv1": 75, "conv2": 800, "conv3": 800, "ip1": 1024}.items():
        # torch fills weights and biases uniformly within one over the root of fan_in.
        bound = fan_in**-0.5
        for kind in ("weight", "bias"):
            values = default[f"{name}.{kind}"]
            assert values.abs().max().item() <= bound * (1 + 1e-6)
            assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.5 if kind == "bias" else 0.05)
    model = Cifar10Full(init="torch")
    assert model.ip1.caffe_params["weight"].decay_mult == 250.0
    assert model.conv2.caffe_params["bias"].lr_mult == 2.0


@pytest.mark.parametrize(("key", "value"), [("lrn", "across"), ("init", "kaiming")])
def test_an_unknown_choice_is_refused_with_its_key_and_value(key, value):
    with pytest.raises(ValueError, match=rf"{key}.*{value}"):
        Cifar10Full(**{key: value})
