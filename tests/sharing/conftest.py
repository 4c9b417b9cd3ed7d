"""Fixtures that several of these files use."""

import pytest

from npas.sharing.bank import BankReader


@pytest.fixture
def generated(monkeypatch):
    """List every weight that is generated from here on."""
    made = []
    mix = BankReader.mix

    def counted(self, blocks, *others):
        made.extend(key for block in blocks for key in block.keys)
        return mix(self, blocks, *others)

    monkeypatch.setattr(BankReader, "mix", counted)
    return made
