"""One iteration of training: the readable reference, and the fast engine that must equal it."""

import gc
import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cyclical_lr.records import ConfigError
from cyclical_lr.solvers import set_lr
from cyclical_lr.training import ddp, provenance

log = logging.getLogger(__name__)

BLOCKS = {"reference": 5, "fast": 50}
"""Iterations to a `training_step`: between looks at the clock and the terminal."""
SOURCES = Path(__file__).resolve().parents[1]
CHECKS = SOURCES.parents[1] / "benchmarks" / "results"
"""Where `make gpu-check` writes, in a checkout."""
STEP = ("kernels.py", "gpu_kernels.py", "solvers.py", "models/*.py", "data/cifar.py", "data/augment.py")
"""What a step of CIFAR's networks runs, beside this file."""


def exact_arithmetic() -> None:
    """Have a GPU repeat its bits, and multiply in the precision asked for: no TF32, none of cuDNN's atomic sums.

    (gpu_kernels.py multiplies by three products of TF32, which is as exact as float32.)
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def layout(device: torch.device, precision: str, network: nn.Module) -> torch.memory_format:
    """How images and weights of a run lie in memory; `precision` is Lightning's.

    Channels last, but for float32 on a GPU: cuDNN's convolutions without TF32 want the channels first, and would have
    them rearranged at each call; unless the network says by an attribute `channels_last` that its own do not, or that
    it has this study's kernels (benchmarks/README.md).
    """
    first = device.type == "cuda" and precision == "32-true" and not getattr(network, "channels_last", False)
    return torch.contiguous_format if first else torch.channels_last


def draws(module: nn.Module) -> bool:
    """Whether a module of this package draws numbers while it trains: by dropout, or as its `stochastic` says."""
    return any(isinstance(part, nn.Dropout) or getattr(part, "stochastic", False) for part in module.modules())


def seed_step(seed: int, iteration: int, rank: int = 0) -> None:
    """Seed torch's global generators for one iteration of a run that draws numbers while it trains.

    Dropout, stochastic depth and augmentation then depend on (seed, iteration) alone: a run that is continued, or that
    shares its process with other seeds, draws what an unbroken run of its own would. Ranks draw differently, since they
    have different samples.
    """
    # One more than the rank: SeedSequence takes (seed, iteration, 0) for (seed, iteration), which an epoch's order has.
    (word,) = np.random.SeedSequence((seed, iteration, rank + 1)).generate_state(1)
    # As torch.manual_seed does, without its tenth of a millisecond per kind of device that is not there.
    for generator in (torch.default_generator, *torch.cuda.default_generators):
        generator.manual_seed(int(word))  # the CPU's takes 32 bits


def reference_step(
    network: nn.Module,
    solver: Optimizer,
    x: Tensor,
    y: Tensor,
    lr: float | Tensor,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> Tensor:
    """One solver step, as Caffe's Solver::Step does it: loss is the mean over the batch, the update uses lr(t).

    Args:
        network: maps x, float [N, C, H, W], to logits [N, classes]; or to a tuple of such, whose losses its attribute
            `loss_weights` weighs (Caffe's loss_weight), one number each.
        solver: over the network's parameters; its groups may carry `lr_mult`.
        x, y: the batch; y is int64 [N].
        lr: of this iteration, for weights (lr_mult 1); a 0-dim tensor where the solver takes one.
        backward: what computes the gradients; Lightning passes its own.
    Returns:
        the loss before the step, detached, scalar.
    """
    set_lr(solver, lr)
    logits = network(x)
    loss = F.cross_entropy(logits, y) if isinstance(logits, Tensor) else _weighted_loss(network, logits, y)
    solver.zero_grad()
    backward(loss)
    solver.step()
    return loss.detach()


def _weighted_loss(network: Any, heads: tuple[Tensor, ...], y: Tensor) -> Tensor:
    losses = [weight * F.cross_entropy(head, y) for weight, head in zip(network.loss_weights, heads, strict=True)]
    return torch.stack(losses).sum()


class FastEngine:
    """Many iterations of several runs with next to no Python in between: a run's step is a CUDA graph, replayed.

    The graph holds one `reference_step`, and reads the LR, the samples' indices and its own position from device
    memory. Each run's is replayed on a stream of its own, so that runs do not wait for each other. On a CPU the same
    program runs without graphs: that is how it is tested where there is no GPU.

    Args:
        networks, solvers: one each per run, on one device, in training mode. The solvers take the LR as a tensor
            (`unsuited`), and neither they nor the networks read a value of the device on the host (`.item()`, `if`).
        train_set: maps indices, int64 [batch], to (x, y) on the device.
        lrs: the schedule's value at every iteration.
        loss_sums: 0-dim tensors on the device, one per run, to which each iteration's loss is added.
        seeds: one each of runs that draw random numbers while they train. They draw on the device, whose generator is
            seeded before each step (`seed_step`) and read anew by each replay.
    Raises:
        ConfigError: on a GPU, by the call that captures: a run draws on the host.
    """

    WARM_UP = 3
    """Iterations that run without a graph, on side streams: torch asks for them before it captures one."""

    def __init__(
        self,
        networks: Sequence[nn.Module],
        solvers: Sequence[Optimizer],
        train_set: Callable[[Tensor], tuple[Tensor, Tensor]],
        lrs: Sequence[float],
        loss_sums: Sequence[Tensor],
        seeds: Sequence[int] = (),
    ) -> None:
        self.runs = list(zip(networks, solvers, loss_sums, strict=True))
        self.train_set = train_set
        self.device = loss_sums[0].device
        self.seeds = seeds
        self.lrs = torch.tensor(lrs, dtype=torch.float64, device=self.device)
        self.iterations, self.rows = torch.zeros(2, len(self.runs), 1, dtype=torch.int64, device=self.device)
        self.indices = torch.zeros(0)
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.streams: list[torch.cuda.Stream] = []
        if self.device.type == "cuda":
            gc.collect()  # a graph of before that is freed while another is captured spoils it
            # All graphs read one copy of the generator's state: runs that draw numbers take turns.
            count = 1 if seeds else len(self.runs)
            self.streams = [torch.cuda.Stream(self.device) for _ in range(count)] * (len(self.runs) // count)
        self.warm = 0

    def __call__(self, start: int, indices: Tensor) -> None:
        """Train iterations `start` to `start` + k - 1 on `indices`, int64 [runs, k, batch], of the training set."""
        runs, k, batch = indices.shape
        if self.indices.shape[1:2] < indices.shape[1:2]:  # graphs read fixed memory: a longer block needs others
            self.indices = torch.zeros((runs, k, batch), dtype=torch.int64, device=self.device)
            self.graphs = []
        self.indices[:, :k].copy_(indices)
        self.iterations.fill_(start)
        self.rows.zero_()
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream(self.device))
        for iteration in range(start, start + k):
            if self.streams and not self.graphs and self.warm >= self.WARM_UP:
                self.graphs = [self._capture(run) for run in range(runs)]
            for run in range(runs):
                if self.seeds:
                    seed_step(self.seeds[run], iteration)
                with torch.cuda.stream(self.streams[run] if self.streams else None):
                    if self.graphs:
                        self.graphs[run].replay()
                    else:
                        self._step(run)
            self.warm += 1
        for stream in self.streams:
            torch.cuda.current_stream(self.device).wait_stream(stream)

    def _capture(self, run: int) -> torch.cuda.CUDAGraph:
        graph, drawn = torch.cuda.CUDAGraph(), torch.get_rng_state()
        # cuBLAS's workspace is to lie in the graph's memory: Lightning frees the others when a trainer starts or ends.
        # Of all that is called here torch does not document this alone.
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)
        clear()
        with torch.cuda.graph(graph, stream=self.streams[run]):
            self._step(run)
        clear()
        if not torch.equal(drawn, torch.get_rng_state()):
            raise ConfigError(
                "engine=fast: the run draws random numbers on the host, of which a graph would repeat the first ones "
                "for ever; use engine=reference, or draw on the device"
            )
        return graph

    def _step(self, run: int) -> None:
        """One iteration of a run; reads and writes device memory alone, with nothing left to Python."""
        torch.clear_autocast_cache()  # where the caller's autocast keeps one, of the iteration before
        network, solver, loss_sum = self.runs[run]
        x, y = self.train_set(self.indices[run].index_select(0, self.rows[run]).squeeze(0))
        lr = self.lrs.index_select(0, self.iterations[run]).squeeze(0)
        loss_sum += reference_step(network, solver, x, y, lr)
        self.iterations[run].add_(1)
        self.rows[run].add_(1)


def unsuited(solvers: Sequence[Optimizer], train_set: nn.Module) -> str:
    """Why `FastEngine` cannot train these runs; empty where it can."""
    if ddp.ranks() > 1:
        return "the run is spread over several ranks"
    if not getattr(train_set, "resident", False):
        return "the training set does not live on the device"
    if not all(getattr(solver, "takes_tensor_lr", False) for solver in solvers):
        return f"{type(solvers[0]).__name__} does not take its LR as a tensor"
    return ""


def choose_engine(
    wanted: str, solvers: Sequence[Optimizer], train_set: nn.Module, device: torch.device, foreign: bool = False
) -> str:
    """The engine for these runs, "fast" or "reference".

    "auto" takes the fast one on devices for which `check_file` is there, of this version of torch, and says that it
    equals the reference; on a GPU for which there is none it says why not, and where the code has changed since, that.
    Nor does it take it for runs of a `foreign` class, which nobody has checked: what a step does in Python happens once
    in a captured graph.

    Raises:
        ConfigError: "fast" is wanted for runs that it cannot train.
    """
    reason = unsuited(solvers, train_set)
    if wanted == "fast" and reason:
        raise ConfigError(f"engine=fast: {reason}; use engine=auto or engine=reference")
    if wanted != "auto":
        return wanted
    reason = reason or ("a class of theirs is not this package's" if foreign else _unproven(device))
    if reason and device.type == "cuda":
        log.info("engine=auto: the reference, as %s", reason)
    return "reference" if reason else "fast"


def _unproven(device: torch.device) -> str:
    """Why the fast engine is not known to equal the reference on such a device; empty where it is."""
    file = check_file(device)
    if not file.exists():
        return f"`make gpu-check` has not been run on {provenance.device_name(device)} ({file} is missing)"
    try:
        found = json.loads(file.read_text())
        equal, theirs = found["fast_equals_reference"], found["versions"]["torch"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{file} cannot be read ({type(error).__name__}: {error}); run `make gpu-check` again"
    if not equal:
        return f"the fast engine does not equal it by {file}"
    ours = provenance.versions()["torch"]
    if theirs != ours:
        return f"{file} is of torch {theirs}, this is {ours}: run `make gpu-check` again"
    if found.get("code") != code_of_a_step():
        log.info("engine=auto: the fast one, which %s found equal before the code changed: see `make gpu-check`", file)
    return ""


def code_of_a_step() -> str:
    """A checksum of the sources that a step of CIFAR's networks runs."""
    files = [Path(__file__), *(file for pattern in STEP for file in sorted(SOURCES.glob(pattern)))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def check_file(device: torch.device) -> Path:
    """Where `make gpu-check` says what it found on such a device."""
    name = re.sub(r"[^a-z0-9]+", "_", provenance.device_name(device).lower()).strip("_")
    return CHECKS / f"{name}.json"
