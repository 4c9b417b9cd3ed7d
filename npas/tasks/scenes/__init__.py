"""Generate rendered scenes and write them in the formats of published datasets.

`world` draws scenes, `language` and `captions` describe them in words, `drawing` renders pixels,
`regions` proposes boxes with features, and `writing` writes the files of Flickr30K Entities,
ReferIt and SCAN. Everything is seeded: the output is deterministic.
"""
