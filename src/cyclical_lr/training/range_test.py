"""The LR range test (Section 3.3, Figure 3) for a LightningModule of your own, before its training starts."""

import copy
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

from cyclical_lr.range_test import Bounds, Curve, Thresholds, check_rules, find_bounds, report
from cyclical_lr.range_test_loop import OWN_LOOP, RampTest, leaves, percent, preserved_rng, refuse_hooks
from cyclical_lr.schedules import RangeTest
from cyclical_lr.solvers import check_groups, set_lr

ACCELERATORS = {"cpu": "cpu", "cuda": "gpu", "mps": "mps"}


class LRRangeTest(pl.Callback):
    """Runs an LR range test on copies of your module and data when `fit` starts, and prints the bounds it suggests.

        test = LRRangeTest(min_lr=0.0, max_lr=0.02, iterations=4000, eval_every=200, monitor="val_acc")
        trainer = pl.Trainer(max_epochs=50, callbacks=[test])
        trainer.fit(MyModule(), MyDataModule())        # max_epochs=0 to test only
        test.bounds.base_lr, test.bounds.max_lr        # None where the curve does not show them
        test.curve.lr, test.curve.accuracy             # to draw

    The test is a fit of its own, by a second Trainer, of deep copies that go afterwards. So nothing of yours has to be
    put back: module, optimizers, schedulers, loops, data, callbacks and loggers have never been touched, and the global
    random states are restored. A fit with this callback gives the same bits as one without it. The copies take part
    in your module's and data module's hooks, except for `prepare_data`, `setup`, `teardown` and `configure_callbacks`;
    what a hook does outside of them (to files, say) it does. Your schedulers do not step in the test, your other
    callbacks and loggers see nothing of it.

    A fit that resumes from a checkpoint is not tested; it finds the curve of the fit before. Neither is
    `fast_dev_run`.

    Args:
        min_lr, max_lr: of the ramp, linear over `iterations` optimizer steps as the paper's. Every parameter group gets
            the ramp's LR times its `lr_mult` (1 where there is none; a warning where groups differ in their LR).
        iterations: of the ramp; the paper takes several epochs.
        eval_every: optimizer steps between validations; the first is before any update, the last at `max_lr`. Where
            the Trainer accumulates batches, the last step of an epoch may have fewer of them, and an interval has a
            step more for each such epoch.
        monitor: name under which the module logs its accuracy in validation.
        scale: what turns the logged value into percent: 100 for a fraction, 1 for percent.
        base_rule, max_rule, thresholds: as in `cyclical_lr.range_test.find_bounds`.
        stepsize: of the suggested schedule, half a cycle in iterations; None stands for 4 epochs, as in Figure 1, or
            for `iterations` where an epoch has no end.
        datamodule: data for the test alone, such as a second instance of yours, where a deep copy is too large.
    Attributes:
        curve: what was measured, None before.
        bounds: what was read off it; a RuntimeError before.
    Raises:
        ValueError: at construction, arguments of the ramp; when fit starts, `monitor` is not logged, or no percentage,
            or this fit cannot be tested: several devices or optimizers, manual optimization, no validation, a module or
            data that cannot be deep-copied, is compiled, has hooks on gradients or steps, sets the LR itself, or stops
            the test.
    """

    def __init__(
        self,
        min_lr: float,
        max_lr: float,
        iterations: int,
        eval_every: int,
        monitor: str = "val_acc",
        scale: float = 100.0,
        base_rule: str = "onset",
        max_rule: str = "earliest",
        thresholds: Thresholds | None = None,
        stepsize: int | None = None,
        datamodule: pl.LightningDataModule | None = None,
    ) -> None:
        self.test = RampTest.over(min_lr, max_lr, iterations, eval_every)
        check_rules(base_rule, max_rule)
        if stepsize is not None and (isinstance(stepsize, bool) or not isinstance(stepsize, Integral) or stepsize < 1):
            raise ValueError(f"stepsize: expected a whole number of iterations >= 1 or None, got {stepsize!r}")
        if not isinstance(thresholds, Thresholds | None):
            raise ValueError(f"thresholds: expected Thresholds(...) or None, got {thresholds!r}")
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 < scale < math.inf:
            raise ValueError(f"scale: expected the number that makes percent of it, 1 or 100, got {scale!r}")
        if "loss" in monitor:
            raise ValueError(f"monitor: expected the name of an accuracy, got {monitor!r}; log one, and name it here")
        self.monitor, self.scale = monitor, scale
        self.base_rule, self.max_rule, self.thresholds = base_rule, max_rule, thresholds
        self.stepsize, self.datamodule = stepsize, datamodule
        self.curve: Curve | None = None

    @property
    def bounds(self) -> Bounds:
        if self.curve is None:
            raise RuntimeError(
                "LRRangeTest.bounds: there is no curve to read them off; fit first, without fast_dev_run, and not from "
                "a checkpoint of a fit without a test"
            )
        return find_bounds([self.curve], self.base_rule, self.max_rule, self.thresholds)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fast_dev_run or trainer.ckpt_path is not None:  # type: ignore[attr-defined]
            return
        try:
            with preserved_rng(), _quiet():
                self.curve, four_epochs = self._measure(trainer, pl_module)
        except Exception as error:
            error.add_note("This happened in the fit of LRRangeTest, which has no logger or checkpoints of its own.")
            raise
        stepsize = self.stepsize or four_epochs
        print(report([self.curve], stepsize, self.base_rule, self.max_rule, self.thresholds))

    def state_dict(self) -> dict[str, Any]:
        """The curve, so that a resumed fit has it."""
        return {} if self.curve is None else {"lr": list(self.curve.lr), "accuracy": list(self.curve.accuracy)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve = Curve(tuple(state_dict["lr"]), tuple(state_dict["accuracy"])) if state_dict else None

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Curve, int]:
        """The curve, and the iterations of four epochs, or of the test where an epoch has no end."""
        if not isinstance(trainer, pl.Trainer):
            raise ValueError(
                f"trainer: expected one of pytorch_lightning, got {type(trainer).__module__}.{type(trainer).__name__}; "
                "import pytorch_lightning as pl, whose classes are others than lightning's"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise ValueError(
                f"trainer.strategy: expected one device, got {type(trainer.strategy).__name__}; run the range test by "
                "itself, with Trainer(strategy='auto', devices=1, max_epochs=0)"
            )
        if not pl_module.automatic_optimization or len(trainer.optimizers) != 1:
            raise ValueError(
                f"{type(pl_module).__name__}: expected automatic optimization of one optimizer, got "
                f"automatic_optimization={pl_module.automatic_optimization} and {len(trainer.optimizers)} optimizers; "
                f"{OWN_LOOP}"
            )
        if not trainer.enable_validation:
            raise ValueError(
                f"{type(pl_module).__name__}: expected validation that logs {self.monitor!r}, got none; give fit "
                "validation data, and the module a validation_step"
            )
        if getattr(pl_module, "_compiler_ctx", None) is not None:
            raise ValueError(
                f"{type(pl_module).__name__}: expected a module that is not compiled, which could not be copied; give "
                "fit the module itself, and compile it in configure_model or for the fit after the test"
            )
        refuse_hooks(pl_module.parameters(), trainer.optimizers[0])
        check_groups(trainer.optimizers[0])
        iterations = self.test.ramp.stepsize
        yours = {*map(id, pl_module.parameters())}
        recorder = _Recorder(self.test.ramp, self.monitor, self.scale, yours, trainer.max_epochs)
        second = _second_trainer(trainer, recorder, iterations, self.test.eval_every)
        module, datamodule, train, val = _copies(trainer, pl_module, second, self.datamodule)
        second.validate(module, val, verbose=False, datamodule=datamodule)
        second.fit(module, train, val, datamodule=datamodule)
        if not recorder.diverged and second.global_step < iterations:
            raise ValueError(
                f"{type(pl_module).__name__}: expected {iterations} iterations, and it stopped the test after "
                f"{second.global_step} (should_stop, or a loader that has no more); let it train on, or test fewer"
            )
        if not recorder.diverged and iterations not in recorder.accuracies:
            second.validate(module, val, verbose=False, datamodule=datamodule)
        epoch = second.num_training_batches / trainer.accumulate_grad_batches
        four_epochs = 4 * math.ceil(epoch) if math.isfinite(epoch) else iterations
        return self.test.curve(recorder.accuracies), four_epochs


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's words on the second Trainer: that it stopped would read as if yours had."""
    words = logging.getLogger("pytorch_lightning")
    level = words.level
    words.setLevel(logging.ERROR)
    try:
        yield
    finally:
        words.setLevel(level)


class _Recorder(pl.Callback):
    """Sets the ramp's LR before every batch, and notes the accuracy after every validation.

    Args:
        yours: the ids of the parameters that the test must not touch.
        max_epochs: the fit's, which a module may ask for when it makes its optimizer.
    """

    def __init__(self, ramp: RangeTest, monitor: str, scale: float, yours: Set[int], max_epochs: int | None) -> None:
        self.ramp, self.monitor, self.scale, self.yours = ramp, monitor, scale, yours
        self.max_epochs = max_epochs or -1
        self.accuracies: dict[int, float] = {}
        self.diverged = False
        self._lrs: list[float] = []
        self._steps = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            trainer.fit_loop.max_epochs = self.max_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.fit_loop.max_epochs = -1  # `max_steps` ends the test
        for config in trainer.strategy.lr_scheduler_configs:
            config.frequency = sys.maxsize  # a module may read them; none steps

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        set_lr(trainer.optimizers[0], self.ramp(trainer.global_step))
        self._lrs = [float(group["lr"]) for group in trainer.optimizers[0].param_groups]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if trainer.global_step == 0 and not self.yours.isdisjoint(leaves(loss)):
            raise ValueError(
                f"{type(pl_module).__name__}: expected a loss of the copy that the test trains, got one of the "
                "original's parameters, to which a function in it is bound; make that function a method, or use "
                "cyclical_lr.range_test_loop.lr_range_test"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self._steps and not self.diverged:
            raise ValueError(
                f"train_dataloader: expected batches for {self.ramp.stepsize} iterations, got none after "
                f"{trainer.global_step}; give data that can be gone through again"
            )
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        if self._lrs != [float(group["lr"]) for group in trainer.optimizers[0].param_groups]:
            raise ValueError(
                f"{type(pl_module).__name__}: expected a module that leaves the LR to the test, got one that sets it "
                "(in optimizer_step or a hook?); switch that off for the test"
            )
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs  # a step that is skipped has none
        if loss is not None and not torch.isfinite(loss).all():
            self._stop(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.diverged:
            return
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(
                f"monitor: expected a name logged in validation ({logged}), got {self.monitor!r}; log the accuracy in "
                "validation_step, or name it here"
            )
        accuracy = self.scale * float(trainer.callback_metrics[self.monitor])
        if trainer.global_step > 0 and math.isnan(accuracy):  # diverged in the step before
            self._stop(trainer)
            return
        self.accuracies[trainer.global_step] = percent(
            accuracy, f"{self.monitor} times scale={self.scale:g}", "scale=1 takes percent, scale=100 a fraction"
        )

    def _stop(self, trainer: pl.Trainer) -> None:
        self.diverged = trainer.should_stop = True
        trainer.limit_val_batches = 0  # Lightning would validate once more before it stops


# `trainer` is Any below: Lightning sets half of a Trainer's attributes where mypy does not see it.


def _second_trainer(trainer: Any, recorder: _Recorder, iterations: int, eval_every: int) -> pl.Trainer:
    """A Trainer that computes as `trainer` does, and writes nothing."""
    device = trainer.strategy.root_device
    return pl.Trainer(
        accelerator=ACCELERATORS[device.type],
        devices=[device.index] if device.type == "cuda" else 1,
        precision=trainer.precision,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        gradient_clip_val=trainer.gradient_clip_val,
        gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        limit_train_batches=trainer.limit_train_batches,
        limit_val_batches=trainer.limit_val_batches,
        overfit_batches=trainer.overfit_batches,
        reload_dataloaders_every_n_epochs=trainer.reload_dataloaders_every_n_epochs,
        inference_mode=trainer.validate_loop.inference_mode,
        default_root_dir=trainer.default_root_dir,
        plugins=[LightningEnvironment()],  # under Slurm the signals stay with the first Trainer
        max_epochs=-1,
        max_steps=iterations,
        val_check_interval=eval_every * trainer.accumulate_grad_batches,  # counts batches
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[recorder],
        logger=DummyLogger() if trainer.loggers else False,  # a module may well call its logger's methods
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=trainer.progress_bar_callback is not None,
    )


def _copies(
    trainer: Any, pl_module: pl.LightningModule, second: pl.Trainer, datamodule: pl.LightningDataModule | None
) -> tuple[pl.LightningModule, pl.LightningDataModule | None, Any, Any]:
    """Module, data module, training and validation loaders for `second.fit`; what is None comes from the module."""
    if datamodule is not None and datamodule is trainer.datamodule:
        raise ValueError("datamodule: expected one for the test alone, got fit's own; make a second instance")
    train = trainer.fit_loop._data_source.instance
    val = trainer.fit_loop.epoch_loop.val_loop._data_source.instance
    ours = (pl_module, None, None, None) if datamodule is not None else (pl_module, trainer.datamodule, train, val)
    # One copy of all, so that what they share stays shared; whatever points to the Trainer shall point to the second.
    memo: dict[int, Any] = {id(trainer): second}
    try:
        copied = copy.deepcopy(ours, memo)
    except Exception as error:
        raise ValueError(
            f"{type(pl_module).__name__}: expected a module and data that can be deep-copied, got {error!r}; give the "
            "test a datamodule of its own, or use cyclical_lr.range_test_loop.lr_range_test"
        ) from error
    # They are set up: once more would draw other weights or another split, and callbacks are for the user's fit.
    module, data, train, val = copied
    for part in module.modules():
        part._compiled_call_impl = None  # by `module.compile()`, and bound to the original
    for owner in (module, data):
        for hook in ("prepare_data", "setup", "teardown", "configure_callbacks"):
            if owner is not None:
                setattr(owner, hook, _nothing)
    if datamodule is not None:
        return module, datamodule, None, None
    train, val = (None if source is module or source is data else source for source in (train, val))
    return module, data, train, val


def _nothing(*_: Any, **__: Any) -> None:
    pass
