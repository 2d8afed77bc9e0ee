"""The networks of Figure 6: Caffe's examples/cifar10/cifar10_full_sigmoid_train_test{,_bn}.prototxt."""

from torch import Tensor, nn

from cyclical_lr.models.layers import (
    AvgPool2d,
    CaffeBatchNorm,
    Conv2d,
    Gaussian,
    MaxPool2d,
    Param,
    caffe_layer,
    max_pooled,
)


class Cifar10Sigmoid(nn.Module):
    """cifar10_full with sigmoids, without LRN: 89,578 parameters, or 89,450 with batch normalisation, for 10 classes.

    Input: float [N, 3, 32, 32], pixels 0..255 minus the training set's mean image. Output: logits [N, num_classes].

    The first block pools before its sigmoid, the other two after it; batch normalisation stands before each sigmoid.
    The two prototxts differ in more than the normalisation: with it the convolutions have no biases, and the inner
    product's multipliers are others. Its decay multipliers are without effect in the paper's runs, whose solver has
    no weight decay.

    Args:
        num_classes: size of the output.
        batch_norm: False for the plain prototxt, True for the one that ends in _bn.
        ceil_mode: Caffe rounds pooled sizes up (32, 16, 8, 4). False is PyTorch's default, 32, 15, 7, 3.
        init: "caffe" (the prototxt's Gaussians) or "torch" (PyTorch's defaults).
    """

    channels_last = True  # in float32 on a GPU too, as the study's own kernels are (gpu_kernels.py)

    def __init__(
        self, num_classes: int = 10, batch_norm: bool = False, ceil_mode: bool = True, init: str = "caffe"
    ) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, std: float, bias: Param) -> Conv2d:
            layer = Conv2d(inputs, outputs, 5, padding=2, bias=not batch_norm)
            return caffe_layer(layer, Param(Gaussian(std)), None if batch_norm else bias, init)

        def norm(channels: int) -> nn.Module:
            return CaffeBatchNorm(channels) if batch_norm else nn.Identity()

        self.conv1 = conv(3, 32, 1e-4, Param(lr_mult=2))
        self.pool1 = MaxPool2d(3, 2, ceil_mode)
        self.bn1 = norm(32)
        self.conv2 = conv(32, 32, 0.01, Param(lr_mult=2))
        self.bn2 = norm(32)
        self.pool2 = AvgPool2d(3, 2, ceil_mode)
        self.conv3 = conv(32, 64, 0.01, Param())
        self.bn3 = norm(64)
        self.pool3 = AvgPool2d(3, 2, ceil_mode)
        self.ip1 = caffe_layer(
            nn.Linear(64 * (4 if ceil_mode else 3) ** 2, num_classes),
            Param(Gaussian(0.01), decay_mult=1 if batch_norm else 0),
            Param(lr_mult=1 if batch_norm else 2, decay_mult=0),
            init,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(max_pooled(self.conv1, self.pool1, x)).sigmoid()
        x = self.pool2(self.bn2(self.conv2(x)).sigmoid())
        x = self.pool3(self.bn3(self.conv3(x)).sigmoid())
        return self.ip1(x.flatten(1))
