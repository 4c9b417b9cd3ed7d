"""Bring a data set's archive to disk, once, whoever else asks for it: download, verify, unpack."""

import hashlib
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

TIMEOUT_S = 30
SIZE_CAP = 2 << 30  # bytes, of an archive and of what it unpacks to


def md5(path: Path) -> str:
    """Hash a file as the data sets' authors did, against damage and not against attack."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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


def unpack(archive: Path, members: Sequence[str], root: Path) -> None:
    """Put the named members of a tar file under `root`, each one whole or not at all.

    Only these members are touched, through tarfile's "data" filter: no links, no ways out of root.
    ValueError if the archive is damaged, lacks a member or is suspiciously large.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root))
    try:
        with tarfile.open(archive) as tar:
            found = [tar.getmember(member) for member in members]
            if sum(info.size for info in found) > SIZE_CAP:
                raise ValueError(
                    f"{archive} unpacks to more than {SIZE_CAP} bytes: not our archive"
                )
            tar.extractall(scratch, members=found, filter="data")
        for member in members:
            (root / member).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / member, root / member)
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise ValueError(
            f"{archive} cannot be unpacked ({error}): delete it and get it again"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
