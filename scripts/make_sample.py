"""Make src/cyclical_lr/data/sample/ from CIFAR-10: python scripts/make_sample.py ROOT

ROOT holds cifar-10-batches-py/ in torchvision's layout. Takes the first 200 training and 100 test images of each class
in file order and writes a lossless sheet per split: a column per class, so that image i, by rows, has label i mod 10.
Prints each split's checksum for conf/data/cifar10_sample.yaml. About a minute.
"""

import sys

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

from cyclical_lr.data.cifar_files import SAMPLE_FOLDER, sha256_in_order


def main(root: str) -> None:
    for split, rows in (("train", 200), ("test", 100)):
        dataset = CIFAR10(root, train=split == "train")
        targets = np.asarray(dataset.targets)
        chosen = np.stack([np.flatnonzero(targets == label)[:rows] for label in range(10)], axis=1).ravel()
        images = dataset.data[chosen]
        sheet = images.reshape(rows, 10, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(rows * 32, 320, 3)
        path = SAMPLE_FOLDER / f"{split}.webp"
        Image.fromarray(sheet).save(path, lossless=True, quality=100, method=6)
        checksum = sha256_in_order(images.transpose(0, 3, 1, 2).reshape(-1, 3072), targets[chosen])
        print(f"{path.name}: {path.stat().st_size:,} bytes, {split}_sha256: {checksum}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
