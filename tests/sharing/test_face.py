"""What a user sees: silence from `share`, and a summary that is read in one look."""

import re

import torch
from torch import nn
from zoo import Residual

import npas


def test_the_summary_tells_layers_groups_and_what_was_asked_allowed_and_used() -> None:
    model = npas.share(Residual(), 0.3, groups="type", exclude="stem.weight")
    plan, text = npas.allocation(model), npas.summary(model)
    lines = text.splitlines()
    assert re.fullmatch(
        r"stage1\.\{0-2\}\.conv1\.weight +x 3 +8x8x3x3 +576 +conv2d +\d +\w+", lines[1]
    )
    assert "head.weight" in text and "stem" not in text
    folded = [re.search(r"  x (\d+)  ", line) for line in lines[1 : lines.index("")]]
    assert sum(int(found[1]) if found else 1 for found in folded) == len(plan.layers)
    for group in plan.groups:
        pattern = rf"{group.name} +{len(group.layers)} +[\d,]+ +({group.bank:,}|none)"
        assert any(re.match(pattern, line) for line in lines)
    used = npas.count_parameters(model)
    assert f"asked 0.3, dense {plan.budget.dense:,}, allowed {plan.budget.allowed:,}" in text
    assert f"used {used:,} (" in text


def test_alike_is_what_agrees_in_all_but_its_index() -> None:
    model = nn.ModuleDict(
        {
            "blocks": nn.ModuleList([nn.Linear(16, 16) for _ in range(12)]),
            "odd": nn.ModuleList([nn.Linear(8 + 8 * (i % 2), 16) for i in range(4)]),
            "conv1": nn.Conv2d(4, 4, 3),
            "conv2": nn.Conv2d(4, 4, 3),
        }
    )
    names = [line.split(" ")[0] for line in npas.plan(model, 0.5).summary().splitlines()[1:6]]
    assert names == [
        "blocks.{0-11}.weight", "odd.{0,2}.weight", "odd.{1,3}.weight", "conv1.weight",
        "conv2.weight",
    ]  # fmt: skip


def test_a_network_of_two_hundred_layers_fits_a_screen() -> None:
    import transformers

    with torch.device("meta"):
        config = transformers.BertConfig(num_hidden_layers=32)
        model = transformers.BertModel(config)
    plan = npas.plan(model, 0.1, groups="type")
    lines = plan.summary().splitlines()
    assert len(plan.layers) == 3 + 32 * 6 + 1
    assert len(lines) < 24 and max(map(len, lines)) < 125
