"""A wheel is complete: installed into an empty environment, it works from any folder."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_SOURCE = shutil.ignore_patterns(".*", "runs", "data", "build", "*.egg-info", "__pycache__")


LIBRARIES = sysconfig.get_path("purelib")


def environment(folder, lent):
    """Make an empty environment with a line of what it is lent; return the folder of commands."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(lent)
    return folder / "bin"


def install(scripts, *what):
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--quiet"]
    run(*map(str, pip), "--no-deps", "--no-index", "--no-build-isolation", *map(str, what))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", ".."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = source.parent.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """Install the wheel alone; the libraries are lent by the environment that runs the tests."""
    # A folder named here is only looked into: no .pth file in it, as of an editable npas, is read.
    found = environment(tmp_path_factory.mktemp("environment"), LIBRARIES)
    install(found, wheel)
    return found


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_carries_configs_figures_and_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"npas/py.typed", "npas/reporting/published.yaml", "npas/configs/train.yaml"} <= names
    assert "npas/reporting/report.html" in names
    yaml = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"npas/configs/{path.as_posix()}" for path in yaml} <= names
    modules = {path.relative_to(ROOT) for path in (ROOT / "npas").rglob("*.py")}
    assert {path.as_posix() for path in modules} <= names
    assert not any(name.startswith(("tests", "results", "scripts")) for name in names)


@pytest.mark.slow
def test_commands_run_from_another_folder_and_are_the_wheels(scripts):
    where = "import npas, npas.configs; print(npas.__file__); print(*npas.configs.__path__)"
    for path in run(scripts / "python", "-c", where).split():
        assert Path(path).is_relative_to(scripts.parent)
    assert "budget" in run(scripts / "npas-plan", "+exp=digits")
    assert "| dense network |" in run(scripts / "npas-table", "digits")
    overrides = ("epochs=1", "wandb.mode=disabled", "optim.milestones=[]")
    assert "test accuracy" in run(scripts / "npas-train", *overrides)
    (result,) = Path("runs").glob("digits/*/result.json")
    assert '"commit": null' in result.read_text()
    for name in ("train", "plan", "eval", "export", "table", "runs", "report"):
        assert f"npas-{name}" in run(scripts / f"npas-{name}", "--help")


@pytest.mark.slow
def test_the_example_package_is_installed_and_trains(tmp_path):
    source = tmp_path / "npas_mlp"
    shutil.copytree(ROOT / "examples/npas_mlp", source, ignore=NOT_SOURCE)
    # This lends npas, too, however it is installed.
    lent = f"import site; site.addsitedir({LIBRARIES!r})"
    scripts = environment(tmp_path / "environment", lent)
    install(scripts, source)
    overrides = ("+exp=rolled_digits", "budget=0.2", "epochs=1", "wandb.mode=disabled")
    train = "import sys; from npas.cli.train import main; sys.exit(main())"
    assert "test accuracy" in run(scripts / "python", "-c", train, *overrides)
