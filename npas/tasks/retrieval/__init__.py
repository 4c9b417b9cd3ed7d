"""Find images by sentences and sentences by images: Flickr30K and COCO, as SCAN prepared them."""

from npas.tasks.retrieval.task import Config as Config
from npas.tasks.retrieval.task import Task as Task
