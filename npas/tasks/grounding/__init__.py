"""Phrase grounding: choose the proposed region of an image that a phrase refers to."""
