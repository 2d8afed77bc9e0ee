"""Small CIFAR sets: random images in torchvision's layout, and the configured sets with some of their keys changed."""

import hashlib
import pickle
from pathlib import Path

import hydra
import numpy as np
from omegaconf import OmegaConf

from cyclical_lr.data.cifar import CifarData

CONF = Path(__file__).parents[1] / "conf" / "data"
BASE = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
FILES = {
    "cifar10": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "cifar100": {"train": ["train"], "test": ["test"]},
}


def write_set(folder: Path, name: str = "cifar10", seed: int = 0) -> dict:
    """Write random images under `folder` and return the constructor's arguments that fit them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    classes = 10 if name == "cifar10" else 100
    sums = {}
    for split, files in FILES[name].items():
        parts = []
        for file in files:
            images = rng.integers(0, 256, (classes, 3072), dtype=np.uint8)
            labels = rng.permutation(classes)
            entry = {"data": images, "labels" if name == "cifar10" else "fine_labels": labels.tolist()}
            (folder / file).write_bytes(pickle.dumps(entry, protocol=2))
            parts.append((images, labels))
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        sums[f"{split}_sha256"] = hashlib.sha256(images.tobytes() + bytes(labels.tolist())).hexdigest()
    return {"name": name, "num_classes": classes, "checksum": "in_order", **sums}


def ready(**arguments) -> CifarData:
    data = CifarData(**arguments)
    data.prepare_data()
    data.setup()
    return data


def configured(name: str = "cifar10_sample", root: Path | None = None, **changes) -> CifarData:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    data = hydra.utils.instantiate(OmegaConf.merge(config, {"root": None if root is None else str(root), **changes}))
    data.prepare_data()
    data.setup()
    return data
