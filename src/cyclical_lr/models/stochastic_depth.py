"""Stochastic Depth, Table 4's `SD` rows: yueatsprograms/Stochastic_Depth (Huang et al., 2016)."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclical_lr.models.resnet import Shortcut, blocks_per_stage, conv3x3


class StochasticDepth(nn.Module):
    """A ResNet whose residual branches are left out at random while it trains, each for a whole mini-batch.

    Input: float [N, 3, 32, 32], minus the mean image and divided by one standard deviation. Output: logits
    [N, num_classes]. Shapes and number of parameters are those of `ResNet` at the same depth.

    Block l of L survives with probability 1 - death_rate * l / L (linear decay). In training its branch is added or
    not; in evaluation it is added times that probability.

    The branch of a block that is left out is computed all the same, and multiplied by 0: without a decision on the
    host, a step has one sequence of kernels, which a GPU can replay as a graph, and the optimiser moves its weights by
    their momentum and decay as the original does, whose gradients are then 0 and not missing. Its batch norms' running
    statistics stay as they are, which is the rest of what leaving out means. It costs the time that skipping saves.

    Args:
        num_classes: size of the output.
        depth: 6n + 2 weight layers, n blocks a stage; the authors' 110.
        death_rate: probability with which the last block is left out; the authors' recipe has 0.5, their code's default
            is 0.

    Initial weights are the original's: convolutions from N(0, 2 / (9 * inputs)), batch norms' weights uniform on
    [0, 1) (Torch7's default), the classifier's weights and biases uniform on +-1/8. The original's convolutions also
    have biases, which batch normalisation cancels; here they have none.
    """

    stochastic = True  # training seeds torch's generators before each step
    survival: Tensor

    def __init__(self, num_classes: int = 10, depth: int = 110, death_rate: float = 0.5) -> None:
        super().__init__()
        if not 0 <= death_rate < 1:
            raise ValueError(f"model.death_rate: expected a probability in [0, 1), got {death_rate!r}")
        blocks = blocks_per_stage(depth)
        channels = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        pairs = list(pairwise(channels))
        self.conv = conv3x3(3, 16, fan="fan_in")
        self.bn = nn.BatchNorm2d(16)
        self.branches = nn.ModuleList(Branch(inputs, outputs) for inputs, outputs in pairs)
        self.shortcuts = nn.ModuleList(Shortcut(inputs, outputs, window=2) for inputs, outputs in pairs)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight)
        death = death_rate * torch.arange(1, len(pairs) + 1) / len(pairs)
        self.register_buffer("survival", 1 - death, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gates()
        x = F.relu(self.bn(self.conv(x)))
        for branch, shortcut, gate in zip(self.branches, self.shortcuts, gates, strict=True):
            x = F.relu(shortcut(x) + gate * branch(x, gate))
        return self.fc(x.mean((2, 3)))

    def gates(self) -> Tensor:
        """What each block's branch is multiplied by, float [L]: in training 0 or 1, drawn anew at each call."""
        if self.training:
            return (torch.rand_like(self.survival) < self.survival).to(self.survival.dtype)
        return self.survival


class Branch(nn.Module):
    """conv, BN, ReLU, conv, BN; the running statistics move only where the gate is open."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride=outputs // inputs, fan="fan_in")
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs, fan="fan_in")
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        x = F.relu(_gated(self.bn1, self.conv1(x), gate))
        return _gated(self.bn2, self.conv2(x), gate)


def _gated(bn: nn.BatchNorm2d, x: Tensor, gate: Tensor) -> Tensor:
    if not bn.training:
        return bn(x)
    assert bn.running_mean is not None and bn.running_var is not None
    if bn.momentum is None:  # as in torch.optim.swa_utils.update_bn
        raise ValueError("momentum: expected a number, got None; a norm behind a gate has no cumulative average")
    # The backward pass keeps what the norm was given, so that must be copies if the buffers are written here.
    mean, var = bn.running_mean.clone(), bn.running_var.clone()
    y = F.batch_norm(x, mean, var, bn.weight, bn.bias, training=True, momentum=bn.momentum, eps=bn.eps)
    bn.running_mean.copy_(torch.where(gate > 0, mean, bn.running_mean))
    bn.running_var.copy_(torch.where(gate > 0, var, bn.running_var))
    return y
