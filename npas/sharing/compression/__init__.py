"""Budgets in bytes: quantized, compressed artifacts and their sizes."""
