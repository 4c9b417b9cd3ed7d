"""Decoding and crops equal torchvision's, whatever the file format."""

import numpy as np
import pytest
import torch
from imagenet_files import encoded, pixels
from PIL import Image

from npas.tasks.imagenet import transforms
from npas.tasks.imagenet.transforms import Crops, decode

IMAGE = Image.fromarray(pixels(1))
FORMS = {
    "rgb": encoded(IMAGE),
    "progressive": encoded(IMAGE, progressive=True),
    "grey": encoded(IMAGE.convert("L")),
    "cmyk": encoded(IMAGE.convert("CMYK")),
    "png": encoded(IMAGE, "PNG"),
    "png with alpha": encoded(IMAGE.convert("RGBA"), "PNG"),
    "png with a palette": encoded(IMAGE.convert("P"), "PNG"),
    "gif of a palette, animated": encoded(
        IMAGE, "GIF", save_all=True, append_images=[IMAGE.rotate(180)]
    ),
}


def crops(**keys):
    settings = {"size": 24, "resize": 30, "scale_min": 0.08, "flip": False, "pca_noise": 0.0}
    return Crops(**{**settings, "interpolation": "bilinear", **keys})  # type: ignore[arg-type]


@pytest.mark.parametrize("why", [None, RuntimeError("Unsupported color"), ImportError("is gone")])
def test_every_kind_of_file_becomes_the_rgb_that_it_shows(why, monkeypatch):
    def refuse(*anything):
        assert why is not None
        raise why

    if why:  # what torchvision cannot read goes to Pillow
        monkeypatch.setattr("torchvision.io.decode_image", refuse)
    for form, data in FORMS.items():
        image = decode(bytearray(data))
        shown = np.array(IMAGE.convert("L").convert("RGB") if form == "grey" else IMAGE)
        assert image.dtype == torch.uint8 and image.shape == (3, 40, 52)
        off = np.abs(image.permute(1, 2, 0).numpy().astype(int) - shown).mean()
        assert off < (25 if "palette" in form else 3), form


def test_sixteen_bits_become_eight_and_pixels_of_an_unknown_range_are_no_image():
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    expected = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
    for form in ("PNG", "TIFF", "PPM"):
        assert torch.equal(decode(bytearray(encoded(Image.fromarray(deep), form))), expected)
    for kind in (np.int32, np.float32):
        with pytest.raises(ValueError, match=r"32-bit numbers, mode [IF]: save it with 8 or 16"):
            decode(bytearray(encoded(Image.fromarray(deep.astype(kind)), "TIFF")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (FORMS["rgb"][: len(FORMS["rgb"]) // 2], "Truncated File Read|truncated"),
        (FORMS["png"][: len(FORMS["png"]) // 2], "it is not a complete image"),
        (b"<html>not found</html>", "cannot identify"),
        (FORMS["rgb"][:2], "it is not a complete image"),
    ],
)
def test_damage_is_reported_in_one_line(data, message):
    with pytest.raises(ValueError, match=message) as error:
        decode(bytearray(data))
    assert "\n" not in str(error.value) and "0x" not in str(error.value)


def test_lighting_shifts_the_colours_of_a_whole_image_as_published():
    grey = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    lit = torch.stack([crops(pca_noise=0.1).training(grey, key) for key in range(300)])
    shift = lit[:, :, 0, 0].double() - 128
    assert torch.equal(lit, lit[:, :, :1, :1].expand_as(lit))
    vectors = torch.tensor(transforms.COMPONENTS, dtype=torch.float64)
    values = torch.tensor(transforms.COMPONENT_DEVIATIONS, dtype=torch.float64)
    expected = (255 * 0.1) ** 2 * vectors @ torch.diag(values**2) @ vectors.T
    torch.testing.assert_close(torch.cov(shift.T), expected, atol=1.5, rtol=0.15)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3).double(), atol=2e-3, rtol=0)
