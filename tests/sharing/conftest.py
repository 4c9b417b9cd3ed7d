"""What several files of these tests start from."""

from collections.abc import Sequence
from typing import Any

import pytest
from torch import Tensor

from npas.sharing.bank import BankReader, Block


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """List every weight that is generated from here on."""
    made: list[object] = []
    mix = BankReader.mix

    def counted(self: BankReader, blocks: Sequence[Block], *others: Any) -> list[Tensor]:
        made.extend(key for block in blocks for key in block.keys)
        return mix(self, blocks, *others)

    monkeypatch.setattr(BankReader, "mix", counted)
    return made
