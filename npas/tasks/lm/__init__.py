"""Predict the next token of a text."""

from npas.tasks.lm.task import Config as Config
from npas.tasks.lm.task import Task as Task
