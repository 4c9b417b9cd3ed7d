"""Classify the 32x32 photographs of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009)."""

from npas.tasks.cifar.task import Config as Config
from npas.tasks.cifar.task import Task as Task
