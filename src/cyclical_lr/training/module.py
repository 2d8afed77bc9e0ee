"""The LightningModule: a group of runs that differ in nothing but their seed, stepped together."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cyclical_lr.records import CurveRow
from cyclical_lr.training import ddp
from cyclical_lr.training.engine import FastEngine, draws, layout, reference_step, seed_step


@dataclass
class Member:
    """One run of a group: its network, its solver, and what has been measured of it so far."""

    run_id: str
    label: str
    seed: int
    network: nn.Module
    solver: Optimizer
    iteration: int = 0
    loss_sum: float = 0.0  # of the iterations since the last evaluation
    loss_count: int = 0
    curve: list[CurveRow] = field(default_factory=list)
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    started: str = ""
    segments: list[dict[str, Any]] = field(default_factory=list)
    diverged: str = ""  # why, once it has
    unreadable: set[Path] = field(default_factory=set)  # checkpoints that could not be used

    def evaluation_due(self, every: int, iterations: int) -> bool:
        """Whether the curve lacks a row for the iteration at which the run stands."""
        measured = bool(self.curve) and self.curve[-1].iteration == self.iteration
        return not measured and (self.iteration % every == 0 or self.iteration == iterations)


class Classifier(pl.LightningModule):
    """Trains the members on blocks of iterations and evaluates them on the whole test set.

    A batch of the training loader is a block: "start", the iteration, and by name what `train_set` takes for k
    iterations of every member, each [members, k, ...]: "indices", int64 [members, k, batch], where the set lives on the
    training device; pixels and more where it is streamed. A batch of the evaluation loader is what `test_set` takes,
    likewise by name, or int64 [n], indices alone.

    Args:
        members: runs that stand at the same iteration.
        train_set, test_set: modules that map what the loaders yield to (x, y), with `len`. A module in them or in a
            network that draws random numbers while it trains, from torch's generator of its device, and is no
            nn.Dropout, says so by an attribute `stochastic`; a test set of which the top-5 accuracy is wanted too, by
            `top5`.
        lrs: float64 [iterations + 1], the schedule's value at every iteration and at the end.
        engine: "reference", or "fast" where `engine.unsuited` has nothing against it.
        may_draw: whether the networks or solvers are not this package's. Such runs are taken to draw, since a call
            such as `F.dropout` cannot be seen from outside.
    """

    def __init__(
        self,
        members: Sequence[Member],
        train_set: nn.Module,
        test_set: nn.Module,
        lrs: np.ndarray[Any, Any],
        engine: str = "reference",
        may_draw: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.members = list(members)
        self.networks = nn.ModuleList(member.network for member in members)
        self.train_set, self.test_set = train_set, test_set
        self.lrs: list[float] = lrs.tolist()
        self.top5 = bool(getattr(test_set, "top5", False))
        self.draws = may_draw or draws(self)
        self.engine = engine
        self.layout = torch.channels_last
        self.iteration = members[0].iteration
        self.between_iterations: Callable[[], None] = lambda: None  # of a block; may raise to end the run there
        self.last_loss = math.nan  # mean training loss since the last evaluation, for people to watch
        self._loss_sums = [torch.tensor(member.loss_sum, dtype=torch.float64) for member in members]
        self._tested = torch.zeros(0)
        self._clock_started: float | None = None
        self._fast: FastEngine | None = None
        # Ranks have the images already: DDP is not to send them.
        images = [name for name, _ in self.named_buffers() if name.startswith(("train_set.", "test_set."))]
        self._ddp_params_and_buffers_to_ignore = images

    def setup(self, stage: str) -> None:
        device, precision = self.trainer.strategy.root_device, str(self.trainer.precision)
        self.lay_out(layout(device, precision, self.members[0].network))

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Rearrange weights, and what the solvers keep of each, which may come from a run on another device."""
        self.layout = memory_format
        self.networks.to(memory_format=memory_format)  # type: ignore[call-overload]
        for member in self.members:
            for state in member.solver.state.values():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.dim() == 4:
                        state[name] = value.contiguous(memory_format=memory_format)

    def batch(self, images: nn.Module, /, *which: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        """What a set has of these, laid out as the weights are."""
        x, y = images(*which, **more)
        return x.contiguous(memory_format=self.layout), y

    def configure_optimizers(self) -> list[Optimizer]:
        return [member.solver for member in self.members]

    # Training ---------------------------------------------------------------------------------------------------------

    def training_step(self, block: dict[str, Any], _: int) -> None:
        if block["start"] != self.iteration:
            raise RuntimeError(f"the loader is at iteration {block['start']}, the run at {self.iteration}")
        streams = {name: values for name, values in block.items() if name != "start"}
        count = next(iter(streams.values())).shape[1]
        if self._fast is not None:
            self._fast(self.iteration, block["indices"])
            self.iteration += count
            for member in self.members:
                member.loss_count += count
            self._look_at_the_loss()
            return
        for j in range(count):
            if j > 0:
                self.between_iterations()
            self._reference_steps({name: values[:, j] for name, values in streams.items()})
            self._look_at_the_loss()

    def _reference_steps(self, streams: dict[str, Tensor]) -> None:
        """An iteration of each member; of each stream [members, ...]."""
        # Lightning's has hooks that nothing here uses, for a sixth of a millisecond, and what DDP needs.
        backward = self.manual_backward if ddp.ranks() > 1 else Tensor.backward
        lr = self.lrs[self.iteration]
        for m, member in enumerate(self.members):
            if not member.diverged:
                if self.draws:
                    seed_step(member.seed, self.iteration, ddp.rank())
                x, y = self.batch(self.train_set, **{name: values[m] for name, values in streams.items()})
                loss = reference_step(member.network, member.solver, x, y, lr, backward)
                self._loss_sums[m] += ddp.all_reduce_mean(loss)
                member.loss_count += 1
        self.iteration += 1

    def _look_at_the_loss(self) -> None:
        # On a GPU this would stall it, and waits for an evaluation; ranks must see it alike.
        if self.device.type == "cpu" or ddp.ranks() > 1:
            self.sync()
            self._stop_diverged()

    def sync(self) -> None:
        """Bring what the members know up to the current iteration."""
        for member, loss_sum in zip(self.members, self._loss_sums, strict=True):
            if member.diverged:
                continue
            total = float(loss_sum)
            if member.loss_count:
                self.last_loss = total / member.loss_count
            member.iteration, member.loss_sum = self.iteration, total

    def _stop_diverged(self) -> None:
        """Find the members that have diverged, each with the time that it trained."""
        for member in self.members:
            if not member.diverged and not math.isfinite(member.loss_sum):
                if self._clock_started is not None:
                    self.stop_clock()
                    self.start_clock()
                member.diverged = f"training loss is {member.loss_sum} at iteration {self.iteration}"
        self._stop_if_all_diverged()

    def _stop_if_all_diverged(self) -> None:
        if self._trainer and all(member.diverged for member in self.members):
            self.trainer.should_stop = True

    # Evaluation -------------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.stop_clock()
        self.sync()
        self._stop_diverged()
        self._eval_started = time.perf_counter()
        for network in self.networks:
            ddp.broadcast_buffers(network)
        self._tested = torch.zeros(len(self.members), 3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Tensor | dict[str, Any], _: int) -> None:
        x, y = self.batch(self.test_set, **batch) if isinstance(batch, dict) else self.batch(self.test_set, batch)
        for m, network in enumerate(self.networks):
            logits = network(x).float()
            self._tested[m, 0] += F.cross_entropy(logits, y, reduction="sum")
            self._tested[m, 1] += (logits.argmax(1) == y).sum()
            if self.top5:
                five = logits.topk(min(5, logits.shape[1])).indices
                self._tested[m, 2] += (five == y[:, None]).sum()

    def on_validation_epoch_end(self) -> None:
        images = len(self.test_set)  # type: ignore[arg-type]
        tested = ddp.all_reduce_sum(self._tested).tolist()
        seconds = time.perf_counter() - self._eval_started
        for m, member in enumerate(self.members):
            if self.iteration > 0 and not math.isfinite(tested[m][0]):  # the training loss tells a step later
                member.diverged = member.diverged or f"test loss is {tested[m][0]} at iteration {self.iteration}"
            if member.diverged:
                continue
            member.eval_seconds += seconds
            row = CurveRow(
                iteration=self.iteration,
                lr=self.lrs[self.iteration],
                train_loss=member.loss_sum / member.loss_count if member.loss_count else math.nan,
                test_loss=tested[m][0] / images,
                test_accuracy=100 * tested[m][1] / images,
                train_seconds=member.train_seconds,
                test_accuracy_top5=100 * tested[m][2] / images if self.top5 else math.nan,
            )
            member.curve.append(row)
            member.loss_sum, member.loss_count = 0.0, 0
            self._loss_sums[m].zero_()
        self._stop_if_all_diverged()

    # A fit's begin and end; the clock, of training alone, neither evaluation nor checkpoints --------------------------

    def on_fit_start(self) -> None:
        self._loss_sums = [loss_sum.to(self.device) for loss_sum in self._loss_sums]

    def on_train_start(self) -> None:
        if self.engine == "fast":
            solvers = [member.solver for member in self.members]
            seeds = [member.seed for member in self.members] if self.draws else []
            train_set = partial(self.batch, self.train_set)
            self._fast = FastEngine(list(self.networks), solvers, train_set, self.lrs, self._loss_sums, seeds)

    def on_fit_end(self) -> None:
        self._fast = None  # with its graphs, not whenever the garbage collector comes to it

    def on_train_epoch_start(self) -> None:
        self.start_clock()

    def start_clock(self) -> None:
        self._clock_started = time.perf_counter()

    def stop_clock(self) -> None:
        """Add the time since `start_clock` to each member that is still training."""
        if self._clock_started is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds, self._clock_started = time.perf_counter() - self._clock_started, None
        for member in self.members:
            if not member.diverged:
                member.train_seconds += seconds
