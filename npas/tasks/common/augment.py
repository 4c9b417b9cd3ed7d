"""Augment batches of images as tensor operations on the device that holds them.

Images rest as uint8 in NHWC order with their zero padding already around them, so that picking,
cropping and flipping a batch is one gather of bytes.
Random numbers come in from outside: see `npas/utils/rng.py`.

Dimensions: N images in the set, B in the batch, H x W pixels, C channels, p pixels of padding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pad(images_NHWC: Tensor, padding: int) -> Tensor:
    """Put `padding` black pixels around each image."""
    return F.pad(images_NHWC, (0, 0, padding, padding, padding, padding))


def windows(
    padded_NHWC: Tensor, index_B: Tensor, top_B: Tensor, left_B: Tensor, flip_B: Tensor, size: int
) -> Tensor:
    """Pick images by index and cut from each the size x size window at its offset: BxHxWxC.

    `top_B` and `left_B` count from the padding's corner (0 .. 2p); where `flip_B` is true the
    window is mirrored left to right.
    """
    steps = torch.arange(size, device=index_B.device)
    rows_BH = top_B[:, None] + steps
    columns_BW = left_B[:, None] + torch.where(flip_B[:, None], size - 1 - steps, steps)
    return padded_NHWC[index_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]


def cutout(images_BHWC: Tensor, row_B: Tensor, column_B: Tensor, length: int) -> Tensor:
    """Zero the length x length square around each image's (row, column), clipped at the border.

    DeVries & Taylor 2017 (arXiv 1708.04552): the centre is any pixel, so that corners often leave
    only a part of the square inside; it is applied to normalised images, where 0 is the mean.
    """
    height, width = images_BHWC.shape[1:3]
    inside_BH = _in_square(row_B, height, length)
    inside_BW = _in_square(column_B, width, length)
    inside_BHW1 = (inside_BH[:, :, None] & inside_BW[:, None, :]).unsqueeze(-1)
    return images_BHWC.masked_fill(inside_BHW1, 0.0)


def normalize(images_BHWC: Tensor, mean_C: Tensor, std_C: Tensor) -> Tensor:
    """Turn bytes into floats of the given mean and deviation, both in units of a byte."""
    return (images_BHWC.float() - mean_C) / std_C


def to_nchw(images_BHWC: Tensor) -> Tensor:
    """Return the batch as BxCxHxW: on a GPU a view, channels-last in memory.

    On a CPU it is a copy in contiguous (NCHW) order, also for images of one channel, which would
    count as channels-last: torch 2.15 corrupts its heap in some channels-last convolutions on CPUs.
    """
    images_BCHW = images_BHWC.permute(0, 3, 1, 2)
    if not images_BCHW.is_cpu:
        return images_BCHW
    return images_BCHW.clone(memory_format=torch.contiguous_format)


def _in_square(centre_B: Tensor, size: int, length: int) -> Tensor:
    distance_BS = torch.arange(size, device=centre_B.device) - centre_B[:, None]
    return (distance_BS >= -(length // 2)) & (distance_BS < length - length // 2)
