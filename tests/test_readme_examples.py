"""The examples of README and docs run and print what they show; pages name tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / page
    for page in ("README.md", "docs/library.md", "docs/soft-sharing.md", "docs/quickstart.md")
]
PARTS = [
    part
    for page in PAGES
    for part in re.findall(r"```(python|text)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
]
EXAMPLES = [(code, shown) for (_, code), (_, shown) in zip(PARTS[::2], PARTS[1::2], strict=True)]


SLOW = (pytest.mark.slow, pytest.mark.slow, (), pytest.mark.slow, (), (), (), (), ())


@pytest.mark.parametrize(
    ("code", "shown"),
    [pytest.param(*parts, marks=marks) for parts, marks in zip(EXAMPLES, SLOW, strict=True)],
)
def test_an_example_runs_and_prints_what_it_shows(code, shown, capsys):
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})
    printed = " ".join(capsys.readouterr().out.split())
    for piece in shown.split("...\n"):  # what stands between is left out
        assert " ".join(piece.split()) in printed


def test_the_readme_is_one_page():
    assert (ROOT / "README.md").stat().st_size <= 8192


def test_every_row_of_the_transparency_page_names_a_test_that_exists():
    page = (ROOT / "docs" / "transparency.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "shown by" not in line]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) >= len(rows) > 20
    for file, function in named:
        source = (ROOT / "tests" / "sharing" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in source, (file, function)
