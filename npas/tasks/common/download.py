"""Download, verify and unpack a dataset's archive."""

import logging
import tarfile
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from npas.tasks.common import checksums
from npas.utils.files import locked, reading, replacing
from npas.utils.progress import track

log = logging.getLogger(__name__)

TIMEOUT_S = 30


def fetch(url: str, path: Path, sha256: str) -> None:
    """Download a file, once for all processes; raises ValueError if it is not as published."""
    with locked(path.with_name(f".{path.name}.lock")):
        if path.is_file():  # another process was faster
            return
        log.info("downloading %s", url)
        try:
            with (
                urllib.request.urlopen(url, timeout=TIMEOUT_S) as response,
                replacing(path) as part,
            ):
                chunks = iter(lambda: response.read(1 << 20), b"")
                size = getattr(response, "length", None) or 0  # file: URLs have none
                with open(part, "wb") as file:
                    file.writelines(track(chunks, "downloading, MiB", -(-size >> 20) or None))
                if checksums.sha256(part) != f"sha256 {sha256}":
                    raise ValueError(
                        f"{url} is not the published file: get it elsewhere for {path}"
                    )
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise ValueError(f"downloading {url} failed ({reason}): put it at {path}") from error


def unpack(archive: Path, sha256: str | None, members: Iterable[str], root: Path) -> None:
    """Extract the named members of a tar.gz file to `root`, and nothing else.

    The archive's checksum (None: any) is verified before anything else is read. Raises ValueError
    if it differs, or a member is missing or damaged.
    """
    if sha256 is not None and (found := checksums.sha256(archive)) != f"sha256 {sha256}":
        raise ValueError(
            f"{archive} is damaged or another archive ({found}, not {sha256}): delete it, and"
            " data.download=true fetches the published one; data.verify=warn uses it as it is"
        )
    with reading(archive), tarfile.open(archive, "r:gz") as tar:
        for name in members:
            file, path = tar.extractfile(name), root / name
            if file is None:
                raise tarfile.ReadError(f"{name} is not a file")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                part.write_bytes(file.read())
