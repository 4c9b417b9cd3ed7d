"""Predict the next token of a text."""

from npas.tasks.lm.task import Config, Task

__all__ = ["Config", "Task"]
