"""Write a network as few bytes, quantized and compressed, in one file, and read it back.

    write_artifact(model, "artifact.npas", bits=6)
    read_artifact("artifact.npas", Model())        # the architecture as built, or shared alike

The file is a preamble (magic, version, compression, length and checksum of what follows) and a
compressed body: the length of a JSON header, the header (each tensor's name, shape, kind and row
length; the plan), and the tensors' bytes in its order. Nothing is pickled.
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import zlib
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from npas.sharing import audit, storage
from npas.sharing.allocation import Allocation
from npas.sharing.audit import warn_of_holders
from npas.sharing.budget import count_parameters
from npas.sharing.install import install_stored, is_shared, require_unshared, shared_weights
from npas.sharing.loops import refuse_loops
from npas.sharing.memory import give_back_freed
from npas.sharing.pricing import LENGTH, PREAMBLE, describe, layout, parse
from npas.sharing.quantize import decode, encode
from npas.utils.budget import spell_count, spell_size
from npas.utils.packing import Artifact, Packing

MAGIC, VERSION = b"NPAS", 1
_BROKEN = (zlib.error, lzma.LZMAError, struct.error)
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
    body = _pack(model, packing)
    packed, used = _compress(body, compression), compression
    if len(packed) >= len(body):
        packed, used = body, "none"
    number = _COMPRESSIONS.index(used)
    preamble = PREAMBLE.pack(MAGIC, VERSION, number, 0, len(body), zlib.crc32(body))
    found = Artifact(
        len(preamble) + len(packed), len(preamble) + len(body), bits, scheme, used, cap
    )
    if cap is not None and found.bytes > cap:
        # A header shrinks more than numbers do, and the next one has as long a header.
        header = LENGTH.size + LENGTH.unpack_from(body)[0]
        of_header = len(_compress(body[:header], compression))
        shrunk = (len(packed) - of_header) / (len(body) - header)
        fits = header + int((cap - of_header) / shrunk)
        count = count_parameters(model) - (len(body) - fits) * 8 // bits
        count -= count % 10 ** max(0, len(str(count)) - 3)  # a round number, and a little room
        raise ValueError(
            f"the artifact takes {found.bytes:,} bytes, {found.bytes - cap:,} more than"
            f" budget={spell_size(cap)}: it compressed by {len(body) / len(packed):.3f}; the"
            f" nearest that fits is about budget={spell_count(max(count, 1))} (parameters), or set"
            f" artifact.expected_ratio={max(1.0, fits * 100 // cap / 100)}"
        )
    path = Path(path)
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        new.write_bytes(preamble + packed)
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
    with storage.unchanged_on_failure(model):
        if plan is not None and not is_shared(model):
            dropped = install_stored(require_unshared(model), plan, stored)
        else:
            dropped = {}
            own = audit.follow(shared_weights(model)).allocation if is_shared(model) else None
            if (own and own.groups) != (plan and plan.groups):
                raise ValueError(
                    f"{path} holds a network that shares in another way than this one: read it into"
                    " the architecture as built"
                )
        storage.load_weights(model, stored)
    warn_of_holders(dropped)
    give_back_freed()
    return model


def _pack(model: nn.Module, packing: Packing) -> bytes:
    """Return the body of a network's artifact."""
    refuse_loops(model)
    allocation = None
    if is_shared(model):
        shared = audit.follow(shared_weights(model))
        audit.refuse_unloadable(shared, "an artifact")
        allocation = shared.allocation
    state = model.state_dict()
    entries = layout(model, allocation, packing)
    header = describe(entries, allocation, packing)
    parts = [LENGTH.pack(len(header)), header]
    for entry in entries:
        try:
            parts.append(encode(state[entry.name], entry.kind, entry.row, packing.scheme == "golf"))
        except ValueError as error:
            raise ValueError(f"{entry.name!r} cannot be stored: {error}") from None
    return b"".join(parts)


def _compress(body: bytes, compression: str) -> bytes:
    if compression == "zlib":
        return zlib.compress(body, 9)
    return lzma.compress(body, preset=9) if compression == "lzma" else body


def _read(path: Path) -> tuple[Allocation | None, dict[str, Tensor]]:
    """Read and check a file; ValueError, in one line, if it is no whole artifact."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name an artifact") from None
    if len(data) < PREAMBLE.size or data[:4] != MAGIC:
        raise ValueError(f"{path} is no artifact that npas wrote: name one, as DIR/artifact.npas")
    _, version, number, _, length, checksum = PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"{path} has version {version}, this npas reads {VERSION}: write it again")
    try:
        body = _decompress(data[PREAMBLE.size :], _COMPRESSIONS[number], length)
        if len(body) != length or zlib.crc32(body) != checksum:
            raise ValueError("its checksum is another")
        start = LENGTH.size + LENGTH.unpack_from(body)[0]
        entries, plan = parse(body[LENGTH.size : start])
        if sum(entry.bytes for entry in entries) != length - start:
            raise ValueError("its tensors have another size than its header says")
        tensors = {}
        for entry in entries:
            part = body[start : start + entry.bytes]
            flat = decode(part, entry.kind, math.prod(entry.shape), entry.row)
            tensors[entry.name] = flat.view(entry.shape)
            start += entry.bytes
    except (ValueError, TypeError, LookupError, RuntimeError, EOFError, *_BROKEN) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}): write it again") from None
    return plan, tensors


def _decompress(data: bytes, compression: str, length: int) -> bytes:
    """Return at most one byte more than `length`; ValueError for bytes behind the end."""
    if compression == "none":
        return data
    tool = zlib.decompressobj() if compression == "zlib" else lzma.LZMADecompressor()
    body: bytes = tool.decompress(data, length + 1)
    if not tool.eof or tool.unused_data:
        raise ValueError("it does not end where it should")
    return body
