"""ResNet for CIFAR, Table 4's `ResNet` rows: facebook/fb.resnet.torch, models/resnet.lua (He et al., 2016).

The layers that Stochastic Depth shares with it are here too.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class ResNet(nn.Module):
    """A 3x3 convolution, three stages of residual blocks with 16, 32 and 64 channels, an average and a classifier.

    Input: float [N, 3, 32, 32], normalised per channel. Output: logits [N, num_classes]. The stages' outputs are
    [N, 16, 32, 32], [N, 32, 16, 16] and [N, 64, 8, 8]. Depth 56 has 853,018 parameters for 10 classes.

    Args:
        num_classes: size of the output.
        depth: 6n + 2 weight layers, n blocks a stage: 20, 32, 44, 56, 110. The paper does not state its own.

    Convolutions have no bias and are filled from N(0, 2 / (9 * outputs)); the classifier's bias starts at 0.
    """

    def __init__(self, num_classes: int = 10, depth: int = 56) -> None:
        super().__init__()
        blocks = blocks_per_stage(depth)
        self.conv = conv3x3(3, 16)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = nn.Sequential(*(Block(16, 16) for _ in range(blocks)))
        self.stage2 = nn.Sequential(Block(16, 32), *(Block(32, 32) for _ in range(blocks - 1)))
        self.stage3 = nn.Sequential(Block(32, 64), *(Block(64, 64) for _ in range(blocks - 1)))
        self.fc = nn.Linear(64, num_classes)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    """relu(shortcut(x) + branch(x)), the branch being conv, BN, ReLU, conv, BN. More channels come with stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride=outputs // inputs)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = Shortcut(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.shortcut(x) + branch)


class Shortcut(nn.Module):
    """Shortcut A, without parameters: the identity, or half the resolution and zeros as the new channels.

    Args:
        inputs, outputs: channels; equal, or the second is twice the first.
        window: side of the average that halves the resolution: 1 takes every second pixel, as fb.resnet.torch does.
    """

    def __init__(self, inputs: int, outputs: int, window: int = 1) -> None:
        super().__init__()
        self.inputs, self.outputs, self.window = inputs, outputs, window

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs == self.outputs:
            return x
        return F.pad(F.avg_pool2d(x, self.window, stride=2), (0, 0, 0, 0, 0, self.outputs - self.inputs))

    def extra_repr(self) -> str:
        return f"{self.inputs}, {self.outputs}, window={self.window}"


def blocks_per_stage(depth: int) -> int:
    """n of a network with 6n + 2 weight layers.

    Raises:
        ValueError: there is no such n.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"model.depth: expected 6n + 2, such as 20, 32, 44, 56 or 110, got {depth!r}")
    return depth // 6


def conv3x3(inputs: int, outputs: int, stride: int = 1, fan: Literal["fan_in", "fan_out"] = "fan_out") -> nn.Conv2d:
    """A 3x3 convolution without bias, filled from N(0, 2 / fan): fan_out is 9 * outputs, fan_in 9 * inputs."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode=fan)
    return conv
