"""npas-eval and npas-export bring a stored run back as it was."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from command_line import Run
from safetensors import safe_open
from safetensors.torch import load_file

from npas.cli import runs
from npas.models import InputSpec, family
from npas.reporting import results


def test_an_evaluation_finds_what_the_run_reported(run: Run, trained: Path) -> None:
    answer = run("npas-eval", f"run={trained}", "format=json", "device=cpu")
    assert answer.code == 0, answer.err
    reported = results.read(trained).metrics
    assert reported is not None
    assert json.loads(answer.out) == reported.last
    table = run("npas-eval", f"run={trained}").out
    assert f"accuracy {reported.last['accuracy']:.4f}" in table


def test_an_evaluation_of_data_that_was_not_held_out_says_so(run: Run, trained: Path) -> None:
    answer = run("npas-eval", f"run={trained}", "split=val")
    assert answer.code == 2
    assert "held no data out" in answer.err


def test_an_export_is_the_plain_network_with_the_same_outputs(run: Run, trained: Path) -> None:
    folder = Path(shutil.copytree(trained, "copy"))
    answer = run("npas-export", f"run={folder}")
    assert answer.code == 0, answer.err
    out = folder / "export" / "model.safetensors"
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert answer.out == f"{out}: a dense network of 20,506 parameters\n"

    wrn = family("wrn")
    with safe_open(out, "pt") as file:
        config = wrn.Config(**json.loads(file.metadata()["model"]))
    dense = wrn.build(config, InputSpec((1, 8, 8), 10))
    dense.load_state_dict(load_file(out))
    shared = runs.restore(str(trained), {"trainer.device": "cpu"}).model
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(dense.eval()(x), shared.eval()(x))


def test_an_export_goes_where_it_is_told(run: Run, trained: Path) -> None:
    assert run("npas-export", f"run={trained}", "out=deep/net.safetensors").code == 0
    assert [path.name for path in Path("deep").iterdir()] == ["net.safetensors"]
    Path("usual").touch()
    assert Path("deep/net.safetensors").stat().st_mode == Path("usual").stat().st_mode


def test_an_export_that_cannot_be_written_leaves_nothing(
    run: Run, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    answer = run("npas-export", f"run={trained}", "out=net.safetensors")
    assert answer.code == 2
    line = "net.safetensors cannot be written (No space left on device): name another file as out="
    assert answer.err == f"npas-export: {line}\n"
    assert not list(Path().iterdir())


def test_an_export_below_a_file_is_refused(run: Run, trained: Path) -> None:
    Path("file").touch()
    answer = run("npas-export", f"run={trained}", "out=file/net.safetensors")
    assert answer.code == 2
    assert "which is a file: name another" in answer.err
