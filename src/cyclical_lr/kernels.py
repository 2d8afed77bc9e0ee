"""The port's pooling and within-channel LRN, and the first layers' gradients, compiled for a CPU (kernels.cpp).

PyTorch's operators pass over memory once per multiplication; these keep an image in the cache. What they compute is the
same: the maxima and their gradients to the bit, the rest to rounding (tests/test_kernels.py). They are built once per
machine by its own compiler, `c++` or what `CXX` names, into the user's cache folder. Where that cannot be done, or with
`CYCLICAL_LR_KERNELS=off`, the layers use PyTorch's operators; `kind()` says which, and a run's record keeps it.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
try:
    COMPILER = tuple(shlex.split(os.environ.get("CXX") or "c++"))
except ValueError:  # an unclosed quote, of which no compiler has the name
    COMPILER = (os.environ["CXX"],)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
SWITCH = "CYCLICAL_LR_KERNELS"
LANES = 16
"""Channels that the kernels take at a time."""
SUFFIXES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class _Pool(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("images", "height", "width", "channels", "out_height", "out_width"),
            *("kernel", "stride", "relu", "threads"),
        )
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("images", "height", "width", "channels", "reach", "threads")),
        ("alpha", ctypes.c_double),
        ("beta", ctypes.c_double),
    )


def takes(x: Tensor) -> bool:
    """Whether these kernels take this tensor: [N, C, H, W] on the CPU, with channels-last strides."""
    return _lies_well(x) and x.shape[1] % LANES == 0


def _lies_well(x: Tensor) -> bool:
    images = x.device.type == "cpu" and x.dtype in SUFFIXES and x.dim() == 4
    return images and x.is_contiguous(memory_format=torch.channels_last)


def serving(x: Tensor) -> Any:
    """The module whose kernels take this tensor, this one or gpu_kernels; None where PyTorch's operators have to.

    They have to while torch traces the network (`torch.compile`, `torch.export`, `torch.jit.trace`, `make_fx`) or
    counts its operations, and for a subclass of Tensor, which may have no memory.
    """
    global _asked
    device = x.device.type
    if not _ordinary(x):
        return None
    if device == "cuda" and x.dim() == 4 and x.device.index == torch.cuda.current_device():
        found = _on_gpu()
        fits = found is None or found.takes(x)
    else:
        fits = takes(x)
        found = _on_cpu() if fits else None
    _asked = device if fits else _asked
    return found if fits else None


def convolving(x: Tensor, weight: Tensor, *options: Any) -> Any:
    """gpu_kernels, if these tensors are the GPU's and its `convolves` takes them, or None."""
    found = serving(x) if x.device.type == "cuda" else None
    return found if found is not None and found.convolves(x, weight, *options) else None


def pooling_convolved(x: Tensor, weight: Tensor, pooling: "Pooling", *options: Any) -> Any:
    """This module, if its `convolve_max_pool_backward` takes these tensors, or None.

    They are data on the CPU of three channels, channels last, whose gradient nobody wants; 5 x 5 weights for a multiple
    of 16 channels; and a convolution, of these stride, padding, dilation and groups, that keeps the size.
    """
    global _asked
    fits = (
        _ordinary(x)
        and _lies_well(x)
        and not x.requires_grad
        and weight.device == x.device
        and weight.shape[1:] == (3, 5, 5)
        and weight.shape[0] % LANES == 0
        and options == ((1, 1), (2, 2), (1, 1), 1)
        and pooling.kernel <= min(x.shape[2:])
    )
    _asked = "cpu" if fits else _asked
    return _on_cpu() if fits else None


def _ordinary(x: Tensor) -> bool:
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_in_torch_dispatch_mode()
    return type(x) is Tensor and not traced


def stepping(params: Sequence[Tensor], grads: Sequence[Tensor], velocities: Sequence[Tensor]) -> Any:
    """The module whose `sgd` takes these, gpu_kernels, or None: they are float32 on the GPU and lie alike in memory."""

    device = params[0].device
    if device.type != "cuda" or device.index != torch.cuda.current_device():
        return None

    def fits(p: Tensor, *others: Tensor) -> bool:
        dense = p.is_contiguous() or (p.dim() == 4 and p.is_contiguous(memory_format=torch.channels_last))
        return dense and all(
            t.device == device and t.dtype == torch.float32 and t.stride() == p.stride() for t in (p, *others)
        )

    if not all(map(fits, params, grads, velocities)):
        return None
    return _on_gpu()


def begin_run() -> None:
    """Have `kind` speak of what runs from now on: a process may train several networks, one after another."""
    global _asked
    _asked = ""


def kind() -> str:
    """Which layers have run: "compiled", "torch" for lack of them, or "none" where none asked for them."""
    if not _asked:
        return "none"
    return "torch" if (_on_gpu() if _asked == "cuda" else _on_cpu()) is None else "compiled"


_asked = ""
"""The kind of device that was last asked about."""


@dataclass(frozen=True)
class Pooling:
    """Windows of `kernel` x `kernel` pixels, `stride` apart, without padding.

    With `ceil_mode` they may reach beyond the right and the bottom border, though not start there; what lies beyond
    counts for nothing. `relu`: a ReLU is part of it.
    """

    kernel: int
    stride: int
    ceil_mode: bool
    relu: bool

    def empty(self, x: Tensor) -> Tensor:
        """Memory for the output, [N, C, H', W']."""

        def pooled(size: int) -> int:
            windows = (size - self.kernel + (self.stride - 1 if self.ceil_mode else 0)) // self.stride + 1
            return windows - (self.ceil_mode and (windows - 1) * self.stride >= size)

        shape = (*x.shape[:2], *map(pooled, x.shape[2:]))
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    def sizes(self, size: Sequence[int], y: Tensor) -> _Pool:
        """Of the windows of an input [N, C, H, W], of which y is the output."""
        n, c, h, w = size
        return _Pool(n, h, w, c, *y.shape[2:], self.kernel, self.stride, self.relu, torch.get_num_threads())


def max_pool(x: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor]:
    """The maximum of each window, with the ReLU behind: [N, C, H', W'] of x's type; and where it stood.

    The second is of integers, [N, H', W', C], for `max_pool_backward`. `takes` accepts x.
    """
    y = pooling.empty(x)
    winner = torch.empty(y.permute(0, 2, 3, 1).shape, dtype=torch.int64 if x.dtype == torch.float64 else torch.int32)
    _call("max_pool", x, (x, y, winner), pooling.sizes(x.shape, y))
    return y, winner


def max_pool_backward(dy: Tensor, winner: Tensor, size: Sequence[int], pooling: Pooling) -> Tensor:
    """The gradient of `max_pool`'s input, whose size is [N, C, H, W]."""
    dx = torch.empty(*size, dtype=dy.dtype, memory_format=torch.channels_last)
    (dy,) = channels_last(dy)
    _call("max_pool_backward", dx, (dy, winner.contiguous(), dx), pooling.sizes(size, dy))
    return dx


def convolve_max_pool_backward(
    dy: Tensor, winner: Tensor, x: Tensor, weight: Tensor, pooling: Pooling
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias of the convolution of x that `max_pool` followed, in float32 at least.

    Args:
        dy, winner: the gradient of what `max_pool` gave, and its second.
        x, weight, pooling: as `pooling_convolved` accepts them.
    """
    kind = torch.promote_types(x.dtype, torch.float32)
    dweight = torch.empty(weight.shape, dtype=kind, memory_format=torch.channels_last)
    dbias = torch.empty(len(weight), dtype=kind)
    dy, x = channels_last(dy, x)
    sizes = pooling.sizes((len(x), len(weight), *x.shape[2:]), dy)
    _call("convolve_max_pool_backward", x, (dy, winner.contiguous(), x, dweight, dbias), sizes)
    return dweight, dbias


def average_pool(x: Tensor, pooling: Pooling) -> Tensor:
    """The average over the pixels that each window has, with the ReLU in front: [N, C, H', W'] of x's type."""
    y = pooling.empty(x)
    _call("average_pool", x, (x, y), pooling.sizes(x.shape, y))
    return y


def average_pool_backward(dy: Tensor, x: Tensor, pooling: Pooling) -> Tensor:
    """The gradient of `average_pool`'s input x."""
    dy, x = channels_last(dy, x)
    dx = torch.empty_like(x)
    _call("average_pool_backward", x, (dy, x, dx), pooling.sizes(x.shape, dy))
    return dx


def normalise(x: Tensor, size: int, alpha: float, beta: float, dy: Tensor | None = None) -> Tensor:
    """`WithinChannelLRN` of x or, with dy = dL/dy, the gradient dL/dx: [N, C, H, W] as x, which `takes` accepts."""
    if dy is not None:
        dy, x = channels_last(dy.to(x.dtype), x)
    y = torch.empty_like(x)
    n, c, h, w = x.shape
    _call("normalise", x, (x, dy, y), _Norm(n, h, w, c, size // 2, torch.get_num_threads(), alpha, beta))
    return y


def channels_last(*tensors: Tensor) -> tuple[Tensor, ...]:
    """These [N, C, H, W] in that layout: saved ones may come back in another (`torch.autograd.graph.save_on_cpu`)."""
    return tuple(t.contiguous(memory_format=torch.channels_last) for t in tensors)


def _call(name: str, of: Tensor, tensors: tuple[Tensor | None, ...], sizes: ctypes.Structure) -> None:
    function = getattr(_library(), f"{name}_{SUFFIXES[of.dtype]}")
    pointers = (ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors)
    function(*pointers, ctypes.byref(sizes))


def _on_cpu() -> Any:
    return None if _library() is None else sys.modules[__name__]


@cache
def _on_gpu() -> Any:
    """gpu_kernels, or None where they do not run: there is no Triton, no C compiler for it, or the GPU is too old."""
    if os.environ.get(SWITCH) == "off":
        return None
    try:
        from cyclical_lr import gpu_kernels

        gpu_kernels.try_out()
    except Exception as error:  # of Triton, the compilers that it calls, or the driver
        said = (str(error).splitlines() or [type(error).__name__])[0]
        log.info("PyTorch's own layers are used, which take longer: the study's do not run on this GPU (%s)", said)
        return None
    return gpu_kernels


@cache
def _library() -> Any:
    """The compiled kernels, or None where they cannot be had."""
    if os.environ.get(SWITCH) == "off" or not sys.platform.startswith("linux"):
        return None
    try:
        return ctypes.CDLL(str(_build()))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).splitlines() or [type(error).__name__]
        said = next((line for line in lines if "error" in line), lines[0])
        log.info("PyTorch's own layers are used, which take longer: compiling the study's failed (%s)", said)
        return None


def _build() -> Path:
    """Compile, unless that was done: the file's name tells source, flags, compiler and processor.

    Raises:
        OSError, RuntimeError, CalledProcessError: no compiler, no folder to write to, or the compiler refuses.
    """
    version = subprocess.run(
        [*COMPILER, "--version"], check=True, capture_output=True, text=True, errors="replace"
    ).stdout
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    built_from = "\n".join((SOURCE.read_text(), *COMPILER, *FLAGS, version, processor))
    key = hashlib.sha256(built_from.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cyclical_lr"
    library = folder / f"kernels-{key}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as scratch:
            compiled, linked = f"{scratch}/kernels.o", f"{scratch}/kernels.so"
            # Linked without -fopenmp, hence to no OpenMP: the kernels run on the threads of the one that torch loaded.
            compile_, link = ([*FLAGS, "-c", str(SOURCE), "-o", compiled], ["-shared", compiled, "-o", linked])
            for arguments in (compile_, link):
                subprocess.run([*COMPILER, *arguments], check=True, capture_output=True, text=True, errors="replace")
            with Path(linked).open("rb") as file:
                os.fsync(file.fileno())  # or a power cut could leave an empty file of that name
            Path(linked).replace(library)
    return library
