"""Mark the shortest paths through grid mazes."""

from npas.tasks.shortest_paths.task import Config as Config
from npas.tasks.shortest_paths.task import Task as Task
