"""Helpers for all packages: budgets, JSON, random numbers, git, signals, processes, printing."""
