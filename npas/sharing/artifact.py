"""Write a network as few bytes, quantized and compressed, in one file, and read it back.

    write_artifact(model, "artifact.npas", bits=6)
    read_artifact("artifact.npas", Model())        # the architecture as built, or shared alike

The file is a preamble (magic, version, compression, lengths and checksum of what follows), a JSON
header (each tensor's name, shape, kind and row length; the plan), compressed by zlib, and the
tensors' bytes in its order, compressed together. Nothing is pickled.
"""

from __future__ import annotations

import lzma
import math
import os
import zlib
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from npas.sharing import audit, storage
from npas.sharing.allocation import Allocation
from npas.sharing.budget import count_parameters
from npas.sharing.install import (
    give_back_freed,
    is_shared,
    require_unshared,
    restore,
    shared_weights,
)
from npas.sharing.loops import refuse_loops
from npas.sharing.pricing import PREAMBLE, describe, layout, parse
from npas.sharing.quantize import decode, encode
from npas.utils.budget import spell_count, spell_size
from npas.utils.packing import Artifact, Packing

MAGIC, VERSION = b"NPAS", 1
_BROKEN = (zlib.error, lzma.LZMAError, EOFError, OverflowError)
_COMPRESSIONS = ("none", "zlib", "lzma")  # by their number in the file


def write_artifact(
    model: nn.Module,
    path: str | os.PathLike[str],
    bits: Literal[8, 6] = 8,
    *,
    scheme: Literal["rows", "golf"] = "rows",
    compression: Literal["zlib", "lzma", "none"] = "zlib",
    cap: int | None = None,
) -> Artifact:
    """Write a shared or dense network, and return what its artifact came to.

    The keywords are those of `npas.utils.packing.Packing`. What compression would make larger is
    kept as it is. Raises ValueError, and writes nothing, for an artifact of more than `cap` bytes
    and for a network that cannot be stored: values that are not finite, pruned or wrapped parts.
    """
    packing = Packing(bits, scheme, compression)
    header, data = _pack(model, packing)
    packed, used = _compress(data, compression), compression
    if len(packed) >= len(data):
        packed, used = data, "none"
    number, checksum = _COMPRESSIONS.index(used), zlib.crc32(data, zlib.crc32(header))
    start = PREAMBLE.pack(MAGIC, VERSION, number, 0, len(header), len(data), checksum) + header
    found = Artifact(len(start) + len(packed), len(start) + len(data), bits, scheme, used, cap)
    if cap is not None and found.bytes > cap:
        ratio = len(data) / len(packed)
        excess = len(data) - int((cap - len(start)) * ratio)
        fits = count_parameters(model) - excess * 8 // bits
        fits -= fits % 10 ** max(0, len(str(fits)) - 3)  # a round number, and a little room
        raise ValueError(
            f"the artifact takes {found.bytes:,} bytes, {found.bytes - cap:,} more than"
            f" budget={spell_size(cap)}: the nearest that fits is about"
            f" budget={spell_count(max(fits, 1))} (parameters), or set artifact.expected_ratio="
            f"{int(ratio * 100) / 100}, by which it was compressed"
        )
    path = Path(path)
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        new.write_bytes(start + packed)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return found


def read_artifact(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Give a network what an artifact holds, in place, and return it.

    It is the architecture as built, which is then shared as the artifact's network was, or that
    shared network. Raises ValueError, with the network left as it was, for a file that is damaged,
    and one of another network.
    """
    path = Path(path)
    plan, tensors = _read(path)
    stored = storage.Stored(path, {}, tensors)
    if plan is None or is_shared(model):
        own = audit.follow(shared_weights(model)).allocation if is_shared(model) else None
        if (own and own.groups) != (plan and plan.groups):
            raise ValueError(
                f"{path} holds a network that shares in another way than this one: read it into"
                " the architecture as built"
            )
        plan = None
    else:
        require_unshared(model)
    audit.warn_of_optimizers(restore(model, plan, stored))
    give_back_freed()
    return model


def _pack(model: nn.Module, packing: Packing) -> tuple[bytes, bytes]:
    """Return the header and the data of a network's artifact."""
    refuse_loops(model)
    allocation = None
    if is_shared(model):
        shared = audit.follow(shared_weights(model))
        audit.refuse_unloadable(shared, "an artifact")
        allocation = shared.allocation
    state = model.state_dict()
    entries = layout(model, allocation, packing)
    parts = []
    for entry in entries:
        try:
            parts.append(encode(state[entry.name], entry.kind, entry.row, packing.scheme == "golf"))
        except ValueError as error:
            raise ValueError(f"{entry.name!r} cannot be stored: {error}") from None
    header = zlib.compress(describe(entries, allocation, packing), 9)
    return header, b"".join(parts)


def _compress(data: bytes, compression: str) -> bytes:
    if compression == "zlib":
        return zlib.compress(data, 9)
    return lzma.compress(data, preset=9) if compression == "lzma" else data


def _read(path: Path) -> tuple[Allocation | None, dict[str, Tensor]]:
    """Read and check a file; ValueError, in one line, if it is no whole artifact."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name an artifact") from None
    if len(data) < PREAMBLE.size or data[:4] != MAGIC:
        raise ValueError(f"{path} is no artifact that npas wrote: name one, as DIR/artifact.npas")
    _, version, number, _, header_size, size, checksum = PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"{path} has version {version}, this npas reads {VERSION}: write it again")
    header, packed = data[PREAMBLE.size :][:header_size], data[PREAMBLE.size + header_size :]
    try:
        unpacked = _decompress(packed, _COMPRESSIONS[number], size)
        if len(unpacked) != size or zlib.crc32(unpacked, zlib.crc32(header)) != checksum:
            raise ValueError("its checksum is another")
        entries, plan = parse(zlib.decompress(header))
        if sum(entry.bytes for entry in entries) != size:
            raise ValueError("its tensors have another size than its header says")
        start = 0
        tensors = {}
        for entry in entries:
            part = unpacked[start : start + entry.bytes]
            flat = decode(part, entry.kind, math.prod(entry.shape), entry.row)
            tensors[entry.name] = flat.view(entry.shape)
            start += entry.bytes
    except (ValueError, TypeError, LookupError, RuntimeError, *_BROKEN) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}): write it again") from None
    return plan, tensors


def _decompress(data: bytes, compression: str, size: int) -> bytes:
    """Return at most one byte more than `size`; ValueError for bytes behind the end."""
    if compression == "none":
        return data
    tool = zlib.decompressobj() if compression == "zlib" else lzma.LZMADecompressor()
    found: bytes = tool.decompress(data, size + 1)
    if not tool.eof or tool.unused_data:
        raise ValueError("it does not end where it should")
    return found
