"""The README's examples run and print what they show; the transparency page names real tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PARTS = re.findall(r"```(python|text)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = [
    (code, shown)
    for (kind, code), (_, shown) in zip(PARTS[::2], PARTS[1::2], strict=True)
    if kind == "python"
]


def test_every_example_stands_with_what_it_prints() -> None:
    assert [kind for kind, _ in PARTS] == ["python", "text"] * 4
    assert all(code.startswith("import torch") for code, _ in EXAMPLES)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        pytest.param(*EXAMPLES[0], id="cnn", marks=pytest.mark.slow),
        pytest.param(*EXAMPLES[1], id="encoder", marks=pytest.mark.slow),
        pytest.param(*EXAMPLES[2], id="recurrent"),
        pytest.param(*EXAMPLES[3], id="folded"),
    ],
)
def test_an_example_runs_and_prints_what_it_shows(
    code: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    printed = " ".join(capsys.readouterr().out.split())
    for piece in shown.split("...\n"):  # what stands between is left out
        assert " ".join(piece.split()) in printed


def test_every_row_of_the_transparency_page_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "transparency.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "shown by" not in line]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) >= len(rows) > 20
    for file, function in named:
        source = (ROOT / "tests" / "sharing" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in source, (file, function)
