"""Pickled data sets are read without running anything they name."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from npas.tasks._unpickle import unpickle


@pytest.mark.parametrize("protocol", [3, 4])
def test_plain_data_and_arrays_come_through(protocol: int) -> None:
    data = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": [1, "x", b"y", 2.5, None, True]}
    found = unpickle(pickle.dumps(data, protocol=protocol))
    assert np.array_equal(found["a"], data["a"])
    assert found["b"] == data["b"]


class Malicious:
    def __reduce__(self) -> tuple:
        return os.system, ("touch owned",)


def test_a_function_is_neither_called_nor_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it names \w+\.system, which is no data"):
        unpickle(pickle.dumps({"data": Malicious()}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "named", [eval, getattr, np.load, np.frombuffer, Path], ids=lambda value: value.__name__
)
def test_nothing_else_can_be_named(named: object) -> None:
    with pytest.raises(ValueError, match="which is no data"):
        unpickle(pickle.dumps(named))


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x01(U", b"not a pickle at all"])
def test_damaged_pickles_are_a_plain_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="refused as a pickle of data"):
        unpickle(data)


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["x"]), np.zeros(1, "i4,f4")])
def test_arrays_hold_numbers_and_nothing_else(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="which are no numbers"):
        unpickle(pickle.dumps(array))
