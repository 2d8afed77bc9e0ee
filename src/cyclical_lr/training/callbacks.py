"""What happens between blocks: checkpoints, curves to loggers and disk, progress."""

import copy
import hashlib
import io
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import astuple
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.utilities.exceptions import SIGTERMException
from tqdm import tqdm

from cyclical_lr import kernels
from cyclical_lr.records import CurveRow, write_atomic, write_curve
from cyclical_lr.training import ddp
from cyclical_lr.training.module import Classifier, Member
from cyclical_lr.training.tracking import log_rows

log = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2
SAVED = ("iteration", "loss_sum", "loss_count", "train_seconds", "eval_seconds", "started", "segments")


def save_checkpoint(folder: Path, member: Member) -> None:
    """Write the member's state, whole or not at all, and keep it and the one before.

    One of a later iteration, which could not be used when this process started, stays until the run has passed it.

    The file is torch.save's, of plain types (torch.load takes it with weights_only), with its SHA-256 appended.

    Raises:
        OSError: the disk is full or read-only; the checkpoints before stay intact.
    """
    member.segments[-1]["kernels"] = kernels.kind()
    state = {name: getattr(member, name) for name in SAVED}
    state["run_id"] = member.run_id
    state["curve"] = [astuple(row) for row in member.curve]
    state["network"] = member.network.state_dict()
    state["solver"] = member.solver.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    data = file.getvalue()
    path = folder / f"checkpoint-{member.iteration:09d}.pt"
    write_atomic(path, data + hashlib.sha256(data).digest())
    member.unreadable.discard(path)
    passed = sorted(other for other in folder.glob("checkpoint-*.pt") if other <= path)
    kept = [other for other in passed if other not in member.unreadable][-CHECKPOINTS_KEPT:]
    for old in set(passed).difference(kept):
        old.unlink(missing_ok=True)


def restore_checkpoint(folder: Path, member: Member) -> bool:
    """Bring the member to its newest readable checkpoint, naming those that are not; False where there is none.

    Of several ranks, the first reads it for all of them.
    """
    state = ddp.first(lambda: _restore_newest(folder, member))
    if state is not None and ddp.rank() > 0:
        _restore(member, state)
    return state is not None


def _restore_newest(folder: Path, member: Member) -> dict[str, Any] | None:
    paths = sorted(folder.glob("checkpoint-*.pt"), reverse=True)
    parts: tuple[Any, ...] = (member.network, member.solver)
    fresh = copy.deepcopy([part.state_dict() for part in parts]) if paths else []
    for path in paths:
        try:
            data = path.read_bytes()
            if hashlib.sha256(data[:-32]).digest() != data[-32:]:
                raise ValueError("its checksum does not match")
            state: dict[str, Any] = torch.load(io.BytesIO(data[:-32]), map_location="cpu", weights_only=True)
            if state["run_id"] != member.run_id:
                raise ValueError(f"it belongs to run {state['run_id']}")
            _restore(member, state)
        except Exception as error:  # whatever is wrong with the file, the one before it may be right
            log.warning("checkpoint %s cannot be used (%s): going back to the one before, or to the start", path, error)
            member.unreadable.add(path)
            for part, untrained in zip(parts, fresh, strict=True):  # they may have got half of the file
                part.load_state_dict(untrained)
            continue
        return state
    return None


def _restore(member: Member, state: dict[str, Any]) -> None:
    values = {name: state[name] for name in SAVED}
    values["curve"] = [CurveRow(*row) for row in state["curve"]]
    member.network.load_state_dict(state["network"])
    member.solver.load_state_dict(state["solver"])
    for name, value in values.items():  # last: a member whose state was refused stands where it stood
        setattr(member, name, value)


class Checkpoints(pl.Callback):
    """Saves every member's state about every `seconds`; at the end, the run calls `save`.

    A full disk does not end the run: the checkpoints before stay, the user is told, and the next one is tried in time.
    """

    def __init__(self, folders: Mapping[str, Path], seconds: float) -> None:
        self.folders, self.seconds, self._last = folders, seconds, time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, Classifier)
        if time.monotonic() - self._last >= self.seconds:
            module.stop_clock()
            module.sync()
            self.save(module)
            module.start_clock()

    def save(self, module: Classifier) -> bool:
        """Save every member that has not diverged; whether all could be."""
        self._last, saved = time.monotonic(), True
        for member in module.members:
            if not member.diverged:
                try:
                    save_checkpoint(self.folders[member.run_id], member)
                except OSError as error:
                    saved, where = False, self.folders[member.run_id]
                    log.warning("no checkpoint at iteration %d: %s; make room in %s", member.iteration, error, where)
        return saved


class Interrupts(pl.Callback):
    """The first Ctrl-C waits for a moment at which the run can be saved; the second ends it at once.

    Python would raise KeyboardInterrupt between any two operations, in the middle of a step too. As a context manager
    it puts the handler back that was there before.
    """

    busy = False
    """Whether weights, solver and curve may disagree at this moment."""
    _asked = False

    def __enter__(self) -> "Interrupts":
        self._before = signal.getsignal(signal.SIGINT)
        ignored = self._before is signal.SIG_IGN  # by a shell, of what it runs in the background
        if threading.current_thread() is threading.main_thread() and not ignored:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self._asked or not self.busy:
            raise KeyboardInterrupt
        self._asked = True

    def _free(self) -> None:
        self.busy = False
        if self._asked:
            raise KeyboardInterrupt

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        module.between_iterations = partial(self._between_iterations, trainer)

    def _between_iterations(self, trainer: pl.Trainer) -> None:
        if trainer.received_sigterm:  # for which Lightning looks between two batches alone
            raise SIGTERMException
        self._free()
        self.busy = True

    def on_train_batch_start(self, *_: Any) -> None:
        self.busy = True

    def on_train_batch_end(self, *_: Any) -> None:
        self._free()

    def on_validation_batch_start(self, *_: Any) -> None:
        self._free()  # an evaluation can be left between two of its batches
        self.busy = True

    def on_validation_end(self, *_: Any) -> None:
        self._free()


class Curves(pl.Callback):
    """After each evaluation: the new row to the member's logger, the whole curve to `<run folder>/curve.csv`."""

    def __init__(self, folders: Mapping[str, Path], loggers: Mapping[str, Any]) -> None:
        self.folders, self.loggers = folders, loggers

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        for member in module.members:
            if member.diverged or not member.curve:
                continue
            row = member.curve[-1]
            if member.run_id in self.loggers:
                log_rows(self.loggers[member.run_id], member.run_id, [row])
            try:
                write_curve(self.folders[member.run_id] / "curve.csv", member.curve)
            except OSError as error:
                log.warning("curve of %s not written: %s", member.run_id, error)


class Progress(ProgressBar):
    """One bar for the whole run on a terminal; one line per evaluation elsewhere (log files, batch systems)."""

    def __init__(self, title: str, iterations: int) -> None:
        super().__init__()
        self.title, self.iterations = title, iterations
        self.bar: tqdm[Any] | None = None
        self._shown = 0.0
        self._started: tuple[float, int] | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        self._started = (time.monotonic(), module.iteration)
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=self.iterations, initial=module.iteration, desc=self.title, dynamic_ncols=True, smoothing=0.05
            )

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(module, Classifier)
        if self.bar is not None and time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            module.sync()
            self.bar.set_postfix_str(self._values(module), refresh=False)
            self.bar.update(module.iteration - self.bar.n)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        if self.bar is not None:
            self.bar.set_postfix_str(self._values(module))
            return
        left = ""
        if self._started is not None and module.iteration > self._started[1]:
            since, first = self._started
            rate = (module.iteration - first) / (time.monotonic() - since)
            left = f", {rate:.1f} it/s, {_duration((self.iterations - module.iteration) / rate)} left"
        log.info("%s  %s%s", f"{self.title}  {module.iteration:,}/{self.iterations:,}", self._values(module), left)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        if self.bar is not None:
            self.bar.update(module.iteration - self.bar.n)
            self.bar.close()
            self.bar = None

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _values(self, module: Classifier) -> str:
        values = [f"lr {module.lrs[module.iteration]:.2e}"]
        if not math.isnan(module.last_loss):
            values.append(f"loss {module.last_loss:.3f}")
        accuracies = [m.curve[-1].test_accuracy for m in module.members if m.curve and not m.diverged]
        if accuracies:
            values.append(f"test {sum(accuracies) / len(accuracies):.2f} %")
        if diverged := sum(bool(member.diverged) for member in module.members):
            values.append("diverged" if len(module.members) == 1 else f"{diverged} diverged")
        return ", ".join(values)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
