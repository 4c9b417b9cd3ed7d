"""Classify the photographs of ImageNet-1k (ILSVRC 2012), read from disk."""

from npas.tasks.imagenet.task import Config as Config
from npas.tasks.imagenet.task import Task as Task
