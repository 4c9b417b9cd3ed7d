"""Image-sentence retrieval on Flickr30K and COCO, with SCAN's features."""

from npas.tasks.retrieval.task import Config as Config
from npas.tasks.retrieval.task import Task as Task
