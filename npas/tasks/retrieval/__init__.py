"""Image-sentence retrieval on Flickr30K and COCO, with SCAN's features."""
