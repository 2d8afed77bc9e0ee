"""ScheduleLR in a plain loop, in Lightning, across a checkpoint, and beside momentum and multipliers."""

import copy
import math
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from cyclical_lr.lr_scheduler import ScheduleLR
from cyclical_lr.schedules import Exp, Fixed, Phase, Phases, RangeTest, Triangular, Triangular2

SCHEDULE = Phases([Phase(0, Triangular2(0.1, 0.5, 3)), Phase(8, Triangular2(0.01, 0.05, 2))])


def sgd(**group: float) -> torch.optim.SGD:
    parameters = [torch.nn.Parameter(torch.ones(3))]
    return torch.optim.SGD([{"params": parameters, **group}], lr=123.0, momentum=0.9)


def walk(optimizer: torch.optim.Optimizer, scheduler: ScheduleLR, iterations: int) -> list[float]:
    """The LRs of so many updates."""
    rates = []
    for _ in range(iterations):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def test_iteration_t_is_updated_at_the_schedules_lr_of_t():
    optimizer = sgd()
    assert walk(optimizer, ScheduleLR(optimizer, SCHEDULE), 20) == [SCHEDULE(t) for t in range(20)]


def test_the_loop_of_the_docstring_trains():
    torch.manual_seed(0)
    inputs = torch.randn(64, 4)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]])
    model = torch.nn.Linear(4, 1)
    loss_fn = torch.nn.MSELoss()
    before = loss_fn(model(inputs), targets).item()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = ScheduleLR(optimizer, Triangular(0.01, 0.1, 20))
    for _ in range(100):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
        scheduler.step()

    assert loss_fn(model(inputs), targets).item() < before / 1000


def test_a_plain_loop_raises_no_warning():
    optimizer = sgd()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk(optimizer, ScheduleLR(optimizer, SCHEDULE), 5)


def test_the_update_uses_the_lr_in_the_group():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=9.0)
    scheduler = ScheduleLR(optimizer, Triangular(1.0, 3.0, 2))
    for _ in range(4):
        weight.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
    assert weight.item() == -(1 + 2 + 3 + 2)


def test_lr_mult_multiplies_its_own_group_only():
    weights, biases = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [weights]}, {"params": [biases], "lr_mult": 2.0}], lr=0.1)
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    for t in range(10):
        assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE(t), 2 * SCHEDULE(t)]
        assert scheduler.get_last_lr() == [SCHEDULE(t), 2 * SCHEDULE(t)]
        optimizer.step()
        scheduler.step()


def test_groups_that_lose_lrs_of_their_own_are_told():
    def optimizer(**more: float) -> torch.optim.SGD:
        weights, biases = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        return torch.optim.SGD([{"params": [weights], "lr": 1e-2}, {"params": [biases], "lr": 1e-4, **more}])

    with pytest.warns(UserWarning, match=r"LRs \(0\.01, 0\.0001\) all give way .* \"lr_mult\""):
        ScheduleLR(optimizer(), SCHEDULE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScheduleLR(optimizer(lr_mult=0.01), SCHEDULE)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0, None, "x"])
def test_what_is_no_lr_is_refused_with_its_iteration(rate):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler = ScheduleLR(optimizer, lambda t: 0.1 if t < 1 else rate)
    optimizer.step()
    with pytest.raises(ValueError, match=rf"schedule: expected a finite LR of at least 0 at iteration 1, got {rate!r}"):
        scheduler.step()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.RMSprop])
def test_momentum_is_left_alone(make):
    optimizer = make([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.5)
    walk(optimizer, ScheduleLR(optimizer, SCHEDULE), 10)
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_betas_are_left_alone():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=0.1, betas=(0.8, 0.99))
    walk(optimizer, ScheduleLR(optimizer, SCHEDULE), 10)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)


def test_an_lr_in_a_tensor_is_filled_in_place():
    rate = torch.tensor(1.0, dtype=torch.float64)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=rate)
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    held = optimizer.param_groups[0]["lr"]
    assert walk(optimizer, scheduler, 10) == [SCHEDULE(t) for t in range(10)]
    assert optimizer.param_groups[0]["lr"] is held


def test_an_lr_that_was_asked_for_stays_as_it_was():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(1.0, dtype=torch.float64))
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    scheduler.load_state_dict(scheduler.state_dict())
    (before,) = scheduler.get_last_lr()
    walk(optimizer, scheduler, 2)
    assert float(before) == SCHEDULE(0) != SCHEDULE(2)


def test_groups_that_share_a_tensor_have_lrs_of_their_own():
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))]},
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr_mult": 2.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=torch.tensor(0.1, dtype=torch.float64))
    scheduler = ScheduleLR(optimizer, Fixed(0.1))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr_mult": 10.0})
    for _ in range(2):
        optimizer.step()
        scheduler.step()
        assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([0.1, 0.2, 1.0])


def test_a_group_added_later_joins_at_the_next_step():
    optimizer = sgd()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    walk(optimizer, scheduler, 3)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr_mult": 10.0})
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [SCHEDULE(4), 10 * SCHEDULE(4)]


@pytest.mark.parametrize("stop", [0, 1, 2, 7, 8, 13])
def test_a_resumed_run_has_exactly_the_lrs_of_a_straight_one(stop, tmp_path):
    optimizer = sgd()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    walk(optimizer, scheduler, stop)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "checkpoint.pt")

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = sgd()
    resumed = ScheduleLR(again, SCHEDULE)
    again.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["scheduler"])
    assert resumed.get_last_lr() == [SCHEDULE(stop)]
    assert walk(again, resumed, 20 - stop) == [SCHEDULE(t) for t in range(stop, 20)]


def three_policies(rate: float | torch.Tensor) -> tuple[torch.optim.Optimizer, SequentialLR]:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=rate)
    own = [ScheduleLR(optimizer, schedule) for schedule in (RangeTest(0.0, 0.1, 10), Exp(0.05, 0.9))]
    schedulers = [own[0], CosineAnnealingLR(optimizer, 10), own[1]]
    return optimizer, SequentialLR(optimizer, schedulers, milestones=[10, 20])


def test_a_scheduler_that_follows_it_starts_from_the_optimisers_own_lr_be_it_a_tensor_or_not():
    straight, (optimizer, scheduler) = walk(*three_policies(0.1), 20), three_policies(torch.tensor(0.1))
    assert straight[10] == 0.1 and straight[9] < straight[10] > straight[11] > straight[19] > 0
    assert walk(optimizer, scheduler, 20) == pytest.approx(straight)


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # SequentialLR's own
@pytest.mark.parametrize("stop", [5, 14, 24])
def test_one_of_several_in_a_row_is_resumed_before_its_turn_and_after(stop):
    straight, (optimizer, scheduler) = walk(*three_policies(0.1), 30), three_policies(0.1)
    walk(optimizer, scheduler, stop)
    again, resumed = three_policies(0.1)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert walk(again, resumed, 30 - stop) == straight[stop:]


def test_a_state_can_be_loaded_twice_and_stays_as_it_was():
    optimizer = sgd()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    walk(optimizer, scheduler, 7)
    state = scheduler.state_dict()
    copied = copy.deepcopy(state)

    for _ in range(2):
        again = sgd()
        resumed = ScheduleLR(again, SCHEDULE)
        again.load_state_dict(optimizer.state_dict())
        resumed.load_state_dict(state)
        assert walk(again, resumed, 5) == [SCHEDULE(t) for t in range(7, 12)]
        assert state == copied


def test_a_state_of_something_else_is_refused():
    with pytest.raises(ValueError, match="state_dict: expected that of a ScheduleLR, got one without _step_count"):
        ScheduleLR(sgd(), SCHEDULE).load_state_dict({"last_epoch": 3})


def test_a_group_added_later_with_no_factor_is_refused_at_the_next_step():
    optimizer = sgd()
    scheduler = ScheduleLR(optimizer, SCHEDULE)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr_mult": -2.0})
    optimizer.step()
    with pytest.raises(ValueError, match=r"lr_mult: expected a finite number of at least 0, got -2\.0"):
        scheduler.step()


def test_the_state_is_plain_ints():
    for last in (-1, np.int64(4)):
        assert {type(value) for value in ScheduleLR(sgd(), SCHEDULE, last).state_dict().values()} == {int}


def test_last_epoch_starts_in_mid_run_with_a_fresh_optimiser():
    optimizer = sgd()
    assert walk(optimizer, ScheduleLR(optimizer, SCHEDULE, last_epoch=6), 5) == [SCHEDULE(t) for t in range(7, 12)]


def test_a_new_scheduler_on_a_used_optimiser_starts_afresh():
    # torch's CyclicLR took its bounds from a former scheduler's initial_lr.
    optimizer = sgd()
    walk(optimizer, ScheduleLR(optimizer, Exp(7.0, 0.5)), 5)
    assert walk(optimizer, ScheduleLR(optimizer, SCHEDULE), 5) == [SCHEDULE(t) for t in range(5)]


def test_any_function_of_the_iteration_will_do():
    optimizer = sgd()
    assert walk(optimizer, ScheduleLR(optimizer, lambda t: 1 / (t + 1)), 3) == [1, 1 / 2, 1 / 3]


def test_what_is_no_schedule_is_refused():
    with pytest.raises(ValueError, match=r"schedule: expected a function of the iteration, got 0\.1; "):
        ScheduleLR(sgd(), 0.1)
    with pytest.raises(ValueError, match=r"schedule: expected a function .*Triangular2'>; give a schedule object"):
        ScheduleLR(sgd(), Triangular2)


@pytest.mark.parametrize("multiple", [-2, float("inf"), "2", True])
def test_a_multiplier_that_gives_no_lr_is_refused(multiple):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [weight], "lr_mult": multiple}], lr=0.1)
    with pytest.raises(ValueError, match=f"lr_mult: expected a finite number .*, got {multiple!r}; 2 trains"):
        ScheduleLR(optimizer, Fixed(0.1))


@pytest.mark.parametrize("last", [-2, 2.0, True])
def test_a_last_epoch_that_is_no_iteration_is_refused(last):
    with pytest.raises(ValueError, match=rf"last_epoch: expected an integer, at least -1, got {last}; "):
        ScheduleLR(sgd(), Fixed(0.1), last_epoch=last)


def test_what_is_no_optimizer_is_refused_as_torch_does():
    with pytest.raises(TypeError, match="optimizer: expected a torch optimizer, got Linear"):
        ScheduleLR(torch.nn.Linear(2, 2), Fixed(0.1))


class Regression(pl.LightningModule):
    """Records the LR of each update."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.rates: list[float] = []

    def training_step(self, batch, index):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = {"scheduler": ScheduleLR(optimizer, SCHEDULE), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def fit(module: pl.LightningModule, epochs: int, root, checkpoint=None) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=root,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(torch.ones(20, 2)), batch_size=4)
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return trainer


@pytest.mark.filterwarnings("ignore")  # Lightning's tips on workers and on its own imports
def test_lightning_steps_it_once_an_iteration_and_resumes_it(tmp_path):
    module = Regression()
    trainer = fit(module, 2, tmp_path)
    assert module.rates == [SCHEDULE(t) for t in range(10)]
    trainer.save_checkpoint(tmp_path / "half.ckpt")

    resumed = Regression()
    fit(resumed, 4, tmp_path, checkpoint=tmp_path / "half.ckpt")
    assert resumed.rates == [SCHEDULE(t) for t in range(10, 20)]
