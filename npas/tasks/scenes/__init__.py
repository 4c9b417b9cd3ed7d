"""Generate rendered scenes and write them in the formats of published datasets.

`world` draws scenes, `language` and `captions` describe them in words, `drawing` renders pixels,
`regions` proposes boxes with features, and `writing` writes the files of Flickr30K Entities,
ReferIt and SCAN. Everything is seeded: the output is deterministic.
"""

from npas.tasks.scenes.world import Difficulty as Difficulty
from npas.tasks.scenes.writing import write_bert as write_bert
from npas.tasks.scenes.writing import write_flickr30k as write_flickr30k
from npas.tasks.scenes.writing import write_referit as write_referit
from npas.tasks.scenes.writing import write_scan as write_scan
from npas.tasks.scenes.writing import write_vectors as write_vectors
