"""Train networks: the loop, optimizers, precision, checkpoints and tracking. Read `loop.py` first.

    experiment = build(config)            # task, network and allocation; reads no data
    prepare(experiment)                   # reads the data; raises user errors here at the latest
    outcome = train(experiment, run_dir)

Learned groups are those of `stored_grouping`, or `search_groups` finds them: pass them to `build`.
"""

from npas.training.experiment import Experiment as Experiment
from npas.training.experiment import build as build
from npas.training.journal import Outcome as Outcome
from npas.training.loop import train as train
from npas.training.preparation import prepare as prepare
from npas.training.search import search_groups as search_groups
from npas.training.search import stored_grouping as stored_grouping
