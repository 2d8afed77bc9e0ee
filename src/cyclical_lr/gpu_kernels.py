"""The port's convolutions, pooling, within-channel LRN and SGD on a GPU, in Triton: what kernels.py is on a CPU.

Images are channels last. Sums are in float32, whatever the images' type, and in an order of their own that no timing
changes, so that a run repeats its bits. Products of float32 are made of three of TF32, as exact as float32's
(benchmarks/README.md). With `TRITON_INTERPRET=1` all of it runs on a CPU, for tests.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from cyclical_lr.kernels import Pooling, channels_last

TYPES = (torch.float32, torch.bfloat16)
CHANNELS = (16, 32, 64)
"""Of the convolutions that `convolves` takes: outputs, and inputs where their gradient is wanted."""
BLOCK = 512
"""Values that a program of pooling, LRN or SGD computes."""
MANY = 20_000
"""Pixels of a batch from which on a program of a convolution goes through more of them."""
SHARE = 800
"""Pixels, of so many, that a program of the weights' gradient goes through."""
MOST_SHARES = 8192
"""Shares that `_add_up` can take at once."""
FORWARD: dict[str, Any] = {"DEPTH": 32, "num_warps": 2}
"""Of a program of a convolution: products at a time of each sum."""
WEIGHTS: dict[str, Any] = {"ROWS": 128, "PIXELS": 32, "num_warps": 4}
"""Of a program of the weights' gradient: sums, and products at a time of each."""


def try_out() -> None:
    """Run those that ask most of a GPU and a compiler; raises what they raise.

    Raises:
        RuntimeError: the GPU's tensor cores have neither TF32 nor bf16, without which these are slower than PyTorch's.
    """
    if torch.cuda.get_device_capability() < (8, 0):
        raise RuntimeError("it has neither TF32 nor bf16")
    x = torch.ones(1, 16, 4, 4, device="cuda").to(memory_format=torch.channels_last)
    weight = torch.ones(16, 16, 3, 3, device="cuda").to(memory_format=torch.channels_last)
    convolve_backward(convolve(x, weight, None), x, weight, wants_dx=True)
    max_pool(x, Pooling(3, 2, ceil_mode=True, relu=True))


def takes(x: Tensor) -> bool:
    """What `kernels.takes` asks of a tensor on the CPU, of any number of channels on a GPU."""
    return x.dtype in TYPES and x.is_contiguous(memory_format=torch.channels_last) and 0 < x.numel() < 2**31


def max_pool(x: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """As `kernels.max_pool`; where the maxima stood is [N, C, H', W'], int8 if that has room for a window's pixels."""
    y = pooling.empty(x)
    winner = torch.empty_like(y, dtype=torch.int8 if pooling.kernel**2 <= 128 else torch.int32)
    _max_pool[_blocks(y)](x, y, winner, y.numel(), *_sizes(x, y, pooling), pooling.relu, BLOCK)
    return y, winner


def max_pool_backward(dy: Tensor, winner: Tensor, size: Sequence[int], pooling: Pooling) -> Tensor:
    """The gradient of `max_pool`'s input, whose size is [N, C, H, W]."""
    dx = torch.empty(*size, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
    dy, winner = channels_last(dy, winner)
    _max_pool_backward[_blocks(dx)](dy, winner, dx, dx.numel(), *_sizes(dx, dy, pooling), BLOCK)
    return dx


def average_pool(x: Tensor, pooling: Pooling) -> Tensor:
    """As `kernels.average_pool`."""
    y = pooling.empty(x)
    _average_pool[_blocks(y)](x, y, y.numel(), *_sizes(x, y, pooling), pooling.relu, BLOCK)
    return y


def average_pool_backward(dy: Tensor, x: Tensor, pooling: Pooling) -> Tensor:
    """The gradient of `average_pool`'s input x."""
    dy, x = channels_last(dy, x)
    dx = torch.empty_like(x)
    _average_pool_backward[_blocks(dx)](dy, x, dx, dx.numel(), *_sizes(x, dy, pooling), pooling.relu, BLOCK)
    return dx


def normalise(x: Tensor, size: int, alpha: float, beta: float, dy: Tensor | None = None) -> Tensor:
    """As `kernels.normalise`."""
    options = x.numel(), *x.shape[2:], x.shape[1], size, alpha, beta
    if dy is not None:
        dy, x = channels_last(dy, x)
    y = torch.empty_like(x)
    if dy is None:
        _normalise[_blocks(x)](x, x, y, x, *options, False, BLOCK)
        return y
    direct, through = (torch.empty_like(x, dtype=torch.float32) for _ in range(2))
    _normalise[_blocks(x)](x, dy, direct, through, *options, True, BLOCK)
    _normalise_backward[_blocks(x)](x, direct, through, y, *options, BLOCK)
    return y


def convolves(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    """Whether `convolve` takes these: few channels, an odd square of weights, and as many pixels out as in."""
    size = weight.shape[2]
    return (
        takes(x)
        and weight.device == x.device
        and weight.dtype == torch.float32
        and weight.is_contiguous(memory_format=torch.channels_last)
        and size % 2 == 1
        and weight.shape[3] == size
        and (stride, padding, dilation, groups) == ((1, 1), (size // 2, size // 2), (1, 1), 1)
        and weight.shape[0] in CHANNELS
        and x.numel() // x.shape[1] <= SHARE * MOST_SHARES
        and (x.shape[1] in CHANNELS or (x.shape[1] == 3 and not x.requires_grad))
    )


def aligned(x: Tensor) -> Tensor:
    """x with a fourth channel of zeros where it has three, so that a pixel is one load."""
    return F.pad(x, (0, 0, 0, 0, 0, 1)).contiguous(memory_format=torch.channels_last) if x.shape[1] == 3 else x


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution, [N, O, H, W] of x's type, of `aligned` x, [N, C, H, W], and weight, [O, C, size, size].

    Products are of x's type, to which the weights are rounded.
    """
    size = (len(x), len(weight), *x.shape[2:])
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _launch_convolution(x, weight, bias, y, backward=False)
    return y


def convolve_backward(dy: Tensor, x: Tensor, weight: Tensor, wants_dx: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """The gradients of `convolve`'s x, where wanted, of its weight and of its bias, these two in float32."""
    dy, x, weight = channels_last(dy, x, weight)
    dx = None
    if wants_dx:
        dx = torch.empty_like(x)
        _launch_convolution(dy, weight, None, dx, backward=True)
    (n, c, h, w), (outputs, inputs, size, _) = x.shape, weight.shape
    pixels, depth = n * h * w, size * size * c
    share = SHARE if pixels >= MANY else 384
    shares = triton.cdiv(pixels, share)
    parts = torch.empty(shares, depth + 1, outputs, device=x.device)
    grid = (triton.cdiv(depth, WEIGHTS["ROWS"]), shares)
    _weights[grid](x, dy, parts, pixels, h, w, c, outputs, size, share, **WEIGHTS)
    dweight, dbias = torch.empty_like(weight), torch.empty(outputs, device=x.device)
    options = (shares, triton.next_power_of_2(shares), depth, c, inputs, outputs)
    _add_up[(depth + 1,)](parts, dweight, dbias, *options)
    return dx, dweight, dbias


def sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    lr: float | Tensor,
    momentum: float,
    decay: float,
) -> None:
    """A step of `solvers.CaffeSGD` in place; the three of a parameter are float32 and lie alike in memory."""
    for w, g, v in zip(params, grads, velocities, strict=True):
        _sgd[_blocks(w)](w, g, v, lr, momentum, decay, w.numel(), isinstance(lr, Tensor), BLOCK)


def _launch_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, backward: bool) -> None:
    (_, c, h, w), pixels = x.shape, x.numel() // x.shape[1]
    per_program = 64 if pixels >= MANY else 32
    _convolve[(triton.cdiv(pixels, per_program),)](
        *(x, weight, weight if bias is None else bias, y, pixels, h, w, c, weight.shape[1]),
        *(y.shape[1], weight.shape[2], backward, bias is not None, per_program),
        **FORWARD,
    )


def _blocks(of: Tensor) -> tuple[int]:
    return (triton.cdiv(of.numel(), BLOCK),)


def _sizes(x: Tensor, y: Tensor, pooling: Pooling) -> tuple[int, ...]:
    return (*x.shape[2:], x.shape[1], *y.shape[2:], pooling.kernel, pooling.stride)


# The kernels. Sizes in capitals are known when one is compiled; OH and OW are of what pooling makes. ------------------


@triton.jit
def _place(j, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    """Image, row, column and channel of the j-th value."""
    return j // (H * W * C), j // (W * C) % H, j // C % W, j % C


@triton.jit
def _max_pool(
    x, y, winner, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = j < count
    image, down, right, c = _place(j, OH, OW, C)
    best, place = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.int32)
    for r in tl.static_range(SIZE):
        for s in tl.static_range(SIZE):
            h, w = down * STRIDE + r, right * STRIDE + s
            value = tl.load(x + ((image * H + h) * W + w) * C + c, here & (h < H) & (w < W), float("-inf"))
            value = value.to(tl.float32)
            more = (value > best) | (value != value)  # the first of equals, and NaN above all
            best, place = tl.where(more, value, best), tl.where(more, r * SIZE + s, place)
    if RELU:
        place, best = tl.where(best <= 0, -1, place), tl.where(best <= 0, 0.0, best)
    tl.store(y + j, best, here)
    tl.store(winner + j, place.to(winner.dtype.element_ty), here)


@triton.jit
def _max_pool_backward(
    dy, winner, dx, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = j < count
    image, h, w, c = _place(j, H, W, C)
    total = tl.zeros([BLOCK], tl.float32)
    REACH: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE  # windows of a row that may cover a pixel
    for a in tl.static_range(1 - REACH, 1):
        for b in tl.static_range(1 - REACH, 1):
            down, right = h // STRIDE + a, w // STRIDE + b
            r, s = h - down * STRIDE, w - right * STRIDE
            covered = here & (down >= 0) & (down < OH) & (r < SIZE) & (right >= 0) & (right < OW) & (s < SIZE)
            at = ((image * OH + down) * OW + right) * C + c
            chosen = tl.load(winner + at, covered, -1).to(tl.int32) == r * SIZE + s
            total += tl.where(chosen, tl.load(dy + at, covered, 0.0).to(tl.float32), 0.0)
    tl.store(dx + j, total, here)


@triton.jit
def _pixels(down, right, H: tl.constexpr, W: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr):
    """How many a window has."""
    h, w = down * STRIDE, right * STRIDE
    return ((tl.minimum(h + SIZE, H) - h) * (tl.minimum(w + SIZE, W) - w)).to(tl.float32)


@triton.jit
def _average_pool(
    x, y, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = j < count
    image, down, right, c = _place(j, OH, OW, C)
    total = tl.zeros([BLOCK], tl.float32)
    for r in tl.static_range(SIZE):
        for s in tl.static_range(SIZE):
            h, w = down * STRIDE + r, right * STRIDE + s
            value = tl.load(x + ((image * H + h) * W + w) * C + c, here & (h < H) & (w < W), 0.0).to(tl.float32)
            total += tl.where(value <= 0, 0.0, value) if RELU else value
    tl.store(y + j, total / _pixels(down, right, H, W, SIZE, STRIDE), here)


@triton.jit
def _average_pool_backward(
    dy, x, dx, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = j < count
    image, h, w, c = _place(j, H, W, C)
    total = tl.zeros([BLOCK], tl.float32)
    REACH: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE
    for a in tl.static_range(1 - REACH, 1):
        for b in tl.static_range(1 - REACH, 1):
            down, right = h // STRIDE + a, w // STRIDE + b
            r, s = h - down * STRIDE, w - right * STRIDE
            covered = here & (down >= 0) & (down < OH) & (r < SIZE) & (right >= 0) & (right < OW) & (s < SIZE)
            value = tl.load(dy + ((image * OH + down) * OW + right) * C + c, covered, 0.0).to(tl.float32)
            total += tl.where(covered, value / _pixels(down, right, H, W, SIZE, STRIDE), 0.0)
    if RELU:
        total = tl.where(tl.load(x + j, here, 0.0).to(tl.float32) <= 0, 0.0, total)
    tl.store(dx + j, total, here)


@triton.jit
def _mean_over_window(
    x, image, h, w, c, here,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, SIZE: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    total = tl.zeros(h.shape, tl.float32)
    for r in tl.static_range(SIZE):
        for s in tl.static_range(SIZE):
            row, column = h + r - SIZE // 2, w + s - SIZE // 2
            within = here & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            value = tl.load(x + ((image * H + row) * W + column) * C + c, within, 0.0).to(tl.float32)
            total += value * value if SQUARES else value
    return total / (SIZE * SIZE)


@triton.jit
def _normalise(
    x, dy, y, through, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = x * scale^-beta; backward, y = dy * scale^-beta, and through = dy * x * scale^(-beta - 1)."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = j < count
    image, h, w, c = _place(j, H, W, C)
    scale = 1 + ALPHA * _mean_over_window(x, image, h, w, c, here, H, W, C, SIZE, True)
    if BETA == 0.75:
        root = tl.math.rsqrt(scale)
        power = root * tl.sqrt(root)
    else:
        power = tl.exp2(-BETA * tl.log2(scale))
    value = tl.load(x + j, here, 0.0).to(tl.float32)
    if BACKWARD:
        direct = tl.load(dy + j, here, 0.0).to(tl.float32) * power
        tl.store(y + j, direct, here)
        tl.store(through + j, direct * value / scale, here)
    else:
        tl.store(y + j, value * power, here)


@triton.jit
def _normalise_backward(
    x, direct, through, dx, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    SIZE: tl.constexpr, ALPHA: tl.constexpr, BETA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = j < count
    image, h, w, c = _place(j, H, W, C)
    mean = _mean_over_window(through, image, h, w, c, here, H, W, C, SIZE, False)
    value = tl.load(x + j, here, 0.0).to(tl.float32)
    tl.store(dx + j, tl.load(direct + j, here, 0.0) - 2 * ALPHA * BETA * value * mean, here)


@triton.jit
def _convolve(
    x, weight, bias, y, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, FILTERED: tl.constexpr, OUT: tl.constexpr,
    SIZE: tl.constexpr, BACKWARD: tl.constexpr, BIAS: tl.constexpr, PIXELS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A matrix product of pixels by places in the window, gathered on the way, and places by outputs.

    FILTERED: inputs of a filter, of which x may have one more. Backward, x is the gradient of what the filters gave:
    they are turned, and their outputs are the inputs.
    """
    m, o = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS), tl.arange(0, OUT)
    here, h, w = (m < count)[:, None], (m // W % H)[:, None], (m % W)[:, None]
    total = tl.zeros([PIXELS, OUT], tl.float32)
    for start in range(0, SIZE * SIZE * C, DEPTH):
        k = start + tl.arange(0, DEPTH)
        c = k % C
        if C % DEPTH == 0:  # one place of the window at a time
            tap = start // C
            within = here
        else:
            tap = (k // C)[None, :]
            within = here & (tap < SIZE * SIZE)
        down, right = tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2
        row, column = h + down, w + right
        within = within & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        shift = (down * W + right) * C + c[None, :]
        pixels = tl.load(x + (m * C)[:, None] + shift, within, 0.0)
        if BACKWARD:
            at = c[:, None] * (SIZE * SIZE * FILTERED) + (SIZE * SIZE - 1 - k // C)[:, None] * FILTERED + o[None, :]
        else:
            at = o[None, :] * (SIZE * SIZE * FILTERED) + (k // C * FILTERED + c)[:, None]
        exists = (k < SIZE * SIZE * C) if BACKWARD else (k < SIZE * SIZE * C) & (c < FILTERED)
        filters = tl.load(weight + at, exists[:, None], 0.0).to(pixels.dtype)
        total = tl.dot(pixels, filters, total, input_precision="tf32x3")
    if BIAS:
        total += tl.load(bias + o)[None, :]
    tl.store(y + m[:, None] * OUT + o[None, :], total, here)


@triton.jit
def _weights(
    x, dy, parts, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, OUT: tl.constexpr, SIZE: tl.constexpr,
    SHARE: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """parts[share, k, o]: a share of the pixels, times dy, summed up; the last k is the bias's."""
    share = tl.program_id(1)
    k, o = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, OUT)
    c, tap = k % C, k // C
    down, right = (tap // SIZE - SIZE // 2)[:, None], (tap % SIZE - SIZE // 2)[:, None]
    shift = (down * W + right) * C + c[:, None]
    total, bias = tl.zeros([ROWS, OUT], tl.float32), tl.zeros([OUT], tl.float32)
    for start in range(0, SHARE, PIXELS):
        m = share * SHARE + start + tl.arange(0, PIXELS)
        row, column = (m // W % H)[None, :] + down, (m % W)[None, :] + right
        within = (m < count)[None, :] & (tap < SIZE * SIZE)[:, None]
        within = within & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        pixels = tl.load(x + (m * C)[None, :] + shift, within, 0.0)
        upstream = tl.load(dy + m[:, None] * OUT + o[None, :], (m < count)[:, None], 0.0)
        total = tl.dot(pixels, upstream, total, input_precision="tf32x3")
        bias += tl.sum(upstream.to(tl.float32), 0)
    part = parts + share * (SIZE * SIZE * C + 1) * OUT
    tl.store(part + k[:, None] * OUT + o[None, :], total, (tap < SIZE * SIZE)[:, None])
    if tl.program_id(0) == 0:
        tl.store(part + SIZE * SIZE * C * OUT + o, bias)


@triton.jit
def _add_up(
    parts, dweight, dbias,
    SHARES: tl.constexpr, ROUNDED_UP: tl.constexpr,
    DEPTH: tl.constexpr, C: tl.constexpr, FILTERED: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """The sum over the shares of one k of `_weights`, to where it belongs."""
    k, o, share = tl.program_id(0), tl.arange(0, OUT), tl.arange(0, ROUNDED_UP)
    at = (share[:, None] * (DEPTH + 1) + k) * OUT + o[None, :]
    total = tl.sum(tl.load(parts + at, (share < SHARES)[:, None], 0.0), 0)
    tap, c = k // C, k % C
    tl.store(dweight + o * (DEPTH // C * FILTERED) + tap * FILTERED + c, total, (k < DEPTH) & (c < FILTERED))
    tl.store(dbias + o, total, k == DEPTH)


@triton.jit
def _sgd(w, g, v, lr, momentum, decay, count, ON_DEVICE: tl.constexpr, BLOCK: tl.constexpr):
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = j < count
    weight = tl.load(w + j, here)
    rate = tl.load(lr).to(tl.float32) if ON_DEVICE else lr
    velocity = momentum * tl.load(v + j, here) + rate * (tl.load(g + j, here) + decay * weight)
    tl.store(v + j, velocity, here)
    tl.store(w + j, weight - velocity, here)
