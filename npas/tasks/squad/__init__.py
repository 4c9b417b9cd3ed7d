"""Extractive question answering: SQuAD 1.1 and 2.0."""

from npas.tasks.squad.task import Config as Config
from npas.tasks.squad.task import Task as Task
