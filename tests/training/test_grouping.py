"""Layers are grouped by k-means or by agreement, and the grouping is a file that reads back."""

import json
import re

import pytest

from npas import config as schema
from npas.config.load import read_groups
from npas.training import grouping
from npas.training.grouping import Grouping

GROUPS = {"stem": "learned0", "a.conv": "learned1", "b.conv": "learned1", "head": "learned0"}
FOUND = Grouping(
    method="learned", seed=3, num_groups=2, epochs=2, steps=44, wall_s=1.5, half_agreement=None,
    groups=GROUPS, vectors={name: [0.1 * i, -1.0, 1e-07] for i, name in enumerate(GROUPS)},
)  # fmt: skip


def test_kmeans_finds_what_lies_together_and_follows_the_seed():
    vectors = [[0.0, 1.0], [5.0, 5.0], [0.1, 1.1], [5.1, 4.9], [0.0, 0.9]]
    labels = grouping.by_kmeans(vectors, 2, seed=0)
    assert labels[0] == labels[2] == labels[4] != labels[1] == labels[3]
    assert labels == grouping.by_kmeans(vectors, 2, seed=0)
    assert len(set(grouping.by_kmeans(vectors, 5, seed=0))) == 5
    # Vectors count as they are, without normalization.
    labels = grouping.by_kmeans([[1.0, 0.0], [10.0, 0.0], [0.0, 1.0]], 2, seed=0)
    assert labels[0] == labels[2] != labels[1]
    with pytest.raises(ValueError, match=r"only 2 different .*: set it to 2 or less$"):
        grouping.by_kmeans([[1.0], [1.0], [2.0]], 3, seed=0)


def test_agreement_merges_on_average_and_names_follow_depth():
    # The third agrees with the first alone; the average keeps it apart from the pair.
    cosines = [[1.0, 0.9, 0.5, 0.0], [0.9, 1.0, -0.9, 0.0], [0.5, -0.9, 1.0, 0.1], [0, 0, 0.1, 1.0]]
    labels = dict(enumerate(grouping.by_agreement(cosines, 2)))
    assert [*grouping.named(labels, "g").values()] == ["g0", "g0", "g1", "g1"]
    assert grouping.by_agreement([[1.0]], 1) == [0]
    named = grouping.named({"a": 7, "b": 2, "c": 7, "d": 0}, "learned")
    assert named == {"a": "learned0", "b": "learned1", "c": "learned0", "d": "learned2"}


def test_the_file_reads_back_and_is_readable(tmp_path):
    assert grouping.read(tmp_path) is None
    grouping.write(tmp_path, FOUND)
    assert grouping.read(tmp_path) == FOUND
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    layer = {"name": "a.conv", "group": "learned1", "vector": [0.1, -1.0, 1e-07]}
    assert json.loads(text)["layers"][1] == layer
    assert len(re.findall(r'^ +\{"name": ', text, re.MULTILINE)) == 4  # a line a layer
    assert read_groups(tmp_path) == read_groups(file) == GROUPS


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "", "[]", "{}", '{"layers": [{"name": "a"}]}', '{"layers": 3}']
)
def test_a_damaged_file_says_what_to_do(tmp_path, text):
    (tmp_path / "groups.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged \(.*delete it"):
        grouping.read(tmp_path)


def test_the_search_takes_a_tenth_of_the_epochs_unless_told(small):
    def epochs(run, search=None, **sharing):
        node = {"groups": "learned", "num_groups": 2, "search": {"epochs": search}, **sharing}
        return schema.search_epochs(small(budget="0.1", epochs=run, sharing=node))

    assert [epochs(n) for n in (1, 14, 15, 20, 200)] == [1, 1, 2, 2, 20]
    assert epochs(20, 7) == 7
    assert epochs(20, groups="single", num_groups=None) == 0
