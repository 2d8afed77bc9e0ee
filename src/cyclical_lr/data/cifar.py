"""CIFAR-10 and CIFAR-100 as Caffe's data layer presents them, resident on the device.

Source of the arithmetic and of the order: Caffe's `convert_cifar_data.cpp` and `cifar10_full_train_test.prototxt`: raw
pixels 0..255 minus the mean image of the training set, no scale, no mirror, no crop; files read in their order, then
from the start again, so that every epoch has the same batches. Mean, scale and order are parameters of `CifarData`, as
is what Table 4's recipes do instead: divide by a standard deviation, augment, hold images out.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from cyclical_lr.data.augment import crop_flip
from cyclical_lr.data.cifar_files import OFFICIAL, SAMPLE, CifarFiles
from cyclical_lr.data.order import loader, permutation, stream, stretch_end
from cyclical_lr.records import ConfigError


class ImageSet(torch.nn.Module):
    """A set that lives on one device; a batch is a gather.

    Buffers (not in the state dict): `pixels` uint8 [N, 32, 32, 3], stored channels last so that a batch has those
    strides without a copy; `labels` int64 [N]; `mean` float32 [32, 32, 3]; `std` likewise, or None.
    """

    resident = True  # on the training device, whole
    pixels: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor | None

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        mean: Tensor,
        scale: float = 1.0,
        std: Tensor | None = None,
        augment: str = "none",
    ) -> None:
        """`mean` and `std` are in 0..255, of any shape that broadcasts to [32, 32, 3], as one number or three do.

        With `augment` "crop_flip" a batch is augmented while the module is in training mode.
        """
        super().__init__()
        self.register_buffer("pixels", pixels, persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        # Subtracting a row of three numbers from every pixel is three times as slow as a whole image.
        self.register_buffer("mean", mean.float().expand(pixels.shape[1:]).contiguous(), persistent=False)
        std = None if std is None else std.float().expand(pixels.shape[1:]).contiguous()
        self.register_buffer("std", std, persistent=False)
        self.scale = float(scale)
        self.augment = augment
        self.stochastic = augment != "none"  # training then seeds torch's generators before each step

    def __len__(self) -> int:
        return len(self.labels)

    def forward(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The batch at `indices`, int64 [B], on the set's device.

        Returns:
            images float32 [B, 3, 32, 32] with channels-last strides, (pixels - mean) * scale / std; labels int64 [B].
        """
        x = self.pixels.index_select(0, indices).float().sub_(self.mean)
        if self.scale != 1.0:
            x.mul_(self.scale)
        if self.std is not None:
            x.div_(self.std)
        x = x.permute(0, 3, 1, 2)
        if self.training and self.augment == "crop_flip":
            x = crop_flip(x)
        return x, self.labels.index_select(0, indices)


class CifarData(pl.LightningDataModule):
    """CIFAR-10, CIFAR-100 or the embedded sample of CIFAR-10: `train` and `test` after `setup()`."""

    name: str
    image_shape = (3, 32, 32)
    train: ImageSet
    test: ImageSet

    def __init__(
        self,
        name: Literal["cifar10", "cifar100", "cifar10_sample"],
        num_classes: int,
        train_sha256: str,
        test_sha256: str,
        checksum: Literal["in_order", "as_set"],
        root: str | Path | None,
        source: str | Path | None = None,
        batch_size: int = 100,
        eval_batch_size: int = 250,
        shuffle: bool = False,
        mean: Literal["pixel", "channel", "none"] = "pixel",
        scale: float = 1.0,
        std: Literal["none", "channel", "scalar"] = "none",
        augment: Literal["none", "crop_flip"] = "none",
        holdout: int = 0,
    ) -> None:
        """
        Args:
            name: which set; in a subclass with a `setup` of its own, any.
            num_classes: number of labels, checked against the files.
            train_sha256, test_sha256: what `sha256_in_order` or `sha256_as_set` must give.
            checksum: which of the two; "as_set" accepts copies whose images stand in another order, and gives them all
                one order.
            root: folder that holds, or will hold, torchvision's layout. Not used by the sample.
            source: where to get the set if `root` lacks it: None for the official host, a folder in torchvision's
                layout (read in place), the folder with the set's files itself (likewise), or a .tar.gz archive.
            batch_size: images per iteration.
            eval_batch_size: images per step of an evaluation; test_loss rounds otherwise, no more.
            shuffle: False for file order in every epoch (Caffe), True for another permutation each epoch.
            mean: what is subtracted, always of the training set: its mean image, its three channel means, or nothing.
            scale: factor after the subtraction.
            std: what is divided by, always of the training set: nothing, the standard deviation of each channel, or one
                of all pixels.
            augment: crop_flip moves each training image by up to 4 pixels and mirrors it with probability one half.
            holdout: training images that are left out, and of which mean and std know nothing. The training set is then
                the first N - holdout images of a permutation that is the same for every seed (`permutation` of seed 1,
                epoch 0), in its order.

        Raises:
            ConfigError: a value is not one of these.
        """
        super().__init__()
        if type(self).setup is CifarData.setup:  # a subclass may make sets of its own, under a name of its own
            _one_of("name", name, (*OFFICIAL, SAMPLE))
        _one_of("checksum", checksum, ("in_order", "as_set"))
        _one_of("mean", mean, ("pixel", "channel", "none"))
        _one_of("std", std, ("none", "channel", "scalar"))
        _one_of("augment", augment, ("none", "crop_flip"))
        sizes = {"num_classes": num_classes, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for key, value in sizes.items():
            if value < 1:
                raise ConfigError(f"data.{key}: expected an integer of at least 1, got {value!r}")
        if holdout < 0:
            raise ConfigError(f"data.holdout: expected a number of images, got {holdout!r}; 0 trains on all")
        if not scale:
            raise ConfigError("data.scale: expected a factor other than 0, which leaves nothing of an image, got 0")
        if name in OFFICIAL and root is None:
            raise ConfigError("data.root: expected the folder of the data, got None; set it or CYCLICAL_LR_DATA")
        self.name = name
        self.num_classes = num_classes
        self.files = CifarFiles(
            name,
            num_classes,
            {"train": train_sha256, "test": test_sha256},
            checksum,
            Path() if root is None else Path(root).expanduser(),
            None if source is None else Path(source).expanduser(),
        )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.shuffle = shuffle
        self.mean = mean
        self.scale = scale
        self.std = std
        self.augment = augment
        self.holdout = holdout

    # The order of samples --------------------------------------------------------------------------------------------

    def indices(self, seed: int, iteration: int, count: int) -> Tensor:
        """Samples of `count` iterations from `iteration` on: int64 [count, batch_size].

        A pure function of its arguments: file order in every epoch or, with `shuffle`, a permutation of (seed, epoch).
        """
        first, last = iteration * self.batch_size, (iteration + count) * self.batch_size
        return stream(len(self.train), first, last, seed if self.shuffle else None).view(count, self.batch_size)

    def train_blocks(
        self,
        seeds: Sequence[int],
        start: int,
        iterations: int,
        eval_every: int,
        block: int = 1,
        shard: tuple[int, int] = (0, 1),
    ) -> "DataLoader[dict[str, Any]]":
        """Blocks of iterations `start` to `iterations` - 1, in stretches that end where an evaluation is due.

        Each `iter()` goes on where the last one stopped and ends at the next multiple of `eval_every`, or at
        `iterations`; after that it yields nothing. So one epoch of Lightning is the stretch between two evaluations.
        A `shard` (r, n) is every n-th sample of each batch, from the r-th on; n divides `batch_size`.

        Returns:
            a loader of {"start": first iteration of the block, "indices": int64 [len(seeds), k, batch_size / n]}, where
            k <= `block`.
        """
        return loader(_Blocks(self, tuple(seeds), start, iterations, eval_every, block, shard))

    def eval_blocks(self, shard: tuple[int, int] = (0, 1)) -> "DataLoader[Tensor]":
        """A loader of indices, int64 [at most eval_batch_size], that cover the test set once, in file order.

        A `shard` (r, n) is every n-th image, from the r-th on.
        """
        first, step = shard
        return loader(torch.arange(first, len(self.test), step).split(self.eval_batch_size))

    # Getting the set -------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Get the set if neither `root` nor a folder `source` has it; of a name of a subclass's own, nothing.

        Safe to call from several processes at once.

        Raises:
            ConfigError: there is no way to get it, or what came is not the set.
        """
        if self.name in (*OFFICIAL, SAMPLE):
            self.files.get()

    def setup(self, stage: str | None = None) -> None:
        """Read and verify both splits, once; `train` and `test` are then on the CPU.

        Raises:
            ConfigError: the set is missing, damaged or another one.
        """
        if hasattr(self, "train"):
            return
        _one_of("name", self.name, (*OFFICIAL, SAMPLE))
        (train, train_labels), (test, test_labels) = self.files.read("train"), self.files.read("test")
        if self.holdout >= len(train):
            raise ConfigError(f"data.holdout: expected fewer than the {len(train)} training images, got {self.holdout}")
        if self.holdout:
            kept = permutation(len(train), 1, 0)[: -self.holdout].numpy()
            train, train_labels = train[kept], train_labels[kept]
        # Exact sums, as Caffe's own are: 50,000 x 255 fits into a float32.
        mean = torch.from_numpy(train.sum(0, dtype=np.int64).reshape(3, 32, 32).transpose(1, 2, 0) / len(train))
        if self.mean == "channel":
            mean = mean.mean((0, 1))
        elif self.mean == "none":
            mean = torch.zeros(())
        std = None if self.std == "none" else _standard_deviation(train, self.std)
        ours, theirs = torch.from_numpy(train_labels), torch.from_numpy(test_labels)
        self.train = ImageSet(_channels_last(train), ours, mean, self.scale, std, self.augment)
        self.test = ImageSet(_channels_last(test), theirs, mean, self.scale, std)


class _Blocks(IterableDataset[dict[str, Any]]):
    def __init__(
        self,
        data: CifarData,
        seeds: tuple[int, ...],
        start: int,
        iterations: int,
        eval_every: int,
        block: int,
        shard: tuple[int, int],
    ) -> None:
        self.data, self.seeds, self.iterations, self.shard = data, seeds, iterations, shard
        self.eval_every, self.block = eval_every, block
        self.position = start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        end = stretch_end(self.position, self.eval_every, self.iterations)
        while (start := self.position) < end:
            count = min(self.block, end - start)
            self.position += count
            orders = [self.data.indices(seed, start, count) for seed in self.seeds]
            first, step = self.shard
            yield {"start": start, "indices": torch.stack(orders)[..., first::step]}


def _channels_last(planes: np.ndarray) -> Tensor:
    # Ten times as quick as a transposed copy.
    return torch.from_numpy(np.stack(np.split(planes, 3, axis=1), axis=-1).reshape(-1, 32, 32, 3))


def _standard_deviation(planes: np.ndarray, of: str) -> Tensor:
    """Of each channel ("channel", float64 [3]) or of all pixels ("scalar", [1]), in 0..255; planes are uint8 [N, 3072].

    From integer sums, which are exact, and without a copy of the set in floating point.
    """
    sums = planes.sum(0, dtype=np.int64).reshape(3, 1024)
    squares = np.square(planes, dtype=np.uint16).sum(0, dtype=np.int64).reshape(3, 1024)
    axes = 1 if of == "channel" else None
    mean, square = (total.mean(axes) / len(planes) for total in (sums, squares))
    return torch.from_numpy(np.atleast_1d(np.sqrt(square - mean**2)))


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"data.{key}: expected one of {', '.join(allowed)}, got {value!r}")
