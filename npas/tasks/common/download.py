"""Download, verify and unpack a data set's archive, once for all processes."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

log = logging.getLogger(__name__)

TIMEOUT_S = 30
SIZE_CAP = 2 << 30  # bytes, of an archive and of what it unpacks to
MEMBER_CAP = 1 << 30  # bytes, of one member
COUNT_CAP = 100_000  # members


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path`, which never holds half a file. ValueError if it cannot be had."""
    part = path.with_name(path.name + ".part")
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, open(part, "wb") as file:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                if file.tell() > SIZE_CAP:
                    raise ValueError(f"{url} sends more than {SIZE_CAP} bytes: not our archive")
        os.replace(part, path)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"downloading {url} failed ({reason}): fetch it elsewhere and put it at {path}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def unpack(archive: Path, sha256: str | None, members: Sequence[str], root: Path) -> None:
    """Put the named members of a tar.gz file under `root`, each one whole or not at all.

    Nothing is read from the archive before its sum is the one expected (None: any). Only these
    members are touched, which must be plain files: no links, no ways out of root. They are copied
    here, since tarfile's filters came with Python 3.10.12 and 3.11.4. ValueError if the archive is
    another one, lacks a member, or is suspiciously large; what it unpacks to is counted as it
    comes, whatever its headers say.
    """
    wanted = set(members)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root))
    try:
        with open(archive, "rb") as file:
            if sha256 is not None:
                _check(file, sha256)
            for tar, info in _members(file):
                if info.name in wanted:
                    if not info.isreg() or info.issparse():
                        raise tarfile.ReadError(f"{info.name} is no plain file")
                    _copy(tar, info, scratch)
                    wanted.remove(info.name)
                if not wanted:
                    break
        if wanted:
            raise tarfile.ReadError(f"it has no {min(wanted)}")
        for member in members:
            (root / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / member, root / member)
    except _TooMuch as error:
        raise ValueError(f"{archive} unpacks to more than {error}: not our archive") from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{archive} cannot be unpacked ({error}): delete it and get it again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy(tar: tarfile.TarFile, info: tarfile.TarInfo, folder: Path) -> None:
    """Write a plain file of an archive below `folder`; ReadError if it leads out, or is cut off."""
    name = PurePosixPath(info.name)
    if name.is_absolute() or ".." in name.parts:
        raise tarfile.ReadError(f"{info.name} leads out of its folder")
    source, target = tar.extractfile(info), folder / name
    assert source is not None  # of a plain file there is one
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(source, file)
    if target.stat().st_size != info.size:
        raise tarfile.ReadError(f"{info.name} is cut off")


class _TooMuch(Exception):
    """Which cap an archive goes beyond."""


class _Capped(gzip.GzipFile):
    """Read a file up to the size cap, counted after decompression."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > SIZE_CAP:
            raise _TooMuch(f"{SIZE_CAP} bytes")
        return data


def _members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield what the headers say, one after the other, never going back in the file."""
    count = total = 0
    with _Capped(fileobj=file) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
        for info in tar:
            count, total = count + 1, total + info.size
            if count > COUNT_CAP:
                raise _TooMuch(f"{COUNT_CAP} files")
            if info.size > MEMBER_CAP:
                raise _TooMuch(f"{MEMBER_CAP} bytes in one file")
            if total > SIZE_CAP:  # before they are read
                raise _TooMuch(f"{SIZE_CAP} bytes")
            yield tar, info


def _check(file: IO[bytes], sha256: str) -> None:
    """Compare an open file's sum with the published one, and go back to its start."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    if (found := digest.hexdigest()) != sha256:
        raise ValueError(
            f"{file.name} is damaged or another archive (sha256 {found}, not {sha256}): delete it,"
            " and data.download=true fetches the published one; data.verify=warn takes it as it is"
        )
    file.seek(0)
