"""Pre-train on plain text: find the words that are hidden, and which of two parts comes first."""

from npas.tasks.mlm.task import Config as Config
from npas.tasks.mlm.task import Task as Task
