"""The port beside Caffe itself: a few iterations in double precision, recorded by tests/caffe/record.py."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caffe.record import CASES, kept, noise, start
from small_runs import CONF
from torch import Tensor, nn
from torch.nn import functional as F

from cyclical_lr.data.cifar import CifarData
from cyclical_lr.models.layers import CaffeBatchNorm
from cyclical_lr.records import build
from cyclical_lr.training.config import compose_config, plain
from cyclical_lr.training.engine import reference_step

RECORDED = dict(np.load(Path(__file__).parent / "caffe" / "recorded.npz"))
CIFAR = [case for case in CASES if case.startswith("cifar10")]
IMAGENET = [case for case in CASES if case.startswith("imagenet")]
GOOGLENET = {
    **{"stem.0.0.": "conv1/7x7_s2.", "stem.3.0.": "conv2/3x3_reduce.", "stem.4.0.": "conv2/3x3."},
    **{".direct.0": "/1x1", ".three.0.0": "/3x3_reduce", ".three.1.0": "/3x3"},
    **{".five.0.0": "/5x5_reduce", ".five.1.0": "/5x5", ".pooled.1.0": "/pool_proj"},
    **{"auxiliary_4a.": "loss1/", "auxiliary_4d.": "loss2/", "conv.0.": "conv."},
}
Batches = Callable[[int], tuple[Tensor, Tensor]]
"""From an iteration to its images, float64 [N, 3, H, W], and labels."""


def blobs(network: nn.Module) -> dict[str, Tensor]:
    """The network's parameters under Caffe's names."""

    def caffes(name: str) -> str:
        for ours, theirs in {"weight": "0", "bias": "1", **GOOGLENET}.items():
            name = name.replace(ours, theirs)
        return f"loss3/{name}" if name.startswith("classifier") else name

    return {caffes(name): parameter.detach() for name, parameter in network.named_parameters()}


def composed(case: str, *overrides: str) -> dict[str, Any]:
    return plain(compose_config(CONF, [*f"+experiment={case}".split(), *overrides]))


@cache
def images(root: Path, batch_size: int) -> CifarData:
    data = build(composed("cifar10_fixed", f"data.root={root}", f"data.batch_size={batch_size}")["data"])
    data.setup("fit")
    return data


def cifar(root: Path, case: str) -> tuple[Batches, Batches]:
    """Training and test batches, the mean image subtracted in double precision."""
    data = images(root, composed(case)["data"]["batch_size"])

    def batch(of: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        part = getattr(data, of)
        x = part.pixels[indices].double() - part.mean.double()
        return x.permute(0, 3, 1, 2), part.labels[indices]

    tested = torch.arange(CASES[case].tested)
    return lambda t: batch("train", data.indices(0, t, 1)[0]), lambda _: batch("test", tested)


def two_images(side: int) -> Batches:
    return lambda _: (torch.from_numpy(noise((2, 3, side, side), 128.0)), torch.arange(2))


def single(value: Any) -> Any:
    """Caffe keeps its settings in single precision."""
    return float(np.float32(value)) if isinstance(value, float) else value


def trained(case: str, batches: Batches, *overrides: str) -> nn.Module:
    """The network after the steps that Caffe took, from the same weights."""
    plan = composed(case, *overrides)
    network = build(plan["model"]).double()
    network.loss_weights = tuple(map(single, getattr(network, "loss_weights", ())))
    for value in blobs(network).values():
        value.copy_(torch.from_numpy(start(value.shape)))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    solver = build({key: single(value) for key, value in plan["solver"].items()}, network)
    for iteration, lr in enumerate(CASES[case].lrs()):
        reference_step(network, solver, *batches(iteration), lr)
    return network.eval()


def apart(case: str, network: nn.Module) -> dict[str, float]:
    """Of each parameter the distance to Caffe's, as a part of the way that Caffe's has gone."""

    def distance(name: str, value: Tensor) -> float:
        caffes = RECORDED[f"{case}/{name}"]
        way = np.linalg.norm(caffes - kept(start(value.shape)))
        return float(np.linalg.norm(kept(value.numpy()) - caffes) / way)

    return {name: distance(name, value) for name, value in blobs(network).items()}


def evaluated(network: nn.Module, batches: Batches) -> tuple[float, float]:
    """Loss and accuracy."""
    x, y = batches(0)
    with torch.no_grad():
        logits = network(x)
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).double().mean())


@pytest.mark.slow
@pytest.mark.parametrize("case", CIFAR)
def test_five_iterations_on_cifar10_end_where_caffes_do(case, real_data):
    training, testing = cifar(real_data, case)
    network = trained(case, training)
    distances = apart(case, network)
    assert max(distances.values()) < 1e-8, distances

    for name, norm in network.named_children():
        if isinstance(norm, CaffeBatchNorm):
            mean, variance, total = (RECORDED[f"{case}/{name}.{i}"] for i in range(3))
            np.testing.assert_allclose(kept((norm.mean / norm.total).numpy()), mean / total, rtol=0, atol=1e-7)
            np.testing.assert_allclose(kept((norm.variance / norm.total).numpy()), variance / total, rtol=1e-7)
    caffes = [RECORDED[f"{case}/test.{what}"].item() for what in ("loss", "accuracy")]
    assert evaluated(network, testing) == pytest.approx(caffes, rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("case", IMAGENET)
def test_three_iterations_of_imagenets_networks_end_where_caffes_do(case):
    batches = two_images(224 if "googlenet" in case else 227)
    network = trained(case, batches)
    distances = apart(case, network)
    assert max(distances.values()) < 1e-8, distances
    outputs = ("loss3/loss3", "loss3/top-1") if "googlenet" in case else ("loss", "accuracy")
    assert evaluated(network, batches) == pytest.approx(
        [RECORDED[f"{case}/test.{o}"].item() for o in outputs], rel=1e-8
    )


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["solver=torch_sgd", "solver.multipliers=false", "model.lrn=none"])
def test_a_mistake_would_show(mistake, real_data):
    network = trained("cifar10_fixed", cifar(real_data, "cifar10_fixed")[0], mistake)
    assert max(apart("cifar10_fixed", network).values()) > 1e-4
