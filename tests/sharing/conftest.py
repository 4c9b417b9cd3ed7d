"""Fixtures that several of these files use."""

import pytest

from npas.sharing.runtime.bank import BankReader


@pytest.fixture
def generated(monkeypatch):
    """List every weight that is generated from here on."""
    made = []
    weights = BankReader.weights

    def counted(self, blocks, *others):
        made.extend(key for block in blocks for key in block.keys)
        return weights(self, blocks, *others)

    monkeypatch.setattr(BankReader, "weights", counted)
    return made
