"""What lies under data.root is looked at before a training, or synthetic for a synthetic run."""

import json
from pathlib import Path

import pytest
from command_line import SMALL, Run

from npas.cli import recording
from npas.models import _hub
from npas.reporting import results
from npas.reporting.compose import compose
from npas.tasks.cifar import synthetic
from npas.tasks.cifar import task as cifar


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
    ("arguments", "said"),
    [
        (("+exp=wrn_cifar10", "data.download=false", "check_data=true"), "cifar10 is not under"),
        (("check_data=perhaps",), "check_data must be true or false, got 'perhaps'"),
        (("check_dat=true",), "unknown key 'check_dat': did you mean 'check_data'?"),
        (("data.source=fake",), "data.source must be real or synthetic, got 'fake'"),
        (("data.synthetic.train=0",), "data.synthetic.train must be at least 1, got 0"),
        (("data.synthetic.trian=9",), "did you mean 'data.synthetic.train'?"),
    ],
)
def test_what_is_missing_or_misspelt_is_one_line(
    arguments: tuple[str, ...], said: str, run: Run
) -> None:
    answer = run("npas-plan", *arguments)
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert said in answer.err


def test_a_rehearsal_says_what_it_is_wherever_it_gives_a_figure(run: Run, tmp_path: Path) -> None:
    arguments = (
        "npas-train",
        *SMALL,
        "data.source=synthetic",
        "data.synthetic.epochs=2",
        "epochs=9",
    )
    answer = run(*arguments)
    assert answer.code == 0, answer.err
    assert (
        "data     synthetic, in the format of digits: a dry run with epochs=2 batch_size=2"
        in answer.out
    )
    assert "% on synthetic data" in answer.out
    assert "dense:" not in answer.out
    (file,) = tmp_path.rglob("result.json")
    assert results.read(file.parent).dataset.source == "synthetic"
    assert run(*arguments).out.startswith("skipped: ")


def test_a_copy_is_counted_refused_unless_asked_for_and_recorded(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    made = synthetic.write(root, cifar.published_archive(10), 10, 40, 20)
    arguments = (
        "+exp=wrn_cifar10",
        *SMALL,
        "batch_size=20",
        "data.val_fraction=0",
        f"data.root={root}",
    )
    answer = run("npas-plan", *arguments, "check_data=true")
    assert answer.code == 2 and "data.verify=warn to use it as it is" in answer.err
    assert f"test_batch: md5 {made.test['test_batch']}; md5 40351d" in answer.out
    assert "data test: 20 images of 10 classes" in answer.out
    assert run("npas-train", *arguments).code == 2 and not (tmp_path / "runs").exists()
    answer = run("npas-train", *arguments, "data.verify=warn")
    assert answer.code == 0, answer.err
    assert "% on data that are not the published ones" in answer.out
    (file,) = tmp_path.rglob("result.json")
    dataset = results.read(file.parent).dataset
    assert dataset.published is False and len(dataset.files) == 6


def test_a_comparison_that_cannot_be_made_is_warned_of(run: Run) -> None:
    answer = run("npas-train", *SMALL, "data.verify=warn", "dry_run=true")
    assert answer.code == 0, answer.err
    assert "data.verify=warn has no effect: nothing published of digits is known" in answer.err


def test_the_commits_of_the_hub_that_a_run_read_are_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = compose("+exp=bert_base_squad2", "model.pretrained=a/b@v1", "task.tokenizer=tok")
    monkeypatch.setattr(_hub, "COMMITS", {"a/b@v1": "a/b@c0ffee", "of another run": "x@y"})
    assert recording._hub_commits(config) == {"model.pretrained": "a/b@c0ffee"}
    monkeypatch.setattr(_hub, "COMMITS", {})
    assert recording._hub_commits(config) is None
