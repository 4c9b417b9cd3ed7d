"""What several files of these tests start from."""

import pytest
from torch import Tensor

from npas.sharing.bank import BankReader, Block


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """List every weight that is generated from here on."""
    made: list[object] = []
    mix = BankReader.mix

    def counted(self: BankReader, block: Block, alpha_LK: Tensor) -> list[Tensor]:
        made.extend(block.keys)
        return mix(self, block, alpha_LK)

    monkeypatch.setattr(BankReader, "mix", counted)
    return made
