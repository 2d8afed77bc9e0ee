"""CIFAR-10 and CIFAR-100 as Caffe's data layer presents them, resident on the device.

Source of the arithmetic and of the order: Caffe's `convert_cifar_data.cpp` and `cifar10_full_train_test.prototxt`: raw
pixels 0..255 minus the mean image of the training set, no scale, no mirror, no crop; files read in their order, then
from the start again, so that every epoch has the same batches. Mean, scale and order are parameters of `CifarData`, as
is what Table 4's recipes do instead: divide by a standard deviation, augment, hold images out.

The sets are A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import hashlib
import logging
import pickle
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import download_url

from cyclical_lr.data.augment import crop_flip
from cyclical_lr.records import ConfigError

log = logging.getLogger(__name__)

Split = Literal["train", "test"]

OFFICIAL = {"cifar10": CIFAR10, "cifar100": CIFAR100}
SAMPLE = "cifar10_sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"


class ImageSet(torch.nn.Module):
    """A set that lives on one device; a batch is a gather.

    Buffers (not in the state dict): `pixels` uint8 [N, 32, 32, 3], stored channels last so that a batch has those
    strides without a copy; `labels` int64 [N]; `mean` float32 [32, 32, 3]; `std` likewise, or None.
    """

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
        eval_batch_size: int = 1000,
        shuffle: bool = False,
        mean: Literal["pixel", "channel", "none"] = "pixel",
        scale: float = 1.0,
        std: Literal["none", "channel", "scalar"] = "none",
        augment: Literal["none", "crop_flip"] = "none",
        holdout: int = 0,
    ) -> None:
        """
        Args:
            name: which set.
            num_classes: number of labels, checked against the files.
            train_sha256, test_sha256: what `sha256_in_order` or `sha256_as_set` must give.
            checksum: which of the two; "as_set" accepts copies whose images stand in another order.
            root: folder that holds, or will hold, torchvision's layout. Not used by the sample.
            source: where to get the set if `root` lacks it: None for the official host, a folder in torchvision's
                layout (read in place), the folder with the set's files itself (likewise), or a .tar.gz archive.
            batch_size: images per iteration.
            eval_batch_size: images per step of an evaluation; changes no result.
            shuffle: False for file order in every epoch (Caffe), True for another permutation each epoch.
            mean: what is subtracted, always of the training set: its mean image, its three channel means, or nothing.
            scale: factor after the subtraction.
            std: what is divided by, always of the training set: nothing, the standard deviation of each channel, or one
                of all pixels.
            augment: crop_flip moves each training image by up to 4 pixels and mirrors it with probability one half.
            holdout: training images that are left out, and of which mean and std know nothing. The training set is then
                the first N - holdout images of a permutation that is the same for every seed (`_permutation` of seed 1,
                epoch 0), in its order.

        Raises:
            ConfigError: a value is not one of these.
        """
        super().__init__()
        _one_of("name", name, (*OFFICIAL, SAMPLE))
        _one_of("checksum", checksum, ("in_order", "as_set"))
        _one_of("mean", mean, ("pixel", "channel", "none"))
        _one_of("std", std, ("none", "channel", "scalar"))
        _one_of("augment", augment, ("none", "crop_flip"))
        sizes = {"num_classes": num_classes, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for key, value in sizes.items():
            if value < 1:
                raise ConfigError(f"data.{key}={value!r}: expected an integer of at least 1")
        if holdout < 0:
            raise ConfigError(f"data.holdout={holdout!r}: expected a number of images, 0 to train on all")
        if name != SAMPLE and root is None:
            raise ConfigError("data.root=None: expected the folder that holds the data; set it or CYCLICAL_LR_DATA")
        self.name = name
        self.num_classes = num_classes
        self.sha256 = {"train": train_sha256, "test": test_sha256}
        self.checksum = checksum
        self.root = Path() if root is None else Path(root).expanduser()
        self.source = None if source is None else Path(source).expanduser()
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

        A pure function of its arguments: sample p of the endless stream, p = iteration * batch_size + j, is entry
        p mod N of epoch p // N, which is file order or, with `shuffle`, `_permutation(N, seed, epoch)`.
        """
        size = len(self.train)
        first, last = iteration * self.batch_size, (iteration + count) * self.batch_size
        positions = torch.arange(first, last)
        if self.shuffle:
            samples = torch.empty_like(positions)
            for epoch in range(first // size, -(-last // size)):
                low, high = max(first, epoch * size), min(last, (epoch + 1) * size)
                order = _permutation(size, seed, epoch)
                samples[low - first : high - first] = order[low - epoch * size : high - epoch * size]
        else:
            samples = positions % size
        return samples.view(count, self.batch_size)

    def train_blocks(
        self, seeds: Sequence[int], start: int, iterations: int, eval_every: int, block: int = 1
    ) -> "DataLoader[dict[str, Any]]":
        """Blocks of iterations `start` to `iterations` - 1, in stretches that end where an evaluation is due.

        Each `iter()` goes on where the last one stopped and ends at the next multiple of `eval_every`, or at
        `iterations`; after that it yields nothing. So one epoch of Lightning is the stretch between two evaluations.

        Returns:
            a loader of {"start": first iteration of the block, "indices": int64 [len(seeds), k, batch_size]}, where
            k <= `block`.
        """
        if eval_every < 1 or block < 1:
            raise ConfigError(f"eval_every={eval_every}, block={block}: expected integers of at least 1")
        return _loader(_Blocks(self, tuple(seeds), start, iterations, eval_every, block))

    def eval_blocks(self, split: Split = "test") -> "DataLoader[Tensor]":
        """A loader of index ranges, int64 [at most eval_batch_size], that cover the split once, in file order."""
        _one_of("split", split, ("train", "test"))
        size = len(self.train if split == "train" else self.test)
        return _loader(torch.arange(size).split(self.eval_batch_size))

    # Getting, reading and verifying the set --------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Get the set if neither `root` nor a folder `source` has it. Safe to call from several processes at once.

        Raises:
            ConfigError: there is no way to get it, or what came is not the set.
        """
        if self.name == SAMPLE or self._folder() is not None:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f".{self._official.base_folder}.lock"):
                if self._folder() is None:  # another process may have been first
                    self._install()
        except OSError as error:
            raise ConfigError(
                f"data.root={self.root}: cannot be written ({error}); choose another folder with data.root or "
                f"CYCLICAL_LR_DATA. {self._how_to_get}"
            ) from error

    def setup(self, stage: str | None = None) -> None:
        """Read and verify both splits, once; `train` and `test` are then on the CPU.

        Raises:
            ConfigError: the set is missing, damaged or another one.
        """
        if hasattr(self, "train"):
            return
        folder = SAMPLE_FOLDER if self.name == SAMPLE else self._folder()
        if folder is None:
            raise ConfigError(f"data.root={self.root}: no {self.name} there. {self._how_to_get}")
        (train, train_labels), (test, test_labels) = (self._read(folder, split) for split in ("train", "test"))
        if self.holdout >= len(train):
            raise ConfigError(f"data.holdout={self.holdout}: expected fewer than the {len(train)} training images")
        if self.holdout:
            kept = _permutation(len(train), 1, 0)[: -self.holdout].numpy()
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

    @property
    def _official(self) -> type[CIFAR10]:
        return OFFICIAL[self.name]

    @property
    def _how_to_get(self) -> str:
        files = self._official
        return (
            f"To get it: point data.root (or the environment variable CYCLICAL_LR_DATA) at a folder that holds "
            f"{files.base_folder}/, or data.source at such a folder or at a copy of {files.filename}. Otherwise it is "
            f"downloaded from {files.url}, a slow host: expect up to an hour."
        )

    def _missing(self, folder: Path) -> list[str]:
        listed = self._official.train_list + self._official.test_list
        return [file for file, _ in listed if not (folder / file).is_file()]

    def _folder(self) -> Path | None:
        """The folder with all files of the set, or None."""
        candidates = [self.root / self._official.base_folder]
        if self.source is not None:
            candidates += [self.source / self._official.base_folder, self.source]
        return next((folder for folder in candidates if not self._missing(folder)), None)

    def _install(self) -> None:
        """Fill `root` from the archive or from the official host: whole and verified, or not at all."""
        base = self._official.base_folder
        target = self.root / base
        if target.exists():
            raise ConfigError(
                f"data.root={self.root}: {base} is incomplete, it lacks {', '.join(self._missing(target))}; "
                f"remove that folder, then it is fetched again. {self._how_to_get}"
            )
        if self.source is not None and not self.source.is_file():
            state = f"has no complete {base}" if self.source.is_dir() else "does not exist"
            raise ConfigError(f"data.source={self.source}: {state}. {self._how_to_get}")
        for leftover in self.root.glob(f".{base}.partial-*"):  # of a process that was killed: we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        with TemporaryDirectory(prefix=f".{base}.partial-", dir=self.root) as temporary:
            archive = self._download(Path(temporary)) if self.source is None else self.source
            try:
                with tarfile.open(archive, "r:gz") as tar:
                    tar.extractall(temporary, filter="data")
            except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
                raise ConfigError(
                    f"data.source={archive}: cannot be unpacked ({error}); expected a whole copy of "
                    f"{self._official.filename}. {self._how_to_get}"
                ) from error
            unpacked = Path(temporary) / base
            if missing := self._missing(unpacked):
                raise ConfigError(f"data.source={archive}: lacks {base}/{{{', '.join(missing)}}}. {self._how_to_get}")
            for split in ("train", "test"):
                self._read(unpacked, split)
            unpacked.rename(target)

    def _download(self, folder: Path) -> Path:
        files = self._official
        log.info("data.root=%s: downloading %s from %s, a slow host", self.root, self.name, files.url)
        try:
            download_url(files.url, folder, files.filename, files.tgz_md5)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"data.root={self.root}: no {self.name} there, data.source is not set, and downloading {files.url} "
                f"failed ({error}). {self._how_to_get}"
            ) from error
        return folder / files.filename

    def _read(self, folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Verified planes uint8 [N, 3072] and labels int64 [N], in the files' order."""
        if self.name == SAMPLE:
            planes, labels = _read_sheet(folder / f"{split}.webp")
        else:
            planes, labels = self._read_files(folder, split)
        if labels.min() < 0 or labels.max() != self.num_classes - 1:
            raise ConfigError(
                f"data.num_classes={self.num_classes}: the {split} labels in {folder} go from {labels.min()} to "
                f"{labels.max()}; choose the data.name or the folder that fits"
            )
        declared = self.sha256[split]
        received = {"in_order": sha256_in_order, "as_set": sha256_as_set}[self.checksum](planes, labels)
        if received != declared:
            raise ConfigError(
                f"data.{split}_sha256: the {split} split in {folder} is not the declared set: expected {declared}, "
                f"received {received} (checksum {self.checksum!r}). Remove or replace that folder, or choose another "
                f"with data.root or data.source; if it is the set that you want, declare its checksum."
            )
        return planes, labels

    def _read_files(self, folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
        official = self._official
        here = type(official.__name__, (official,), {"base_folder": folder.name})  # torchvision fixes this name
        try:
            dataset = here(folder.parent, train=split == "train")
        except RuntimeError:  # the MD5 sums are not the official ones: another order, or damage, or malice
            files = official.train_list if split == "train" else official.test_list
            parts = [_read_batch(folder / file) for file, _ in files]
            return np.concatenate([planes for planes, _ in parts]), np.concatenate([labels for _, labels in parts])
        return dataset.data.transpose(0, 3, 1, 2).reshape(-1, 3072), np.asarray(dataset.targets, np.int64)


def sha256_in_order(planes: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 over the images, uint8 [N, 3072] as planes R, G, B, then the labels, one byte each."""
    digest = hashlib.sha256(np.ascontiguousarray(planes).data)
    digest.update(labels.astype(np.uint8).tobytes())
    return digest.hexdigest()


def sha256_as_set(planes: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 over the sorted SHA-256 digests of each image's 3,072 bytes and label byte: whatever their order."""
    rows = np.column_stack([planes, labels.astype(np.uint8)])
    return hashlib.sha256(b"".join(sorted(hashlib.sha256(row).digest() for row in rows))).hexdigest()


class _Blocks(IterableDataset[dict[str, Any]]):
    def __init__(
        self, data: CifarData, seeds: tuple[int, ...], start: int, iterations: int, eval_every: int, block: int
    ) -> None:
        self.data, self.seeds, self.iterations = data, seeds, iterations
        self.eval_every, self.block = eval_every, block
        self.position = start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        end = min(self.iterations, (self.position // self.eval_every + 1) * self.eval_every)
        while (start := self.position) < end:
            count = min(self.block, end - start)
            self.position += count
            orders = [self.data.indices(seed, start, count) for seed in self.seeds]
            yield {"start": start, "indices": torch.stack(orders)}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and NumPy arrays; any other global, hence any foreign code, is refused."""

    ALLOWED = frozenset(
        {
            ("_codecs", "encode"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"refused: it refers to {module}.{name}, which no array needs")
        return super().find_class(module, name)


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Planes uint8 [n, 3072] and labels int64 [n] of a file in torchvision's layout, running none of its code."""
    try:
        with path.open("rb") as file:
            entry = _ArrayUnpickler(file, encoding="latin1").load()
        planes = np.asarray(entry["data"])
        labels = np.asarray(entry["fine_labels"] if "fine_labels" in entry else entry["labels"])
        if planes.dtype != np.uint8 or labels.dtype.kind not in "iu" or planes.shape != (len(labels), 3072):
            raise ValueError(f"images {planes.dtype} {planes.shape}, labels {labels.dtype} {labels.shape}")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ConfigError(
            f"{path}: not a batch of CIFAR images, uint8 [n, 3072] with n labels ({type(error).__name__}: {error}); "
            f"remove or replace it, or choose another copy with data.root or data.source"
        ) from error
    return planes, labels.astype(np.int64)


def _read_sheet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The sample's sheet: ten columns of images, one per class, so that image i has label i mod 10."""
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    tiles = sheet.reshape(-1, 32, 10, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3072)
    return tiles, np.arange(len(tiles)) % 10


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


@lru_cache(maxsize=64)  # an epoch of as many seeds; 400 kB each
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    """A permutation of `size` samples: int64 [size], a pure function of its arguments.

    `torch.randperm` from a private CPU generator, seeded with the first 32-bit word that NumPy's `SeedSequence` makes
    of (seed, epoch): its hash keeps neighbouring seeds and epochs apart, and torch's CPU generator uses 32 bits only.
    """
    (word,) = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(word)))


def _loader(dataset: Any) -> "DataLoader[Any]":
    # Each iter() of a loader draws a number; from its own generator, lest it move the global one.
    return DataLoader(dataset, batch_size=None, num_workers=0, generator=torch.Generator())


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"data.{key}={value!r}: expected one of {', '.join(allowed)}")
