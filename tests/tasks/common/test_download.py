"""An archive is verified first, and unpacked completely or not at all, into its folder alone."""

import gzip
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


def headers(path, infos, data=b""):
    """Write headers whatever they say, and `data` after the last."""
    raw = b"".join(info.tobuf(tarfile.GNU_FORMAT) for info in infos)
    path.write_bytes(gzip.compress(raw + data))
    return path


def member(name, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info, b""


def unpack(archive, members):
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    download.unpack(archive, sha256, members, archive.parent)


def refuses(archive, members, said):
    """Nothing is left, whatever is wrong, and one line says so."""
    with pytest.raises(ValueError, match=said) as error:
        unpack(archive, members)
    assert "\n" not in str(error.value)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_the_named_members_alone_are_unpacked(tmp_path, monkeypatch):
    def of_3_10_0(self, member, path="", set_attrs=True, *, numeric_owner=False):
        pytest.fail("nothing would keep links and ways out: this Python has no filters")

    monkeypatch.setattr(tarfile.TarFile, "extract", of_3_10_0)
    members = [(tarfile.TarInfo(f"set/{name}"), name.encode()) for name in ("other", "wanted")]
    unpack(tar_of(tmp_path / "a.tgz", *members), ["set/wanted"])
    assert (tmp_path / "set" / "wanted").read_bytes() == b"wanted"
    assert not (tmp_path / "set" / "other").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "set"]


def test_an_archive_of_another_sum_is_not_opened(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), b"x"))
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"a\.tgz is damaged or another archive \(sha256 "):
        download.unpack(archive, "0" * 64, ["set/a"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


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
def test_only_plain_files_are_unpacked(tmp_path, kind):
    archive = tar_of(tmp_path / "a.tgz", member("set/a", kind, link="/etc/passwd"))
    refuses(archive, ["set/a"], "set/a is not a regular file")


def test_a_file_with_holes_is_refused_whatever_size_it_says(tmp_path):
    info = member("set/a", tarfile.GNUTYPE_SPARSE)[0]
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % (1 << 20)  # the size it would unpack to
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * ord(" "))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(bytes(block) + bytes(1024)))
    refuses(tmp_path / "a.tgz", ["set/a"], "set/a is not a regular file")


def test_members_of_other_sizes_than_they_say(tmp_path):
    short = headers(tmp_path / "a.tgz", [member("set/a", size=100_000)[0]], bytes(2000))
    refuses(short, ["set/a"], "delete it and get it again")
    first, second = member("set/a", size=512)[0], member("set/b", size=1)[0]
    tail = second.tobuf(tarfile.GNU_FORMAT) + b"x" + bytes(511) + bytes(1024)
    longer = headers(tmp_path / "a.tgz", [first], b"y" * 5120 + tail)
    refuses(longer, ["set/a", "set/b"], "set/b is missing")  # cut, and hides what follows


def test_damaged_archives(tmp_path):
    archive = tar_of(tmp_path / "a.tgz", (tarfile.TarInfo("set/a"), os.urandom(10_000)))
    whole = archive.read_bytes()
    refuses(archive, ["set/a", "set/b"], "set/b is missing")
    for data in (whole[:-200], whole[:-3000], whole[:40] + b"\7" * 9 + whole[49:], b"no archive"):
        archive.write_bytes(data)
        refuses(archive, ["set/a", "set/b"], "cannot be unpacked .* delete it and get it again")


def test_downloads_are_capped(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SIZE_CAP", 100)
    (tmp_path / "big").write_bytes(bytes(101))
    with pytest.raises(ValueError, match="more than 100 bytes"):
        download.download((tmp_path / "big").as_uri(), tmp_path / "copy")
    assert not list(tmp_path.glob("copy*"))


@pytest.mark.parametrize("wanted", ["set/bomb", "set/after"])
def test_a_bomb_stops_at_the_cap_and_fills_no_disk(tmp_path, monkeypatch, wanted):
    monkeypatch.setattr(download, "SIZE_CAP", 1 << 20)
    # tarfile reads what follows a comment whole, before it says anything of a member.
    comment = member("comment", tarfile.XHDTYPE, size=8 << 20)[0]
    many = [member(f"set/{i}")[0] for i in range(3000)]
    true, lie = (member("set/bomb", size=size)[0] for size in (8 << 20, 1 << 40))
    for infos in ([true], [lie], [comment], many):
        archive = headers(tmp_path / "a.tgz", infos, bytes(8 << 20) if len(infos) == 1 else b"")
        assert archive.stat().st_size < 1 << 16
        refuses(archive, [wanted], "more than 1048576 bytes: wrong archive")
