"""House rules: layers, sizes, names, headers, commands in documents."""

import ast
import configparser
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from npas.reporting.compose import compose

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "npas"
# From the lowest to the highest.
LAYERS = ("utils", "sharing", "config", "models", "tasks", "training", "reporting", "cli")
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    p for folder in ("npas", "scripts", "tests") for p in (ROOT / folder).rglob("*.py")
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")])
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
EXPERIMENTS = sorted((ROOT / "configs" / "exp").glob("*.yaml"))


def name(path):
    return str(path.relative_to(ROOT))


def read(path):
    return path.read_text(encoding="utf-8")


# --- layers and sizes


def imported(path):
    """List the parts of npas that a module imports, anywhere in it: `sharing`, `config`, ..."""
    package = ["npas", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    parts = (full.split(".") for full in found)
    return {part[1] for part in parts if part[0] == "npas" and len(part) > 1}


# A rule is one test over all files that it holds for: a test a file was a quarter of all tests.
def test_a_module_imports_only_from_its_own_layer_and_those_below():
    for path in MODULES:
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            # The package's own face: the method's public verbs, and what trains a config.
            assert imported(path) <= {"sharing", "utils", "training", "reporting", "cli"}
            continue
        assert part in LAYERS, f"{part} has no layer: does it belong in an existing package?"
        for other in imported(path) & set(LAYERS):
            assert LAYERS.index(other) <= LAYERS.index(part), f"{name(path)} imports {other}"


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(["npas", *(part for part in parts if part != "__init__")])


def imports_of(path, modules):
    """Return the modules of npas that a module imports, also within functions."""
    found = set()
    nodes = [ast.parse(read(path))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {str(node.module)}
        nodes += ast.iter_child_nodes(node)
    return found & modules - {module_name(path)}


METHOD = ("generators", "layout", "runtime", "trained", "compression")  # folders of sharing/


def test_a_folder_of_sharing_imports_only_from_itself_and_those_before_it():
    modules = {module_name(path) for path in MODULES}
    folders = {p.parent.name for p in (PACKAGE / "sharing").glob("*/__init__.py")}
    assert folders == set(METHOD)
    for number, folder in enumerate(METHOD):
        for path in (PACKAGE / "sharing" / folder).glob("*.py"):
            parts = {
                other.split(".")[2] for other in imports_of(path, modules) if "sharing" in other
            }
            assert not parts & {*METHOD[number + 1 :], "api", "planning", "search"}, name(path)


def test_there_are_no_import_cycles():
    modules = {module_name(path) for path in MODULES}
    left = {module_name(path): imports_of(path, modules) for path in MODULES}
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left, f"import cycles among {sorted(left)}"


def test_no_13_lines_are_duplicated():
    window, places = 13, {}
    for path in MODULES:
        kept = [line for line in map(str.strip, read(path).splitlines()) if line]
        # Imports and the parameters of a signature may repeat.
        lines = [line for line in kept if not re.match(r"import |from |#|\w+: .*,$", line)]
        for i in range(len(lines) - window + 1):
            text = "\n".join(lines[i : i + window])
            assert text not in places, f"{name(path)} and {places[text]} share: {text}"
            places[text] = name(path)


def test_models_do_not_import_sharing():
    paths = [path for path in MODULES if path.parent.name == "models"]
    assert paths and not [name(path) for path in paths if "sharing" in imported(path)]


def test_the_method_needs_torch_alone():
    allowed = {*sys.stdlib_module_names, "npas", "torch", "safetensors"}
    for path in (PACKAGE / "sharing").glob("*.py"):
        for node in ast.walk(ast.parse(read(path))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.append(node.module)
            assert {full.partition(".")[0] for full in names} <= allowed, name(path)


def test_no_file_is_longer_than_400_lines():
    lengths = {name(path): len(read(path).splitlines()) for path in SOURCES}
    assert lengths and not {path: length for path, length in lengths.items() if length > 400}


def test_the_training_loop_is_at_most_180_lines():
    assert len(read(PACKAGE / "training" / "loop.py").splitlines()) <= 180


# --- wording

# Spelled in parts, so that this file does not hold them.
LEFT_OPEN = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")))
OF_ONE_MACHINE = re.compile("/(" + "|".join(("work", "home", "root", "farm", "tmp")) + ")/")
NOT_TESTED = re.compile("|".join(("mark.ski" + "p", "xfa" + "il", "assert Tr" + "ue")))


def test_no_unfinished_code_local_paths_or_skipped_tests():
    paths = [*SOURCES, *PAGES, *CONFIGS, ROOT / "Makefile"]
    for pattern in (LEFT_OPEN, OF_ONE_MACHINE):
        assert not {name(path): found[0] for path in paths if (found := pattern.search(read(path)))}
    tests = (ROOT / "tests").rglob("test_*.py")
    assert not [name(path) for path in tests if NOT_TESTED.search(read(path))]


# --- experiments


def composes(command):
    """Compose what an npas-train or npas-plan command asks for, of a sweep its first job."""
    overrides = [word for word in shlex.split(command)[1:] if word not in ("-m", "--multirun")]
    first = [
        f"{key}={value.split(',')[0] if not value.startswith(('[', '{')) else value}"
        for key, _, value in (word.partition("=") for word in overrides)
    ]
    ours = [word for word in first if not re.match(r"hydra[./]|format=|check_data=", word)]
    return compose(*ours).exp


def test_every_experiment_exists_and_opens_with_its_header():
    for path in EXPERIMENTS:
        lines = read(path).splitlines()
        assert lines[0] == "# @package _global_"
        notes = dict(line.removeprefix("# ").split(": ", 1) for line in lines[1:5])
        assert list(notes) == ["Figure", "Expect", "Time", "Command"] and all(notes.values())
        assert re.match(r"npas-(train|plan) ", notes["Command"])
        assert path.stem == "digits" or f"+exp={path.stem}" in notes["Command"].split()
    there = {path.stem for path in EXPERIMENTS}
    assert {"digits", "wrn_cifar10", "wrn_cifar100", "resnet50_imagenet"} <= there
    assert {"digits_swrn", "swrn_cifar10", "swrn_cifar100", "swrn_imagenet"} <= there
    # Every network of the soft sharing poster's tables.
    assert {f"{name}_cifar{n}" for name in ("densenet", "resnext") for n in (10, 100)} <= there
    assert {f"{name}_imagenet" for name in ("densenet264", "resnet200", "wrn50_2")} <= there


# --- commands in the documents


def scripts():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return {key.strip(): value.strip() for key, _, value in (x.partition("=") for x in lines if x)}


def test_a_console_script_leads_to_a_function():
    for target in scripts().values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_every_package_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    files = (ROOT / "npas").rglob("__init__.py")
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    assert set(setup["options"]["packages"].split()) == found | {"npas.configs"}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_and_links_of_documents_are_valid(path):
    text = read(path)
    targets = re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.MULTILINE)
    for asked in re.findall(r"(?:`|^)make ([a-z -]+)", text, re.MULTILINE):
        assert set(asked.split()) <= set(targets), asked
    named = re.findall(r"\bnpas-(?:train|plan|eval|export|fold|table|report)\b", text)
    assert set(named) <= set(scripts())
    for command in re.findall(r"^(npas-(?:train|plan) .*?)(?: +#.*)?$", text, re.MULTILINE):
        composes(command)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in target or (path.parent / target).exists(), target


# --- all of it

MOST_LINES = {"npas": 30023, "tests": 23899}


@pytest.mark.parametrize("folder", MOST_LINES)
def test_line_counts_stay_below_their_limits(folder):
    lines = sum(len(read(path).splitlines()) for path in (ROOT / folder).rglob("*.py"))
    assert lines <= MOST_LINES[folder]
