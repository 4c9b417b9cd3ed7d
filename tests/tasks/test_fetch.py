"""An archive is unpacked whole or not at all, and into its place alone."""

import io
import tarfile
from pathlib import Path

import pytest

from npas.tasks import _fetch


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_unpacks_the_named_members_alone(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(f"set/{name}"), name.encode()) for name in ("wanted", "other")]
    _fetch.unpack(tar_of(tmp_path / "a.tgz", *members), ["set/wanted"], tmp_path)
    assert (tmp_path / "set" / "wanted").read_bytes() == b"wanted"
    assert not (tmp_path / "set" / "other").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "set"]


def test_a_member_that_leads_out_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("../out"), b"x"))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        _fetch.unpack(archive, ["../out"], root)
    assert not (tmp_path / "out").exists()


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("set/link")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(ValueError, match="cannot be unpacked"):
        _fetch.unpack(tar_of(tmp_path / "a.tgz", (info, b"")), ["set/link"], tmp_path)


def test_a_truncated_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), bytes(range(256)) * 4000))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match="delete it and get it again"):
        _fetch.unpack(archive, ["set/a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_member_that_is_not_there_is_named(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), b"x"))
    with pytest.raises(ValueError, match="set/b"):
        _fetch.unpack(archive, ["set/b"], tmp_path)


def test_sizes_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fetch, "SIZE_CAP", 100)
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), bytes(101)))
    with pytest.raises(ValueError, match="more than 100 bytes"):
        _fetch.unpack(archive, ["set/a"], tmp_path)
    (tmp_path / "big").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="more than 100 bytes"):
        _fetch.download((tmp_path / "big").as_uri(), tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))
