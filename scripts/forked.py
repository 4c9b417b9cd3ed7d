"""Fork calls from a process that has imported what they need: a training starts in no time.

    with Forks() as forks:
        run = forks.start("npas.cli.train:main", ["seed=1"], folder=Path("first"))
        run.signal(signal.SIGTERM)
        print(run.wait(timeout=60).code)

Loading torch and its friends takes longer than a small training. The process that forks only
imports: it has no threads and uses no GPU. Every call is the leader of a process group of its own.
"""

import argparse
import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What a training imports only when it comes to need it, and that takes long.
LATE = (
    "hydra._internal.hydra",
    "safetensors.torch",
    "sklearn.cluster",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.nn.parallel",
    "torch.utils.data",
)
STREAMS = ("out", "err")
POLL = 0.01  # seconds between two looks


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (128 + n: by signal n) and what it printed."""

    code: int
    out: str
    err: str


class Run:
    """Follow one process; what it prints is in `folder`, as out.txt and err.txt."""

    def __init__(self, process: int, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return (self.folder / "code").exists()

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process and its children, those that left its group excepted."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, number)

    def wait(self, timeout: float) -> Ended:
        """Wait for the end. TimeoutError, with what it printed and where it hangs, after seconds.

        A process that hangs is killed with its group.
        """
        started = time.monotonic()
        while not self.has_ended:
            if time.monotonic() - started > timeout:
                self.signal(signal.SIGABRT)  # faulthandler prints where it is
                time.sleep(0.5)
                self.signal_group(signal.SIGKILL)
                raise TimeoutError(f"still running after {timeout} s:\n{self.printed('err')}")
            time.sleep(POLL)
        return Ended(
            int((self.folder / "code").read_text()), self.printed("out"), self.printed("err")
        )

    def printed(self, stream: str) -> str:
        """Return what the process has printed to `out` or `err` so far."""
        return (self.folder / f"{stream}.txt").read_text(errors="replace")


class Forks:
    """Start calls in forks of one process that has everything imported, with `paths` importable."""

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        command = [sys.executable, __file__, *map(str, paths)]
        self.server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.runs: list[Run] = []
        self._answer()  # once all is imported

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def start(
        self,
        call: str,
        *arguments: Any,
        folder: Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Run:
        """Call `module:function` with plain arguments in a new process; its result is the code.

        `folder` is made, and holds what it prints.
        """
        folder.mkdir(parents=True)
        for stream in STREAMS:
            (folder / f"{stream}.txt").touch()
        request = {
            "call": call,
            "arguments": arguments,
            "folder": str(folder.absolute()),
            "cwd": str((cwd or Path()).absolute()),
            "env": dict(env or {}),
        }
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        run = Run(int(self._answer()), folder)
        self.runs.append(run)
        return run

    def close(self) -> None:
        """End the server, and with it all that still runs."""
        for run in self.runs:
            if not run.has_ended:
                run.signal_group(signal.SIGKILL)
        self.server.communicate()

    def _answer(self) -> str:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        if not line:
            raise RuntimeError("the forking process has ended: what it printed says why")
        return line


def serve() -> None:
    """Fork on demand: a JSON line a call from stdin, the new process's id a line to stdout."""
    import_all()
    gc.collect()
    gc.freeze()  # no fork is to look through what they all share: that alone takes a second
    faulthandler.enable()
    print("ready", flush=True)
    running: set[int] = set()
    for line in sys.stdin:
        # A process between this one and the call waits for its end, so that this one need not.
        process = os.fork()
        if process == 0:
            call(json.loads(line))
        running.add(process)
        reap(running, os.WNOHANG)
    for process in running:  # whoever asked for them is gone
        os.kill(process, signal.SIGTERM)
    reap(running)


def reap(running: set[int], options: int = 0) -> None:
    """Wait for the processes that have ended, or for all."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitpid(-1, options)[0]:
            running.discard(ended)


def import_all() -> None:
    """Import npas, all of it, and what it imports late."""
    import npas

    for found in pkgutil.walk_packages(npas.__path__, "npas."):
        if not found.name.startswith("npas.configs"):
            importlib.import_module(found.name)
    for name in LATE:
        importlib.import_module(name)


def end(process: int) -> None:
    """Kill a call and all of its group."""
    for kill in (os.killpg, os.kill):  # which has no group yet in its first moment
        with contextlib.suppress(ProcessLookupError):
            kill(process, signal.SIGKILL)


def call(request: dict[str, Any]) -> None:
    """Fork the call, wait for it, write its exit code. Ends the process that it is called in."""
    folder = Path(request["folder"])
    process = os.fork()
    if process:
        signal.signal(signal.SIGTERM, lambda *_: end(process))
        os.setsid()  # a signal to the server's group is none of its business
        print(process, flush=True)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        partial = folder / "code.partial"
        partial.write_text(str(code if code >= 0 else 128 - code))
        partial.rename(folder / "code")
        os._exit(0)
    os.setpgid(0, 0)
    for number, name in enumerate(STREAMS, 1):
        file = os.open(folder / f"{name}.txt", os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    module, _, function = request["call"].partition(":")
    try:
        code = getattr(importlib.import_module(module), function)(*request["arguments"])
    except SystemExit as stop:
        code = stop.code
    except BaseException as error:
        traceback.print_exc()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    # The end of an interpreter, but for taking apart what all forks share.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", help="folders to import from")
    sys.path[:0] = parser.parse_args().paths
    serve()
    os._exit(0)
