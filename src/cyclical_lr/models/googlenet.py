"""GoogLeNet of Table 1 and Figures 11 to 13: Caffe's models/bvlc_googlenet/train_val.prototxt.

The paper used Princeton's prototxt, which is no longer to be had; BVLC's stands in for it. What Princeton's fillers
were is known from two networks that were made of it (`init`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cyclical_lr.models.alexnet import bias_param
from cyclical_lr.models.layers import AcrossChannelsLRN, Conv2d, Gaussian, L, Param, Xavier, caffe_layer


class GoogLeNet(nn.Module):
    """Nine inception blocks: 6,998,552 parameters, and with the two auxiliary heads 13,378,280.

    Input: float [N, 3, 224, 224], pixels 0..255 minus the mean of each channel. Output: logits [N, num_classes], and in
    training with auxiliary heads a tuple of three such: the classifier's, then those of the heads on 4a and 4d, which
    count by `loss_weights` in the loss (`training.engine.reference_step`).

    Weights are filled by `Xavier`, biases start at 0.2, those of the three classifiers at 0. With Princeton's fillers
    all biases start at 0, and all weights but those of 1x1 convolutions are Gaussian.

    Args:
        num_classes: size of the output.
        auxiliary: whether to have the auxiliary heads; evaluation never uses them.
        init: "caffe" (the prototxt's fillers), "princeton" (those that alexgkendall/caffe-posenet and moskewcz/boda
            have kept of Princeton's), or "torch" (PyTorch's defaults).
    Raises:
        ValueError: another init.
    """

    def __init__(self, num_classes: int = 1000, auxiliary: bool = True, init: str = "caffe") -> None:
        super().__init__()
        if init not in ("caffe", "princeton", "torch"):
            raise ValueError(f"model.init: expected 'caffe', 'princeton' or 'torch', got {init!r}")
        self.loss_weights = (1.0, 0.3, 0.3) if auxiliary else (1.0,)
        self.stem = nn.Sequential(
            conv_relu(3, 64, 7, init, 0.015, stride=2, padding=3),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            AcrossChannelsLRN(size=5, alpha=1e-4, beta=0.75),
            conv_relu(64, 64, 1, init),
            conv_relu(64, 192, 3, init, 0.02, padding=1),
            AcrossChannelsLRN(size=5, alpha=1e-4, beta=0.75),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )
        self.inception_3a = Inception(192, 64, (96, 128), (16, 32), 32, init)
        self.inception_3b = Inception(256, 128, (128, 192), (32, 96), 64, init)
        self.pool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception_4a = Inception(480, 192, (96, 208), (16, 48), 64, init)
        self.inception_4b = Inception(512, 160, (112, 224), (24, 64), 64, init)
        self.inception_4c = Inception(512, 128, (128, 256), (24, 64), 64, init)
        self.inception_4d = Inception(512, 112, (144, 288), (32, 64), 64, init)
        self.inception_4e = Inception(528, 256, (160, 320), (32, 128), 128, init)
        self.pool4 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.inception_5a = Inception(832, 256, (160, 320), (32, 128), 128, init)
        self.inception_5b = Inception(832, 384, (192, 384), (48, 128), 128, init)
        self.pool5 = nn.AvgPool2d(7, 1)
        self.drop5 = nn.Dropout(0.4)
        self.classifier = inner_product(1024, num_classes, 0.0, init)
        self.auxiliary_4a = AuxiliaryHead(512, num_classes, init) if auxiliary else None
        self.auxiliary_4d = AuxiliaryHead(528, num_classes, init) if auxiliary else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        if x.shape[2:] != (224, 224):
            raise ValueError(f"expected crops of 224 pixels, got {list(x.shape)}; give data.crop=224")
        x = self.pool3(self.inception_3b(self.inception_3a(self.stem(x))))
        x_4a = self.inception_4a(x)
        x_4d = self.inception_4d(self.inception_4c(self.inception_4b(x_4a)))
        x = self.pool4(self.inception_4e(x_4d))
        x = self.pool5(self.inception_5b(self.inception_5a(x)))
        logits = self.classifier(self.drop5(x.flatten(1)))
        if self.training and self.auxiliary_4a is not None and self.auxiliary_4d is not None:
            return logits, self.auxiliary_4a(x_4a), self.auxiliary_4d(x_4d)
        return logits


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 5x5; and the maximum of 3x3 pixels, 1x1.

    Args:
        inputs: channels.
        direct: outputs of the first branch.
        three, five: outputs of the 1x1 convolution and of the 3x3 or 5x5 after it.
        pooled: outputs of the last branch.
        init: as the network's.
    """

    def __init__(
        self, inputs: int, direct: int, three: tuple[int, int], five: tuple[int, int], pooled: int, init: str
    ) -> None:
        super().__init__()
        self.direct = conv_relu(inputs, direct, 1, init)
        self.three = nn.Sequential(conv_relu(inputs, three[0], 1, init), conv_relu(*three, 3, init, 0.04, padding=1))
        self.five = nn.Sequential(conv_relu(inputs, five[0], 1, init), conv_relu(*five, 5, init, 0.08, padding=2))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv_relu(inputs, pooled, 1, init))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.direct(x), self.three(x), self.five(x), self.pooled(x)], 1)


class AuxiliaryHead(nn.Module):
    """A classifier on [N, inputs, 14, 14]: average of 5x5 pixels, stride 3, 1x1 convolution, two inner products."""

    def __init__(self, inputs: int, num_classes: int, init: str) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, 3, ceil_mode=True, count_include_pad=False)
        self.conv = conv_relu(inputs, 128, 1, init)
        self.fc = inner_product(128 * 4 * 4, 1024, 0.2, init)
        self.drop = nn.Dropout(0.7)
        self.classifier = inner_product(1024, num_classes, 0.0, init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x))
        x = self.drop(F.relu(self.fc(x.flatten(1)), inplace=True))
        return self.classifier(x)


def conv_relu(
    inputs: int, outputs: int, size: int, init: str, std: float | None = None, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """A convolution with the prototxt's fillers, and its ReLU; `std` is of Princeton's Gaussian, if it has one."""
    conv = Conv2d(inputs, outputs, size, stride, padding)
    return nn.Sequential(_filled(conv, std, 0.2, init), nn.ReLU(inplace=True))


def inner_product(inputs: int, outputs: int, bias: float, init: str) -> nn.Linear:
    """An inner product with the prototxt's fillers, its biases starting at `bias`, in Princeton's at 0."""
    return _filled(nn.Linear(inputs, outputs), 0.01, bias, init)


def _filled(layer: L, std: float | None, bias: float, init: str) -> L:
    if init == "princeton":
        weight = Param(Xavier() if std is None else Gaussian(std))
        return caffe_layer(layer, weight, bias_param(0.0))
    return caffe_layer(layer, Param(Xavier()), bias_param(bias), init)
