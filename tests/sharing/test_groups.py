import math

import pytest
from zoo import Residual

import npas
from npas.sharing.layers import LayerSpec
from npas.sharing.layout.groups import assign_groups

LAYERS = [
    LayerSpec("stem.weight", (8, 3, 3, 3), "conv2d"),
    LayerSpec("block1.conv.weight", (8, 8, 3, 3), "conv2d"),
    LayerSpec("block2.conv.weight", (8, 8, 3, 3), "conv2d"),
    LayerSpec("head.weight", (10, 8), "linear"),
]
NAMES = [layer.name for layer in LAYERS]


def members(found):
    groups = {}
    for name, group in found.items():
        groups.setdefault(group, []).append(name)
    return list(groups.values())


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("single", [NAMES]),
        ("type", [NAMES[:3], NAMES[3:]]),
        ("shape", [NAMES[:1], NAMES[1:3], NAMES[3:]]),
    ],
)
def test_single_type_and_shape_group_what_they_say(groups, expected):
    assert members(assign_groups(LAYERS, groups)) == expected


def test_random_is_even_covers_all_and_follows_the_seed():
    found = assign_groups(LAYERS, "random", num_groups=2, seed=3)
    assert sorted(map(len, members(found))) == [2, 2]
    assert found == assign_groups(LAYERS, "random", num_groups=2, seed=3)
    assert any(found != assign_groups(LAYERS, "random", num_groups=2, seed=s) for s in range(9))


def test_a_mapping_shares_what_it_names_and_nothing_else():
    found = assign_groups(LAYERS, {"block*.weight": 0, "head.*": "top"})
    assert found == {NAMES[1]: "0", NAMES[2]: "0", NAMES[3]: "top"}


def test_the_first_pattern_that_matches_decides():
    found = assign_groups(LAYERS, {"block1.*": "first", "block*": "rest"})
    assert found == {NAMES[1]: "first", NAMES[2]: "rest"}


@pytest.mark.parametrize(
    ("groups", "num_groups", "says"),
    [
        ("shapes", None, "groups='shapes' is unknown: choose single, type, shape, random"),
        ("random", None, "num_groups=None is out of range"),
        ("learned", 4, r"npas-train sharing\.groups=learned.*json\.load\(file\)\['layers'\]"),
        ("gradient", None, r"npas-train sharing\.groups=gradient"),
        ("single", 3, "num_groups=3 has no use"),
        ({"*": "all"}, 3, "num_groups=3 has no use with a mapping"),
        ("random", 0, "choose 1 to 4"),
        ("random", 5, "choose 1 to 4"),
        ({}, None, "empty mapping"),
        ({"blok1.conv.weight": 0}, None, "did you mean 'block1.conv.weight'"),
        ({3: "a"}, None, "groups' pattern=3 must be a string"),
        ({None: "a"}, None, "groups' pattern=None must be a string"),
        ({"*": None}, None, r"groups\['\*'\]=None must be a string or an integer"),
        ({"*": ["a"]}, None, r"groups\['\*'\]=\['a'\] must be a string or an integer"),
        ({"*": True}, None, "=True must be a string or an integer"),
    ],
)
def test_bad_groupings_say_what_to_change(groups, num_groups, says):
    with pytest.raises(ValueError, match=says):
        assign_groups(LAYERS, groups, num_groups)


def test_a_budget_is_split_by_size_and_weight():
    halves = {"stage1.*": "early", "*": "late"}

    def banks(**options):
        plan = npas.plan(Residual(), 0.5, groups=halves, **options)
        assert plan.budget.used == plan.budget.allowed
        return {group.name: group.used for group in plan.groups}

    for generator in ("wavg", "hash"):
        plain = banks(generator=generator)
        assert banks(generator=generator, group_weights={"early": 1}) == plain
        more = banks(generator=generator, group_weights={"late": 2})
        assert more["late"] > plain["late"] and sum(more.values()) == sum(plain.values())
        fewer = banks(generator=generator, group_weights={"late": 0.5})
        assert fewer["late"] < plain["late"]
    full = banks(generator="hash", group_weights={"early": 0.001, "late": 1000})
    assert sum(full.values()) == sum(plain.values())
    for options, line in (
        ({"group_weights": {"earl": 2}}, r"no group 'earl'; did you mean early"),
        ({"group_weights": {"late": 0}}, "late must be from 0.001 to 1000"),
        ({"group_weights": {"late": math.nan}}, "late must be from 0.001 to 1000"),
        ({"group_weights": {"late": "x"}}, "late must be from 0.001 to 1000, not x"),
        ({"group_weights": [1]}, "must be a mapping"),
        ({"group_weights": {"late": 2}, "allocator": "reference"}, "split a budget"),
        ({"group_weights": {"late": 2}, "init": "fit"}, "leave groups out"),
    ):
        with pytest.raises(ValueError, match=line):
            npas.plan(Residual(), 0.5, groups=halves, **options)
