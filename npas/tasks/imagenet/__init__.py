"""Classify the photographs of ImageNet-1k (ILSVRC 2012), read from disk."""
