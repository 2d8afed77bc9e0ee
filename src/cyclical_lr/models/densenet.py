"""DenseNet, Table 4's `DenseNet` rows and Section 4.1.2's runs in Caffe (Huang et al., 2017).

Sources: liuzhuang13/DenseNet, models/densenet.lua (Torch7), and liuzhuang13/DenseNetCaffe, make_densenet.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclical_lr.models.layers import CaffeBatchNorm

Norm = Callable[[int], nn.Module]
"""Makes a batch norm for a number of channels."""


class DenseNet(nn.Module):
    """Three dense blocks, in which each layer sees the outputs of all before it, with transitions between them.

    Input: float [N, 3, 32, 32]. Output: logits [N, num_classes]. The blocks' outputs are [N, 160, 32, 32],
    [N, 304, 16, 16] and [N, 448, 8, 8] by default, that is for depth 40 and growth rate 12 without bottlenecks
    (1,019,722 parameters for 10 classes). Depth 100 with bottlenecks and compression 0.5 is DenseNet-BC-100-12.

    Args:
        num_classes: size of the output.
        depth: 3n + 4 weight layers, n layers a block; with bottlenecks 6n + 4. The paper does not state its own.
        growth_rate: channels that each layer adds.
        bottleneck: put a 1x1 convolution to 4 * growth_rate channels before each 3x3, and start from 2 * growth_rate
            channels rather than 16.
        compression: part of the channels that a transition keeps.
        drop_rate: of the dropout after each convolution but the first.
        form: which of the authors' two versions. "torch7": convolutions from N(0, 2 / fan_out), classifier uniform on
            +-sqrt(1 / fan_in). "caffe": convolutions from N(0, 2 / fan_in), classifier uniform on +-sqrt(3 / fan_in),
            and Caffe's batch norm, with which an evaluation before the first batch overflows, as in Caffe: its loss
            is NaN. In both the classifier's bias starts at 0, and convolutions have none.
    """

    def __init__(
        self,
        num_classes: int = 10,
        depth: int = 40,
        growth_rate: int = 12,
        bottleneck: bool = False,
        compression: float = 1.0,
        drop_rate: float = 0.0,
        form: str = "torch7",
    ) -> None:
        super().__init__()
        per_layer = 6 if bottleneck else 3
        if depth < per_layer + 4 or (depth - 4) % per_layer:
            example = "such as 100" if bottleneck else "such as 40"
            raise ValueError(f"model.depth: expected {per_layer}n + 4, {example}, got {depth!r}")
        if not 0 < compression <= 1:
            raise ValueError(f"model.compression: expected a number above 0 and at most 1, got {compression!r}")
        if type(growth_rate) is not int or growth_rate < 1:
            raise ValueError(f"model.growth_rate: expected an integer of at least 1, got {growth_rate!r}")
        if not 0 <= drop_rate < 1:
            raise ValueError(f"model.drop_rate: expected a probability in [0, 1), got {drop_rate!r}")
        if form not in ("torch7", "caffe"):
            raise ValueError(f"model.form: expected 'torch7' or 'caffe', got {form!r}")
        layers, channels = (depth - 4) // per_layer, 2 * growth_rate if bottleneck else 16
        norm: Norm = caffe_norm if form == "caffe" else nn.BatchNorm2d

        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        blocks, transitions = [], []
        for block in range(3):
            if block > 0:
                kept = int(channels * compression)
                if kept < 1:
                    raise ValueError(
                        f"model.compression: expected to keep some of {channels} channels, got {compression!r}"
                    )
                transitions.append(transition(channels, kept, drop_rate, norm))
                channels = kept
            widths = range(channels, channels + layers * growth_rate, growth_rate)
            blocks.append(nn.Sequential(*(Layer(width, growth_rate, bottleneck, drop_rate, norm) for width in widths)))
            channels += layers * growth_rate
        self.block1, self.block2, self.block3 = blocks
        self.transition1, self.transition2 = transitions
        self.bn = norm(channels)
        self.fc = nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in" if form == "caffe" else "fan_out")
        bound = ((3 if form == "caffe" else 1) / channels) ** 0.5
        nn.init.uniform_(self.fc.weight, -bound, bound)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.conv(x)))
        x = self.transition2(self.block2(x))
        x = F.relu(self.bn(self.block3(x)))
        return self.fc(x.mean((2, 3)))


class Layer(nn.Module):
    """BN, ReLU, 3x3 convolution, dropout, with the input concatenated in front of what they add."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool, drop_rate: float, norm: Norm) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        if bottleneck:
            stem = [norm(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, 4 * growth, 1, bias=False)]
            stem += [nn.Dropout(drop_rate)] if drop_rate else []
            inputs = 4 * growth
        conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)
        dropout = [nn.Dropout(drop_rate)] if drop_rate else []
        self.added = nn.Sequential(*stem, norm(inputs), nn.ReLU(inplace=True), conv, *dropout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.added(x)], 1)


def transition(inputs: int, outputs: int, drop_rate: float, norm: Norm) -> nn.Sequential:
    """BN, ReLU, 1x1 convolution, dropout, and the average of 2x2 pixels."""
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    dropout = [nn.Dropout(drop_rate)] if drop_rate else []
    return nn.Sequential(norm(inputs), nn.ReLU(inplace=True), conv, *dropout, nn.AvgPool2d(2))


def caffe_norm(channels: int) -> nn.Sequential:
    """Caffe's two layers for what nn.BatchNorm2d does in one."""
    return nn.Sequential(CaffeBatchNorm(channels), Scale(channels))


class Scale(nn.Module):
    """A factor, at first 1, and a bias, at first 0, for each channel of [N, C, H, W] (scale_layer.cpp)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])
