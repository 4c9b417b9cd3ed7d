"""Cause a fault in one rank of a launched job, whose PYTHONPATH begins with this folder.

The variable FAULT holds what `inside.make` understands, as JSON, and the rank it is for. Python
reads this file at every start; torch is not loaded for it, but the fault with torch's optimizers.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
from pathlib import Path


class Watcher(importlib.abc.MetaPathFinder):
    """Prepare the fault when torch's optimizers are imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch.optim.optimizer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_prepare(module):
            execute(module)
            prepare(module)

        spec.loader.exec_module = execute_and_prepare
        return spec


def prepare(optimizer_module):
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import inside

    fault = json.loads(os.environ["FAULT"])
    # A worker learns its rank only after its start.
    inside.after_step(
        fault["step"],
        lambda: inside.happen(fault) if os.environ.get("RANK") == fault["rank"] else None,
        optimizer_module,
    )


if "FAULT" in os.environ:
    sys.meta_path.insert(0, Watcher())
