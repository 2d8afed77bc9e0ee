"""An image file as Caffe's `convert_imageset --resize` reads and warps it.

Source: `ReadImageToCVMat` in Caffe's `util/io.cpp`: decoded to colour as stored, whatever the EXIF orientation says,
then OpenCV's `resize` with INTER_LINEAR. That takes four neighbours per pixel however much an image shrinks, where
Pillow's bilinear filter would smooth; and the aspect ratio is ignored.
"""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 256
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")  # told by content; others might start foreign programs


def read_rgb(path: Path) -> tuple[np.ndarray, str]:
    """Decode an image file by its content.

    Returns:
        pixels uint8 [H, W, 3], and what it was converted from, empty for an ordinary JPEG, colour or greyscale. CMYK
        becomes RGB by the product of its inks, transparency is dropped and 16 bits keep the upper 8, as in OpenCV.
    Raises:
        Exception: of nearly any kind, where the file is damaged, or no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, which we do not keep
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            kind = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with a second picture behind it
            note = "" if kind == "JPEG" and image.mode in ("RGB", "L") else f"{kind}, {image.mode}"
            if image.mode.startswith("I;16"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2), note
            return np.asarray(image.convert("RGB")), note


def warp(pixels: np.ndarray) -> np.ndarray:
    """Bilinear interpolation to 256x256, to within one level of OpenCV's: uint8 [H, W, 3] to [256, 256, 3].

    Pixels are areas: the centre of output pixel i lies at (i + 0.5) * H / 256 - 0.5; beyond the border it repeats.
    """
    return np.rint(_interpolate(_interpolate(pixels, 0), 1)).astype(np.uint8)


def _interpolate(pixels: np.ndarray, axis: int) -> np.ndarray:
    length = pixels.shape[axis]
    at = ((np.arange(SIZE) + 0.5) * (length / SIZE) - 0.5).clip(0, length - 1)
    low = at.astype(np.int64)
    weight = np.expand_dims((at - low).astype(np.float32), (1, 2) if axis == 0 else (0, 2))
    below = pixels.take(low, axis).astype(np.float32)
    above = pixels.take(np.minimum(low + 1, length - 1), axis).astype(np.float32)
    return below + (above - below) * weight
