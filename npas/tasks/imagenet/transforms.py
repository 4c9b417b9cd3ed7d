"""Turn the bytes of an image file into the pixels that a network sees.

Resizing works on tensors of bytes, by torchvision's second transforms. The PCA noise shifts
the colours along the principal components of ImageNet's pixels; components and their standard
deviations as published for it (Krizhevsky, Sutskever & Hinton 2012, section 4.1; the numbers are
those that came with fb.resnet.torch, for pixels of 0 to 1).

Dimensions: H x W pixels, C channels.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

COMPONENT_DEVIATIONS = (0.2175, 0.0188, 0.0045)
COMPONENTS = (  # a row for each of red, green, blue; a column for each component
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def decode(data: bytearray) -> Tensor:
    """Decode an image file, whatever its name says, to RGB: CxHxW bytes. ValueError says why not.

    By torchvision, which takes two thirds of Pillow's time, while it has a decoder: its release
    0.29 says that it will not for ever. What it cannot read goes to Pillow.
    """
    import numpy as np
    from PIL import Image

    if not data:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that, of odd tags and of great sizes
        with contextlib.suppress(RuntimeError, ImportError):
            from torchvision.io import ImageReadMode, decode_image

            image_CHW = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
            if image_CHW.dtype == torch.uint8:
                return image_CHW
        try:
            pixels_HWC = np.array(to_rgb(Image.open(io.BytesIO(data))))
        except Exception as error:  # its decoders raise many kinds
            said = str(error).partition("<")[0].strip() or type(error).__name__
            raise ValueError(f"it is no whole image ({said})") from None
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def to_rgb(image: Image) -> Image:
    """Return an image with 8 bits for each of red, green and blue.

    Of 16 bits the upper 8 count, as where Pillow itself reads 16 bits a colour; its own conversion
    of a grey image would cut off at 255. ValueError for 32-bit numbers, whose range is not known.
    """
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers, mode {image.mode}: save it with 8 or 16")
    return image.convert("RGB")


@dataclass(frozen=True)
class Crops:
    """Cut `size` x `size` pixels out of images, at random for training, in the middle for tests."""

    size: int
    resize: int  # of a test image's shorter side, before its middle is cut out
    scale_min: float  # least share of the area that a random crop takes
    flip: bool
    pca_noise: float  # deviation of the noise along each component, of the component's own
    interpolation: str

    def training(self, image_CHW: Tensor, key: int) -> Tensor:
        """Crop, resize, flip and light an image as the random numbers of `key` say.

        Crops are those of torchvision's RandomResizedCrop (Szegedy et al. 2015): 8% of the area or
        more unless scale_min says otherwise, sides 3:4 to 4:3. Changes the state of torch's own
        generator, which the caller keeps.
        """
        from torchvision.transforms import v2

        # Not torch.manual_seed, which would seed the GPUs as well.
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
        """Resize an image to `resize` on its shorter side and cut its middle out."""
        from torchvision.transforms import v2
        from torchvision.transforms.v2 import functional as F

        mode: Any = v2.InterpolationMode(self.interpolation)
        image_CHW = F.resize(image_CHW, [self.resize], interpolation=mode, antialias=True)
        return F.center_crop(image_CHW, [self.size, self.size])
