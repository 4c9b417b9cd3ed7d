"""Measure in several processes that talk to each other, over gloo or NCCL.

rows = measure_in_ranks(measure, arguments)  # arguments.ranks processes call measure
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
Measure = Callable[[argparse.Namespace], Rows]


def measure_in_ranks(measure: Measure, arguments: argparse.Namespace) -> Rows:
    """Start the ranks, wait for them, and return what the first has measured."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    from torch import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_rank, (measure, arguments, folder), nprocs=arguments.ranks)
        rows: Rows = json.loads((Path(folder) / "rows.json").read_text())
    return rows


def _rank(number: int, measure: Measure, arguments: argparse.Namespace, folder: str) -> None:
    """Measure, as one of the ranks; the first leaves the rows in `folder`."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if arguments.device == "cuda":
        torch.cuda.set_device(number)
    backend = "nccl" if arguments.device == "cuda" else "gloo"
    place = {"rank": number, "world_size": arguments.ranks}
    dist.init_process_group(backend, init_method=f"file://{folder}/store", **place)
    rows = measure(arguments)
    if number == 0:
        (Path(folder) / "rows.json").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    argparse.ArgumentParser(description=f"{__doc__} Other scripts import it.").parse_args()
