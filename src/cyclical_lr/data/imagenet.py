"""ImageNet as Caffe's data layer presents it, streamed from the JPEGs that `prepare.py` made (Figures 7 to 13).

Source of the arithmetic: `data_transformer.cpp` and the `transform_param` of models/bvlc_alexnet and bvlc_googlenet. In
training a crop at random and its mirror image with probability one half, in evaluation the centre; raw pixels 0..255
minus the mean image at the place of the crop, mirrored with it, or minus three numbers. Of the order:
`convert_imageset --shuffle`, which shuffled the images once, when it wrote them.

Channels are R, G, B throughout, in the mean image too. Caffe's are B, G, R, which a network does not notice: its
filters are drawn alike for all channels. Only the three numbers change places: 104, 117, 123 there, 123, 117, 104 here.
"""

import math
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import simplejpeg  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.multiprocessing import get_start_method
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.io import decode_jpeg

from cyclical_lr.data.batch_memory import BatchMemory
from cyclical_lr.data.imagenet_files import Images, Split, check, checksums, list_images, read_mean
from cyclical_lr.data.order import loader, permutation, stream, stretch_end
from cyclical_lr.data.warp import SIZE
from cyclical_lr.processes import cores
from cyclical_lr.records import ConfigError

Order = dict[str, Any]
"""The images of a batch and the part of each: `samples`, `top`, `left` int64 and `mirrored` bool, of one shape."""
SHARED_MEMORY = Path("/dev/shm")
"""Through which workers hand over their batches, on Linux."""
SILENCE = 600
"""Seconds without a batch after which a run fails: a worker that lost one sends no other."""


class UnusableImage(ConfigError):
    """A prepared image that cannot be read. A worker sends its whole traceback; the last line is for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class CroppedSet(torch.nn.Module):
    """What is left to do on the training device: mirror, subtract the mean, and decode where the workers did not.

    Buffers (not in the state dict): `mean` float32 [256, 256, 3] or [3]; `span` int64 [crop], 0 to crop - 1.
    """

    mean: Tensor
    span: Tensor
    top5 = True  # an evaluation measures the top-5 accuracy too

    def __init__(self, size: int, mean: Tensor, crop: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", mean.float(), persistent=False)
        self.register_buffer("span", torch.arange(crop), persistent=False)

    def __len__(self) -> int:
        return self.size

    def forward(
        self, images: "Tensor | np.ndarray", labels: Tensor, top: Tensor, left: Tensor, mirrored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A batch from what `Reader` read.

        Args:
            images: crops, uint8 [B, crop, crop, 3]; or whole files, as bytes [B].
            labels: int64 [B].
            top, left: where each crop is, int64 [B].
            mirrored: whether it is to be mirrored, bool [B].
        Returns:
            float32 [B, 3, crop, crop] with channels-last strides, and the labels.
        """
        rows = (top[:, None] + self.span)[:, :, None]
        columns = (left[:, None] + torch.where(mirrored[:, None], self.span.flip(0), self.span))[:, None, :]
        if isinstance(images, Tensor):
            images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
        else:
            files = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in images]
            whole = torch.stack(decode_jpeg(files, device=self.mean.device))
            images = whole[torch.arange(len(files), device=whole.device)[:, None, None], :, rows, columns]
        x = images.float().sub_(self.mean if self.mean.dim() == 1 else self.mean[rows, columns])
        return x.permute(0, 3, 1, 2), labels


class ImageNetData(pl.LightningDataModule):
    """A prepared ImageNet, or another set of that form: `train` and `test` (its val/) after `setup()`."""

    name: str
    train: CroppedSet
    test: CroppedSet

    def __init__(
        self,
        name: str,
        num_classes: int,
        root: str | Path | None,
        crop: int,
        mean: Literal["image"] | Sequence[float] = "image",
        mirror: bool = True,
        batch_size: int = 256,
        eval_batch_size: int = 250,
        shuffle: bool = False,
        train_images: int | None = None,
        test_images: int | None = None,
        train_sha256: str | None = None,
        test_sha256: str | None = None,
        mean_sha256: str | None = None,
        workers: int | None = None,
        decode: Literal["workers", "device"] = "workers",
    ) -> None:
        """
        Args:
            name: of the set, for the runs' labels.
            num_classes: number of labels, checked against the files.
            root: the folder that `scripts/prepare_imagenet.py` filled.
            crop: pixels a side of what the network sees.
            mean: what is subtracted: the training set's mean image, or three numbers in 0..255, R, G, B.
            mirror: whether training images are mirrored, each with probability one half.
            batch_size: images per iteration.
            eval_batch_size: images per step of an evaluation; test_loss rounds otherwise, no more.
            shuffle: False for one order in every epoch and for every seed (Caffe's LMDB), `permutation` of seed 1 and
                epoch 0; True for another each epoch, by seed.
            train_images, test_images: numbers of images, checked; None for any.
            train_sha256, test_sha256, mean_sha256: of `imagenet_files.checksums`, checked; None takes the set that is
                in `root`, whatever it is, and a run then records and hashes the checksums found there (`identified`).
            workers: processes that read and decode; 0 for none, None for one per core. Changes no result.
            decode: where JPEGs are decoded; "device" is for GPUs (nvJPEG, whose pixels differ: another run).

        Raises:
            ConfigError: a value is not one of these.
        """
        super().__init__()
        sizes = {"num_classes": num_classes, "batch_size": batch_size, "eval_batch_size": eval_batch_size}
        for key, value in {**sizes, "workers": workers or 0}.items():
            least = 0 if key == "workers" else 1
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"data.{key}: expected an integer of at least {least}, got {value!r}")
        if not 1 <= crop <= SIZE:
            raise ConfigError(
                f"data.crop: expected 1 to {SIZE} pixels, got {crop!r}; 227 for AlexNet, 224 for GoogLeNet"
            )
        if decode not in ("workers", "device"):
            raise ConfigError(f"data.decode: expected one of workers, device, got {decode!r}")
        if mean != "image" and not _three_numbers(mean):
            raise ConfigError(
                f"data.mean: expected image, or three numbers for R, G and B, such as [123,117,104], got {mean!r}"
            )
        if root is None:
            raise ConfigError("data.root: expected a prepared set's folder, got None; set it or CYCLICAL_LR_IMAGENET")
        self.name, self.num_classes, self.root = name, num_classes, Path(root).expanduser()
        self.crop, self.mean, self.mirror = crop, mean, mirror
        self.image_shape = (3, crop, crop)
        self.batch_size, self.eval_batch_size, self.shuffle = batch_size, eval_batch_size, shuffle
        self.declared = {
            **{"num_classes": num_classes, "train_images": train_images, "test_images": test_images},
            **{"train_sha256": train_sha256, "test_sha256": test_sha256, "mean_sha256": mean_sha256},
        }
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's, all of which may use all cores
        self.workers = max(1, cores() // ranks) if workers is None else workers
        self.decode = decode
        self.images: dict[Split, Images] = {}

    @staticmethod
    def identified(config: Mapping[str, Any]) -> dict[str, Any]:
        """This class's arguments, with the checksums of the set in `root` where they declare none.

        So a run's id is that of the set that it was trained on. Without a set there they stay as they are: `setup` will
        say what is missing.
        """
        root = config.get("root")
        found = None if root is None else checksums(Path(root).expanduser())
        return {**config, **{key: config.get(key) or value for key, value in (found or {}).items()}}

    # The order of samples, and their crops ---------------------------------------------------------------------------

    def order(self, seed: int, iteration: int) -> Order:
        """The images of one iteration, and their crops: a pure function of its arguments, arrays [batch_size]."""
        size, first, last = len(self.train), iteration * self.batch_size, (iteration + 1) * self.batch_size
        samples = stream(size, first, last, seed if self.shuffle else None).numpy()
        draws = np.random.default_rng((seed, iteration))
        top, left = draws.integers(SIZE - self.crop + 1, size=(2, self.batch_size))
        mirrored = draws.integers(2, size=self.batch_size) == 1 if self.mirror else np.zeros(self.batch_size, bool)
        samples = samples if self.shuffle else self._written[samples]
        return {"samples": samples, "top": top, "left": left, "mirrored": mirrored}

    def train_blocks(
        self,
        seeds: Sequence[int],
        start: int,
        iterations: int,
        eval_every: int,
        block: int = 1,
        shard: tuple[int, int] = (0, 1),
    ) -> "DataLoader[dict[str, Any]]":
        """Blocks of one iteration each (whatever `block` is), from `start` to `iterations` - 1.

        Each `iter()` goes on where the last one stopped and ends at the next multiple of `eval_every`, or at
        `iterations`; after that it yields nothing. A `shard` (r, n) is every n-th image of each batch, from the r-th
        on, cropped as in the whole batch; n divides `batch_size`.

        Returns:
            a loader of {"start": the iteration} and what `CroppedSet` takes, by name, each [len(seeds), 1, ...].
        Raises:
            ConfigError: less shared memory than the batches of the workers take.
        """
        images = len(seeds) * self.batch_size // shard[1]
        return self._loader("train", _Stretches(self, tuple(seeds), start, iterations, eval_every, shard), images)

    def eval_blocks(self, shard: tuple[int, int] = (0, 1)) -> "DataLoader[dict[str, Any]]":
        """A loader of what `CroppedSet` takes, by name, that covers the test set once, in file order: centre crops.

        A `shard` (r, n) is every n-th image, from the r-th on.

        Raises:
            ConfigError: as for `train_blocks`, too little shared memory.
        """
        orders: list[Order] = []
        centre, ours = (SIZE - self.crop) // 2, np.arange(shard[0], len(self.test), shard[1])
        for first in range(0, len(ours), self.eval_batch_size):
            samples = ours[first : first + self.eval_batch_size]
            at = np.full(len(samples), centre)
            orders.append({"samples": samples, "top": at, "left": at, "mirrored": np.zeros(len(samples), bool)})
        return self._loader("test", orders, self.eval_batch_size)

    def _loader(self, split: Split, orders: Any, images: int) -> "DataLoader[dict[str, Any]]":
        """A loader that reads `orders`, each of up to that many images."""
        options: dict[str, Any] = {"pin_memory": torch.cuda.is_available()}
        memory = None
        if self.workers:
            ahead, size = 2, images * 3 * self.crop**2  # batches of each worker, and bytes of one
            options |= {"num_workers": self.workers, "prefetch_factor": ahead, "timeout": SILENCE}
            options["worker_init_fn"] = _leave_signals_to_the_run
            if self.decode == "workers" and get_start_method() == "fork":
                memory = BatchMemory(self.workers, ahead + 2, size)  # two more are in the hands of the run
            elif self.decode == "workers" and SHARED_MEMORY.is_dir():
                needed, free = self.workers * ahead * size, shutil.disk_usage(SHARED_MEMORY).free
                if needed > free:
                    raise ConfigError(
                        f"data.workers={self.workers}: their batches take up to {needed / 2**20:.0f} MiB of shared "
                        f"memory, and {SHARED_MEMORY} has {free / 2**20:.0f} left; use fewer workers (0 for none), "
                        f"smaller batches, or a container with more (docker run --shm-size)"
                    )
        reader = Reader(self.images[split], self.crop, self.decode == "workers", memory)
        return loader(reader, sampler=orders, **options)

    # Reading and verifying the set -----------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Nothing is fetched: `scripts/prepare_imagenet.py` made the files."""

    def setup(self, stage: str | None = None) -> None:
        """List and verify the files of both splits, once.

        Raises:
            ConfigError: there is no prepared set, it is damaged, or another one than declared.
        """
        if hasattr(self, "train"):
            return
        check(self.root, self.declared)
        mean = torch.from_numpy(read_mean(self.root)) if self.mean == "image" else torch.tensor(self.mean)
        self.images = {"train": list_images(self.root, "train"), "test": list_images(self.root, "test")}
        self._written = permutation(len(self.images["train"]), 1, 0).numpy()
        self.train = CroppedSet(len(self.images["train"]), mean, self.crop)
        self.test = CroppedSet(len(self.images["test"]), mean, self.crop)


class _Stretches(Sampler[Order]):
    """Orders of blocks, from where the last stretch ended to the next evaluation."""

    def __init__(
        self,
        data: ImageNetData,
        seeds: tuple[int, ...],
        start: int,
        iterations: int,
        eval_every: int,
        shard: tuple[int, int],
    ) -> None:
        self.data, self.seeds, self.iterations, self.eval_every = data, seeds, iterations, eval_every
        self.shard = slice(shard[0], None, shard[1])
        self.position = start

    def __iter__(self) -> Iterator[Order]:
        end = stretch_end(self.position, self.eval_every, self.iterations)
        while (start := self.position) < end:
            self.position += 1
            members = [self.data.order(seed, start) for seed in self.seeds]
            shares = {key: np.stack([member[key][self.shard] for member in members]) for key in members[0]}
            yield {"start": start, **{key: values[:, None] for key, values in shares.items()}}


class Reader(Dataset[dict[str, Any]]):
    """What the workers do: an `Order` in, the crops that it names out, not yet mirrored."""

    def __init__(self, images: Images, crop: int, decode: bool, memory: BatchMemory | None = None) -> None:
        self.images, self.crop, self.decode, self.memory = images, crop, decode, memory
        self._whole = np.empty((SIZE, SIZE, 3), np.uint8)

    def __getitem__(self, order: Order) -> dict[str, Any]:
        samples = order["samples"]
        out = {key: value for key, value in order.items() if key != "samples"}
        out["labels"] = self.images.labels[samples]
        if self.decode:
            shape, worker = (*samples.shape, self.crop, self.crop, 3), get_worker_info()
            loan = self.memory.lend(worker.id, shape) if self.memory is not None and worker is not None else None
            pixels = np.empty(shape, np.uint8) if loan is None else loan.array
            self.read(order, pixels.reshape(-1, *shape[-3:]))
            out["images"] = torch.from_numpy(pixels) if loan is None else loan
        else:
            files = [self._whole_file(self.images.path(sample)) for sample in samples.flat]
            out["images"] = np.array(files, object).reshape(samples.shape)
        return out

    def read(self, order: Order, out: np.ndarray) -> None:
        """Decode and crop the images of `order` into `out`, uint8 [B, crop, crop, 3]."""
        parts = (order[key].ravel().tolist() for key in ("samples", "top", "left"))
        for pixels, sample, top, left in zip(out, *parts, strict=True):
            path = self.images.path(sample)
            try:
                # Always into the same memory, which stays in the cache.
                image = simplejpeg.decode_jpeg(self._bytes(path), buffer=self._whole)
                if image.shape != self._whole.shape:
                    raise ValueError(f"its shape is {list(image.shape)}")
            except ValueError as error:
                raise _unusable(path, error) from error
            pixels[:] = image[top : top + self.crop, left : left + self.crop]

    def _whole_file(self, path: str) -> bytes:
        """A file that the training device will decode, which could not name it."""
        content = self._bytes(path)
        if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):
            raise _unusable(path, ValueError("it does not begin and end as a JPEG does"))
        return content

    def _bytes(self, path: str) -> bytes:
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - Path.open takes twice the time
                return file.read()
        except OSError as error:
            raise _unusable(path, error) from error


def _three_numbers(mean: Any) -> bool:
    return (
        isinstance(mean, Sequence)
        and len(mean) == 3
        and all(type(x) in (int, float) and math.isfinite(x) for x in mean)
    )


def _leave_signals_to_the_run(worker: int) -> None:
    """In a submitted Slurm job, signals go to all processes; the run alone answers them (`training/slurm.py`)."""
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)


def _unusable(path: str, error: Exception) -> UnusableImage:
    return UnusableImage(
        f"data.root: {path} cannot be used ({error}); remove it and run scripts/prepare_imagenet.py once more, with "
        f"the same folders: finished images are kept"
    )
