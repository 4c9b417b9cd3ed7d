"""Extract region proposals and features with torchvision's Faster R-CNN, for phrase grounding.

    python scripts/extract_regions.py flickr30k --root data --device cuda
    python scripts/extract_regions.py referit --root data --splits test --weights detector.pth
    python scripts/extract_regions.py flickr30k --root data --features head   # region_width=1024

Each split becomes an HDF5 file, `{split}_features.h5`, beside the set's split files. It has a
dataset per image, named by its id, with a row per proposal, best first: features (of the ResNet's
last stage, 2048, averaged over the region; or of the detector's box head, 1024), then x1/W, y1/H,
x2/W, y2/H, the fraction of the image's area, and x1, y1, x2, y2 in pixels from 0, the last ones
included. Proposals are those of the region proposal network after non-maximum suppression at 0.7.

The same command continues after an interruption or a kill: images are stored in parts, which are
joined at the end. Missing and damaged images are named and left out; once they are fixed, the same
command adds them. Tasks accept up to 1% missing images of a split. Exit code 0: all images done;
1: some were left out; 2: invalid arguments or files; 130: interrupted.

Disk space: 2.5 MB per image with 300 proposals before lzf compression; twice that while joining.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from region_store import Store

from npas.utils.files import reason

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from npas.tasks.grounding.reading import Image

NETWORKS = ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn")
SPLITS = ("train", "val", "test")
OVERLAP = 0.7  # non-maximum suppression drops the worse of two proposals above this IoU
POOLED = 7  # cells across a region
LONGER = 1333 / 800  # most longer side over shorter side, as the networks were trained


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", choices=["flickr30k", "referit"])
    parser.add_argument("--root", type=Path, default=Path("data"), help="data.root of the tasks")
    parser.add_argument("--splits", default=",".join(SPLITS), help="comma-separated")
    parser.add_argument("--network", default=NETWORKS[0], choices=NETWORKS)
    parser.add_argument(
        "--weights",
        default="DEFAULT",
        help="DEFAULT: torchvision's, trained on COCO; a file with a state dict; none: random",
    )
    parser.add_argument("--most", type=positive, default=300, help="proposals per image")
    parser.add_argument("--size", type=positive, default=800, help="shorter side, in pixels")
    parser.add_argument("--features", default="backbone", choices=["backbone", "head"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Return a positive integer, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Extract the regions; return the exit code."""
    arguments = parse(argv)
    try:
        return extract(arguments)
    except KeyboardInterrupt:
        complain("interrupted; run the same command to continue")
        return 130
    except ValueError as error:
        complain(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{reason(error)}; fix this and run the same command to continue")
    return 2


def complain(line: str) -> None:
    """Print a message on stderr."""
    print(f"extract_regions.py: {line}", file=sys.stderr)


def extract(arguments: argparse.Namespace) -> int:
    """Extract the images that each split lacks; return the exit code."""
    import torch

    from npas.tasks.grounding import reading
    from npas.utils.files import locked

    splits = arguments.splits.split(",")
    if not set(splits) <= set(SPLITS):
        raise ValueError(f"--splits {arguments.splits}: write some of {','.join(SPLITS)}")
    try:
        device = torch.device(arguments.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise ValueError(f"--device {arguments.device}: there is none that torch can use") from None
    settings = describe(arguments)
    read_splits = reading.read(arguments.set, arguments.root)
    left_out, extractor = 0, None
    for split in splits:
        images = read_splits[split].images
        target = reading.features_path(arguments.set, arguments.root, split)
        if images and not images[0].path.parent.is_dir():
            raise ValueError(f"there is no folder {images[0].path.parent}: put the images there")
        try:
            with locked(target.with_name(f".{target.name}.lock"), wait=False):
                store = Store(target, settings)
                wanted = [image for image in images if image.id not in store.done]
                if wanted and extractor is None:
                    extractor = Extractor(build(arguments), arguments, device)
                found = _each(wanted, extractor, store, split, arguments.quiet)
                left_out += found
                count = store.finish()
        except BlockingIOError:
            raise ValueError(f"{target} is being written by another process: wait for it") from None
        print(f"{target} holds {count:,} of the {len(images):,} images of {split}")
    if left_out:
        complain(
            f"{left_out:,} images left out: fix them, and the same command adds them; tasks do"
            " without up to 1% of a split"
        )
    return 1 if left_out else 0


def _each(
    wanted: Sequence[Image], extractor: Extractor | None, store: Store, split: str, quiet: bool
) -> int:
    """Extract and store the images; return the number of unreadable ones."""
    bad, start = 0, time.monotonic()
    for number, image in enumerate(wanted, 1):
        try:
            pixels_CHW = read(image)
        except ValueError as error:
            complain(f"{error}: left out")
            bad += 1
            continue
        assert extractor is not None
        store.add(image.id, extractor(pixels_CHW))
        if not quiet and number % 50 == 0:
            rate = number / (time.monotonic() - start)
            print(f"{split}: {number:,} of {len(wanted):,} images, {rate:.1f}/s", flush=True)
    return bad


def describe(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that decide the features; files of other settings are not mixed."""
    weights = arguments.weights
    if weights not in ("DEFAULT", "none"):
        path = Path(weights)
        if not path.is_file():
            raise ValueError(f"--weights {weights}: there is no such file")
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        weights = f"sha256 {digest.hexdigest()[:16]}"
    named = ("network", "most", "size", "features")
    return {"weights": weights} | {name: getattr(arguments, name) for name in named}


def read(image: Image) -> Tensor:
    """Return an image, 3xHxW in [0, 1]. Raises ValueError if missing, damaged or resized."""
    import PIL.Image
    import torch

    from npas.tasks.imagenet.transforms import to_rgb

    try:
        with PIL.Image.open(image.path) as file:
            pixels_HWC = np.array(to_rgb(file))
    except FileNotFoundError:
        raise ValueError(f"{image.path} is not there") from None
    except Exception as error:  # damaged files raise many types
        raise ValueError(f"{image.path} cannot be read ({reason(error)})") from None
    height, width = pixels_HWC.shape[:2]
    if (width, height) != (image.width, image.height):
        raise ValueError(
            f"{image.path} is {width}x{height} and annotated as {image.width}x{image.height}"
        )
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).float() / 255


# --- the network


def build(arguments: argparse.Namespace) -> nn.Module:
    """Build the detector with its weights. Raises ValueError if they are missing or do not fit."""
    import torch
    from torchvision.models import detection

    make = getattr(detection, arguments.network)
    settings: dict[str, Any] = {
        "min_size": arguments.size,
        "max_size": round(LONGER * arguments.size),
        "rpn_pre_nms_top_n_test": max(1000, arguments.most),
        "rpn_post_nms_top_n_test": arguments.most,
        "rpn_nms_thresh": OVERLAP,
    }
    weights = arguments.weights
    if weights == "DEFAULT":
        try:
            return make(weights="DEFAULT", progress=False, **settings)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"--weights DEFAULT cannot be downloaded ({reason(error)}): give a file"
            ) from None
    torch.manual_seed(0)
    settings |= {"weights": None, "weights_backbone": None}
    if weights == "none":
        return make(**settings)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        classes = len(state["roi_heads.box_predictor.cls_score.bias"])
        model = make(num_classes=classes, **settings)
        missing, extra = model.load_state_dict(state, strict=False)
    except Exception as error:  # files that are no state dict raise many types
        raise ValueError(
            f"--weights {weights} is no state dict of {arguments.network} ({reason(error)})"
        ) from None
    # Frozen norms have no num_batches_tracked.
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking or extra:
        name = (lacking or extra)[0]
        raise ValueError(
            f"--weights {weights} is of another network than {arguments.network}: it has"
            f" {'no' if lacking else 'a'} {name}; name its own as --network"
        )
    return model


class Extractor:
    """Computes the proposals of an image with features and positions."""

    def __init__(
        self, model: nn.Module, arguments: argparse.Namespace, device: torch.device
    ) -> None:
        self.model: Any = model.to(device).eval()
        self.device = device
        self.of_head = arguments.features == "head"

    def __call__(self, pixels_CHW: Tensor) -> np.ndarray:
        """Return a row per proposal, R x (D + 5 + 4), float32; see the top of this file."""
        import torch

        with torch.inference_mode():
            return self._rows(pixels_CHW.to(self.device)).cpu().numpy()

    def _rows(self, pixels_CHW: Tensor) -> Tensor:
        import torch
        from torchvision.ops import roi_align

        height, width = pixels_CHW.shape[1:]
        resized, _ = self.model.transform([pixels_CHW])
        stages = self.model.backbone.body(resized.tensors)
        levels = self.model.backbone.fpn(stages)
        proposals, _ = self.model.rpn(resized, levels)
        ((own_height, own_width),) = resized.image_sizes
        if not len(proposals[0]):
            proposals = [pixels_CHW.new_tensor([[0, 0, own_width, own_height]])]
        if self.of_head:
            pooled = self.model.roi_heads.box_roi_pool(levels, proposals, resized.image_sizes)
            features_RD = self.model.roi_heads.box_head(pooled)
        else:
            last = stages[next(reversed(stages))]
            scale = last.shape[-1] / resized.tensors.shape[-1]
            pooled = roi_align(last, proposals, POOLED, scale, sampling_ratio=2, aligned=True)
            features_RD = pooled.mean((2, 3))
        whole = pixels_CHW.new_tensor([own_width, own_height] * 2)
        size = pixels_CHW.new_tensor([width, height] * 2)
        boxes_R4 = proposals[0] / whole * size
        # The detector's boxes end where their last pixel does; ours name that pixel.
        boxes_R4[:, 2:] = torch.maximum(boxes_R4[:, 2:] - 1, boxes_R4[:, :2])
        sides_R2 = boxes_R4[:, 2:] - boxes_R4[:, :2] + 1
        part_R1 = sides_R2.prod(1, keepdim=True) / (width * height)
        return torch.cat([features_RD, boxes_R4 / size, part_R1, boxes_R4], 1)


if __name__ == "__main__":
    sys.exit(main())
