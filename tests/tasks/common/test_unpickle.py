"""Pickled data sets are read without running anything they name."""

import codecs
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from npas.tasks.common.unpickle import unpickle


@pytest.mark.parametrize("protocol", [3, 4])
def test_plain_data_and_arrays_come_through(protocol):
    data = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": [1, "x", b"y", 2.5, None, True]}
    found = unpickle(pickle.dumps(data, protocol=protocol))
    assert np.array_equal(found["a"], data["a"])
    assert found["b"] == data["b"]


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("number", [np.float64(0.1), np.int32(-7), np.uint8(200), np.bool_(True)])
def test_single_numbers_of_numpys_come_through_of_any_age(number, protocol, module):
    data = pickle.dumps([number], protocol=protocol)
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


class Scalar:
    """Ask for a number of numpy's, made of what is given."""

    def __init__(self, *given):
        self.given = given

    def __reduce__(self):
        return np.float64(0).__reduce__()[0], self.given


class Encoded(Scalar):
    """Ask for bytes of a text."""

    def __reduce__(self):
        return codecs.encode, self.given


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([{}]), "which are not numbers"),
        (np.array(["x"]), "which are not numbers"),
        (np.zeros(1, "i4,f4"), "which are not numbers"),
        (np.str_("x"), "which are not numbers"),
        (np.complex64(1), "which are not numbers"),
        (np.void(b"ab"), "which are not numbers"),
        (Scalar(np.dtype("O"), b"12345678"), "which are not numbers"),
        (Scalar("f8", b"12345678"), "which is not a number"),
        (Scalar(np.dtype("f8"), b"1234"), "a float64 of 4 bytes"),
        (Encoded("a", "rot13"), "it holds bytes as rot13"),
        (Scalar(np.dtype("f8"), None), "not a pickle of plain data"),
    ],
)
def test_arrays_and_single_values_are_numbers_and_nothing_else(value, said):
    with pytest.raises(ValueError, match=said):
        unpickle(pickle.dumps(value))


class Malicious:
    def __reduce__(self):
        return os.system, ("touch owned",)


@pytest.mark.parametrize(
    "named",
    [Malicious(), eval, getattr, np.load, np.frombuffer, Path],
    ids=lambda value: getattr(value, "__name__", "call"),
)
def test_nothing_else_can_be_named_let_alone_called(named, tmp_path):
    with pytest.raises(ValueError, match=r"it names [\w.]+, which is not data"):
        unpickle(pickle.dumps({"data": named}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"\x80\x02}q\x01(U", b"not a pickle at all"])
def test_damaged_pickles_are_a_plain_error(data):
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        unpickle(data)
