"""What lies under data.root is looked at before a training, or made up for a rehearsal."""

import json
from pathlib import Path

import pytest
from command_line import SMALL, Run

from npas.reporting import results


def test_the_data_are_counted_and_one_batch_is_made(run: Run, tmp_path: Path) -> None:
    answer = run("npas-plan", "check_data=true")
    assert answer.code == 0, answer.err
    lines = [line for line in answer.out.splitlines() if line.startswith("data ")]
    assert lines == [
        "data source: real",
        "data train: 1,438 images of 10 classes, 139 to 146 of each",
        "data test: 359 images of 10 classes, 35 to 37 of each",
        "data batch: inputs 64x1x8x8 float32",
    ]
    found = json.loads(run("npas-plan", "check_data=true", "format=json").out)
    assert found["data"]["batch"] == "inputs 64x1x8x8 float32"
    assert not list(tmp_path.iterdir())


def test_no_data_are_read_unless_asked_for(run: Run) -> None:
    assert "data " not in run("npas-plan", "+exp=wrn_cifar10", "data.download=false").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("+exp=wrn_cifar10", "data.download=false", "check_data=true"), "cifar10 is not under"),
        (("check_data=perhaps",), "check_data must be true or false, got 'perhaps'"),
        (("check_dat=true",), "unknown key 'check_dat': did you mean 'check_data'?"),
        (("data.source=fake",), "data.source must be real or standin, got 'fake'"),
        (("data.standin.train=0",), "data.standin.train must be at least 1, got 0"),
        (("data.standin.trian=9",), "did you mean 'data.standin.train'?"),
    ],
)
def test_what_is_missing_or_misspelt_is_one_line(
    words: tuple[str, ...], said: str, run: Run
) -> None:
    answer = run("npas-plan", *words)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert said in answer.err


def test_a_rehearsal_says_what_it_is_wherever_it_gives_a_figure(run: Run, tmp_path: Path) -> None:
    words = ("npas-train", *SMALL, "data.source=standin", "data.standin.epochs=2", "epochs=9")
    answer = run(*words)
    assert answer.code == 0, answer.err
    assert (
        "data     made up in the format of digits: a rehearsal, epochs=2 batch_size=2" in answer.out
    )
    assert "% on made-up data" in answer.out
    assert "dense:" not in answer.out
    (file,) = tmp_path.rglob("result.json")
    assert results.read(file.parent).dataset.source == "standin"
    assert run(*words).out.startswith("skipped: ")
