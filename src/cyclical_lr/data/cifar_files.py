"""The files of CIFAR-10, CIFAR-100 and the embedded sample: got, read and verified.

The sets are A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, in torchvision's layout. No
file is trusted: what a pickle refers to beyond arrays is refused, and what was read must have the declared checksum.
"""

import errno
import hashlib
import logging
import pickle
import shutil
import socket
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_md5, download_url

from cyclical_lr.records import ConfigError

log = logging.getLogger(__name__)

Split = Literal["train", "test"]

OFFICIAL = {"cifar10": CIFAR10, "cifar100": CIFAR100}
SAMPLE = "cifar10_sample"
SAMPLE_FOLDER = Path(__file__).parent / "sample"
SILENCE = 60
"""Seconds without a byte after which a download has failed."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the folder that is written to."""


@dataclass(frozen=True)
class CifarFiles:
    """One set's files: where they are or come from, and what must be in them.

    The fields are `CifarData`'s arguments of the same names, which checks them; `sha256` has a checksum per split.
    """

    name: str
    num_classes: int
    sha256: Mapping[Split, str]
    checksum: Literal["in_order", "as_set"]
    root: Path
    source: Path | None = None

    def get(self) -> None:
        """Get the set if neither `root` nor a folder `source` has it. Safe to call from several processes at once.

        Raises:
            ConfigError: there is no way to get it, or what came is not the set.
        """
        if self.name == SAMPLE or self._folder() is not None:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / f".{self._official.base_folder}.lock")
            try:
                lock.acquire(timeout=1)
            except Timeout:
                log.info("data.root=%s: another process is getting %s; waiting for it", self.root, self.name)
                lock.acquire()
            try:
                if self._folder() is None:  # another process may have been first
                    self._install()
            finally:
                lock.release()
        except OSError as error:
            raise ConfigError(
                f"data.root={self.root}: cannot be written ({error}); choose another folder with data.root or "
                f"CYCLICAL_LR_DATA. {self._how_to_get}"
            ) from error

    def read(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Verified images, planes R, G, B, uint8 [N, 3072], and labels, int64 [N].

        They are in the files' order; where that may differ from copy to copy, in the order of `in_digest_order`.

        Raises:
            ConfigError: the set is missing, damaged or another one.
        """
        folder = SAMPLE_FOLDER if self.name == SAMPLE else self._folder()
        if folder is None:
            raise ConfigError(f"data.root={self.root}: no {self.name} there. {self._how_to_get}")
        return self._read(folder, split)

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
            archive = self._download() if self.source is None else self.source
            try:
                with tarfile.open(archive, "r:gz") as tar:
                    tar.extractall(temporary, filter="data")
            except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
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
        if self.source is None:
            archive.unlink()

    def _download(self) -> Path:
        """The archive, in `root` until the set is there: what comes after may fail, and an hour is not to be lost."""
        files, archive = self._official, self.root / f".{self._official.filename}"
        log.info("data.root=%s: downloading %s from %s, a slow host", self.root, self.name, files.url)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(SILENCE)  # torchvision sets none
        try:
            download_url(files.url, self.root, archive.name, files.tgz_md5)  # or leaves one that is whole
        except BaseException as error:
            archive.unlink(missing_ok=True)
            if not isinstance(error, OSError | RuntimeError) or getattr(error, "errno", None) in FULL:
                raise
            raise ConfigError(
                f"data.root={self.root}: no {self.name} there, data.source is not set, and downloading {files.url} "
                f"failed ({error}). {self._how_to_get}"
            ) from error
        finally:
            socket.setdefaulttimeout(before)
        return archive

    def _read(self, folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """What `read` returns, of one folder."""
        if self.name == SAMPLE:
            planes, labels = _read_sheet(folder / f"{split}.webp")
        else:
            planes, labels = self._read_files(folder, split)
        if self.checksum == "as_set":
            planes, labels = in_digest_order(planes, labels)
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
                f"received {received} (checksum {self.checksum!r}).{self._unofficial(folder, split)} Remove or replace "
                f"that folder, or choose another with data.root or data.source; if it is the set that you want, "
                f"declare its checksum."
            )
        return planes, labels

    def _unofficial(self, folder: Path, split: Split) -> str:
        """Which of a split's files are to blame: those that are not the official host's."""
        if self.name == SAMPLE:
            return ""
        files = self._official.train_list if split == "train" else self._official.test_list
        others = [file for file, md5 in files if not check_md5(folder / file, md5)]
        return f" Not the official files: {', '.join(others)}." if others else ""

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
    return hashlib.sha256(b"".join(sorted(_digests(planes, labels)))).hexdigest()


def in_digest_order(planes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 [N, 3072], and labels in the order of those digests: one order for all copies of a set."""
    digests = _digests(planes, labels)
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return planes[order], labels[order]


def _digests(planes: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(row).digest() for row in np.column_stack([planes, labels.astype(np.uint8)])]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, strings and NumPy arrays; any other global, hence any foreign code, is refused."""

    ALLOWED = frozenset(
        {
            ("_codecs", "encode"),
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),  # pickle's protocol 5
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
