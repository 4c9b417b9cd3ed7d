"""Write a network to one quantized, compressed file (an artifact), and read it back.

    write_artifact(model, "artifact.npas", bits=6)
    read_artifact("artifact.npas", Model())        # Model() as built, or shared the same way

The file is a preamble (magic, version, compression, lengths, checksum), a JSON header compressed by
zlib (each tensor's name, shape, kind and row length; the plan), and the tensors' bytes in the
header's order, compressed together. Nothing is pickled.
"""

import io
import lzma
import math
import os
import zlib
from numbers import Integral
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from npas.sharing.budget import count_parameters
from npas.sharing.compression.pricing import PREAMBLE, describe, layout, parse
from npas.sharing.compression.quantize import decode, encode
from npas.sharing.layout.allocation import Allocation
from npas.sharing.runtime import audit, storage
from npas.sharing.runtime.install import (
    give_back_freed,
    is_shared,
    require_unshared,
    restore,
    shared_weights,
)
from npas.sharing.runtime.loops import refuse_folded
from npas.utils.budget import spell_count, spell_size
from npas.utils.checks import one_line, path_of, require, within
from npas.utils.packing import Artifact, Packing

MAGIC, VERSION = b"NPAS", 1
_BROKEN = (zlib.error, lzma.LZMAError, EOFError, OverflowError)
_COMPRESSIONS = ("none", "zlib", "lzma")  # the file stores the index


def write_artifact(
    model: nn.Module,
    path: str | os.PathLike[str],
    bits: Literal[8, 6] = 8,
    *,
    scheme: Literal["rows", "golf"] = "rows",
    compression: Literal["zlib", "lzma", "none"] = "zlib",
    cap: int | None = None,
) -> Artifact:
    """Write a shared or dense network; return the artifact's sizes.

    The keywords are those of `npas.utils.packing.Packing`. Data that compression would enlarge is
    stored uncompressed. Raises ValueError, and writes nothing, where another file or a folder is,
    for an artifact of more than `cap` bytes and for a network that cannot be stored (values that
    are not finite, pruned or wrapped parts).
    """
    path, packing = path_of(path), Packing(bits, scheme, compression)
    if cap is not None:
        cap = int(require("cap", cap, Integral, "a number of bytes"))
        within("cap", cap, "[1, inf)")
    if path.exists() and not (path.is_file() and _start(path) in (b"", MAGIC)):
        raise ValueError(f"{path} exists and is not an artifact: name another file")
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
        fits -= fits % 10 ** max(0, len(str(fits)) - 3)  # rounded down to three digits
        raise ValueError(
            f"the artifact takes {found.bytes:,} bytes, {found.bytes - cap:,} more than the"
            f" {spell_size(cap)} that it may: share with about budget={spell_count(max(fits, 1))}"
            f" (parameters), or with a budget in bytes and expected_ratio="
            f"{int(ratio * 100) / 100}, the measured compression ratio"
        )
    new = storage.make_folder(path.parent) / f"{path.name}.{os.getpid()}.tmp"
    try:
        new.write_bytes(start + packed)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return found


def read_artifact(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Load an artifact into `model`, in place, and return it.

    `model` is the dense architecture, which is then shared as the artifact's plan says, or a
    network shared by the same plan. Raises ValueError, with the network left as it was, for a
    damaged file and one of another network.
    """
    path = path_of(path)
    plan, tensors = _read(path)
    stored = storage.Stored(path, {}, tensors)
    if plan is None or is_shared(model):
        own = audit.follow(shared_weights(model)).allocation if is_shared(model) else None
        if (own and own.groups) != (plan and plan.groups):
            raise ValueError(
                f"{path} holds another network than this one, or one that shares in another way:"
                " name its own run, or read it into its dense architecture"
            )
        plan = None
    else:
        require_unshared(model)
    audit.warn_of_optimizers(restore(model, plan, stored))
    give_back_freed()
    return model


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(MAGIC))


def _pack(model: nn.Module, packing: Packing) -> tuple[bytes, bytes]:
    """Return the compressed header and the uncompressed data of a network's artifact."""
    refuse_folded(model)
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
    """Read an artifact's plan (None: dense) and tensors; raise ValueError if it is damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name an artifact") from None
    if len(data) < PREAMBLE.size or data[:4] != MAGIC:
        raise ValueError(f"{path} is not an artifact of npas: name one, e.g. DIR/artifact.npas")
    _, version, number, _, header_size, size, checksum = PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"{path} has version {version}, this npas reads {VERSION}: write it again")
    header, packed = data[PREAMBLE.size :][:header_size], data[PREAMBLE.size + header_size :]
    try:
        unpacked = _decompress(packed, _COMPRESSIONS[number], size)
        if len(unpacked) != size or zlib.crc32(unpacked, zlib.crc32(header)) != checksum:
            raise ValueError("its checksum does not match")
        entries, plan = parse(zlib.decompress(header))
        if sum(entry.bytes for entry in entries) != size:
            raise ValueError("its tensors do not have the size that its header says")
        tensors, stream = {}, io.BytesIO(unpacked)
        for entry in entries:
            part = stream.read(entry.bytes)
            flat = decode(part, entry.kind, math.prod(entry.shape), entry.row)
            tensors[entry.name] = flat.view(entry.shape)
    except (ValueError, TypeError, LookupError, RuntimeError, *_BROKEN) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}): write it again") from None
    return plan, tensors


def _decompress(data: bytes, compression: str, size: int) -> bytes:
    """Return at most `size` + 1 bytes; raise ValueError if the data does not end exactly there."""
    if compression == "none":
        return data
    tool = zlib.decompressobj() if compression == "zlib" else lzma.LZMADecompressor()
    found: bytes = tool.decompress(data, size + 1)
    if not tool.eof or tool.unused_data:
        raise ValueError("it is truncated or has bytes after its end")
    return found
