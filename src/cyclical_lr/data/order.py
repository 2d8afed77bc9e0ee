"""The order of samples: a pure function of the seed and the epoch, as the learning rate is of the iteration.

A run's position is then one integer, and resuming needs no sampler's state. Without a shuffle it is Caffe's: the files'
order, then from the start again (`data_reader.cpp`), so that every epoch has the same batches.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader


def stream(size: int, first: int, last: int, seed: int | None = None) -> Tensor:
    """Samples `first` to `last` - 1 of the endless stream over a set of `size` samples: int64 [last - first].

    Entry p is entry p mod size of epoch p // size, which is `permutation(size, seed, epoch)`, or 0 to size - 1 in every
    epoch with `seed` None.
    """
    positions = torch.arange(first, last)
    if seed is None:
        return positions % size
    samples = torch.empty_like(positions)
    for epoch in range(first // size, -(-last // size)):
        low, high = max(first, epoch * size), min(last, (epoch + 1) * size)
        order = _kept_permutation(size, seed, epoch)
        samples[low - first : high - first] = order[low - epoch * size : high - epoch * size]
    return samples


def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """A permutation of `size` samples: a new int64 [size], a pure function of its arguments.

    `torch.randperm` from a private CPU generator, seeded with the first 32-bit word that NumPy's `SeedSequence` makes
    of (seed, epoch): its hash keeps neighbouring seeds and epochs apart, and torch's CPU generator uses 32 bits only.
    """
    (word,) = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(word)))


def stretch_end(position: int, eval_every: int, iterations: int) -> int:
    """Where training that goes on from iteration `position` pauses: at the next evaluation, or its own end."""
    return min(iterations, (position // eval_every + 1) * eval_every)


# An epoch of as many seeds: 400 kB each of CIFAR, 10 MB of ImageNet.
_kept_permutation = lru_cache(maxsize=16)(permutation)


def loader(dataset: Any, **options: Any) -> "DataLoader[Any]":
    """A DataLoader that hands out the dataset's items as they are, in its order; `options` are DataLoader's.

    It draws from a generator of its own, so the global ones stay where they are.
    """
    # Each iter() of a loader draws a number, whether anything is shuffled or not.
    return DataLoader(dataset, batch_size=None, generator=torch.Generator(), **options)
