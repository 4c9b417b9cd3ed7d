"""An archive is verified first, and its named files alone are unpacked."""

import hashlib
import io
import os
import tarfile

import pytest

from npas.tasks.common import download


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
        with pytest.raises(ValueError, match=r"a\.tgz cannot be read .*: get it again") as error:
            unpack(archive, [name])
        assert "\n" not in str(error.value) and not list(tmp_path.glob("set/*"))
