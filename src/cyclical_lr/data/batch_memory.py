"""Memory in which a loader's workers hand over their batches, used again and again.

PyTorch gives each batch a new piece of shared memory, whose pages cost a worker up to half of its time where a batch
is some ten thousand of them (benchmarks/README.md).
"""

import mmap
import weakref
from math import prod
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor


class BatchMemory:
    """`count` pieces of `size` bytes for each of `workers`, processes that are forked while this object is there.

    A worker fills a `Loan` and sends it; a tensor comes out, of the process that made this object. The piece is free
    again once nothing there uses the tensor's memory any more.
    """

    def __init__(self, workers: int, count: int, size: int) -> None:
        self.key = uuid4().hex
        # Shared with forked processes; the system gives it pages when they are written to, and takes them back.
        self._pieces = np.frombuffer(mmap.mmap(-1, workers * count * size), np.uint8).reshape(workers, count, size)
        self._taken = np.frombuffer(mmap.mmap(-1, workers * count), np.bool_).reshape(workers, count)
        _memories[self.key] = self

    def lend(self, worker: int, shape: tuple[int, ...]) -> "Loan | None":
        """A piece of that worker's, or None where all are taken: whoever reads the loader keeps many batches."""
        free = np.flatnonzero(~self._taken[worker])
        if not free.size:
            return None
        place = worker, int(free[0])
        self._taken[place] = True
        return Loan(self, place, shape)

    def part(self, place: tuple[int, int], shape: tuple[int, ...]) -> "np.ndarray[Any, Any]":
        """The beginning of a piece, as an array of that shape."""
        return self._pieces[place][: prod(shape)].reshape(shape)

    def received(self, place: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
        """What a worker sent, as a tensor."""
        part = self.part(place, shape)
        weakref.finalize(part, self._taken.__setitem__, place, False).atexit = False
        return torch.from_numpy(part)  # which keeps `part` for as long as any tensor has this memory


class Loan:
    """Uint8 memory of that shape, `array`, for a worker to fill; whoever unpickles it gets a tensor."""

    def __init__(self, memory: BatchMemory, place: tuple[int, int], shape: tuple[int, ...]) -> None:
        self.array = memory.part(place, shape)
        self._sent = memory.key, place, shape

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, self._sent


def _receive(key: str, place: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    return _memories[key].received(place, shape)


_memories: "weakref.WeakValueDictionary[str, BatchMemory]" = weakref.WeakValueDictionary()
"""Those of this process, as pickled loans cannot carry them."""
