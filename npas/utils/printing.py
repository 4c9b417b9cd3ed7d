"""Print lines so that a reader who has gone, as `| head` does, ends no training."""

from __future__ import annotations

import contextlib
import os
from typing import TextIO


def print_line(line: str, file: TextIO) -> None:
    """Print a line at once; where nobody reads it any more, this and all later ones are lost."""
    try:
        print(line, file=file, flush=True)
    except OSError:  # a closed pipe, a terminal that is gone
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())
            os.close(nowhere)
