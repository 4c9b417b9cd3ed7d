"""What bounds the generation of weights: its matrix products, and the bytes that it must move."""

import argparse
from collections.abc import Callable
from typing import Any

Action = tuple[Callable[[], Any], Callable[[Any], Any]]  # prepare, act; act is timed


def nothing() -> None:
    """Do nothing: the action needs no preparation."""


def blocks(network: Any) -> list[Any]:
    """Return the blocks of a shared network's layers."""
    batches = {id(b): b for b in network.__dict__["_npas_shared"].reading.batches.values()}
    return [
        b for batch in batches.values() for part in batch.parts or (batch,) for b in part.blocks
    ]


def products(arguments: argparse.Namespace, network: Any) -> Action:
    """Return only the matrix products of `generate`, on cached values."""
    import torch

    sizes = [(len(b.keys), len(b.positions), b.size) for b in blocks(network)]
    most, piece = max(count for count, _, _ in sizes), 1 << 16
    weights_LN, templates_KN = torch.ones(most, piece), torch.ones(64, piece)
    gradients_KN = torch.zeros(64, piece)
    alpha_LK = torch.full((most, 64), 1e-3)

    def multiply(_: Any) -> None:
        for count, k, size in sizes:
            for start in range(0, size, piece):
                part = slice(0, min(piece, size - start))
                from_KN, to_LN = templates_KN[:k, part], weights_LN[:count, part]
                for row in range(count):
                    torch.mm(alpha_LK[row : row + 1, :k], from_KN, out=to_LN[row : row + 1])
                torch.mm(to_LN, from_KN.T)
                gradients_KN[:k, part].addmm_(alpha_LK[:count, :k].T, to_LN)

    return nothing, multiply


def copies(arguments: argparse.Namespace, network: Any) -> Action:
    """Return copies of as many bytes as `generate` must read and write with its plan.

    A block of L layers, K templates and N values reads K x N and writes L x N values forward.
    Backward, it reads L x N gradients and K x N templates, and adds to K x N values of the bank's
    gradient. An upsampled layer also writes its weight and reads its gradient.
    """
    import torch

    layers = network.__dict__["_npas_shared"].allocation.layers
    moved = sum((4 * len(b.positions) + 2 * len(b.keys)) * b.size for b in blocks(network))
    moved += sum(2 * layer.size for layer in layers if layer.upsampler is not None)
    source, target = torch.ones(2, 1 << 24)

    def copy_all(_: Any) -> None:
        for start in range(0, moved // 2, len(source)):  # a copy reads and writes
            count = min(len(source), moved // 2 - start)
            target[:count].copy_(source[:count])

    return nothing, copy_all


LIMITS = {"products": products, "copies": copies}
