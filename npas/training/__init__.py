"""Train: the loop, and what it stands on (optimizer, precision, checkpoints, tracking).

    experiment = build(config)           # task, network and allocation; no data read yet
    prepare(experiment)                   # reads the data; all user errors come now at the latest
    outcome = train(experiment, run_dir)  # everything else

Read `loop.py` first.
"""

from npas.training.experiment import Experiment, build, prepare
from npas.training.loop import Outcome, train

__all__ = ["Experiment", "Outcome", "build", "prepare", "train"]
