"""A prepared ImageNet of a few synthetic images, a network that is quick on them, and data that can cut the power."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from small_runs import PowerCut
from torch import nn
from torch.nn import functional as F

from cyclical_lr.data.imagenet import ImageNetData
from cyclical_lr.data.prepare import prepare

CLASSES = [f"n0{number}" for number in range(6)]
TRAIN, VAL = 18, 8  # images; the last two classes have no validation images of their own


def prepared(folder: Path, first: int = 0) -> Path:
    """Prepare a set whose images are drawn by seeds from `first` on, and return its folder."""
    for label, wnid in enumerate(CLASSES):
        for number in range(3):
            _draw(folder / "raw" / "train" / wnid / f"{wnid}_{number}.JPEG", first + 10 * label + number)
        for number in range(2 * (label < 4)):
            _draw(folder / "raw" / "val" / wnid / f"val_{label}_{number}.JPEG", first + 1000 + 10 * label + number)
    prepare(folder / "raw", folder / "prepared")
    return folder / "prepared"


def _draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)


class CutData(ImageNetData):
    """Raises instead of serving the iteration `cut_at`, as SIGKILL would: nothing is written after it."""

    cut_at: ClassVar[int | None] = None

    def order(self, seed: int, iteration: int) -> dict[str, Any]:
        if iteration == self.cut_at:
            raise PowerCut
        return super().order(seed, iteration)


class QuickNet(nn.Module):
    """One pixel in 256 of an image, dropout and a linear map, with AlexNet's arguments."""

    stochastic = True

    def __init__(self, num_classes: int = 1000, caffenet: bool = False, init: str = "caffe") -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 15 * 15, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.dropout(x[:, :, ::16, ::16].flatten(1) / 100, 0.5, self.training))
