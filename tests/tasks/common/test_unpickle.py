"""Pickled data sets are read without running anything they name."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from npas.tasks.common.unpickle import unpickle


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_data_and_arrays_come_through(protocol):
    data = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": [1, "x", b"\xe9", 2.5, None]}
    found = unpickle(pickle.dumps(data, protocol=protocol))
    assert np.array_equal(found["a"], data["a"])
    assert found["b"] == data["b"]


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("number", [np.float64(0.1), np.int32(-7), np.bool_(True)])
def test_single_numbers_of_numpys_come_through_of_any_age(number, module):
    data = pickle.dumps([number], protocol=2)
    assert data.count(b"numpy._core.multiarray") == 1
    (found,) = unpickle(data.replace(b"numpy._core.multiarray", f"{module}.multiarray".encode()))
    assert found == number and found.dtype == number.dtype


def test_single_numbers_as_python_2_wrote_them_come_through():
    # The bytes are a string there, which comes as latin-1.
    raw = np.float64(-0.1).tobytes()
    assert max(raw) > 127
    data = (
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f8K\x00K\x01\x87R"
        b"U\x08" + raw + b"\x86R."
    )
    assert unpickle(data) == -0.1


class Call:
    """Ask for a call of any function."""

    def __init__(self, function, *given):
        self.called = function, given

    def __reduce__(self):
        return self.called


SCALAR = np.float64(0).__reduce__()[0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([{}]), "which are not numbers"),
        (np.array(["x"]), "which are not numbers"),
        (np.zeros(1, "i4,f4"), "which are not numbers"),
        (np.complex64(1), "which are not numbers"),
        (Call(SCALAR, np.dtype("O"), b"12345678"), "which are not numbers"),
        (Call(SCALAR, "f8", b"12345678"), "which is not a number"),
        (Call(SCALAR, np.dtype("f8"), b"1234"), "not a pickle of plain data"),
        *((value, "it names") for value in (eval, getattr, np.load, np.frombuffer, Path)),
        (Call(os.system, "touch owned"), "it names"),
    ],
)
def test_arrays_and_single_values_are_numbers_and_nothing_else_is_named(value, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        unpickle(pickle.dumps({"data": value}))
    assert not list(tmp_path.iterdir()) and not Path("owned").exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x01(U", b"not a pickle at all"])
def test_damaged_pickles_are_a_plain_error(data):
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        unpickle(data)
