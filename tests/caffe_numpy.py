"""Caffe's cifar10_full and its solver in plain NumPy (float64): the yardstick for the port.

Written from the formulas of Caffe's layers (BVLC/caffe 9b89154: pooling_layer, lrn_layer, batch_norm_layer,
base_conv_layer, inner_product_layer, softmax_loss_layer, the solvers) and cifar10_full's prototxt, not from the torch
code that it is compared with, and without torch. Clarity goes before speed: pooling and norms loop over windows or over
the pixels of a window.

Arrays are NCHW. Each layer returns its output and a function from the gradient of the output to the gradients of the
layer's inputs, in the order of the inputs.
"""

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Array = np.ndarray
Parameters = dict[str, Array]

# The prototxt's fields of each blob: shape, standard deviation of the filler, lr_mult, decay_mult. conv3 has no `param`
# block, hence 1 and 1; only ip1 names decay multipliers.
CIFAR10_FULL = {
    "conv1.weight": ((32, 3, 5, 5), 1e-4, 1.0, 1.0),
    "conv1.bias": ((32,), 0.0, 2.0, 1.0),
    "conv2.weight": ((32, 32, 5, 5), 0.01, 1.0, 1.0),
    "conv2.bias": ((32,), 0.0, 2.0, 1.0),
    "conv3.weight": ((64, 32, 5, 5), 0.01, 1.0, 1.0),
    "conv3.bias": ((64,), 0.0, 1.0, 1.0),
    "ip1.weight": ((10, 1024), 0.01, 1.0, 250.0),
    "ip1.bias": ((10,), 0.0, 2.0, 0.0),
}
MULTIPLIERS = {name: (lr_mult, decay_mult) for name, (_, _, lr_mult, decay_mult) in CIFAR10_FULL.items()}


# ---- layers ----------------------------------------------------------------------------------------------------------


def convolution(x: Array, weight: Array, bias: Array, pad: int) -> tuple[Array, Callable]:
    """Cross-correlation with zero padding and stride 1. x [n, c, h, w], weight [o, c, kh, kw], bias [o]."""
    kernel = weight.shape[2:]

    def patches(image: Array, pad_h: int, pad_w: int) -> Array:
        padded = np.pad(image, ((0, 0), (0, 0), (pad_h, pad_h), (pad_w, pad_w)))
        return sliding_window_view(padded, kernel, axis=(2, 3))  # [n, c, h, w, kh, kw]

    seen = patches(x, pad, pad)
    y = np.einsum("nchwij,ocij->nohw", seen, weight, optimize=True) + bias[:, None, None]

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        # A pixel is met by each kernel element once, from the opposite side: the kernel turned by half a circle.
        met = patches(dy, kernel[0] - 1 - pad, kernel[1] - 1 - pad)
        dx = np.einsum("nohwij,ocij->nchw", met, weight[:, :, ::-1, ::-1], optimize=True)
        dweight = np.einsum("nohw,nchwij->ocij", dy, seen, optimize=True)
        return dx, dweight, dy.sum(axis=(0, 2, 3))

    return y, backward


def pooled_size(size: int, kernel: int, stride: int, ceil_mode: bool = True) -> int:
    """Pixels after pooling `size` pixels without padding; Caffe rounds up, `ceil_mode=False` is the common mistake."""
    steps = (size - kernel) / stride
    return (ceil(steps) if ceil_mode else int(steps)) + 1


def windows(x: Array, kernel: int, stride: int, ceil_mode: bool):
    """Each output pixel with the slices of its window, clipped to the image."""
    for row in range(pooled_size(x.shape[2], kernel, stride, ceil_mode)):
        for column in range(pooled_size(x.shape[3], kernel, stride, ceil_mode)):
            top, left = row * stride, column * stride
            bottom, right = min(top + kernel, x.shape[2]), min(left + kernel, x.shape[3])
            yield row, column, slice(top, bottom), slice(left, right)


def max_pool(x: Array, kernel: int = 3, stride: int = 2, ceil_mode: bool = True) -> tuple[Array, Callable]:
    """Maximum of each window; among equals the first in reading order gets the gradient."""
    size = [pooled_size(side, kernel, stride, ceil_mode) for side in x.shape[2:]]
    y = np.zeros((*x.shape[:2], *size))
    for row, column, rows, columns in windows(x, kernel, stride, ceil_mode):
        y[:, :, row, column] = x[:, :, rows, columns].max(axis=(2, 3))

    def backward(dy: Array) -> tuple[Array]:
        dx = np.zeros_like(x)
        n, c = np.indices(x.shape[:2])
        for row, column, rows, columns in windows(x, kernel, stride, ceil_mode):
            flat = x[:, :, rows, columns].reshape(*x.shape[:2], -1)
            down, across = np.divmod(flat.argmax(axis=2), columns.stop - columns.start)
            dx[n, c, rows.start + down, columns.start + across] += dy[:, :, row, column]
        return (dx,)

    return y, backward


def average_pool(x: Array, kernel: int = 3, stride: int = 2, ceil_mode: bool = True) -> tuple[Array, Callable]:
    """Mean of each window over its real pixels: a window that hangs over the border divides by fewer than kernel^2."""
    size = [pooled_size(side, kernel, stride, ceil_mode) for side in x.shape[2:]]
    y = np.zeros((*x.shape[:2], *size))
    for row, column, rows, columns in windows(x, kernel, stride, ceil_mode):
        pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
        y[:, :, row, column] = x[:, :, rows, columns].sum(axis=(2, 3)) / pixels

    def backward(dy: Array) -> tuple[Array]:
        dx = np.zeros_like(x)
        for row, column, rows, columns in windows(x, kernel, stride, ceil_mode):
            pixels = (rows.stop - rows.start) * (columns.stop - columns.start)
            dx[:, :, rows, columns] += dy[:, :, row, column, None, None] / pixels
        return (dx,)

    return y, backward


def relu(x: Array) -> tuple[Array, Callable]:
    def backward(dy: Array) -> tuple[Array]:
        return (np.where(x > 0, dy, 0.0),)

    return np.where(x > 0, x, 0.0), backward


def sigmoid(x: Array) -> tuple[Array, Callable]:
    y = 1 / (1 + np.exp(-x))
    return y, lambda dy: (dy * y * (1 - y),)


def batch_norm(x: Array, eps: float = 1e-5) -> tuple[Array, Callable]:
    """BatchNorm in training: by each channel's mean and biased variance over the batch, no scale or shift."""
    axes = (0, 2, 3)
    root = np.sqrt(x.var(axis=axes, keepdims=True) + eps)
    y = (x - x.mean(axis=axes, keepdims=True)) / root

    def backward(dy: Array) -> tuple[Array]:
        return ((dy - dy.mean(axis=axes, keepdims=True) - y * (dy * y).mean(axis=axes, keepdims=True)) / root,)

    return y, backward


class BatchNormStatistics:
    """BatchNorm's three blobs: a sum of means, a sum of unbiased variances and the scale factor that divides both."""

    def __init__(self, channels: int):
        self.mean, self.variance, self.scale_factor = np.zeros(channels), np.zeros(channels), 0.0

    def see(self, x: Array, fraction: float = 0.999) -> None:
        """One training batch [n, c, h, w]."""
        self.mean = fraction * self.mean + x.mean(axis=(0, 2, 3))
        self.variance = fraction * self.variance + x.var(axis=(0, 2, 3), ddof=1)
        self.scale_factor = fraction * self.scale_factor + 1

    def normalise(self, x: Array, eps: float = 1e-5) -> Array:
        """BatchNorm in the test phase."""
        scale = 1 / self.scale_factor if self.scale_factor else 0.0
        mean, variance = scale * self.mean, scale * self.variance
        return (x - mean[:, None, None]) / np.sqrt(variance[:, None, None] + eps)


def box_sum(x: Array, size: int) -> Array:
    """Sum over the size x size window centred on each pixel, zeros outside the image. `size` is odd."""
    pad = size // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total = np.zeros_like(x)
    for i in range(size):
        for j in range(size):
            total += padded[:, :, i : i + x.shape[2], j : j + x.shape[3]]
    return total


def channel_sum(x: Array, size: int) -> Array:
    """Sum over the `size` channels centred on each channel, zeros outside. `size` is odd."""
    channels, reach = x.shape[1], size // 2
    total = np.zeros_like(x)
    for c in range(channels):
        total[:, c] = x[:, max(c - reach, 0) : min(c + reach + 1, channels)].sum(axis=1)
    return total


def response_norm(x: Array, neighbours: Callable[[Array], Array], scale: float, beta: float) -> tuple[Array, Callable]:
    """x * (1 + scale * neighbours(x^2))^-beta, where `neighbours` is a symmetric linear sum: its own transpose."""
    shifted = 1.0 + scale * neighbours(x * x)
    y = x * shifted**-beta

    def backward(dy: Array) -> tuple[Array]:
        through_norm = neighbours(dy * x * -beta * shifted ** (-beta - 1.0)) * scale * 2.0 * x
        return (dy * shifted**-beta + through_norm,)

    return y, backward


def lrn_within_channel(x: Array, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> tuple[Array, Callable]:
    """WITHIN_CHANNEL: the mean over size^2 pixels of the same channel, zero padding counted at the border as well."""
    return response_norm(x, lambda squares: box_sum(squares, size), alpha / size**2, beta)


def lrn_across_channels(x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75) -> tuple[Array, Callable]:
    """ACROSS_CHANNELS with k = 1: alpha over size, times the sum over neighbouring channels of the same pixel."""
    return response_norm(x, lambda squares: channel_sum(squares, size), alpha / size, beta)


def inner_product(x: Array, weight: Array, bias: Array) -> tuple[Array, Callable]:
    """x [n, ...] flattened in C, H, W order, weight [o, c*h*w], bias [o]."""
    flat = x.reshape(len(x), -1)

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        return (dy @ weight).reshape(x.shape), dy.T @ flat, dy.sum(axis=0)

    return flat @ weight.T + bias, backward


def softmax_loss(logits: Array, labels: Array) -> tuple[float, Callable]:
    """Mean over the batch of -log softmax(logits)[label]. logits [n, classes], labels int [n]."""
    rows = np.arange(len(labels))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)

    def backward(dloss: float = 1.0) -> tuple[Array]:
        dlogits = probabilities.copy()
        dlogits[rows, labels] -= 1.0
        return (dloss * dlogits / len(labels),)

    return float(-np.log(probabilities[rows, labels]).mean()), backward


# ---- the network -----------------------------------------------------------------------------------------------------


def cifar10_full(
    parameters: Parameters, images: Array, labels: Array, ceil_mode: bool = True, lrn: str = "within_channel"
) -> tuple[Array, float, Parameters]:
    """Logits, loss and the gradient of every parameter; images [n, 3, 32, 32] are 0..255 minus the mean image.

    `ceil_mode` and `lrn` ("within_channel", "across_channels", "none") name Caffe's choice and the deviations from it.
    """

    def norm(x: Array) -> tuple[Array, Callable]:
        if lrn == "within_channel":
            return lrn_within_channel(x, 3, 5e-5, 0.75)
        if lrn == "across_channels":
            return lrn_across_channels(x, 3, 5e-5, 0.75)
        return x, lambda dy: (dy,)

    p = parameters
    conv1, conv1_back = convolution(images, p["conv1.weight"], p["conv1.bias"], pad=2)
    pool1, pool1_back = max_pool(conv1, ceil_mode=ceil_mode)
    relu1, relu1_back = relu(pool1)
    norm1, norm1_back = norm(relu1)

    conv2, conv2_back = convolution(norm1, p["conv2.weight"], p["conv2.bias"], pad=2)
    relu2, relu2_back = relu(conv2)
    pool2, pool2_back = average_pool(relu2, ceil_mode=ceil_mode)
    norm2, norm2_back = norm(pool2)

    conv3, conv3_back = convolution(norm2, p["conv3.weight"], p["conv3.bias"], pad=2)
    relu3, relu3_back = relu(conv3)
    pool3, pool3_back = average_pool(relu3, ceil_mode=ceil_mode)

    logits, ip1_back = inner_product(pool3, p["ip1.weight"], p["ip1.bias"])
    loss, loss_back = softmax_loss(logits, labels)

    g: Parameters = {}
    (d,) = loss_back()
    d, g["ip1.weight"], g["ip1.bias"] = ip1_back(d)
    for layer_back in (pool3_back, relu3_back):
        (d,) = layer_back(d)
    d, g["conv3.weight"], g["conv3.bias"] = conv3_back(d)
    for layer_back in (norm2_back, pool2_back, relu2_back):
        (d,) = layer_back(d)
    d, g["conv2.weight"], g["conv2.bias"] = conv2_back(d)
    for layer_back in (norm1_back, relu1_back, pool1_back):
        (d,) = layer_back(d)
    _, g["conv1.weight"], g["conv1.bias"] = conv1_back(d)
    return logits, loss, g


# ---- the solver ------------------------------------------------------------------------------------------------------


class CaffeSGD:
    """SGDSolver: V = momentum V + lr lr_mult (g + weight_decay decay_mult W), W -= V; the LR is inside V.

    With `nesterov` it is NesterovSolver: W -= (1 + momentum) V_new - momentum V_old.
    """

    def __init__(
        self,
        parameters: Parameters,
        multipliers: dict[str, tuple[float, float]],
        momentum: float,
        weight_decay: float,
        nesterov: bool = False,
    ):
        self.parameters = {name: value.copy() for name, value in parameters.items()}
        self.velocity = {name: np.zeros_like(value) for name, value in parameters.items()}
        self.multipliers, self.momentum, self.weight_decay = multipliers, momentum, weight_decay
        self.nesterov = nesterov

    def step(self, gradients: Parameters, lr: float) -> None:
        for name, weights in self.parameters.items():
            lr_mult, decay_mult = self.multipliers[name]
            gradient = gradients[name] + self.weight_decay * decay_mult * weights
            old = self.velocity[name]
            new = self.momentum * old + lr * lr_mult * gradient
            update = (1 + self.momentum) * new - self.momentum * old if self.nesterov else new
            self.velocity[name] = new
            self.parameters[name] = weights - update


class TorchSGD(CaffeSGD):
    """torch's form, for contrast: V = momentum V + (g + weight_decay decay_mult W), W -= lr lr_mult V."""

    def step(self, gradients: Parameters, lr: float) -> None:
        for name, weights in self.parameters.items():
            lr_mult, decay_mult = self.multipliers[name]
            gradient = gradients[name] + self.weight_decay * decay_mult * weights
            self.velocity[name] = self.momentum * self.velocity[name] + gradient
            update = gradient + self.momentum * self.velocity[name] if self.nesterov else self.velocity[name]
            self.parameters[name] = weights - lr * lr_mult * update


class CaffeAdaptive:
    """AdamSolver, RMSPropSolver, AdaGradSolver or AdaDeltaSolver, by its `type`; options have the prototxt's names."""

    def __init__(
        self,
        type: str,
        parameters: Parameters,
        multipliers: dict[str, tuple[float, float]],
        weight_decay: float,
        **options: float,
    ):
        self.type, self.options = type, {"delta": 1e-8, "momentum2": 0.999, "rms_decay": 0.99, **options}
        self.parameters = {name: value.copy() for name, value in parameters.items()}
        self.history, self.history2 = (dict.fromkeys(parameters, 0.0) for _ in range(2))
        self.multipliers, self.weight_decay = multipliers, weight_decay
        self.iteration = 0

    def step(self, gradients: Parameters, lr: float) -> None:
        self.iteration += 1
        for name, weights in self.parameters.items():
            lr_mult, decay_mult = self.multipliers[name]
            gradient = gradients[name] + self.weight_decay * decay_mult * weights
            self.parameters[name] = weights - lr * lr_mult * self.update(name, gradient)

    def update(self, name: str, gradient: Array) -> Array:
        """What the learning rate is multiplied with."""
        o, h, h2 = self.options, self.history, self.history2
        if self.type == "AdaGrad":
            h[name] = h[name] + gradient**2
            return gradient / (np.sqrt(h[name]) + o["delta"])
        if self.type == "RMSProp":
            h[name] = o["rms_decay"] * h[name] + (1 - o["rms_decay"]) * gradient**2
            return gradient / (np.sqrt(h[name]) + o["delta"])
        if self.type == "AdaDelta":
            h[name] = o["momentum"] * h[name] + (1 - o["momentum"]) * gradient**2
            update = gradient * np.sqrt((h2[name] + o["delta"]) / (h[name] + o["delta"]))
            h2[name] = o["momentum"] * h2[name] + (1 - o["momentum"]) * update**2
            return update
        assert self.type == "Adam"
        h[name] = o["momentum"] * h[name] + (1 - o["momentum"]) * gradient
        h2[name] = o["momentum2"] * h2[name] + (1 - o["momentum2"]) * gradient**2
        correction = np.sqrt(1 - o["momentum2"] ** self.iteration) / (1 - o["momentum"] ** self.iteration)
        return correction * h[name] / (np.sqrt(h2[name]) + o["delta"])


# ---- inputs on which mistakes show -----------------------------------------------------------------------------------


def images_like_cifar(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Images [count, 3, 32, 32], whole values 0..255 minus a mean image, patches with noise; labels [count]."""
    patches = rng.uniform(0, 255, (count, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    pixels = np.clip(np.rint(patches + rng.normal(0, 20, patches.shape)), 0, 255)
    mean_image = rng.uniform(100, 140, (3, 32, 32))
    return pixels - mean_image, rng.integers(0, 10, count)


def lively_parameters(rng: np.random.Generator, ip1_inputs: int = 1024) -> Parameters:
    """Weights and biases so large that the norms, the border windows and every ReLU visibly shape the output.

    Under Caffe's own N(0, 1e-4) conv1 answers with hundredths: both norms are the identity to ten digits and a wrong
    one would pass unseen.
    """
    weight_std = {"conv1": 0.1, "conv2": 0.03, "conv3": 0.005, "ip1": 0.01}
    bias_std = {"conv1": 10.0, "conv2": 5.0, "conv3": 0.5, "ip1": 0.1}
    parameters = {}
    for name, (shape, *_) in CIFAR10_FULL.items():
        layer, kind = name.split(".")
        shape = (10, ip1_inputs) if name == "ip1.weight" else shape
        parameters[name] = rng.normal(0, (weight_std if kind == "weight" else bias_std)[layer], shape)
    return parameters
