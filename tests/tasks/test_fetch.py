"""An archive is checked first, then unpacked whole or not at all, and into its place alone."""

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from npas.tasks.common import download


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def headers(path: Path, infos: Iterable[tarfile.TarInfo], data: bytes = b"") -> Path:
    """Write headers whatever they say, and `data` after the last."""
    raw = b"".join(info.tobuf(tarfile.GNU_FORMAT) for info in infos)
    path.write_bytes(gzip.compress(raw + data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info, b""


def unpack(archive: Path, members: list[str], root: Path) -> None:
    download.unpack(archive, hashlib.sha256(archive.read_bytes()).hexdigest(), members, root)


def test_unpacks_the_named_members_alone(tmp_path: Path) -> None:
    members = [(tarfile.TarInfo(f"set/{name}"), name.encode()) for name in ("other", "wanted")]
    unpack(tar_of(tmp_path / "a.tgz", *members), ["set/wanted"], tmp_path)
    assert (tmp_path / "set" / "wanted").read_bytes() == b"wanted"
    assert not (tmp_path / "set" / "other").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "set"]


def test_a_python_without_filters_for_archives_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_3_10_0(self, member, path="", set_attrs=True, *, numeric_owner=False) -> None:
        pytest.fail("nothing would keep links and ways out")

    monkeypatch.setattr(tarfile.TarFile, "extract", of_3_10_0)
    unpack(tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), b"abc")), ["set/a"], tmp_path)
    assert (tmp_path / "set" / "a").read_bytes() == b"abc"


def test_an_archive_of_another_sum_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), b"x"))
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    archive.write_bytes(archive.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"a\.tgz is damaged or another archive \(sha256 ") as e:
        download.unpack(archive, sha256, ["set/a"], tmp_path)
    assert "\n" not in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("name", ["../out", "/out", "set/../../out"])
def test_a_member_that_leads_out_is_refused_or_kept_in(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo(name), b"x"))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(archive, [name], root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "root"]
    assert not list(root.iterdir()) and not Path("/out").exists()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(tarfile.SYMTYPE, id="link"),
        pytest.param(tarfile.LNKTYPE, id="hard-link"),
        pytest.param(tarfile.CHRTYPE, id="device"),
        pytest.param(tarfile.FIFOTYPE, id="pipe"),
        pytest.param(tarfile.DIRTYPE, id="folder"),
    ],
)
def test_only_plain_files_are_unpacked(tmp_path: Path, kind: bytes) -> None:
    archive = tar_of(tmp_path / "a.tgz", member("set/a", kind, link="/etc/passwd"))
    with pytest.raises(ValueError, match="set/a is no plain file"):
        unpack(archive, ["set/a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_file_with_holes_is_refused_whatever_size_it_says(tmp_path: Path) -> None:
    info = member("set/a", tarfile.GNUTYPE_SPARSE)[0]
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % (1 << 20)  # the size it would unpack to
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * ord(" "))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(bytes(block) + bytes(1024)))
    with pytest.raises(ValueError, match="set/a is no plain file"):
        unpack(tmp_path / "a.tgz", ["set/a"], tmp_path)


def test_a_member_shorter_than_it_says_leaves_nothing(tmp_path: Path) -> None:
    archive = headers(tmp_path / "a.tgz", [member("set/a", size=100_000)[0]], bytes(2000))
    with pytest.raises(ValueError, match="delete it and get it again"):
        unpack(archive, ["set/a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_member_longer_than_it_says_is_cut_and_hides_what_follows(tmp_path: Path) -> None:
    first, second = member("set/a", size=512)[0], member("set/b", size=1)[0]
    tail = second.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511) + bytes(1024)
    archive = headers(tmp_path / "a.tgz", [first], b"y" * 5120 + tail)
    with pytest.raises(ValueError, match="it has no set/b"):
        unpack(archive, ["set/a", "set/b"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("cut", [200, 3000])
def test_a_truncated_archive_leaves_nothing(tmp_path: Path, cut: int) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), os.urandom(10_000)))
    archive.write_bytes(archive.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="delete it and get it again"):
        unpack(archive, ["set/a", "set/b"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_flipped_bit_behind_a_right_sum_leaves_nothing(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), bytes(range(256)) * 400))
    data = bytearray(archive.read_bytes())
    data[40] ^= 255
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="delete it and get it again"):
        unpack(archive, ["set/a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_what_is_no_archive_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tgz", ["set/a"], tmp_path)


def test_a_member_that_is_not_there_is_named(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), b"x"))
    with pytest.raises(ValueError, match="it has no set/b"):
        unpack(archive, ["set/a", "set/b"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_downloads_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SIZE_CAP", 100)
    (tmp_path / "big").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="more than 100 bytes"):
        download.download((tmp_path / "big").as_uri(), tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


@pytest.mark.parametrize(
    ("cap", "most", "said"),
    [
        ("SIZE_CAP", 20_000, "more than 20000 bytes: not our archive"),
        ("MEMBER_CAP", 9_999, "more than 9999 bytes in one file"),
        ("COUNT_CAP", 2, "more than 2 files"),
    ],
)
def test_members_are_capped_each_in_sum_and_in_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: str, most: int, said: str
) -> None:
    members = [(tarfile.TarInfo(f"set/{name}"), bytes(10_000)) for name in "abc"]
    archive = tar_of(tmp_path / "a.tgz", *members)
    monkeypatch.setattr(download, cap, most)
    with pytest.raises(ValueError, match=said):
        unpack(archive, ["set/a", "set/b", "set/c"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("said", [8 << 20, 1 << 40], ids=["true", "a-lie"])
@pytest.mark.parametrize("wanted", ["set/bomb", "set/after"])
def test_a_bomb_stops_at_the_cap_and_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: int, wanted: str
) -> None:
    archive = headers(tmp_path / "a.tgz", [member("set/bomb", size=said)[0]], bytes(8 << 20))
    assert archive.stat().st_size < 1 << 16
    monkeypatch.setattr(download, "SIZE_CAP", 1 << 20)
    with pytest.raises(ValueError, match=r"more than 1048576 bytes|bytes in one file"):
        unpack(archive, [wanted], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_header_that_is_a_bomb_stops_at_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tarfile reads what follows such a header whole, before it says anything of a member.
    comment = tarfile.TarInfo("comment")
    comment.type, comment.size = tarfile.XHDTYPE, 8 << 20
    archive = headers(tmp_path / "a.tgz", [comment], bytes(8 << 20))
    monkeypatch.setattr(download, "SIZE_CAP", 1 << 20)
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        unpack(archive, ["set/a"], tmp_path)
