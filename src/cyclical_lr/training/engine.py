"""One iteration of training: the readable reference that every faster engine must equal."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cyclical_lr.solvers import set_lr


def seed_step(seed: int, iteration: int) -> None:
    """Seed torch's global generators for one iteration of a run that draws numbers while it trains.

    Dropout, stochastic depth and augmentation then depend on (seed, iteration) alone: a run that is continued, or that
    shares its process with other seeds, draws what an unbroken run of its own would. The mixing is SplitMix64's.
    """
    z = (seed * 0x9E3779B97F4A7C15 + iteration * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    torch.manual_seed(z >> 32)  # torch's CPU generator takes 32 bits


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
        network: maps x, float [N, C, H, W], to logits [N, classes]; or to a tuple of such, whose losses its attribute
            `loss_weights` weighs (Caffe's loss_weight), one number each.
        solver: over the network's parameters; its groups may carry `lr_mult`.
        x, y: the batch; y is int64 [N].
        lr: of this iteration, for weights (lr_mult 1).
        backward: what computes the gradients; Lightning passes its own.
    Returns:
        the loss before the step, detached, scalar.
    """
    set_lr(solver, lr)
    logits = network(x)
    loss = F.cross_entropy(logits, y) if isinstance(logits, Tensor) else _weighted_loss(network, logits, y)
    solver.zero_grad()
    backward(loss)
    solver.step()
    return loss.detach()


def _weighted_loss(network: Any, heads: tuple[Tensor, ...], y: Tensor) -> Tensor:
    losses = [weight * F.cross_entropy(head, y) for weight, head in zip(network.loss_weights, heads, strict=True)]
    return torch.stack(losses).sum()
