"""LRRangeTest measures what a fit of the ramp measures, and the fit after it is the fit without it, bit for bit."""

import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cyclical_lr.range_test_loop import lr_range_test
from cyclical_lr.schedules import RangeTest
from cyclical_lr.training import range_test
from cyclical_lr.training.range_test import LRRangeTest

TEST = {"min_lr": 0.0, "max_lr": 0.5, "iterations": 12, "eval_every": 5}


class Jittered(Dataset[Any]):
    """Two blobs; a sample is shifted at random, by every random state that an augmentation may use."""

    def __init__(self, n: int, jitter: float) -> None:
        drawn = torch.Generator().manual_seed(n)
        self.y = torch.arange(n) % 2
        self.x = torch.randn(n, 4, generator=drawn) + 2 * self.y[:, None]
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, int]:
        shift = torch.rand(()).item() + random.random() + np.random.rand()  # noqa: NPY002
        return self.x[i] + self.jitter * shift, self.y[i], i


class Data(pl.LightningDataModule):
    """Draws its split in setup, and shuffles with a generator of its own that lives as long as it does."""

    def __init__(self) -> None:
        super().__init__()
        self.order = torch.Generator().manual_seed(5)
        self.setups = 0

    def setup(self, stage: str) -> None:
        self.setups += 1
        self.train, self.val = torch.utils.data.random_split(Jittered(50, 0.1), [34, 16])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=5, shuffle=True, generator=self.order)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, batch_size=8)


class Net(pl.LightningModule):
    """With all that a careless restore forgets: weights made in setup, dropout, batch norm, plain attributes."""

    def __init__(self, optimizer: str = "sgd", monitor: str = "val_acc") -> None:
        super().__init__()
        self.kind, self.name = optimizer, monitor
        self.rate = 0.2
        self.order: list[int] = []
        self.losses: list[float] = []
        self.validations = 0
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(self.rate), nn.Linear(8, 2))

    def configure_callbacks(self) -> list[pl.Callback]:
        return [pl.callbacks.EarlyStopping(self.name, patience=100, mode="max")]

    def configure_optimizers(self) -> Any:
        if self.kind == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        else:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y, i = batch
        self.seen += 1
        self.order += i.tolist()
        loss = F.cross_entropy(self.net(x), y)
        self.losses.append(loss.item())
        if self.logger is not None:
            self.logger.log_metrics({"own": loss.item()})
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        x, y, _ = batch
        self.validations += 1
        self.log(self.name, (self.net(x).argmax(1) == y).float().mean())


def fit(
    *callbacks: pl.Callback,
    net: Net | None = None,
    data: Data | None = None,
    resume: Path | None = None,
    **options: Any,
) -> tuple[pl.Trainer, Net, Data]:
    """Two epochs of seven iterations, unless the options of the Trainer say otherwise."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    pl.seed_everything(3, verbose=False)
    net, data = net or Net(), data or Data()
    trainer = pl.Trainer(**quiet | {"accelerator": "cpu", "max_epochs": 2, "callbacks": list(callbacks)} | options)
    trainer.fit(net, datamodule=data, ckpt_path=resume, weights_only=None if resume is None else True)
    return trainer, net, data


def state(trainer: pl.Trainer, net: Net, data: Data) -> dict[str, Any]:
    """All that a fit leaves behind, tensors as bytes."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes())
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value

    return plain(
        {
            "weights": dict(net.named_parameters()) | dict(net.named_buffers()),
            "gradients": [p.grad for p in net.parameters()],
            "modes": [module.training for module in net.modules()],
            "order": net.order,
            "losses": net.losses,
            "validations": net.validations,
            "setups": data.setups,
            "split": list(data.train.indices),
            "optimizer": trainer.optimizers[0].state_dict(),
            "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "loops": trainer.fit_loop.state_dict(),
            "metrics": trainer.callback_metrics,
            "steps": [trainer.global_step, trainer.current_epoch],
            "callbacks": [
                type(callback).__name__ for callback in trainer.callbacks if type(callback) is not LRRangeTest
            ],
            "trainer": net.trainer is trainer and data.trainer is trainer,
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
            "python": random.getstate(),
            "generator": data.order.get_state(),
        }
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped and accumulated": {"gradient_clip_val": 0.1, "accumulate_grad_batches": 3},
    "sanity check and few batches": {"num_sanity_val_steps": 2, "limit_train_batches": 4, "val_check_interval": 2},
}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_fit_after_the_test_equals_a_fit_without_it_bit_for_bit(options, optimizer):
    without = state(*fit(net=Net(optimizer), **options))
    test = LRRangeTest(**TEST)
    after = state(*fit(test, net=Net(optimizer), **options))
    assert test.curve is not None and len(test.curve.lr) >= 3
    for key in without:
        assert after[key] == without[key], key


def test_the_test_trains_as_the_fit_does_and_evaluates_by_its_own_iterations(monkeypatch):
    options = {"precision": "bf16-mixed", "gradient_clip_val": 0.1, "accumulate_grad_batches": 3}
    options |= {"limit_train_batches": 6, "limit_val_batches": 1, "inference_mode": False}
    made, second_trainer = [], range_test._second_trainer

    def second(*arguments):
        made.append(second_trainer(*arguments))
        return made[-1]

    monkeypatch.setattr(range_test, "_second_trainer", second)
    test = LRRangeTest(**TEST)
    first, *_ = fit(test, **options)
    same = {name for name in options if name != "inference_mode"}
    assert {name: getattr(made[0], name) for name in same} == {name: getattr(first, name) for name in same}
    assert made[0].precision == "bf16-mixed" and not made[0].validate_loop.inference_mode
    ramp = RangeTest(0.0, 0.5, 12)
    assert test.curve.lr == tuple(ramp(t) for t in (0, 5, 10, 12))


def test_loaders_given_to_fit_and_their_generators_stay_as_they_are():
    def run(*callbacks: pl.Callback) -> tuple[list[int], bytes]:
        net, order = Net(), torch.Generator().manual_seed(5)
        samples = Jittered(34, 0.1)
        trainer = pl.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, callbacks=[
            *callbacks, pl.callbacks.ModelCheckpoint(save_top_k=0)
        ])  # fmt: skip
        trainer.fit(net, DataLoader(samples, 5, shuffle=True, generator=order), DataLoader(samples, 5))
        return net.order, order.get_state().numpy().tobytes()

    without = run()
    assert without[0][:34] != without[0][34:]
    assert run(LRRangeTest(**TEST)) == without


def test_the_curve_is_that_of_the_plain_function_bit_for_bit():
    class Still(Data):
        """Nothing at random once it is set up, since the two draw differently."""

        def setup(self, stage: str) -> None:
            super().setup(stage)
            self.train.dataset.jitter = 0.0

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.train, batch_size=5)

    def without_dropout(net: Net) -> Net:
        net.rate = 0.0
        return net

    test = LRRangeTest(**TEST, monitor="val_acc")
    fit(test, net=without_dropout(Net()), data=Still(), max_epochs=0)

    pl.seed_everything(3, verbose=False)
    net, data = without_dropout(Net()), Still()
    data.setup("fit")
    net.setup("fit")

    def accuracy(model: nn.Module) -> float:
        right = [(model(x).argmax(1) == y).float() for x, y, _ in data.val_dataloader()]
        return 100 * float(torch.cat(right).mean())

    batches = [(x, y) for x, y, _ in data.train_dataloader()]
    optimizer = net.configure_optimizers()["optimizer"]
    assert lr_range_test(net.net, optimizer, F.cross_entropy, batches, accuracy, **TEST) == test.curve
    assert test.curve is not None and len(set(test.curve.accuracy)) > 2


def test_the_learning_rates_of_the_test_are_the_ramps_times_lr_mult_and_no_scheduler_steps():
    rates: list[list[float]] = []

    class Spied(Net):
        def configure_optimizers(self) -> Any:
            groups = [{"params": [p], "lr_mult": 1 + p.ndim % 2} for p in self.parameters()]
            optimizer = torch.optim.SGD(groups, lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)]

        def optimizer_step(self, epoch: int, i: int, optimizer: Any, closure: Any = None) -> None:
            rates.append([group["lr"] / group["lr_mult"] for group in optimizer.param_groups])
            super().optimizer_step(epoch, i, optimizer, closure)

    fit(LRRangeTest(**TEST), net=Spied(), max_epochs=0)
    ramp = RangeTest(0.0, 0.5, 12)
    assert rates == [[pytest.approx(ramp(t))] * len(rates[0]) for t in range(12)]


def test_the_test_trains_from_the_weights_of_the_fit():
    """The weights made in setup, and the module handed to fit again after training."""
    seen: list[bytes] = []

    class Spied(Net):
        def on_train_start(self) -> None:
            seen.append(self.net[0].weight.detach().numpy().tobytes())

    fit(LRRangeTest(**TEST), net=Spied(), max_epochs=1)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_a_diverged_test_has_a_nan_tail_and_leaves_the_fit_alone(capsys):
    class Fragile(Net):
        """Its loss is NaN where the test's LR has become too high, as a loss is that overflows."""

        def training_step(self, batch: Any, i: int) -> Tensor:
            loss = super().training_step(batch, i)
            return loss * (math.nan if self.optimizers().param_groups[0]["lr"] > 0.3 else 1.0)

    without = state(*fit(net=Fragile()))
    test = LRRangeTest(**TEST)
    assert state(*fit(test, net=Fragile())) == without
    assert test.curve is not None and [math.isnan(a) for a in test.curve.accuracy] == [False, False, True, True]
    assert test.curve.lr[-1] == 0.5
    assert "diverged by LR 0.416667" in capsys.readouterr().out


@pytest.mark.parametrize("scale", ["1", True, 0, -100.0, float("nan")])
def test_a_scale_that_is_no_factor_is_refused_before_the_test(scale):
    with pytest.raises(ValueError, match="scale: expected the number that makes percent of it, 1 or 100, got"):
        LRRangeTest(min_lr=0.0, max_lr=0.5, iterations=60, eval_every=3, scale=scale)


def test_thresholds_of_another_form_are_refused_before_the_test():
    with pytest.raises(ValueError, match=r"thresholds: expected Thresholds\(\.\.\.\) or None, got \{'noise': 1\}"):
        LRRangeTest(min_lr=0.0, max_lr=0.5, iterations=60, eval_every=3, thresholds={"noise": 1})


def test_a_loss_is_not_what_is_monitored():
    with pytest.raises(ValueError, match="monitor: expected the name of an accuracy, got 'val_loss'"):
        LRRangeTest(min_lr=0.0, max_lr=0.5, iterations=60, eval_every=3, monitor="val_loss")


def test_the_suggestion_is_printed_and_bounds_are_kept(capsys):
    test = LRRangeTest(min_lr=0.0, max_lr=0.5, iterations=60, eval_every=3)
    assert test.curve is None
    with pytest.raises(RuntimeError, match="there is no curve to read them off; fit first, without fast_dev_run"):
        _ = test.bounds
    trainer, _, _ = fit(test, max_epochs=0)
    out = capsys.readouterr().out
    assert out.startswith("LR range test, 1 seed, LR 0 to 0.5\n") and "max_steps" not in out
    assert test.bounds.base_lr is not None
    assert trainer.global_step == 0
    assert test.bounds.max_lr is not None
    assert f"schedule.base_lr={test.bounds.base_lr:g}" in out and "schedule.stepsize=28" in out  # 4 epochs of 7


def test_four_epochs_count_the_last_accumulated_batches_as_an_iteration(capsys):
    test = LRRangeTest(min_lr=0.0, max_lr=0.5, iterations=60, eval_every=3)
    fit(test, max_epochs=0, accumulate_grad_batches=2)
    assert "schedule.stepsize=16" in capsys.readouterr().out  # 4 epochs of 7 batches, two an iteration


def test_a_resumed_fit_is_not_tested_again_and_has_the_curve(tmp_path, capsys):
    test = LRRangeTest(**TEST)
    trainer, _, _ = fit(test, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    capsys.readouterr()
    resumed = LRRangeTest(**TEST)
    again, _, _ = fit(resumed, resume=tmp_path / "half.ckpt")
    assert again.current_epoch == 2
    assert resumed.curve == test.curve and "LR range test" not in capsys.readouterr().out


def test_loggers_and_other_callbacks_see_nothing_of_the_test(tmp_path):
    class Counter(pl.Callback):
        batches = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.batches += 1

    class OneMore(pl.Callback):  # one of Counter's type would replace Counter
        batches = 0

        def on_train_batch_end(self, *_: Any) -> None:
            self.batches += 1

    class WithCallback(Net):
        def configure_callbacks(self) -> list[pl.Callback]:
            return [one_more]

    counter, one_more = Counter(), OneMore()
    logger = CSVLogger(tmp_path)
    fit(LRRangeTest(**TEST), counter, net=WithCallback(), max_epochs=1, logger=logger, log_every_n_steps=1)
    assert counter.batches == one_more.batches == 7
    assert len((tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()) == 1 + 7 + 1


def test_a_data_module_of_its_own_leaves_that_of_the_fit_uncopied():
    class Uncopyable(Data):
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    test = LRRangeTest(**TEST, datamodule=Data())
    _, tested, _ = fit(test, data=Uncopyable())
    _, untested, _ = fit(data=Uncopyable())
    assert tested.losses == untested.losses and tested.order == untested.order
    assert test.curve is not None
    with pytest.raises(ValueError, match=r"can be deep-copied, got AssertionError.*datamodule of its own"):
        fit(LRRangeTest(**TEST), data=Uncopyable())
    ours = Data()
    with pytest.raises(ValueError, match="expected one for the test alone"):
        fit(LRRangeTest(**TEST, datamodule=ours), data=ours)


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Bound(Net):
    """Its loss is a function that a copy does not rebind."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.loss = lambda x, y: F.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return self.loss(*batch[:2])


class WarmsUp(Net):
    def on_train_batch_start(self, *_: Any) -> None:
        self.optimizers().param_groups[0]["lr"] = 0.01


class Stops(Net):
    def training_step(self, batch: Any, i: int) -> Tensor:
        self.trainer.should_stop = len(self.losses) > 5
        return super().training_step(batch, i)


class Hooked(Net):
    def configure_optimizers(self) -> Any:
        next(self.parameters()).register_hook(lambda gradient: gradient.clamp(-1, 1))
        return super().configure_optimizers()


@pytest.mark.parametrize(
    ("net", "test", "options", "message"),
    [
        (Bound, {}, {}, "expected a loss of the copy that the test trains.*make that function a method"),
        (WarmsUp, {}, {}, "expected a module that leaves the LR to the test.*switch that off"),
        (Stops, {}, {}, "expected 12 iterations, and it stopped the test after"),
        (Hooked, {}, {}, r"expected none with hooks, got a parameter with a gradient hook \(register_hook\)"),
        (Manual, {}, {}, "expected automatic optimization of one optimizer"),
        (
            Net,
            {"monitor": "accuracy"},
            {},
            r"monitor: expected a name logged in validation \(val_acc\), got 'accuracy'",
        ),
        (
            Net,
            {"scale": 1000.0},
            {},
            "val_acc times scale=1000: expected an accuracy in percent.*scale=1 takes percent",
        ),
        (Net, {}, {"limit_val_batches": 0}, "expected validation that logs 'val_acc', got none"),
    ],
    ids=["a closure", "its own LR", "it stops", "hooks", "manual optimisation", "monitor", "scale", "no validation"],
)
def test_what_cannot_be_tested_is_refused_with_a_remedy(net, test, options, message):
    with pytest.raises(ValueError, match=message) as refusal:
        fit(LRRangeTest(**TEST | test), net=net(), **options)
    assert "in the fit of LRRangeTest" in refusal.value.__notes__[0]


def test_a_module_may_ask_for_the_fits_epochs_and_for_its_schedulers():
    class Asks(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
            total = self.trainer.max_epochs * 7
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

        def training_step(self, batch: Any, i: int) -> Tensor:
            assert self.lr_schedulers().get_last_lr() and self.trainer.lr_scheduler_configs
            return super().training_step(batch, i)

    test = LRRangeTest(**TEST)
    fit(test, net=Asks())
    assert test.curve is not None and test.curve.lr == (0.0, *(0.5 * t / 12 for t in (5, 10, 12)))


def test_a_module_that_was_compiled_in_place_is_tested_as_it_is(monkeypatch):
    def compiled(net: Net) -> Net:
        monkeypatch.setattr(net, "_compiled_call_impl", net._call_impl, raising=False)  # as net.compile() does
        return net

    without, test = state(*fit()), LRRangeTest(**TEST)
    plain = LRRangeTest(**TEST)
    fit(plain)
    assert state(*fit(test, net=compiled(Net()))) == without
    assert test.curve == plain.curve


def test_a_diverged_test_validates_no_more():
    class Strict(Net):
        def training_step(self, batch: Any, i: int) -> Tensor:
            loss = super().training_step(batch, i)
            return loss * (math.nan if self.optimizers().param_groups[0]["lr"] > 0.3 else 1.0)

        def validation_step(self, batch: Any, i: int) -> None:
            assert all(torch.isfinite(p).all() for p in self.parameters())
            super().validation_step(batch, i)

    test = LRRangeTest(**TEST)
    fit(test, net=Strict())
    assert test.curve is not None and math.isnan(test.curve.accuracy[-1])


def test_an_accuracy_that_is_nan_after_a_step_is_divergence():
    class Soft(Net):
        """Its accuracy is NaN from the first step at a high LR on, before a loss is."""

        def validation_step(self, batch: Any, i: int) -> None:
            high = any(o.param_groups[0]["lr"] > 0.3 for o in self.trainer.optimizers)  # none in the sanity check
            self.log("val_acc", math.nan if high else 0.5)

    test = LRRangeTest(**TEST)
    fit(test, net=Soft())
    assert test.curve is not None and test.curve.lr[-1] == 0.5
    assert [math.isnan(a) for a in test.curve.accuracy] == [False, False, True, True]


def test_an_accuracy_that_is_nan_before_any_step_is_refused():
    class Broken(Net):
        def validation_step(self, batch: Any, i: int) -> None:
            self.log("val_acc", math.nan)

    with pytest.raises(ValueError, match="val_acc times scale=100: expected an accuracy in percent, 0 to 100, got nan"):
        fit(LRRangeTest(**TEST), net=Broken())


def test_data_that_can_be_gone_through_once_only_are_refused_and_not_waited_for():
    class Once(IterableDataset[Any]):
        def __init__(self) -> None:
            self.samples = [Jittered(50, 0.0)[i] for i in range(50)]

        def __iter__(self) -> Iterator[Any]:
            while self.samples:
                yield self.samples.pop()

    class Streamed(Data):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Once(), batch_size=5)

    test = LRRangeTest(min_lr=0.0, max_lr=0.5, iterations=60, eval_every=30)
    with pytest.raises(ValueError, match="train_dataloader: expected batches for 60 iterations, got none after 10"):
        fit(test, data=Streamed())


def test_a_distributed_fit_is_refused_with_a_remedy():
    environment = dict(os.environ)
    try:
        with pytest.raises(ValueError, match=r"expected one device, got DDPStrategy.*devices=1"):
            fit(LRRangeTest(**TEST), strategy=DDPStrategy(process_group_backend="gloo"), devices=1)
    finally:  # Lightning leaves both to the end of the process
        torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(environment)


def test_an_endless_training_set_is_tested_too(capsys):
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            samples = Jittered(50, 0.0)
            while True:
                yield samples[random.randrange(50)]

    class Streamed(Data):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Endless(), batch_size=5)

    test = LRRangeTest(min_lr=0.0, max_lr=0.5, iterations=60, eval_every=3)
    _, net, _ = fit(test, data=Streamed(), max_epochs=-1, max_steps=4, val_check_interval=2)
    assert test.curve is not None and len(net.losses) == 4
    out = capsys.readouterr().out
    assert "schedule.stepsize=60" in out or "no suggestion" in out


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"eval_every": 0}, "^eval_every: expected"),
        ({"max_lr": -1.0}, "^min_lr, max_lr: expected"),
        ({"min_lr": 0.2, "max_lr": 0.2}, "^min_lr, max_lr: expected"),
        ({"iterations": 0}, "^iterations: expected"),
        ({"base_rule": "typo"}, "^base_rule: expected one of"),
        ({"max_rule": "typo"}, "^max_rule: expected one of"),
        ({"stepsize": -3}, "^stepsize: expected"),
    ],
)
def test_arguments_of_the_ramp_are_refused_at_construction(test, message):
    with pytest.raises(ValueError, match=message):
        LRRangeTest(**TEST | test)


def test_fast_dev_run_is_not_tested():
    test = LRRangeTest(**TEST)
    fit(test, fast_dev_run=True)
    assert test.curve is None
