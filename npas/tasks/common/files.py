"""File locks, atomic writes, temporary folders, and short reasons for errors."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

# Errors of file systems without locks, such as some network file systems.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
TRIES = 1000  # attempts to lock a file that other processes remove


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock on the file `path`; afterwards remove it and the empty folders created for it.

    If another process holds it, wait or, without `wait`, raise BlockingIOError. The kernel releases
    a killed process's lock. Not filelock, whose releases differ: some delete the file on release,
    which can give two processes the lock, and 4.3 reports an unwritable folder as a timeout.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        file = _take(path, wait)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before release, so that waiting processes notice
            file.close()
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _take(path: Path, wait: bool) -> IO[str]:
    import fcntl

    for _ in range(TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # a file, or a folder that was just removed
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(path.parent.stat().st_mode):
                    raise
            continue
        with contextlib.suppress(FileNotFoundError):  # removed by the previous holder
            file = open(path, "w")  # noqa: SIM115 (open while the lock is held)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
                file.close()
            except OSError as error:
                if error.errno in WITHOUT_LOCKS:
                    log.warning("%s does not support locks: start no run twice there", path.parent)
                    return file
                file.close()
                raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old or the new one, even after a crash."""
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
    """Give a temporary file, which only its owner may read, the mode of an ordinary new file."""
    umask = os.umask(0o077)  # the umask can be read only by setting it
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)


def temporary(owner: object) -> Path:
    """Return a new folder that is deleted with its owner, or when this process exits."""
    folder = tempfile.mkdtemp(prefix="npas-")
    weakref.finalize(owner, _remove, folder, os.getpid())
    return Path(folder)


def _remove(folder: str, process: int) -> None:
    """Delete a folder, unless this is a forked copy of the process that created it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def reason(error: BaseException) -> str:
    """Return an error's message in one line: the operating system's, if it has one."""
    # str() of a KeyError adds quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    nested = re.search(r"error message = '([^']+)'", text)  # the system's, within HDF5's
    text = nested[1] if nested else getattr(error, "strerror", None) or text
    return (text or type(error).__name__).splitlines()[0][:200]
