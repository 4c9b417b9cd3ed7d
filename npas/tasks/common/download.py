"""Download, verify and unpack a dataset's archive."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path

from npas.tasks.common import checksums
from npas.utils.progress import track

log = logging.getLogger(__name__)

TIMEOUT_S = 30
SIZE_CAP = 2 << 30  # bytes, of an archive and of its unpacked contents


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, which never holds a partial file; raises ValueError on failure."""
    part = path.with_name(path.name + ".part")
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, open(part, "wb") as file:
            chunks = iter(lambda: response.read(1 << 20), b"")
            size = getattr(response, "length", None) or 0  # file: URLs have none
            total = -(-size >> 20) or None
            for chunk in track(chunks, "downloading, MiB", total):
                file.write(chunk)
                if file.tell() > SIZE_CAP:
                    raise ValueError(f"{url} sends more than {SIZE_CAP} bytes: wrong archive")
        os.replace(part, path)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"downloading {url} failed ({reason}): get it another way and put it at {path}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def unpack(archive: Path, sha256: str | None, members: Sequence[str], root: Path) -> None:
    """Extract the named members of a tar.gz file to `root`, each atomically.

    The archive's checksum (None: any) is verified before anything else is read. Only these members
    are extracted, and they must be regular files; tarfile's filters are not used because they came
    with Python 3.10.12 and 3.11.4. Raises ValueError if the checksum differs, a member is missing,
    or more than `SIZE_CAP` bytes are unpacked, whatever the headers say.
    """
    if sha256 is not None and (found := checksums.sha256(archive)) != f"sha256 {sha256}":
        raise ValueError(
            f"{archive} is damaged or another archive ({found}, not {sha256}): delete it, and"
            " data.download=true fetches the published one; data.verify=warn uses it as it is"
        )
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root))
    try:
        with _Capped(archive) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            left = set(members)
            while left and (info := tar.next()):
                tar.members.clear()  # type: ignore[attr-defined]  # saves memory
                if info.name not in left:
                    continue
                if not info.isreg() or info.issparse():
                    raise tarfile.ReadError(f"{info.name} is not a regular file")
                source, target = tar.extractfile(info), scratch / info.name
                assert source is not None  # None only for members that are not regular files
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
                if target.stat().st_size != info.size:
                    raise tarfile.ReadError(f"{info.name} is truncated")
                left.remove(info.name)
        if left:
            raise tarfile.ReadError(f"{min(left)} is missing")
        for member in members:
            (root / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / member, root / member)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{archive} cannot be unpacked ({error}): delete it and get it again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Capped(gzip.GzipFile):
    """A gzip reader that raises ValueError beyond `SIZE_CAP` decompressed bytes."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > SIZE_CAP:
            raise ValueError(f"{self.name} unpacks to more than {SIZE_CAP} bytes: wrong archive")
        return data
