"""Benchmark the input pipelines and the networks that they feed, in samples per second.

    python scripts/bench_input.py                                    # all, in less than 4 minutes
    python scripts/bench_input.py --workers 0,1,2 --out results/bench/input-cpu.json
    python scripts/bench_input.py --device cuda --precision bf16 --workers 0,8,16 --batch 128
    python scripts/bench_input.py --only imagenet --images 400 --networks resnet50

ImageNet's images are synthetic JPEGs of 500 x 375 pixels and about 100 KB, the averages of the real
ones, in folders and in shards. They are read, decoded, cropped to 224 and flipped. After the first
epoch they are in the page cache, so this measures the CPU and not the disk. CIFAR and the digits
are kept on the device. A network's step is forward and backward of a fixed batch. Rows run in
rotating order; results are medians over the rounds, without a warm-up run. The time to start the
workers is included, as in every epoch; it weighs more in these short epochs.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import write

MODELS = Path(__file__).parent.parent / "configs" / "model"
KEYS = ("device", "precision", "batch", "images", "threads", "workers", "rounds", "seconds")
NETWORKS = "resnet50,efficientnet_b0,mobilenet_v2,wrn_28_10,wrn_16_2,wrn_digits"
HEIGHT, WIDTH, QUALITY = 375, 500, 95


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=384, help="synthetic images")
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes")
    parser.add_argument("--networks", default=NETWORKS, help="names in configs/model")
    parser.add_argument("--only", default="imagenet,cifar,digits,networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="minimum of each timing")
    parser.add_argument("--out", type=Path, help="also write the results as JSON")
    found = parser.parse_args()
    if unknown := set(found.only.split(",")) - {"imagenet", "cifar", "digits", "networks"}:
        parser.error(f"--only {min(unknown)}: choose imagenet, cifar, digits or networks")
    for name in found.networks.split(","):
        if not (MODELS / f"{name}.yaml").is_file():
            parser.error(f"--networks {name}: give names of configs/model")
    return found


def main() -> None:
    """Run the benchmark."""
    arguments = parse()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    wanted = set(arguments.only.split(","))
    with tempfile.TemporaryDirectory() as folder:
        rows: dict[str, Callable[[], int]] = {}
        if "imagenet" in wanted:
            rows |= imagenet_rows(arguments, Path(folder))
        for name in [name for name in ("cifar", "digits") if name in wanted]:
            rows |= resident_rows(arguments, name)
        if "networks" in wanted:
            for network in arguments.networks.split(","):
                rows[f"step {network}"] = stepper(arguments, network)
        found = measure(arguments, rows)
    show(arguments, found)
    if arguments.out:
        settings = {key: getattr(arguments, key) for key in KEYS}
        write(arguments.out, settings=settings, rows=found)


def imagenet_rows(arguments: argparse.Namespace, root: Path) -> dict[str, Callable[[], int]]:
    """Return epochs of the ImageNet pipeline, for both forms and each number of workers."""
    import torch

    from npas.config import DataConfig
    from npas.tasks.imagenet import shards
    from npas.tasks.imagenet import task as imagenet
    from npas.tasks.imagenet.shards import Folder

    size = write_images(root / "imagenet", arguments.images)
    print(f"wrote {arguments.images} JPEGs of {size:,} bytes on average")
    folders = {split: Folder(root / "imagenet" / split, 2) for split in ("train", "val")}
    shards.pack(folders, root / "imagenet-shards", per_shard=100)
    rows = {}
    for form in ("folder", "shards"):
        config: Any = imagenet.Config(classes=2, form=form)
        data = DataConfig(root=str(root), val_fraction=None)
        task = imagenet.Task(config, data, seed=0, device=torch.device("cpu"))
        task.setup()
        for workers in map(int, arguments.workers.split(",")):
            name = f"imagenet {form}, {workers} workers"
            rows[name] = epoch(task, min(arguments.batch, arguments.images), arguments, workers)
    return rows


def write_images(folder: Path, count: int) -> int:
    """Write `count` training JPEGs in two classes and two for val; return their mean bytes."""
    import torch
    from PIL import Image
    from torch.nn import functional as F

    torch.manual_seed(0)
    sizes = []
    for i in range(count + 2):
        split = "train" if i < count else "val"
        # Smooth at large and rough at small scale, so that JPEGs have a realistic size.
        coarse = F.interpolate(torch.rand(1, 3, 12, 16), (HEIGHT, WIDTH), mode="bicubic")[0]
        fine = F.interpolate(torch.rand(1, 3, HEIGHT // 2, WIDTH // 2), (HEIGHT, WIDTH))[0]
        pixels = (255 * (0.7 * coarse + 0.12 * fine + 0.06 * torch.rand(3, HEIGHT, WIDTH))).clamp(
            0, 255
        )
        path = folder / split / f"n{i % 2:08d}" / f"n{i % 2:08d}_{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy())
        image.save(path, "JPEG", quality=QUALITY)
        sizes.append(path.stat().st_size)
    return sum(sizes) // len(sizes)


def resident_rows(arguments: argparse.Namespace, name: str) -> dict[str, Callable[[], int]]:
    """Return an epoch of a data set that is kept on the device."""
    import torch

    from npas import tasks
    from npas.config import DataConfig
    from npas.tasks.classification import Part

    module = tasks.family(name)
    data = DataConfig(val_fraction=0.0)
    task = module.Task(module.Config(), data, seed=0, device=torch.device(arguments.device))
    if name == "cifar":  # random images, as many as in the real set
        images = torch.randint(0, 256, (50000, 32, 32, 3), dtype=torch.uint8)
        labels = torch.randint(0, 10, (50000,))
        part = Part(images[:10], labels[:10])
        task.load = lambda: (Part(images, labels), part)
    task.setup()
    return {f"{name}, resident": epoch(task, 128, arguments, 0)}


def epoch(task: Any, batch: int, arguments: argparse.Namespace, workers: int) -> Callable[[], int]:
    """Return a function that loads an epoch to the device and returns the number of samples."""
    import torch

    from npas.tasks import base

    device = torch.device(arguments.device)
    epochs: Iterator[int] = iter(range(1_000_000))  # each has another order

    def run() -> int:
        made = base.batches(task, next(epochs), batch, workers=workers, device=device)
        return sum(b.size for b in made)

    return run


def stepper(arguments: argparse.Namespace, name: str) -> Callable[[], int]:
    """Return a forward and backward pass of a network of configs/model on a fixed batch."""
    import torch
    from omegaconf import OmegaConf

    from npas import models

    values: Any = OmegaConf.to_container(OmegaConf.load(MODELS / f"{name}.yaml"))
    family = models.family(values["family"])
    shape = (3, 32, 32) if name.startswith(("wrn_1", "wrn_2", "wrn_4")) else (3, 224, 224)
    if name.endswith("digits"):
        shape = (1, 8, 8)
    classes = 1000 if shape[-1] == 224 else 10
    # Small images need a large batch to use a device.
    size = arguments.batch if shape[-1] == 224 else 128
    if name == "wrn_28_10" and arguments.device == "cpu":
        size = arguments.batch
    torch.manual_seed(0)
    network = models.build(family.Config(**values), models.InputSpec(shape, classes))
    network.to(arguments.device).train()
    inputs = torch.randn(size, *shape, device=arguments.device)
    if arguments.device == "cuda":
        network.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (size,), device=arguments.device)

    def run() -> int:
        network.zero_grad()
        bf16 = arguments.precision == "bf16"
        with torch.autocast(arguments.device, torch.bfloat16, enabled=bf16):
            logits = network(inputs)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        return size

    return run


def measure(
    arguments: argparse.Namespace, rows: dict[str, Callable[[], int]]
) -> list[dict[str, Any]]:
    """Run all rows in each round; return medians and extremes in samples per second."""
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for run in rows.values():
        run()
    order = list(rows)
    for _ in range(arguments.rounds):
        for name in order:
            rates[name].append(rate(arguments, rows[name]))
        order = [*order[1:], order[0]]  # vary which follows which
    return [
        {"row": name, "samples_s": statistics.median(r), "low": min(r), "high": max(r)}
        for name, r in rates.items()
    ]


def rate(arguments: argparse.Namespace, run: Callable[[], int]) -> float:
    """Return samples per second over runs of at least `--seconds` in total."""
    import torch

    def synchronize() -> None:
        if arguments.device == "cuda":
            torch.cuda.synchronize()

    synchronize()
    started, count = time.perf_counter(), 0
    while True:
        count += run()
        synchronize()
        if (taken := time.perf_counter() - started) >= arguments.seconds:
            return count / taken


def show(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    print(
        f"{arguments.device}, {arguments.precision}, batches of {arguments.batch} (CIFAR and"
        f" digits: 128), {arguments.threads} thread(s), {arguments.rounds} rounds"
    )
    print(f"{'row':<34}{'samples/s':>12}   (lowest-highest)")
    for row in rows:
        extremes = f"({row['low']:,.1f}-{row['high']:,.1f})"
        print(f"{row['row']:<34}{row['samples_s']:>12,.1f}   {extremes}")


if __name__ == "__main__":
    main()
