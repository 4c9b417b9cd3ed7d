import pytest

from npas.sharing.groups import assign_groups
from npas.sharing.layers import LayerSpec

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
        ("random", None, "needs num_groups, and None is out of range"),
        ("learned", 4, r"npas-train sharing\.groups=learned.*json\.load\(file\)\['layers'\]"),
        ("gradient", None, r"npas-train sharing\.groups=gradient"),
        ("single", 3, "num_groups=3 has no use"),
        ("random", 0, "choose 1 to 4"),
        ("random", 5, "choose 1 to 4"),
        ({}, None, "empty mapping"),
        ({"blok1.conv.weight": 0}, None, "did you mean 'block1.conv.weight'"),
    ],
)
def test_bad_groupings_say_what_to_change(groups, num_groups, says):
    with pytest.raises(ValueError, match=says):
        assign_groups(LAYERS, groups, num_groups)
