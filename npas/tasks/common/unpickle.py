"""Read data sets that come as pickles, admitting nothing but plain data and numpy arrays.

A pickle may name any function to be called while it loads. Here only what numpy needs to rebuild
an array of numbers, or a single one, can be named; dicts, lists, strings, bytes and numbers need no
name at all. Where a sum of the bytes is published, the caller holds them against it first: this is
the second of two defences.
"""

import io
import pickle
from typing import Any

import numpy as np


def _number(name: Any, *flags: Any) -> np.dtype:
    """Make the type of an array of numbers; no objects, no records."""
    found = np.dtype(name, *flags)
    if found.kind not in "biuf":
        raise pickle.UnpicklingError(f"it holds arrays of {found}, which are no numbers")
    return found


def _scalar(kind: Any, data: bytes | str) -> np.generic:
    """Make a single number of numpy's, whose type `_number` made; Python 2 wrote a string."""
    if not isinstance(kind, np.dtype) or kind.kind not in "biuf" or kind.hasobject:
        raise pickle.UnpicklingError(f"it holds a {kind!r}, which is no number")
    raw = data.encode("latin1") if isinstance(data, str) else data
    if len(raw) != kind.itemsize:
        raise pickle.UnpicklingError(f"it holds a {kind} of {len(raw)} bytes")
    return np.frombuffer(raw, kind)[0]


def _bytes(text: str, encoding: str) -> bytes:
    """Make bytes as Python 3 writes them where Python 2 is to read them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds bytes as {encoding}")
    return text.encode("latin1")


# Old numpy wrote `numpy.core`, new writes `numpy._core`; the function is the same, and private.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _number,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no data") from None


def unpickle(data: bytes) -> Any:
    """Load plain data; strings that Python 2 wrote come as str. ValueError for anything else."""
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a malformed pickle can raise nearly anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"refused as a pickle of data: {reason}") from error
