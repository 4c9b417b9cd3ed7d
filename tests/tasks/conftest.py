"""Processes forked for a test."""

import multiprocessing
import warnings

import pytest


@pytest.fixture
def fork():
    """Return a starter of processes, which have imported all already; the test's end ends them."""
    started = []

    def start(target, *args):
        process = multiprocessing.get_context("fork").Process(target=target, args=args)
        started.append(process)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            process.start()
        return process

    yield start
    for process in started:
        process.kill()
        process.join()
