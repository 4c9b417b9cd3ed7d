"""Helpers for all packages: budgets, files, JSON, random numbers, git, signals, processes."""
