"""One iteration of training: the readable reference that every faster engine must equal."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cyclical_lr.solvers import set_lr


def reference_step(
    network: nn.Module,
    solver: Optimizer,
    x: Tensor,
    y: Tensor,
    lr: float,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> Tensor:
    """One solver step, as Caffe's Solver::Step does it: loss is the mean over the batch, the update uses lr(t).

    Args:
        network: maps x, float [N, C, H, W], to logits [N, classes].
        solver: over the network's parameters; its groups may carry `lr_mult`.
        x, y: the batch; y is int64 [N].
        lr: of this iteration, for weights (lr_mult 1).
        backward: what computes the gradients; Lightning passes its own.
    Returns:
        the loss before the step, detached, scalar.
    """
    set_lr(solver, lr)
    loss = F.cross_entropy(network(x), y)
    solver.zero_grad()
    backward(loss)
    solver.step()
    return loss.detach()
