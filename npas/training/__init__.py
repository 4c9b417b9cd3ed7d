"""Train: the loop, and what it stands on (optimizer, precision, checkpoints, tracking).

    experiment = build(config)           # task, network and allocation; no data read yet
    prepare(experiment)                   # reads the data; all user errors come now at the latest
    outcome = train(experiment, run_dir)  # everything else

Where groups are to be found by training, `stored_grouping` says whether they have been, and
`search_groups` finds them; with what they return `build` makes the experiment that shares by them.

Read `loop.py` first.
"""

from npas.training.experiment import Experiment, build
from npas.training.journal import Outcome
from npas.training.loop import train
from npas.training.preparation import prepare
from npas.training.search import search_groups, stored_grouping

__all__ = [
    "Experiment",
    "Outcome",
    "build",
    "prepare",
    "search_groups",
    "stored_grouping",
    "train",
]
