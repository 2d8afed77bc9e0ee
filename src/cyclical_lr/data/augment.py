"""The augmentation of Table 4, for whole batches on the device that holds them.

Source: facebook/fb.resnet.torch (datasets/transforms.lua), whose recipe ResNet and DenseNet use, and
yueatsprograms/Stochastic_Depth (cifar-dataset.lua). The first pads an image by 4 zeros and crops it, the second moves
it by up to 4 pixels and fills with zeros: two descriptions of one distribution. Both work on normalised images, where
zero is the mean, and both mirror left and right with probability one half.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_flip(images: Tensor, padding: int = 4) -> Tensor:
    """Move each image by up to `padding` pixels each way and mirror it, or not: every outcome equally likely.

    Args:
        images: float [B, C, H, W], normalised, with strides of any kind.
        padding: pixels of zeros around an image before its crop of H x W.
    Returns:
        a new tensor of the same shape and dtype, with channels-last strides.

    Each image has its own row offset, column offset and flip. They come from torch's global generator of the images'
    device, by a fixed number of draws, without waiting for the device.
    """
    count, channels, height, width = images.shape
    device = images.device
    rows, columns = torch.randint(2 * padding + 1, (2, count, 1), device=device)
    flipped = torch.randint(2, (count, 1), device=device, dtype=torch.bool)
    across = torch.arange(width, device=device)
    rows = rows + torch.arange(height, device=device)
    columns = columns + torch.where(flipped, across.flip(0), across)

    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    image = torch.arange(count, device=device).view(count, 1, 1)
    pixel = (image * padded.shape[1] + rows[:, :, None]) * padded.shape[2] + columns[:, None, :]
    # One flat gather is several times as quick as indexing with three arrays.
    crops = padded.reshape(-1, channels).index_select(0, pixel.flatten())
    return crops.view(count, height, width, channels).permute(0, 3, 1, 2)
