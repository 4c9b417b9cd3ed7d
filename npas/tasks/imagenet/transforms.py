"""Decode, crop and augment images, by torchvision's transforms v2 on tensors of bytes.

PCA noise shifts the colours along the principal components of ImageNet's pixels (Krizhevsky,
Sutskever & Hinton 2012, section 4.1), which are those of fb.resnet.torch, for pixels of 0 to 1.

Dimensions: H x W pixels, C channels.
"""

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

COMPONENT_DEVIATIONS = (0.2175, 0.0188, 0.0045)
COMPONENTS = (  # a row for each of red, green, blue; a column for each component
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def decode(data: bytearray) -> Tensor:
    """Decode an image file of any format to RGB, CxHxW bytes; raises ValueError if it is damaged.

    Uses torchvision, which takes two thirds of Pillow's time, and Pillow for what torchvision
    cannot read. Torchvision 0.29 warns that its decoder will be removed.
    """
    if not data:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also of invalid tags and large images
        with contextlib.suppress(RuntimeError, ImportError):
            from torchvision.io import ImageReadMode, decode_image

            image_CHW = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
            # Of an animation it returns all frames; Pillow takes the first.
            if image_CHW.dtype == torch.uint8 and image_CHW.dim() == 3:
                return image_CHW
        try:
            pixels_HWC = np.array(to_rgb(Image.open(io.BytesIO(data))))
        except Exception as error:  # its decoders raise many kinds
            reason = str(error).partition("<")[0].strip() or type(error).__name__
            raise ValueError(f"it is not a complete image ({reason})") from None
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB.

    Keeps the upper 8 of 16 bits, as Pillow does for colour images; for grey ones its conversion
    would clip at 255. Raises ValueError for 32-bit pixels, whose range is not known.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers, mode {image.mode}: save it with 8 or 16")
    return image.convert("RGB")


@dataclass(frozen=True)
class Crops:
    """Crop `size` x `size` pixels: random crops for training, center crops for tests."""

    size: int
    resize: int  # shorter side of a test image before the center crop
    scale_min: float  # smallest area of a random crop, as a fraction of the image
    flip: bool
    pca_noise: float  # deviation of the noise along a component, in units of the component's
    interpolation: str

    def training(self, image_CHW: Tensor, key: int) -> Tensor:
        """Crop, resize, flip and add PCA noise at random, seeded by `key`.

        Crops are those of torchvision's RandomResizedCrop (Szegedy et al. 2015), with aspect
        ratios 3:4 to 4:3. Reseeds torch's default generator: the caller must restore its state.
        """
        from torchvision.transforms import v2

        # Not torch.manual_seed, which would seed GPUs too.
        torch.default_generator.manual_seed(key)
        mode: Any = v2.InterpolationMode(self.interpolation)
        crop = v2.RandomResizedCrop(self.size, (self.scale_min, 1.0), interpolation=mode)
        image_CHW = crop.transform(image_CHW, crop.make_params([image_CHW]))
        if self.flip and torch.rand(()) < 0.5:
            image_CHW = image_CHW.flip(-1)
        if self.pca_noise:
            alpha_3 = self.pca_noise * torch.randn(3) * torch.tensor(COMPONENT_DEVIATIONS)
            shift_C = (255 * (torch.tensor(COMPONENTS) @ alpha_3)).round().to(torch.int16)
            lit = image_CHW.to(torch.int16) + shift_C[:, None, None]
            image_CHW = lit.clamp(0, 255).to(torch.uint8)
        return image_CHW

    def test(self, image_CHW: Tensor) -> Tensor:
        """Resize an image's shorter side to `resize`, and take the center crop."""
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional as F

        mode: Any = v2.InterpolationMode(self.interpolation)
        image_CHW = F.resize(image_CHW, [self.resize], interpolation=mode, antialias=True)
        return F.center_crop(image_CHW, [self.size, self.size])
