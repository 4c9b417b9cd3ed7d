"""The bank's gradient under DDP: the single process's, to rounding."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import npas

SHAPES = [(3, 8), (8, 8), (8, 8), (8, 8), (8, 5)]


def build() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in SHAPES]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return npas.share(model, 0.6, groups={"[0-3].weight": "body", "4.weight": "head"})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 5


def worker(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    model = DistributedDataParallel(build())
    inputs, labels = batch()
    for _ in range(2):  # DDP rebuilds its buckets after the first step
        model.zero_grad()
        F.cross_entropy(model(inputs[rank::2]), labels[rank::2]).backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    torch.save(gradients, f"{out}{rank}")
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_get_the_single_process_gradient(tmp_path: Path) -> None:
    mp.start_processes(
        worker,
        args=(str(tmp_path / "store"), str(tmp_path / "rank")),
        nprocs=2,
        start_method="spawn",
    )
    model = build()
    inputs, labels = batch()
    F.cross_entropy(model(inputs), labels).backward()
    ranks = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    for name, parameter in model.named_parameters():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], parameter.grad, rtol=1e-5, atol=1e-7, msg=name)
