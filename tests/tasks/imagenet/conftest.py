"""A tiny ImageNet for a test of its own."""

import pytest
from imagenet_files import write_tree


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "data")
