"""Files that several processes share: locks, atomic writes, modes, one-line error reasons."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

# Errors of file systems without locks, some of them network ones.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
TRIES = 1000  # of a file that others remove: far more than there are processes in the way


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; remove it and the empty folders made for it afterwards.

    Others wait or, without `wait`, get BlockingIOError. The kernel frees a killed process's lock.
    By hand because filelock's releases differ: some delete the file when they release it, which
    makes two holders where others do so too, and 4.3 reports an unwritable folder as a timeout.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        file = _take(path, wait)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before it is let go: a waiting process sees it is gone
            file.close()
    finally:
        with contextlib.suppress(OSError):  # something lies in it
            for folder in made:
                folder.rmdir()


def _take(path: Path, wait: bool) -> IO[str]:
    import fcntl

    for _ in range(TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # a file, or a folder that was there a moment ago
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(path.parent.stat().st_mode):
                    raise
            continue
        with contextlib.suppress(FileNotFoundError):  # its last holder has removed it
            file = open(path, "w")  # noqa: SIM115 (open for as long as the lock is held)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
                file.close()
            except OSError as error:
                if error.errno in WITHOUT_LOCKS:
                    log.warning("%s has no locks: start no run twice there", path.parent)
                    return file
                file.close()
                raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old or the whole new one, also after a crash."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        give_usual_mode(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def give_usual_mode(path: Path) -> None:
    """Give a temporary file, which often only its owner may read, the mode of a new file."""
    umask = os.umask(0o077)  # there is no way to read it but to set it
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def reason(error: BaseException) -> str:
    """Return what went wrong, in one line: in the system's own words where it has any."""
    # A KeyError's text is shown in quotes.
    said = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    hidden = re.search(r"error message = '([^']+)'", said)  # the system's, within HDF5's
    words = hidden[1] if hidden else getattr(error, "strerror", None) or said
    return (words or type(error).__name__).splitlines()[0][:200]
