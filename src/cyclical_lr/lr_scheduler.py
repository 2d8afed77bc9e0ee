"""Any schedule as a torch scheduler, for a training loop of your own or for a LightningModule.

In plain torch, one `step()` per iteration:

    schedule = Triangular2(base_lr=0.001, max_lr=0.005, stepsize=2000)
    scheduler = ScheduleLR(optimizer, schedule)
    for images, labels in loader:
        optimizer.zero_grad()
        loss_fn(model(images), labels).backward()
        optimizer.step()
        scheduler.step()

In Lightning, `configure_optimizers` returns

    {"optimizer": optimizer, "lr_scheduler": {"scheduler": ScheduleLR(optimizer, schedule), "interval": "step"}}

Unlike torch's `CyclicLR` it never touches the momentum, and its state is two integers (Section 3.1; Appendix A).
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cyclical_lr.schedules import Schedule
from cyclical_lr.solvers import check_groups, multiplier


class ScheduleLR(LRScheduler):
    """Sets group["lr"] = schedule(t) * group.get("lr_mult", 1.0) in every parameter group, before iteration t.

    `lr_mult` is Caffe's multiplier per parameter (cifar10_full trains its biases at twice the LR): put it into the
    group's dict. The LR given to the optimiser is overwritten, with a warning where groups differ in it and none has
    an `lr_mult`. A group added later gets its LR at the next `step()`. In a `ChainedScheduler` it overrules those
    before it, and those after it change one step's LR only: combine schedules by `Phases` and `Drops` instead.

    Args:
        optimizer: any torch optimiser.
        schedule: lr(t), such as `cyclical_lr.schedules.Triangular`, or any pure function of the iteration from 0.
        last_epoch: torch's name for the last iteration done: -1 to begin, n - 1 to go on after n iterations.

    Raises:
        TypeError: if `optimizer` is none, as with torch's own.
        ValueError: if `schedule` cannot be called, `last_epoch` is no whole number or below -1, or a group's `lr_mult`
            is no number of at least 0.
    """

    def __init__(self, optimizer: Optimizer, schedule: Schedule | Callable[[int], float], last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer: expected a torch optimizer, got {type(optimizer).__name__}; give the optimizer"
            )
        if not callable(schedule) or isinstance(schedule, type):
            remedy = "give a schedule object, such as Triangular2(base_lr=0.001, max_lr=0.005, stepsize=2000)"
            raise ValueError(f"schedule: expected a function of the iteration, got {schedule!r}; {remedy}")
        if not isinstance(last_epoch, Integral) or isinstance(last_epoch, bool) or last_epoch < -1:
            raise ValueError(f"last_epoch: expected an integer, at least -1, got {last_epoch!r}; -1 to begin")
        check_groups(optimizer)
        self.schedule: Schedule | Callable[[int], float] = schedule
        for group in optimizer.param_groups:
            # torch demands it of a scheduler that starts in mid-run; no LR here depends on it, but those of others do.
            group.setdefault("initial_lr", _lr_of(group))
        super().__init__(optimizer, int(last_epoch))

    def get_lr(self) -> list[float | Tensor]:
        """The LR of each parameter group at the current iteration.

        Raises:
            ValueError: the schedule gives no LR there, or the `lr_mult` of a group added later is no factor.
        """
        seen: set[int] = set()
        for group in self.optimizer.param_groups:  # torch gives all groups one tensor, and fills it in place
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].clone() if id(group["lr"]) in seen else group["lr"]
                seen.add(id(group["lr"]))
        rate = self.schedule(self.last_epoch)
        try:
            rate = float(rate)
            usable = 0 <= rate < math.inf
        except (TypeError, ValueError):
            usable = False
        if not usable:
            raise ValueError(
                f"schedule: expected a finite LR of at least 0 at iteration {self.last_epoch}, got {rate!r}; correct "
                "the function"
            )
        return [rate * multiplier(group) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain ints. The schedule is not in it: build the same one before loading."""
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the saved position. The LR there is in the optimiser's state, as with torch's own schedulers.

        Nothing is written to the optimiser: where `SequentialLR` has several, its LR may be another's.

        Raises:
            ValueError: it is no state of a ScheduleLR.
        """
        if missing := {"last_epoch", "_step_count"} - state_dict.keys():
            raise ValueError(f"state_dict: expected that of a ScheduleLR, got one without {', '.join(sorted(missing))}")
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        self._last_lr = list(map(_lr_of, self.optimizer.param_groups))


def _lr_of(group: dict[str, Any]) -> float | Tensor:
    """A group's LR, of which a later step changes nothing."""
    lr: float | Tensor = group["lr"]
    return lr.clone() if isinstance(lr, Tensor) else lr
