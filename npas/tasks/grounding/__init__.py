"""Find what a phrase refers to: choose one of an image's proposed regions. Phrase grounding."""

from npas.tasks.grounding.task import Config as Config
from npas.tasks.grounding.task import Task as Task
