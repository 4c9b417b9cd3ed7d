"""What outside tools see of a shared network, as docs/transparency.md says."""

import torch
from tiny import INPUTS, shared
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import Residual

import npas


def flops(model: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(INPUTS)
    return int(counter.get_total_flops())


def test_counting_operations_finds_the_dense_networks_flops() -> None:
    model, dense = shared().eval(), flops(Residual().eval())
    assert flops(model) > dense  # the weights are made once
    assert flops(model) == dense
    assert flops(npas.materialize(model)) == dense
