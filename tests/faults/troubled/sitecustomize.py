"""Trouble one rank of a job whose processes are started again: their path begins with this folder.

The variable TROUBLE holds what `inside.make` understands, as JSON, and the rank it is for. Python
reads this file at every start; torch is not loaded for it, but the trouble with torch's optimizers.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
from pathlib import Path


class Watcher(importlib.abc.MetaPathFinder):
    """Prepare the trouble when torch's optimizers are imported."""

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

    trouble = json.loads(os.environ["TROUBLE"])
    # A worker learns its rank only after its start.
    inside.after_step(
        trouble["step"],
        lambda: inside.happen(trouble) if os.environ.get("RANK") == trouble["rank"] else None,
        optimizer_module,
    )


if "TROUBLE" in os.environ:
    sys.meta_path.insert(0, Watcher())
