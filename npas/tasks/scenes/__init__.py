"""Generate a rendered world and write it in the formats of published sets.

`world` draws scenes, `language` finds words for their things and `captions` tells of them,
`drawing` makes pixels, `regions` what a detector would see there, and `writing` the files of
Flickr30K Entities, ReferIt and SCAN. All of it is seeded: the same bytes each time.
"""

from npas.tasks.scenes.world import Difficulty
from npas.tasks.scenes.writing import (
    write_bert,
    write_flickr30k,
    write_referit,
    write_scan,
    write_vectors,
)

__all__ = [
    "Difficulty",
    "write_bert",
    "write_flickr30k",
    "write_referit",
    "write_scan",
    "write_vectors",
]
