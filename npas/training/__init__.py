"""Train networks: the loop, optimizers, precision, checkpoints and tracking. Read `loop.py` first.

    experiment = build(config)            # task, network and allocation; reads no data
    prepare(experiment)                   # reads the data; raises user errors here at the latest
    outcome = train(experiment, run_dir)

If groups are learned, `stored_grouping` returns those of an earlier search and `search_groups` runs
the search. Pass the result to `build`.
"""

from npas.training.experiment import Experiment as Experiment
from npas.training.experiment import build as build
from npas.training.journal import Outcome as Outcome
from npas.training.loop import train as train
from npas.training.preparation import prepare as prepare
from npas.training.search import search_groups as search_groups
from npas.training.search import stored_grouping as stored_grouping
