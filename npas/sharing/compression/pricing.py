"""Predict the bytes of a network's artifact from its plan, and plan a network for a byte budget.

    price(model, plan(model, 0.1), Packing())      # bytes before compression, header included

The price is an upper bound: any zlib compresses a header to less than the half that is assumed, and
`share` needs at most one fixed scale per layer. An `Entry` is one tensor of an artifact.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from npas.sharing.budget import count_parameters
from npas.sharing.compression.quantize import INT24, LARGEST_INT24, PLAIN, count_bytes
from npas.sharing.generators.bases import extent
from npas.sharing.generators.codebook import CODEBOOK
from npas.sharing.generators.low_rank import count_corrections
from npas.sharing.layers import PREFIX, LayerSpec, bank_name, indices_name, matrix_form
from npas.sharing.layout.allocation import Allocation, GroupAllocation, LayerAllocation, Scheme
from npas.sharing.layout.allocator import allocate, members_of, smallest_group
from npas.sharing.layout.structured import makes_whole
from npas.sharing.runtime import audit
from npas.sharing.runtime.install import is_buffer, is_shared, shared_shapes, shared_weights
from npas.utils.budget import Budget, spell_count, spell_size
from npas.utils.packing import Packing

SMALL = {"rows": 4096, "golf": 65_536}
"""By scheme, the most values of a tensor, other than a bank, that is not quantized."""
VECTOR_ROW = 4096
"""Values per scale in a quantized vector."""
PREAMBLE = struct.Struct("<4sBBHIQI")
"""Magic, version, compression, 0; bytes of the header and of the unpacked data; their crc32."""
SHORT_HEADER = 128  # bytes added, since a short header compresses little
SPARE = 64  # bytes that another budget's name and counts may add


@dataclass(frozen=True)
class Entry:
    """One tensor of an artifact; `kind` is in `quantize.LEVELS`, with a row size, or `PLAIN`."""

    name: str
    shape: tuple[int, ...]
    kind: str
    row: int = 0

    @property
    def bytes(self) -> int:
        """Return the tensor's size in bytes."""
        return count_bytes(self.kind, math.prod(self.shape), self.row)


def price(model: nn.Module, allocation: Allocation | None, packing: Packing) -> int:
    """Return an upper bound of the artifact's bytes before compression.

    The network is shared, or dense and to be shared by `allocation`; None leaves it dense.
    """
    return sum(_prices(model, allocation, packing))


def _prices(model: nn.Module, allocation: Allocation | None, packing: Packing) -> tuple[int, int]:
    """Return the bytes of preamble and header, and the bytes of the data."""
    if is_shared(model):
        allocation = audit.follow(shared_weights(model)).allocation
    elif allocation is not None:  # `share` merges equal scales
        scales = count()
        allocation = allocation.map(lambda layer: replace(layer, scale=next(scales)))
    entries = layout(model, allocation, packing)
    header = len(describe(entries, allocation, packing)) // 2 + SHORT_HEADER
    return PREAMBLE.size + header, sum(entry.bytes for entry in entries)


def layout(model: nn.Module, allocation: Allocation | None, packing: Packing) -> list[Entry]:
    """Return an artifact's entries: each tensor of the state dict, once."""
    state = model.state_dict(keep_vars=True)
    state = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    rows = {}
    if allocation is not None:
        rows = {bank_name(g): _bank_row(own) for g, own in enumerate(allocation.groups) if own.bank}
    if allocation is not None and not is_shared(model):
        dtype = state[allocation.layers[0].name].dtype
        dense = {id(state[layer.name]) for layer in allocation.layers if layer.templates}
        state = {name: tensor for name, tensor in state.items() if id(tensor) not in dense}
        for name, shape in shared_shapes(allocation).items():
            empty = torch.empty(shape, dtype=dtype, device="meta")
            state[name] = empty if is_buffer(name) else nn.Parameter(empty)
    indices = _index_kinds(allocation)
    layers = {id(p) for m in model.modules() if _is_layer(m) for p in m._parameters.values()}
    found: dict[int, Entry] = {}
    for name, tensor in state.items():
        of_layer = id(tensor) in layers and not name.startswith(PREFIX)
        small = "float32" if packing.scheme == "golf" and not of_layer else "float16"
        if name in indices:
            found[id(tensor)] = Entry(name, tuple(tensor.shape), indices[name])
            continue
        found.setdefault(id(tensor), _entry(name, tensor, rows.get(name), small, packing))
    return list(found.values())


def _index_kinds(allocation: Allocation | None) -> dict[str, str]:
    """Return the kind that holds the indices of each layer with a codebook, by their name."""
    layers = () if allocation is None else allocation.layers
    found = {}
    for i, layer in enumerate(layers):
        if layer.upsampler == CODEBOOK:
            rows = -(-layer.template_size // layer.source[1])
            kind = "int16" if rows <= 1 << 15 else INT24 if rows <= LARGEST_INT24 else "int32"
            found[indices_name(i)] = kind
    return found


def _entry(name: str, tensor: Tensor, row: int | None, small: str, packing: Packing) -> Entry:
    """Return a tensor's entry; buffers and integers keep their dtype."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if dtype not in PLAIN:
        raise ValueError(f"{name!r} is {dtype}, which an artifact cannot hold: convert it first")
    if not isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
        return Entry(name, shape, dtype)
    if row is None and tensor.numel() <= SMALL[packing.scheme]:
        return Entry(name, shape, small)
    row = row or matrix_form(shape)[1]
    return Entry(
        name, shape, f"q{packing.bits}", min(row if row > 1 else VECTOR_ROW, tensor.numel())
    )


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is of a class of `torch.nn`, or a subclass, but no container."""
    return any(
        cls.__module__.startswith("torch.nn.modules.")
        and not cls.__module__.endswith((".module", ".container"))
        for cls in type(module).__mro__
    )


def _bank_row(group: GroupAllocation) -> int:
    """Return the values per scale of a bank: the row length with which most weights read it."""
    weights: dict[int, int] = {}
    for layer in group.layers:
        by_sides = layer.upsampler in ("rows", "columns")
        rows, columns = extent(layer)[1:][::-1] if by_sides else layer.source
        row = columns if rows > 1 else matrix_form(layer.shape)[1]
        weights[row] = weights.get(row, 0) + layer.size
    return max(weights, key=weights.__getitem__)


_LATER = ("kept", "first")  # only where a layer has them
_OLD = (field.name for field in fields(LayerAllocation) if field.name not in _LATER)
_FIELDS = (*_OLD, "group", *_LATER)


def describe(entries: list[Entry], allocation: Allocation | None, packing: Packing) -> bytes:
    """Return the header: JSON with the tensors in order and the plan, its layers as lists."""
    plan: dict[str, Any] | None = None
    if allocation is not None:
        plan = allocation.to_dict()
        plan["layers"] = [
            [layer[name] for name in _FIELDS if name in layer] for layer in plan["layers"]
        ]
    tensors = [[entry.name, entry.shape, entry.kind, entry.row] for entry in entries]
    header = {"bits": packing.bits, "scheme": packing.scheme, "tensors": tensors, "plan": plan}
    return json.dumps(header, separators=(",", ":")).encode()


def parse(header: bytes) -> tuple[list[Entry], Allocation | None]:
    """Return the entries and the plan of a header; raise various errors if it is invalid."""
    data = json.loads(header)
    entries = [Entry(n, tuple(shape), kind, row) for n, shape, kind, row in data["tensors"]]
    plan = data["plan"]
    if plan is None:
        return entries, None
    layers = [dict(zip(_FIELDS, layer, strict=False)) for layer in plan["layers"]]
    return entries, Allocation.from_dict({**plan, "layers": layers})


def fit(
    model: nn.Module,
    request: Budget,
    layers: Sequence[LayerSpec],
    group_of: Mapping[str, str],
    scheme: Scheme,
    packing: Packing,
    group_weights: Mapping[str, float] | None = None,
) -> Allocation:
    """Return the plan with the most parameters whose artifact fits the bytes of `request`.

    Bytes are counted before compression, except that the data is divided by
    `packing.expected_ratio`. Searches by interpolation and bisection. Raises ValueError, naming the
    bytes it takes, if the smallest feasible plan does not fit.
    """
    assert request.size is not None
    room = request.size
    dense = count_parameters(model)
    members = members_of(layers, group_of).values()
    floor = dense - sum(layer.size for group in members for layer in group)
    floor += sum(smallest_group(group, scheme) for group in members)
    floor += count_corrections(members, scheme.low_rank)

    def priced(parameters: int) -> tuple[Allocation, int]:
        asked = Budget(absolute=parameters)
        plan = allocate(layers, group_of, asked, dense, scheme, group_weights)
        plan = replace(plan, budget=replace(plan.budget, asked=request.canonical))
        header, data = _prices(model, plan, packing)
        return plan, header + math.ceil(data / packing.expected_ratio)

    best, least = priced(floor)
    if least > room:
        raise ValueError(
            f"budget={request.canonical} is too small: the least this network can share,"
            f" {spell_count(floor)} parameters, takes {least:,} bytes: ask for"
            f" budget={spell_size(least + SPARE)} or more"
        )
    low, high = (floor, least), (int(room * packing.expected_ratio * 8) // packing.bits, 0)
    if makes_whole(scheme.generator):  # it cannot use more than the dense count
        plan, most = priced(dense)
        if most <= room:
            raise ValueError(
                f"budget={request.canonical} is more than all {dense:,} parameters take,"
                f" {most:,} bytes, and generator={scheme.generator!r} has no use for more: ask for"
                " fewer bytes, or choose generator='wavg'"
            )
        high = dense, most
    elif high[0] > low[0]:
        high = high[0], priced(high[0])[1]
    for step in range(60):
        if high[0] - low[0] < 2 or room - low[1] < room // 4000:
            break
        parameters = (low[0] + high[0]) // 2
        if step % 3 < 2:  # the price is nearly a straight line
            slope = (high[1] - low[1]) / (high[0] - low[0])
            parameters = low[0] + int((room - low[1]) / slope) if slope > 0 else parameters
            parameters = min(max(parameters, low[0] + 1), high[0] - 1)
        plan, taken = priced(parameters)
        if taken <= room:
            best, low = plan, (parameters, taken)
        else:
            high = parameters, taken
    return best
