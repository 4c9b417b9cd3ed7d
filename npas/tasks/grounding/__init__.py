"""Phrase grounding: choose the proposed region of an image that a phrase refers to."""

from npas.tasks.grounding.task import Config as Config
from npas.tasks.grounding.task import Task as Task
