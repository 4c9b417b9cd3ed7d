"""File locks, atomic writes, temporary folders, and short reasons for errors."""

import contextlib
import errno
import logging
import os
import re
import shutil
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

# Errors of file systems without locks, such as some network file systems.
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Errors of malformed files; SyntaxError is that of XML, RuntimeError of HDF5.
MALFORMED = (
    OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, SyntaxError,
    RuntimeError, tarfile.TarError, zlib.error,
)  # fmt: skip
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
        with _taken(path, wait):
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


@contextlib.contextmanager
def _taken(path: Path, wait: bool) -> Iterator[None]:
    import fcntl

    for attempt in range(TRIES):
        with contextlib.ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(path, "w"))
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    continue
            except (FileNotFoundError, FileExistsError):  # removed by the previous holder
                if attempt == TRIES - 1:
                    raise
                continue
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                log.warning("%s does not support locks: start no run twice there", path.parent)
            stack.callback(path.unlink, missing_ok=True)  # before release: the waiting notice
            yield
            return


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is synced and renamed to `path`, or removed after an error."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        give_usual_mode(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; without an error its files replace those of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    # On the same file system.
    with tempfile.TemporaryDirectory(".tmp", dir=folder, ignore_cleanup_errors=True) as name:
        temporary = Path(name)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            target = folder / path.relative_to(temporary)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            else:
                os.replace(path, target)


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return files of a folder, sorted by name; raises ValueError if there are none."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise ValueError(f"{folder} holds no {pattern}: put the files there (docs/data.md)")
    return paths


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically: readers see the old or the new one, even after a crash."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


@contextlib.contextmanager
def reading(path: object, remedy: str = "get it again") -> Iterator[None]:
    """Convert the errors of a missing or malformed file to a ValueError in one line."""
    try:
        yield
    except MALFORMED as error:
        raise ValueError(f"{path} cannot be read ({reason(error)}): {remedy}") from None


def reason(error: BaseException) -> str:
    """Return an error's message in one line: the operating system's, if it has one."""
    # str() of a KeyError adds quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    nested = re.search(r"error message = '([^']+)'", text)  # the system's, within HDF5's
    text = nested[1] if nested else getattr(error, "strerror", None) or text
    return (text or type(error).__name__).splitlines()[0][:200]
