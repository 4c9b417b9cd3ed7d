"""Pre-train on plain text: masked tokens and sentence order."""

from npas.tasks.mlm.task import Config as Config
from npas.tasks.mlm.task import Task as Task
