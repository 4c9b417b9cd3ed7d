"""npas-report writes one page, complete or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_committed_results_become_one_file_without_torch():
    code = (
        "import sys; from npas.cli import report; assert report.main(['out=pages/all.html']) == 0;"
        " assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pages/all.html: ")
    assert Path("pages/all.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results=nowhere"], "there is no folder results=nowhere: name one that exists"),
        (["runs=nowhere"], "there is no folder runs=nowhere"),
        (["out=."], "out=. is not a file: name one, as out=new.html"),
        (["results=empty"], "there is nothing to report"),
        (["results=empty", "runs=empty"], "there is nothing to report"),
        (["out=file/page.html"], "file/page.html cannot be written"),
        (["root=runs"], "unknown key 'root'"),
    ],
)
def test_invalid_arguments_are_one_line(run, arguments, message):
    Path("empty").mkdir()
    Path("file").touch()
    run("npas-report", *arguments, refused=message)
    assert not Path("report.html").exists()
