"""The bank's gradient on two ranks: the single process's, to rounding, however they are joined."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import npas

SHAPES = [(3, 8), (8, 8), (8, 8), (8, 8), (8, 5)]
MODES = {
    "default": {},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "bucket view": {"gradient_as_bucket_view": True},
    "accumulated": {},
    "checkpoints": {},
    "reentrant checkpoints": {"static_graph": True},  # see docs/transparency.md
}


def build():
    torch.manual_seed(0)
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in SHAPES]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return npas.share(model, 0.6, groups={"[0-3].weight": "body", "4.weight": "head"})


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 5


def step(model, rank, micro_batches):
    """Go forward and backward over this rank's half, in one piece or in several."""
    inputs, labels = (tensor[rank::2].chunk(micro_batches) for tensor in batch())
    for i in range(micro_batches):
        last = i == micro_batches - 1
        with nullcontext() if last else model.no_sync():
            (F.cross_entropy(model(inputs[i]), labels[i]) / micro_batches).backward()


class Checkpointed(nn.Sequential):
    """Call every layer in a checkpoint of its own."""

    reentrant = False

    def forward(self, x):
        x.requires_grad_()
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return x


def eager(rank, out):
    found = {}
    for mode, options in MODES.items():
        inner = build()
        if "checkpoints" in mode:
            inner.__class__ = Checkpointed
            inner.reentrant = mode.startswith("reentrant")
        model = DistributedDataParallel(inner, **options)
        for _ in range(2):  # DDP rebuilds its buckets after the first step
            model.zero_grad()
            step(model, rank, micro_batches=2 if mode == "accumulated" else 1)
        found[mode] = {name: p.grad for name, p in model.module.named_parameters()}
    torch.save(found, f"{out}{rank}")


def compiled(rank, out):
    found = {}
    for mode in ("inside", "outside", "static graph"):
        inner = build()
        if mode != "outside":
            inner.compile(fullgraph=True, backend="aot_eager")
        model = DistributedDataParallel(inner, static_graph=mode == "static graph")
        if mode == "outside":
            model.compile(backend="aot_eager")
        for _ in range(3):
            model.zero_grad()
            step(model, rank, micro_batches=1)
        found[mode] = {name: p.grad for name, p in inner.named_parameters()}
    torch.save(found, f"{out}{rank}")


def worker(rank, work, store, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    work(rank, out)
    dist.destroy_process_group()


def run(work, folder):
    """Run on two ranks; return what each saved."""
    arguments = (work, str(folder / "store"), str(folder / "rank"))
    mp.start_processes(worker, args=arguments, nprocs=2, start_method="spawn")
    return [torch.load(folder / f"rank{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.dist
@pytest.mark.parametrize(
    "work", [eager, pytest.param(compiled, marks=pytest.mark.slow)], ids=lambda w: w.__name__
)
def test_two_ranks_get_the_single_process_gradient(work, tmp_path):
    ranks = run(work, tmp_path)
    model = build()
    inputs, labels = batch()
    F.cross_entropy(model(inputs), labels).backward()
    assert ranks[0].keys() == ranks[1].keys() and len(ranks[0]) >= 3
    for mode, gradients in ranks[0].items():
        for name, parameter in model.named_parameters():
            assert torch.equal(gradients[name], ranks[1][mode][name]), (mode, name)
            torch.testing.assert_close(
                gradients[name], parameter.grad, rtol=1e-5, atol=1e-7, msg=f"{mode}: {name}"
            )


# --- FSDP2: banks are sharded over the ranks with the network that holds them


def train(model, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = batch()
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def sharded(rank, out):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh("cpu", (2,))
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = {}
    for mode in ("root", "blocks", "resharded"):
        model = build()
        if mode == "blocks":  # what they do not share is sharded block by block
            for block in list(model.children())[:3]:
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh, **({"reshard_after_forward": True} if mode[2] == "s" else {}))
        losses = train(model, slice(rank, None, 2))
        parameter = model.get_parameter("npas_bank_0")
        assert type(parameter).__name__ == "DTensor"
        assert parameter.to_local().numel() < parameter.numel()
        state = get_model_state_dict(model, options=whole)
        inputs, _ = batch()
        with torch.no_grad():  # evaluated, changed, evaluated: kept weights must not outlive it
            first = model(inputs)
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
            doubled = {k: v * 2 for k, v in (state if rank == 0 else {}).items()}
            scattered = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(model, doubled, options=scattered)
            second = model(inputs)
        answers = {"losses": torch.tensor(losses), "first": first, "second": second}
        found[mode] = answers | (state if rank == 0 else {})
    torch.save(found, f"{out}{rank}")


def flattened(rank, out):
    """FSDP1, which puts all parameters into one, and shows them as views or as parameters."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    found = {}
    for kept in (False, True):
        model = FullyShardedDataParallel(
            build(), use_orig_params=kept, device_id=torch.device("cpu")
        )
        losses = train(model, slice(rank, None, 2))
        with torch.no_grad():
            answers = {"losses": torch.tensor(losses), "first": model(batch()[0])}
        state = model.state_dict()
        found["parameters" if kept else "views"] = answers | {
            k: v.clone() for k, v in state.items()
        }
    torch.save(found, f"{out}{rank}")


@pytest.mark.dist
@pytest.mark.filterwarnings("ignore:.*FSDP.*")
def test_flattened_ranks_train_as_one_process_does(tmp_path):
    ranks = run(flattened, tmp_path)
    model = build()
    losses = torch.tensor(train(model, slice(None)))
    with torch.no_grad():
        first = model(batch()[0])
    for mode in ("views", "parameters"):
        together = (ranks[0][mode]["losses"] + ranks[1][mode]["losses"]) / 2
        torch.testing.assert_close(together, losses, rtol=1e-5, atol=1e-6, msg=mode)
        for rank in ranks:
            torch.testing.assert_close(rank[mode]["first"], first, rtol=1e-4, atol=1e-5)
            for name, parameter in model.named_parameters():
                torch.testing.assert_close(rank[mode][name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.dist
@pytest.mark.slow
def test_fully_sharded_ranks_train_as_one_process_does(tmp_path):
    ranks = run(sharded, tmp_path)
    model = build()
    losses = torch.tensor(train(model, slice(None)))
    inputs, _ = batch()
    with torch.no_grad():
        first = model(inputs)
        state = model.state_dict()
        model.load_state_dict({k: 2 * v for k, v in state.items()})
        second = model(inputs)
    for mode, saved in ranks[0].items():
        together = (saved["losses"] + ranks[1][mode]["losses"]) / 2
        torch.testing.assert_close(together, losses, rtol=1e-5, atol=1e-6, msg=mode)
        for rank in ranks:
            torch.testing.assert_close(rank[mode]["first"], first, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rank[mode]["second"], second, rtol=1e-4, atol=1e-4)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(2 * saved[name], parameter, rtol=1e-4, atol=1e-6, msg=name)
