"""Archives and pickles are verified, and nothing that they name is run or unpacked."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import Call, one_line

from npas.tasks.common import download
from npas.tasks.common.unpickle import unpickle

# --- archives


def tar_of(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def unpack(archive, members):
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    download.unpack(archive, sha256, members, archive.parent)


def test_the_named_members_alone_are_unpacked(tmp_path):
    members = [(tarfile.TarInfo(f"set/{name}"), name.encode()) for name in ("other", "wanted")]
    unpack(tar_of(tmp_path / "a.tgz", *members), ["set/wanted"])
    assert (tmp_path / "set" / "wanted").read_bytes() == b"wanted"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tgz", "set", "wanted"]


def test_an_archive_of_another_sum_is_not_opened(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), b"x"))
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"a\.tgz is damaged or another archive \(sha256 "):
        download.unpack(archive, "0" * 64, ["set/a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_damaged_archives_are_one_line(tmp_path):
    folder = tarfile.TarInfo("set/folder")
    folder.type = tarfile.DIRTYPE
    link = tarfile.TarInfo("set/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members = ((tarfile.TarInfo("set/a"), os.urandom(10_000)), (folder, b""), (link, b""))
    archive = tar_of(tmp_path / "a.tgz", *members)
    whole = archive.read_bytes()
    cases = [(whole, name) for name in ("set/b", "set/folder", "set/link")]
    cases += [(data, "set/a") for data in (whole[:3000], b"no archive")]
    for data, name in cases:
        archive.write_bytes(data)
        with one_line(r"a\.tgz cannot be read .*: get it again"):
            unpack(archive, [name])
        assert not list(tmp_path.glob("set/*"))


# --- pickles


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


SCALAR = np.float64(0).__reduce__()[0]


@pytest.mark.parametrize(
    ("value", "message"),
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
def test_arrays_and_single_values_are_numbers_and_nothing_else_is_named(value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        unpickle(pickle.dumps({"data": value}))
    assert not list(tmp_path.iterdir()) and not Path("owned").exists()


def test_damaged_pickles_are_a_plain_error():
    for data in (b"", b"\x80\x02}q\x01(U", b"not a pickle at all"):
        with pytest.raises(ValueError, match="not a pickle of plain data"):
            unpickle(data)
