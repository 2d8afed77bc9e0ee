"""The files that `prepare.py` made of ImageNet: listed, and checked to be the set that they are said to be."""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cyclical_lr.data.prepare import list_folder, names_sha256
from cyclical_lr.data.warp import SIZE
from cyclical_lr.records import ConfigError

Split = Literal["train", "test"]

FOLDERS: dict[Split, str] = {"train": "train", "test": "val"}
HOW_TO_GET = (
    "To get it: python scripts/prepare_imagenet.py SOURCE DEST, where SOURCE has the usual train/ and val/; then point "
    "data.root (or the environment variable CYCLICAL_LR_IMAGENET) at DEST"
)


@dataclass(frozen=True)
class Images:
    """A split: its files below one folder, by class and name.

    `names` are bytes, in an array: a list of a million strings would be copied into every worker.
    """

    folder: bytes
    classes: tuple[bytes, ...]
    names: np.ndarray  # bytes [N]
    labels: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, sample: int) -> str:
        return os.fsdecode(b"/".join((self.folder, self.classes[self.labels[sample]], self.names[sample])))


def checksums(root: Path) -> dict[str, str] | None:
    """What `root`'s index says that its set is; None without an index.

    Returns:
        train_sha256 and test_sha256, of the names of the images (`prepare.names_sha256`), and mean_sha256, of the mean
        image, which depends on every pixel of the training set.
    Raises:
        ConfigError: the index is damaged.
    """
    if not (root / "index.json").is_file():
        return None
    index = _index(root)
    named = {f"{split}_sha256": index[folder]["names_sha256"] for split, folder in FOLDERS.items()}
    return {**named, "mean_sha256": index["mean_sha256"]}


def check(root: Path, declared: Mapping[str, Any]) -> None:
    """Compare the set in `root`, as its index has it, with what is declared of it.

    Args:
        root: the folder that was prepared.
        declared: num_classes, train_images, test_images and the names of `checksums`; None accepts anything.
    Raises:
        ConfigError: no prepared set there, or another one than declared; names key, values and remedy.
    """
    found: dict[str, Any] | None = checksums(root)
    if found is None:
        raise ConfigError(f"data.root={root}: no prepared ImageNet there (it has no index.json). {HOW_TO_GET}")
    index = _index(root)
    found |= {f"{split}_images": index[folder]["images"] for split, folder in FOLDERS.items()}
    found["num_classes"] = len(index["classes"])
    for key, value in found.items():
        if declared[key] not in (None, value):
            raise ConfigError(
                f"data.{key}={declared[key]}: the set in data.root={root} has {value}. Choose the folder of the set "
                f"that you want with data.root or CYCLICAL_LR_IMAGENET (problems.csv there lists what could not be "
                f"read), or give data.{key}={value}; for a set of your own, data=imagenet_subset data.num_classes="
                f"{len(index['classes'])}"
            )


def read_mean(root: Path) -> np.ndarray:
    """The mean image: float32 [256, 256, 3], RGB, in 0..255.

    Raises:
        ConfigError: it is missing, or not the one of the index.
    """
    path = root / "mean.npy"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != _index(root)["mean_sha256"]:
            raise ValueError("it is not the one in index.json")
        return np.load(io.BytesIO(content)).astype(np.float32).reshape(SIZE, SIZE, 3)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"data.root={root}: its mean image {path} cannot be used ({error}); run scripts/prepare_imagenet.py once "
            f"more, with the same folders: finished images are kept"
        ) from error


def list_images(root: Path, split: Split) -> Images:
    """The files of a split, by class and name, of the names that the index has.

    Raises:
        ConfigError: files are missing, or there are more.
    """
    index, folder = _index(root), FOLDERS[split]
    present, _ = list_folder(root / folder, "data.root")
    by_class = [
        list_folder(root / folder / wnid, "data.root")[1] if wnid in present else [] for wnid in index["classes"]
    ]
    paths = (f"{folder}/{w}/{name}" for w, names in zip(index["classes"], by_class, strict=True) for name in names)
    counts = [len(names) for names in by_class]
    if (received := names_sha256(paths)) != index[folder]["names_sha256"]:
        raise ConfigError(
            f"data.root={root}: the {sum(counts)} images in {folder}/ are not the {index[folder]['images']} of "
            f"index.json (names_sha256 {received} against {index[folder]['names_sha256']}); run "
            f"scripts/prepare_imagenet.py once more, with the same folders: it adds what is missing"
        )
    return Images(
        folder=os.fsencode(root / folder),
        classes=tuple(map(os.fsencode, index["classes"])),
        names=np.array([os.fsencode(name) for names in by_class for name in names]),
        labels=np.repeat(np.arange(len(counts)), counts),
    )


def _index(root: Path) -> dict[str, Any]:
    path = root / "index.json"
    try:
        index = json.loads(path.read_text())
        for folder in FOLDERS.values():
            index[folder]["names_sha256"], index[folder]["images"]
        if not isinstance(index["classes"], list) or not isinstance(index["mean_sha256"], str):
            raise ValueError("classes or mean_sha256 are of another type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"data.root={root}: {path} is no index of a prepared set ({type(error).__name__}: {error}); run "
            f"scripts/prepare_imagenet.py once more, with the same folders: finished images are kept"
        ) from error
    return index
