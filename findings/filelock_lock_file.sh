#!/usr/bin/env bash
# filelock 3.29.0 and 4.3.1 (Python 3.11, Linux), a dependency of torch and huggingface_hub.
#                                                    3.29.0    4.3.1
#   after release() the lock file is                 deleted   kept
#   timeout=0 in an unwritable folder                Timeout   Timeout
# A program that itself deletes the file before release() is correct with 4.3.1. With 3.29.0 the second deletion may delete
# a file that another process has just created and locked. Timeout does not always mean that another process has the lock:
# an unwritable folder raises it, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for name in older newer; do "${PYTHON:-python3}" -m venv "$folder/$name"; done
"$folder/older/bin/python" -m pip install --quiet filelock==3.29.0
"$folder/newer/bin/python" -m pip install --quiet filelock==4.3.1
for name in older newer; do
  "$folder/$name/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from filelock import FileLock, Timeout, __version__ as version

folder = Path(sys.argv[1])
path = folder / f"{version}.lock"
lock = FileLock(path, timeout=0)
lock.acquire()
assert path.exists()
lock.release()
left = path.exists()
try:
    FileLock("/proc/.lock", timeout=0).acquire()  # where no process can make a file
except Timeout:
    error = "Timeout"
except OSError as other:
    error = type(other).__name__
print(f"{version:7} file left: {left}, error: {error}")
assert (left, error) == (version == "4.3.1", "Timeout")
PYTHON
done
