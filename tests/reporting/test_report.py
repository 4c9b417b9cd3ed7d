"""The report holds every committed table and picture, and anyone can read it, from disk alone."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from npas.reporting import report
from npas.reporting.run_index import results_root

VOID = {"meta", "link", "img", "br", "hr", "input"}
HEADING = re.compile(r"h[1-6]")


class Reader(HTMLParser):
    """Read a page strictly: every element that is opened is closed, in its place."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements = []  # tag, attributes, texts
        self.open = []
        self.feed(text)
        self.close()
        assert not self.open, [self.elements[i][:2] for i in self.open]

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, {key: value or "" for key, value in attrs}, []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        opened = self.elements[self.open.pop()]
        assert opened[0] == tag, f"<{opened[0]} {opened[1]}> ends as </{tag}>"

    def handle_data(self, data):
        for i in self.open:
            self.elements[i][2].append(data)

    def all(self, pattern):
        """Return the elements of a tag with their text."""
        found = (each for each in self.elements if re.fullmatch(pattern, each[0]))
        return [(tag, attrs, " ".join("".join(texts).split())) for tag, attrs, texts in found]


@pytest.fixture(scope="module")
def text():
    return report.page(results_root(), None)


@pytest.fixture(scope="module")
def page(text):
    return Reader(text)


@pytest.mark.slow
def test_every_committed_table_and_picture_is_there_with_its_command(page):
    root = results_root()
    headings = {own for _, _, own in page.all(HEADING.pattern)}
    rows = {own for _, _, own in page.all("tr")}
    commands = " ".join(own for _, _, own in page.all("code"))
    for path in root.glob("tables/*.md"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].removeprefix("# ") in headings
        assert f"make reproduce-table TABLE={path.stem}" in commands
        for line in lines:
            if re.match(r"\| [^|]+ \|.* ± ", line) and "`" not in line and "**" not in line:
                assert " ".join(line.strip("| ").replace("|", " ").split()) in rows, line
            for command in re.findall("`(npas-train .*?)`", line):
                assert command in commands
    for kind in ("fold.json", "groups.json"):
        folders = {str(Path(*path.parts[-3:-1])) for path in root.rglob(kind)}
        assert folders and folders <= headings
    for command in ("npas-fold run=runs/", "npas-eval run=runs/", "npas-train +exp=digits"):
        assert command in commands
    drawn = [*root.glob("tables/*.svg"), *root.rglob("folds/*/*/*.svg"), *root.glob("scenes/*.png")]
    drawn += [*root.rglob("groups.svg"), *root.glob("minilm/*.svg")]
    assert len(page.all("img")) == len(drawn) > 30
    (glance,) = (own for _, _, own in page.all("tr") if own.startswith("Digits test accuracy, %"))
    assert "99.26 ± 0.32" in glance and "98.98 ± 0.16" in glance  # dense, and a tenth
    assert report.page(root, None) == report.page(root, None)


def test_the_page_needs_no_network(text, page):
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"base64,[\w+/=]+", "", text))
    ids = [attrs["id"] for _, attrs, _ in page.all(".*") if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs, _ in page.all(".*"):
        target = attrs.get("href", "")
        assert target in ("", "data:,") or target.removeprefix("#") in ids, target
        assert attrs.get("src", "data:").startswith("data:")
    assert "default-src 'none'" in text


def test_the_page_can_be_read_by_everyone(text, page):
    assert page.all("html")[0][1]["lang"] == "en" and page.all("title")[0][2]
    levels = [int(tag[1]) for tag, _, _ in page.all(HEADING.pattern)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for _, attrs, _ in page.all("img"):
        assert len(attrs["alt"]) > 30 and int(attrs["width"]) and int(attrs["height"])
    tables, captions = page.all("table"), page.all("caption")
    assert len(captions) == len(tables) > 30 and all(own for _, _, own in captions)
    for _, attrs, own in page.all("th"):
        assert attrs["scope"] in ("col", "row") and own
    assert len(page.all("thead")) == len(tables)
    for _, attrs, _ in page.all("div"):  # what scrolls is reached and named without a mouse
        if "scroll" in attrs.get("class", ""):
            assert attrs["tabindex"] == "0" and attrs["role"] == "region" and attrs["aria-label"]
    assert page.all("a")[0][1]["href"] == "#main" and page.all("nav")[0][1]["aria-label"]
    assert "@media print" in text and "width=device-width" in text


def test_a_folder_of_runs_is_summarized_by_budget(keep, tmp_path):
    for budget, used in (("0.1", 100), ("0.5", 500)):
        for seed in (0, 1):
            overrides = ("+exp=digits", f"budget={budget}")
            keep(tmp_path / "runs", *overrides, seed=seed, used=used, accuracy=90.0 + seed)
    page = Reader(report.page(None, tmp_path / "runs"))
    rows = [own for _, _, own in page.all("tr")]
    assert [row for row in rows if "±" in row] == [
        "digits 0.1 100 accuracy, % 90.50 ± 0.71 2",
        "digits 0.5 500 accuracy, % 90.50 ± 0.71 2",
    ]
    assert len(page.all("img")) == 1
    # Names of settings that fill the whole figure would leave no room for its axes.
    many = ("epochs=7", "optim.lr=0.3", "optim.weight_decay=0.001", "optim.momentum=0.5")
    overrides = (*overrides, *many, "optim.milestones=[2,3]", "batch_size=32", "model.depth=10")
    keep(tmp_path / "runs", *overrides, used=300, accuracy=80.0)
    page = Reader(report.page(None, tmp_path / "runs"))
    assert not page.all("img") and sum("accuracy, %" in row for _, _, row in page.all("tr")) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is nothing to report"):
        report.page(tmp_path / "empty", None)


@pytest.mark.parametrize("file", ["tables/mine.md", "groups/exp/run/groups.json"])
def test_a_damaged_file_is_named(file, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=rf"{path.name} cannot be read"):
        report.page(tmp_path, None)
