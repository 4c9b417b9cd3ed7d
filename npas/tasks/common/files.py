"""Files that several processes share: locks, atomic writes, modes, one-line error reasons."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

TRIES = 1000  # of a folder that other processes remove in between


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; remove it and the empty folders made for it afterwards.

    Other processes wait or, without `wait`, get BlockingIOError. The lock of a killed process is
    free. Where the file system has no locks, filelock's marker files stand in for them.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        lock = _acquire(path, wait)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the release: who waits sees that it is gone
            lock.release()
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def _acquire(path: Path, wait: bool) -> BaseFileLock:
    lock = FileLock(path, timeout=-1 if wait else 0, poll_interval=0.01)
    for left in reversed(range(TRIES)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()  # filelock reports a folder that cannot be written to as a timeout
            lock.acquire()
            break
        except Timeout:
            raise BlockingIOError(errno.EAGAIN, "locked by another process", str(path)) from None
        except (FileNotFoundError, FileExistsError):  # the folder was removed, or cannot be made
            if not left or (path.parent.exists() and not path.parent.is_dir()):
                raise
    return lock


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one, also after a crash."""
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
    """Let read a file whoever may read a new one: temporary files are often their owner's alone."""
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
