"""Layouts and numbers of the released code, recorded from runs of it (float64)."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import npas
from npas.sharing.budget import Budget, spell_count
from npas.sharing.layers import LayerSpec
from npas.sharing.layout.allocation import Scheme
from npas.sharing.layout.released_layout import allocate_reference

ORACLE = Path(__file__).parent / "oracle"
ALLOCATORS = json.loads((ORACLE / "layouts.json").read_text())
RECORDED = [record for record in ALLOCATORS if "layers" in record]
FAILED = [record for record in ALLOCATORS if "error" in record]
GENERATION = sorted(path.stem for path in ORACLE.glob("[mu]*.npz"))  # the search has its own test


def named(record):
    return f"{record['arch']}-{record['max_params']}-{record['groups']}-{record['upsample']}"


def reference(record, entries):
    specs = [
        LayerSpec(name, tuple(shape), "conv2d" if len(shape) == 4 else "linear")
        for _, name, shape, _, _ in entries
    ]
    return allocate_reference(
        specs,
        {name: str(group) for _, name, _, group, _ in entries},
        Budget(absolute=record["max_params"]),
        record["dense_total"],
        Scheme("wavg", record["upsample"], record["bank_size"], "reference"),
        wrap_after_k=record["groups"] != 1,
    )


@pytest.mark.parametrize("record", RECORDED, ids=named)
def test_layouts_agree(record):
    entries = sorted(record["layers"], key=lambda entry: entry[0] or 0)
    plan = reference(record, entries)
    recorded = {entry[1]: entry[4] for entry in entries}
    for group in plan.groups:
        for layer in group.layers:
            if recorded[layer.name] is None:
                assert not layer.templates
                continue
            bank, templates, start, end, source, copies = recorded[layer.name]
            assert (group.bank, len(layer.templates)) == (bank, templates)
            assert layer.templates[0] == start
            last = layer.templates[-1] + layer.template_size
            if source is not None:
                assert layer.source == (source[0], int(np.prod(source[1:])))
            if copies is None:
                assert last == end
            else:  # the recorded end is the bank's; what is used is trimmed to whole windows
                assert end - 9 < last <= end
                assert -(-layer.size // bank) - 1 == copies


@pytest.mark.parametrize("record", FAILED, ids=named)
def test_where_the_released_code_stops_we_say_why(record):
    twin = next(other for other in RECORDED if other["arch"] == record["arch"])
    entries = sorted(twin["layers"], key=lambda entry: entry[0] or 0)
    groups = {0: lambda shape: len(shape), -1: str}
    regrouped = [
        (at, name, shape, groups[record["groups"]](shape), None)  # type: ignore[operator]
        for at, name, shape, _, _ in entries
    ]
    with pytest.raises(ValueError, match="allocator='reference'"):
        reference(record, regrouped)


class Plain(nn.Module):
    """Layers of the recorded shapes, no biases."""

    def __init__(self, layers):
        super().__init__()
        for layer in layers:
            shape = layer["shape"]
            made = (
                nn.Conv2d(shape[1], shape[0], shape[2], bias=False)
                if layer["kind"] == "SConv2d"
                else nn.Linear(shape[1], shape[0], bias=False)
            )
            self.add_module(f"layer{layer['i']}", made)


@pytest.mark.parametrize("case", GENERATION)
def test_weights_and_gradients_agree(case):
    arrays = np.load(ORACLE / f"{case}.npz")
    meta = json.loads(str(arrays["meta"]))
    model = Plain(meta["layers"]).double()
    npas.share(
        model,
        spell_count(meta["max_params"]),
        upsampler=meta["upsample"],
        groups={1: "single", -1: "shape"}[meta["groups"]],
        max_templates=meta["bank_size"],
        allocator="reference",
    )
    plan = npas.allocation(model)
    numbers = [
        meta["layers"][int(group.layers[0].name[5 : group.layers[0].name.index(".")])]["group"]
        for group in plan.groups
    ]
    tensors = dict(model.named_parameters())
    expected = {}
    with torch.no_grad():
        at = 0
        for g, group in enumerate(plan.groups):
            if group.bank:
                bank = tensors[f"npas_bank_{g}"]
                bank.copy_(torch.from_numpy(arrays[f"bank_{numbers[g]}"]))
                expected[f"npas_bank_{g}"] = [(bank, f"gbank_{numbers[g]}")]
            rows = {}
            for layer in group.layers:
                number = layer.name[5 : layer.name.index(".")]
                k = len(layer.templates)
                if layer.mixing != "none":
                    name = f"npas_coefficients_{g}_{k}"
                    row = rows.setdefault(k, 0)
                    rows[k] += 1
                    tensors[name][row] = torch.from_numpy(arrays[f"coef_{number}"])
                    expected.setdefault(name, []).append((tensors[name][row], f"gcoef_{number}"))
                if layer.learned[0]:
                    name = f"npas_upsampler_{at}"
                    learned = torch.from_numpy(arrays[f"ups_{number}"]).reshape(layer.learned)
                    tensors[name].copy_(learned)
                    expected[name] = [(tensors[name], f"gups_{number}")]
                at += 1
    loss = torch.zeros((), dtype=torch.float64)
    for layer in plan.layers:
        if not layer.templates:
            continue
        number = layer.name[5 : layer.name.index(".")]
        weight = model.get_submodule(f"layer{number}").weight
        assert isinstance(weight, torch.Tensor)
        recorded = torch.from_numpy(arrays[f"w_{number}"])
        torch.testing.assert_close(weight, recorded, rtol=1e-12, atol=1e-12)
        loss = loss + (weight * torch.from_numpy(arrays[f"ct_{number}"])).sum()
    loss.backward()
    for name, parts in expected.items():
        gradient = tensors[name].grad
        assert gradient is not None
        recorded = torch.cat([torch.from_numpy(arrays[key]).reshape(-1) for _, key in parts])
        torch.testing.assert_close(gradient.reshape(-1), recorded, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("budget", ["2%", "10%", "50%"])
def test_the_last_layer_to_draw_a_region_decides_its_spread(budget):
    """The released order, the reverse of `Counter.most_common`, painted value by value."""
    record = next(r for r in RECORDED if r["arch"] == "wrn-16-2" and r["groups"] == 1)
    model = Plain(
        [
            {"i": i, "shape": shape, "kind": "SConv2d" if len(shape) == 4 else "SLinear"}
            for i, (_, _, shape, _, _) in enumerate(sorted(record["layers"]))
        ]
    )
    (group,) = npas.allocation(npas.share(model, budget, allocator="reference")).groups
    spread = torch.full((group.bank,), (2 / 9) ** 0.5)
    for shape, _ in Counter(layer.shape for layer in group.layers).most_common()[::-1]:
        for layer in group.layers:
            if layer.shape == shape and len(layer.templates) * layer.size <= group.bank:
                for low, high in layer.intervals:
                    spread[low:high] = (2 / np.prod(shape[1:])) ** 0.5
    bounds = [0, *(1 + (spread.diff() != 0).nonzero()[:, 0]).tolist(), group.bank]
    drawn = model.get_parameter("npas_bank_0").detach()
    for low, high in itertools.pairwise(bounds):
        found = float(drawn[low:high].square().mean().sqrt() / spread[low])
        assert abs(found - 1) < 5 / (2 * (high - low)) ** 0.5, (low, high)
