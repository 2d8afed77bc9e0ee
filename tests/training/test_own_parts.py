"""A network, solver or data set of a user's own: what training cannot use is refused, with a reason, before it."""

import pytest
import torch
from small_runs import CONF, TinyData, checkpoint, checkpoints, curve, records_in
from small_runs import train as trained
from torch import nn

from cyclical_lr.data.cifar import CifarData, ImageSet
from cyclical_lr.records import ConfigError
from cyclical_lr.report.budget import budget_table
from cyclical_lr.report.collect import collect
from cyclical_lr.report.paper import read_paper


class Net(nn.Module):
    """Right."""

    def __init__(self, num_classes: int, scores: int | None = None):
        super().__init__()
        self.layer = nn.Linear(3, scores or num_classes)

    def forward(self, x):
        return self.layer(x.mean((2, 3)))


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class Lazy(Net):
    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.layer = nn.LazyLinear(num_classes)


def number(num_classes):
    return num_classes


def forgets(network):
    torch.optim.SGD(network.parameters(), 0.1)


def schedules(network):
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(network.parameters(), 0.1), 1)


def closes(network):
    return torch.optim.LBFGS(network.parameters())


def multiplies(network):
    return torch.optim.SGD([{"params": network.parameters(), "lr_mult": "3"}], 0.1)


class Mine(TinyData):
    """A set of its own, of random pixels, under a name of its own."""

    size: tuple[int, ...] = 32, 32, 3

    def setup(self, stage=None):
        draw = torch.Generator().manual_seed(0)
        for split in ("train", "test"):
            pixels = torch.randint(256, (40, *self.size), dtype=torch.uint8, generator=draw)
            labels = torch.randint(10, (40,), generator=draw)
            setattr(self, split, ImageSet(pixels, labels, torch.zeros(()), 1.0, None))


class Empty(CifarData):
    def setup(self, stage=None):
        pass


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=own", "model._target_=test_own_parts.Pair"], r"model: .*Pair to score n images as \[n, 10\].* tuple"),
        (["model=own", "model._target_=test_own_parts.Net", "+model.scores=3"], r"model: .*\[n, 10\], got \[2, 3\]"),
        (
            ["model=own", "model._target_=test_own_parts.Lazy"],
            "model: expected .*Lazy to give a .* known sizes, got Lazy with lazy",
        ),
        (
            ["model=own", "model._target_=test_own_parts.number"],
            "model: expected .*number to give a torch.nn.Module .*, got int",
        ),
        (
            ["solver=own", "solver._target_=test_own_parts.forgets"],
            "solver: expected .*, got NoneType from .*forgets",
        ),
        (["solver=own", "solver._target_=test_own_parts.schedules"], "solver: expected .*, got StepLR"),
        (["solver=own", "solver._target_=test_own_parts.closes"], "solver: expected .* needs no closure, got LBFGS"),
        (["solver=own", "solver._target_=test_own_parts.multiplies"], "solver: .*lr_mult: expected .*, got '3'"),
        (
            ["data._target_=test_own_parts.Empty"],
            r"data: expected setup\(\) of .*Empty to make self.train and self.test",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=f"^{said}"):
        trained(tmp_path, *overrides)
    assert not list((tmp_path / "results").rglob("*.json"))


def test_what_can_be_trained_is(tmp_path):
    trained(tmp_path, "model=own", "model._target_=test_own_parts.Net")
    assert records_in(tmp_path)[0].status == "done"


class Watched(Net):
    """A network with part of it in evaluation mode, and with a memory of how often it was called."""

    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(3).eval()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(self.norm(x)) + self.calls


class Mnist(Mine):
    """Images of another size."""

    size = 28, 28, 1


class Flat(Net):
    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.layer = nn.Linear(784, num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1))


def test_a_network_is_as_it_was_made_when_training_starts_whatever_trains_beside_it(tmp_path):
    own = ["model=own", "model._target_=test_own_parts.Watched"]
    trained(tmp_path / "alone", *own, "seed=1")
    trained(tmp_path / "together", *own, "seed=[0,1]")
    alone, (_, beside) = records_in(tmp_path / "alone")[0], records_in(tmp_path / "together")
    assert curve(tmp_path / "alone", alone.run_id) == curve(tmp_path / "together", beside.run_id)
    (saved, *_) = checkpoints(tmp_path / "alone", alone.run_id)
    network = checkpoint(saved)["network"]
    assert torch.equal(network["norm.running_mean"], torch.zeros(3))


def test_images_of_another_size_train_with_a_network_for_them(tmp_path):
    own = [
        "model=own",
        "model._target_=test_own_parts.Flat",
        "data._target_=test_own_parts.Mnist",
        "data.name=grey",
        "data.mean=none",
    ]
    trained(tmp_path, *own)
    assert records_in(tmp_path)[0].status == "done"


def test_a_set_that_is_cifars_keeps_to_its_names(tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.name: expected one of cifar10, .*, got 'cifar1O'"):
        trained(tmp_path, "data.name=cifar1O")


def test_versions_of_a_set_of_ones_own_have_labels_of_their_own(tmp_path):
    for version in ("aaaa", "bbbb"):
        trained(tmp_path, "data._target_=test_own_parts.Mine", "data.name=mine", f"data.train_sha256={version}")
    assert len({record.label for record in records_in(tmp_path)}) == 2


def test_a_set_of_ones_own_has_a_name_and_a_section_of_its_own_and_no_checksum_of_cifars(tmp_path):
    for seed in range(2):
        for data in ("data.mean=pixel", "data.mean=none"):
            trained(tmp_path, "data._target_=test_own_parts.Mine", "data.name=noise", data, f"seed={seed}")
            trained(tmp_path, data, f"seed={seed}")
    results = collect(tmp_path / "results")
    sections = budget_table(read_paper(CONF / "paper"), results)["section"]
    ours = [section for section in sections if section.startswith("noise of test_own_parts.Mine in batches of 4")]
    assert len(ours) == 2 and len(sections) == 4
    assert {run.data_sha256 for run in results.records.values() if run.config["data"]["name"] == "noise"} == {""}
