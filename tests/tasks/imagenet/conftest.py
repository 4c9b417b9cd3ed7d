"""A tiny ImageNet for a test of its own."""

from pathlib import Path

import pytest
from imagenet_files import write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data")
