"""AlexNet of Table 1 and Figures 7 to 10 (8 presumably): Caffe's bvlc_alexnet and bvlc_reference_caffenet."""

from torch import Tensor, nn
from torch.nn import functional as F

from cyclical_lr.models.layers import AcrossChannelsLRN, Constant, Conv2d, Gaussian, Param, caffe_layer


class AlexNet(nn.Module):
    """Five convolutions, three of them in two groups, and three inner products: 60,965,224 parameters.

    Input: float [N, 3, 227, 227], pixels 0..255 minus the training set's mean image; 224 pixels a side give the same
    sizes from the first pooling on, because Caffe's pooling rounds up. Output: logits [N, num_classes].

    The paper has "a slightly modified AlexNet", which fits both of Caffe's: bvlc_alexnet normalises before it pools and
    starts the biases of conv2, conv4, conv5, fc6 and fc7 at 0.1, CaffeNet pools first and starts them at 1. The other
    biases start at 0 in both.

    Args:
        num_classes: size of the output.
        caffenet: False for bvlc_alexnet, True for CaffeNet.
        init: "caffe" (the prototxt's Gaussians) or "torch" (PyTorch's defaults).
    """

    channels_last = True  # in float32 on a GPU too, where its convolutions in groups are faster so

    def __init__(self, num_classes: int = 1000, caffenet: bool = False, init: str = "caffe") -> None:
        super().__init__()
        started = 1.0 if caffenet else 0.1

        def conv(inputs: int, outputs: int, size: int, bias: float, **choices: int) -> Conv2d:
            layer = Conv2d(inputs, outputs, size, **choices)  # type: ignore[arg-type]
            return caffe_layer(layer, Param(Gaussian(0.01)), bias_param(bias), init)

        def inner_product(inputs: int, outputs: int, std: float, bias: float) -> nn.Linear:
            return caffe_layer(nn.Linear(inputs, outputs), Param(Gaussian(std)), bias_param(bias), init)

        def norm_and_pool() -> nn.Sequential:
            norm, pool = AcrossChannelsLRN(size=5, alpha=1e-4, beta=0.75), nn.MaxPool2d(3, 2, ceil_mode=True)
            return nn.Sequential(pool, norm) if caffenet else nn.Sequential(norm, pool)

        self.conv1 = conv(3, 96, 11, bias=0.0, stride=4)
        self.reduce1 = norm_and_pool()
        self.conv2 = conv(96, 256, 5, bias=started, padding=2, groups=2)
        self.reduce2 = norm_and_pool()
        self.conv3 = conv(256, 384, 3, bias=0.0, padding=1)
        self.conv4 = conv(384, 384, 3, bias=started, padding=1, groups=2)
        self.conv5 = conv(384, 256, 3, bias=started, padding=1, groups=2)
        self.pool5 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.fc6 = inner_product(256 * 6 * 6, 4096, std=0.005, bias=started)
        self.drop6 = nn.Dropout(0.5)
        self.fc7 = inner_product(4096, 4096, std=0.005, bias=started)
        self.drop7 = nn.Dropout(0.5)
        self.fc8 = inner_product(4096, num_classes, std=0.01, bias=0.0)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] not in ((227, 227), (224, 224)):
            raise ValueError(f"expected crops of 227 or 224 pixels, got {list(x.shape)}; give data.crop=227")
        x = self.reduce1(F.relu(self.conv1(x), inplace=True))
        x = self.reduce2(F.relu(self.conv2(x), inplace=True))
        x = F.relu(self.conv3(x), inplace=True)
        x = F.relu(self.conv4(x), inplace=True)
        x = self.pool5(F.relu(self.conv5(x), inplace=True))
        x = self.drop6(F.relu(self.fc6(x.flatten(1)), inplace=True))
        x = self.drop7(F.relu(self.fc7(x), inplace=True))
        return self.fc8(x)


def bias_param(value: float) -> Param:
    """The biases' blob in all layers of Caffe's ImageNet networks: twice the LR, no weight decay."""
    return Param(Constant(value), lr_mult=2, decay_mult=0)
