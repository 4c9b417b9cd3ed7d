"""Load datasets that are pickles, which can call any function while they load.

Only those that rebuild numpy arrays of numbers are allowed; plain data need none.
"""

import io
import pickle
from typing import Any

import numpy as np

from npas.utils.files import reason


def _number(name: Any, *flags: Any) -> np.dtype:
    found = np.dtype(name, *flags)
    if found.kind not in "biuf":
        raise pickle.UnpicklingError(f"it holds arrays of {found}, which are not numbers")
    return found


def _scalar(kind: Any, data: bytes | str) -> np.generic:
    """Return a numpy scalar of a dtype made by `_number`; Python 2 wrote its bytes as a string."""
    if not isinstance(kind, np.dtype):
        raise pickle.UnpicklingError(f"it holds a {kind!r}, which is not a number")
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, kind, 1)[0]


ALLOWED = {
    "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
    "numpy.core.multiarray.scalar": _scalar,
    # The form in which Python 3 writes bytes in old protocols, always as latin1.
    "_codecs.encode": lambda text, encoding: str.encode(text, "latin1"),
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _number,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # `numpy.core` in pickles of numpy 1, `numpy._core` of numpy 2: the same functions.
        if (known := f"{module}.{name}".replace("numpy._core.", "numpy.core.")) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not data")
        return ALLOWED[known]


def unpickle(data: bytes) -> Any:
    """Load plain data, strings of Python 2 as str; raises ValueError for anything else."""
    try:
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a malformed pickle can raise nearly anything
        raise ValueError(f"not a pickle of plain data: {reason(error)}") from error
