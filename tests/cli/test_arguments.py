"""Invalid arguments end with exit code 2 and one line that says what to change."""

import subprocess
import sys
from pathlib import Path

import pytest

import npas

# The command line, and what its one line must hold; values out of range: tests/test_config.py.
WRONG = [
    ("npas-train bugdet=0.1", "unknown key 'bugdet': did you mean 'budget'?"),
    ("npas-train +model._target_=os.system", "unknown key 'model._target_'"),
    ("npas-plan frmat=json", "unknown key 'frmat': did you mean 'format'?"),
    ("npas-eval rum=x", "unknown key 'rum': did you mean 'run'?"),
    ("npas-eval run=x model=y", "unknown key 'model'"),
    ("npas-train data.synthetic.trian=9", "did you mean 'data.synthetic.train'?"),
    ("npas-train budget", "'budget' sets nothing: write key=value"),
    ("npas-train runs/digits/x", "'runs/digits/x' sets nothing: write run=runs/digits/x"),
    ("npas-train seed=[1", "'seed=[1' cannot be read: write key=value, special characters as"),
    ("npas-train exp=", "'exp=' names no file: write +exp=NAME"),
    ("npas-train model=null", "'model=null' names no file: write model=NAME"),
    ("npas-train exp=digits", "exp=digits: write +exp=digits"),
    ("npas-train ++exp=digits", "++exp=digits: write +exp=digits"),
    (
        "npas-train exp=digits +exp=digits_swrn",
        "exp=digits and +exp=digits_swrn name several experiments: keep one, as +exp=NAME",
    ),
    ("npas-train +exp=nope", "there is no exp=nope: choose adapt_coco"),
    ("npas-train model=wrn_28_1", "there is no model=wrn_28_1: did you mean 'wrn_28_1"),
    ("npas-train -m hydra/sweeper=none_such", "or install its plugin"),
    ("npas-train -m hydra.sweeper._target_=a.Search", "list the values of a sweep; searches run"),
    ("npas-train seed=range(1,3)", "seed=range(1,3) has several values: add -m to run each"),
    ("npas-train -m budget=0.1,abc", "budget=abc is not a budget"),
    ("npas-train -m 'seed=glob(x*)'", "the sweep has no jobs"),
    ("npas-train -m seed=range(0,9,0)", "seed=range(0,9,0): the step of a range must not be 0"),
    (
        "npas-train -m optim.lr=interval(0,1)",
        "npas-train: optim.lr=interval(0,1): list the values of a sweep, as key=0.1,0.2; ",
    ),
    ("npas-train -m --cfg job seed=0,1", "seed=0,1 has several values: --cfg and --info show a"),
    ("npas-train --package optim", "--package needs --cfg"),
    ("npas-train -cn evaluate run=x", "--config-name evaluate is for another command"),
    ("npas-train -sc query=bash", "--shell-completion: the shell sets 'COMP_LINE'"),
    (
        "npas-train sharing.init=fit:",
        "sharing.init=fit: names no path: write fit:PATH, fit:dense or fit",
    ),
    ("npas-train run=x exp=y", "exp=y cannot be combined with run=: set keys"),
    ("npas-train --bogus", "unrecognized arguments: --bogus"),
    ("npas-train --config-dir nowhere", "there is no folder --config-dir nowhere"),
    ("npas-train --config-path conf", "--config-dir DIR adds a folder of YAMLs"),
    ("npas-train epochs=", "epochs must be an integer, got ''"),
    (f"npas-train seed={10**20}", f"seed must be an integer of 64 bits, got {10**20}"),
    ("npas-train trainer.grad_accum_steps=3", "the nearest that is: 63"),
    (
        "npas-plan +exp=shakespeare task.folder=x",
        "task.folder and task.tokenizer are not for shakespeare: set task=text",
    ),
    ("npas-plan model=resnet50", "reads 3-channel images, and an input of this task is 1x8x8"),
    ("npas-train batch_size=100000", "batch_size=100000 is more than the 1438 training images"),
    ("npas-plan +exp=wrn_cifar10 data.download=false check_data=true", "cifar10 is not under"),
    ("npas-train task=imagenet model=resnet50", "data.val_fraction does not apply to ImageNet"),
    ("npas-plan budget=0.0001 format=json", "ask for budget="),
    ("npas-eval", "run is missing: write run=VALUE"),
    ("npas-eval run=nowhere", "there is no folder nowhere"),
    ("npas-eval run=x split=train", "split must be test or val, got 'train'"),
    (
        "npas-export run=x format=pickle",
        "format must be safetensors, onnx, artifact or hub, got 'pickle'",
    ),
    ("npas-export run=x out=..", "out=.. is not a file: name one, as out=../new.safetensors"),
    ("npas-plan budget=1KB", "ask for budget="),
    ("npas-plan budget=12KB sharing=reference", "allocator='reference' banks alone"),
    ("npas-plan artifact.bits=7", "artifact.bits must be 8 or 6"),
    ("npas-plan artifact.bits=6 artifact.scheme=golf", "artifact.scheme=golf has 8 bits"),
    ("npas-plan artifact.expected_ratio=0.9", "artifact.expected_ratio must be at least 1"),
    ("npas-plan artifact.bitz=6", "did you mean 'artifact.bits'"),
    ("npas-export run=x bits=6", "bits needs format=artifact"),
    ("npas-export run=x format=artifact bits=4", "bits must be 8 or 6"),
    ("npas-table check=true", "check=true needs a table's name"),
    ("npas-table digit", "there is no table 'digit'; did you mean digits or digits_swrn?"),
    ("npas-table digits results=nowhere", "there is no folder results=nowhere"),
    ("npas-table digits check=true epoch=selected", "leave check or epoch out"),
]


@pytest.mark.parametrize(("command", "line"), WRONG, ids=[command for command, _ in WRONG])
def test_invalid_arguments(command, line, run, tmp_path):
    answer = run(*[word.strip("'") for word in command.split()], refused=line)
    assert "Traceback" not in answer.err and not answer.out
    assert not list(tmp_path.iterdir())


HEAD = "# @package _global_\n"
FILES = {
    "conf/exp/bare.yaml": "budget: 0.3\n",
    "conf/exp/blank.yaml": f"exp: mine\n{HEAD}budget: 0.3\n",
    "conf/exp/twice.yaml": f"{HEAD}defaults:\n  - /optim: adam_simnet\n",
    "conf/exp/open.yaml": f"{HEAD}optim: {{lr: 1\n",
    "conf/exp/mine.yaml": f"{HEAD}budget: 0.3\n",
    "conf/own/big.yaml": f"{HEAD}budget: 0.4\n",
}
FIRST_LINE = "its first line must be '# @package _global_', so that its keys are at the top"


@pytest.mark.slow
def test_a_file_of_the_users_own_that_is_not_found_or_not_read_as_meant(run):
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    for arguments, line in (
        ("+exp=exp/mine.yaml", "(a file of your own is DIR/exp/mine.yaml, with --config-dir DIR)"),
        ("--config-dir conf/exp +exp=mine", "own is conf/exp/exp/mine.yaml, with --config-dir"),
        ("--config-dir=conf/exp +exp=mine", "own is conf/exp/exp/mine.yaml, with --config-dir"),
        ("-c job +exp=mine", "(a file of your own is DIR/exp/mine.yaml, with --config-dir DIR)"),
        ("+exp=mine -cd conf/exp", "own is conf/exp/exp/mine.yaml, with --config-dir"),
        ("seed=1 --config-dir conf +exp=bare", f"the file chosen as +exp=: {FIRST_LINE}"),
        ("--config-dir conf +exp=blank", f"the file chosen as +exp=: {FIRST_LINE}"),
        ("--config-dir conf +exp=open", "a file is not YAML, correct it: while parsing"),
        ("--config-dir conf +exp=twice", "override optim: adam_simnet"),
    ):
        run("npas-plan", *arguments.split(), refused=line)
    assert "asked 0.3" in run("npas-plan", "--config-dir", "conf", "+exp=mine").out
    dry = run("npas-train", "--config-dir", "conf", "+exp=mine", "dry_run=true")
    assert "the run would be runs/mine/budget-0.3_seed-0" in dry.out
    Path("conf/exp/latin.yaml").write_bytes(HEAD.encode() + "# für\n".encode("latin-1"))
    message = "a YAML file is not UTF-8 text: save it"
    run("npas-plan", "--config-dir", "conf", "+exp=latin", refused=message)
    answer = run("npas-train", "--cfg", "job", "--package", "nosuch", code=2)
    assert "--package nosuch is not in the config" in answer.err
    assert "asked 0.4" in run("npas-plan", "--config-dir", "conf", "+own=big").out


def test_the_traceback_is_there_for_those_who_ask_and_of_faults_of_ours(run, monkeypatch):
    assert "Traceback" in run("npas-train", "hydra.verbose=true", "epochs=-3").err
    monkeypatch.setenv("NPAS_DEBUG", "1")
    assert "Traceback" in run("npas-train", "bugdet=-3", code=2).err
    monkeypatch.delenv("NPAS_DEBUG")

    def fault(*anything):
        raise KeyError("ours")

    monkeypatch.setattr("npas.config.load_config", fault)
    answer = run("npas-plan")
    assert answer.code == 1
    assert "Traceback" in answer.err and "KeyError: 'ours'" in answer.err


def test_help_version_and_config_are_shown_without_running(run, tmp_path):
    answer = run("npas-train", "--cfg", "job", "budget=0.3")
    assert answer.code == 0 and "budget: 0.3" in answer.out and "hydra" not in answer.out
    assert run("npas-plan", "--version").out == f"npas {npas.__version__}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_help_and_typos_do_not_wait_for_heavy_imports():
    code = """
import contextlib, io, sys
from npas.cli import evaluate, export, fold, plan, train
with contextlib.redirect_stdout(io.StringIO()):
    assert not any(command.main(["--help"]) for command in (evaluate, export, fold, plan))
assert train.main(["bugdet=0.1"]) == 2
assert train.main(["epochs=-1"]) == 2
heavy = {"torch", "torchvision", "transformers", "sklearn", "wandb", "matplotlib", "numpy"}
print(*heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_the_module_runs_as_a_script_and_its_exit_code_reaches_the_shell(tmp_path):
    arguments = [sys.executable, "-m", "npas.cli.train", "+bugdet=0.1"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "npas-train: unknown key 'bugdet': did you mean 'budget'?\n"
    assert not done.stdout and not list(tmp_path.iterdir())
