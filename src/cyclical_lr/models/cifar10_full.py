"""The network of Tables 1 and 3 and Figures 1, 3, 4, 5: Caffe's examples/cifar10/cifar10_full_train_test.prototxt."""

from torch import Tensor, nn

from cyclical_lr.models.layers import AvgPool2d, Conv2d, Gaussian, MaxPool2d, Param, caffe_layer, lrn, max_pooled


class Cifar10Full(nn.Module):
    """Three 5x5 convolutions and one inner product: 89,578 parameters for 10 classes.

    Input: float [N, 3, 32, 32], pixels 0..255 minus the training set's mean image. Output: logits [N, num_classes].

    A ReLU is part of the pooling beside it: the first block pools before its ReLU, the others after theirs. Only the
    inner product has a decay multiplier for its weights (250, that is a weight decay of 1.0). Both as in the prototxt;
    conv3 declares no multipliers there, so its bias learns at lr_mult 1 while the other biases learn at 2.

    Args:
        num_classes: size of the output.
        ceil_mode: Caffe rounds pooled sizes up (32, 16, 8, 4). False is PyTorch's default, 32, 15, 7, 3.
        lrn: "within_channel" (Caffe's here), "across_channels" (what PyTorch's LocalResponseNorm does), or "none".
        init: "caffe" (the prototxt's Gaussians) or "torch" (PyTorch's defaults).
    """

    channels_last = True  # in float32 on a GPU too, as the study's own kernels are (gpu_kernels.py)

    def __init__(
        self, num_classes: int = 10, ceil_mode: bool = True, lrn: str = "within_channel", init: str = "caffe"
    ) -> None:
        super().__init__()
        bias_2x = Param(lr_mult=2)
        self.conv1 = caffe_layer(Conv2d(3, 32, 5, padding=2), Param(Gaussian(1e-4)), bias_2x, init)
        self.pool1 = MaxPool2d(3, 2, ceil_mode, relu=True)
        self.norm1 = _lrn(lrn)
        self.conv2 = caffe_layer(Conv2d(32, 32, 5, padding=2), Param(Gaussian(0.01)), bias_2x, init)
        self.pool2 = AvgPool2d(3, 2, ceil_mode, relu=True)
        self.norm2 = _lrn(lrn)
        self.conv3 = caffe_layer(Conv2d(32, 64, 5, padding=2), Param(Gaussian(0.01)), Param(), init)
        self.pool3 = AvgPool2d(3, 2, ceil_mode, relu=True)
        self.ip1 = caffe_layer(
            nn.Linear(64 * (4 if ceil_mode else 3) ** 2, num_classes),
            Param(Gaussian(0.01), decay_mult=250),
            Param(lr_mult=2, decay_mult=0),
            init,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(max_pooled(self.conv1, self.pool1, x))
        x = self.norm2(self.pool2(self.conv2(x)))
        x = self.pool3(self.conv3(x))
        return self.ip1(x.flatten(1))


def _lrn(kind: str) -> nn.Module:
    return lrn(kind, size=3, alpha=5e-5, beta=0.75)
