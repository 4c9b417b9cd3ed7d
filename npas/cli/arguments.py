"""Parse a command line, and turn errors into one-line messages."""

import argparse
import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import npas
from npas.config.typed import unknown_key
from npas.utils import plugins
from npas.utils.checks import join


def parse(arguments: list[str], known: Collection[str], primary: str = "") -> argparse.Namespace:
    """Parse Hydra's flags and overrides. Raises ValueError for invalid ones.

    `known` are the full names of the command's keys, `primary` is its YAML. The result's `multirun`
    is true for a sweep. Keys are passed on with `++`: Hydra then accepts those that YAMLs lack, and
    the command's own check refuses unknown ones. `--version` prints npas' version and exits.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    options = _parse_flags(arguments, primary)
    if options.shell_completion:  # its arguments are not keys
        return options
    quoted = map(_quoted, options.overrides)
    parsed = OverridesParser.create().parse_overrides([*quoted])
    options.multirun |= any(override.input_line == "hydra.mode=MULTIRUN" for override in parsed)
    folders = plugins.config_folders()
    if options.config_dir is not None:
        folders.insert(0, Path(options.config_dir).absolute())
        if not folders[0].is_dir():
            raise ValueError(f"there is no folder --config-dir {options.config_dir}")
    single = "" if options.multirun else "add -m to run each (a list is written in brackets)"
    if options.multirun and (options.cfg or options.info):
        single = "--cfg and --info show a single job"
    exps = [override.input_line for override in parsed if override.key_or_group == "exp"]
    if len(exps) > 1:
        raise ValueError(f"{join(exps, 'and')} name several experiments: keep one, as +exp=NAME")
    if exps and any(override.key_or_group == "run" for override in parsed):
        raise ValueError(f"{exps[0]} cannot be combined with run=: set keys, as optim.lr=0.1")
    options.overrides = [_passed_on(override, single, folders, known) for override in parsed]
    if folders:
        paths = ", ".join(f'"file://{folder}"' for folder in folders)
        options.overrides.append(f"hydra.searchpath=[{paths}]")
    return options


def _parse_flags(arguments: list[str], primary: str) -> argparse.Namespace:
    """Parse Hydra's flags, and raise ValueError for those that the command does not support."""

    def fail(message: str) -> NoReturn:
        raise ValueError(f"{message}; --help shows examples and --hydra-help the flags")

    if "--version" in arguments:
        print(f"npas {npas.__version__}")
        raise SystemExit(0)
    parser = flags()
    parser.error = fail  # type: ignore[method-assign]
    options = parser.parse_intermixed_args(arguments)
    if options.help or options.hydra_help:
        options.overrides = []
    if not options.cfg and (options.package or options.resolve):
        fail(f"--{'package' if options.package else 'resolve'} needs --cfg")
    if options.config_path is not None:
        raise ValueError("--config-path is not supported: --config-dir DIR adds a folder of YAMLs")
    name, configs = options.config_name, Path(import_module("npas.configs").__path__[0])
    if name not in (None, primary) and (configs / f"{name}.yaml").exists():
        raise ValueError(f"--config-name {name} is for another command: leave it out")
    return options


def flags() -> argparse.ArgumentParser:
    """Return a parser of overrides and those of Hydra's flags that the commands support."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("overrides", nargs="*", help="key=value; see --help")
    add("--help", "-h", action="store_true", help="print this command's help")
    add("--hydra-help", action="store_true", help="print this help")
    add("--version", action="store_true", help="print the version of npas")
    add("--cfg", "-c", choices=["job", "hydra", "all"], help="print the config and do not run")
    add("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    add("--package", "-p", help="with --cfg: the part of the config to print")
    add("--run", "-r", action="store_true", help="run one job (the default)")
    add("--multirun", "-m", action="store_true", help="run a job for each combination of values")
    add("--shell-completion", "-sc", action="store_true", help="install or uninstall it")
    add("--config-path", "-cp", help="not supported: use --config-dir")
    add("--config-name", "-cn", help="compose another primary config")
    add("--config-dir", "-cd", help="a folder of YAMLs that are found beside those of npas")
    parts = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    add("--info", "-i", nargs="?", const="all", choices=parts, help="print how Hydra composes")
    return parser


def config_dir(arguments: Iterable[str]) -> str | None:
    """Return the folder of --config-dir, None if there is none or a flag is invalid."""

    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    parser = flags()
    parser.error = fail  # type: ignore[method-assign]
    try:
        found: str | None = parser.parse_intermixed_args([*arguments]).config_dir
    except ValueError:  # which is what is explained
        return None
    return found


def _quoted(argument: str) -> str:
    """Quote a value that Hydra's grammar refuses, such as a path with non-ASCII letters."""
    plain = re.fullmatch(r"(\+{0,2}[A-Za-z_][\w./@]*=)([^'\"\[\](){},$\\~]+)", argument)
    if plain and not re.fullmatch(r"[\w\s/.:%*@?|+-]*", plain[2], re.ASCII):
        return f'{plain[1]}"{plain[2]}"'
    return argument


def _passed_on(override: Any, single: str, folders: Sequence[Path], known: Collection[str]) -> str:
    """Return an override for Hydra; `single` says why it must have one value, if so."""
    key, line = override.key_or_group, str(override.input_line)
    if not key:
        raise ValueError(_unreadable(line, known))
    if override.is_sweep_override() and not key.startswith("hydra"):
        if single:
            raise ValueError(f"{line} has several values: {single}")
        if override.is_range_sweep() and not override.value().step:
            raise ValueError(f"{line}: the step of a range must not be 0")
    root = f"{key.partition('.')[0]}.family"
    is_known = key in known or root in known or any(name.startswith(f"{key}.") for name in known)
    configs = import_module("npas.configs").__path__
    ours = is_known and any(Path(folder, key).is_dir() for folder in configs)
    is_group = ours or any((folder / key).is_dir() for folder in folders)
    if ours and not override.is_delete():
        right = f"{'+' * (key == 'exp')}{line.lstrip('+')}"
        is_name = isinstance(override.value(), (str, list)) and bool(override.value())
        if not override.is_sweep_override() and not is_name:
            raise ValueError(f"{line!r} names no file: write {right.partition('=')[0]}=NAME")
        if line != right:
            raise ValueError(f"{line}: write {right}")
    if key.startswith("hydra") or is_group:
        return line
    if not is_known:
        raise ValueError(unknown_key(key, known))
    return line if override.is_delete() else f"++{line.lstrip('+')}"


def as_written(override: Any) -> str:
    """Return an override without what `_passed_on` has put before it."""
    return str(override.input_line).removeprefix("++")


def explain(
    error: BaseException, known: Collection[str], config_dir: str | None = None
) -> str | None:
    """Return a one-line message for a user error, None for any other error."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
    from yaml import YAMLError

    text = str(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        text = _no_option(str(error.missing_cfg_file), error.options, config_dir)
    elif isinstance(error, OverrideParseException):
        text = _unreadable(error.override.lstrip("+"), known)
    elif isinstance(error, HydraException):
        if isinstance(error.__cause__, OmegaConfBaseException):
            return explain(error.__cause__, known)
        text = text.partition("\nConfig search path:")[0].partition("\nSee https:")[0]
        if found := re.match(r"In '(exp/[^']+)': Could not override '[^']*@exp\.", text):
            text = f"{found[1]}.yaml needs the first line '# @package _global_'"
    elif isinstance(error, MissingMandatoryValue):
        text = f"{error.full_key} is missing: write {error.full_key}=VALUE"
    elif isinstance(error, OmegaConfBaseException):
        where = f" (in {error.full_key})" if error.full_key else ""
        text = f"{text.splitlines()[0]}{where}"
    elif isinstance(error, UnicodeDecodeError):
        text = "a YAML file is not UTF-8 text: save it as UTF-8"
    elif isinstance(error, YAMLError):  # the text names the user's file and the line
        text = f"a file is not YAML, correct it: {text}"
    elif not isinstance(error, (ValueError, OSError)):
        return None
    return " ".join(text.split())


def _no_option(chosen: str, options: Collection[str], config_dir: str | None) -> str:
    """Return the error message for a missing YAML `group/name`, with a suggestion."""
    is_hydras = chosen.startswith("hydra/")
    group, _, name = chosen.rpartition("/") if is_hydras else chosen.partition("/")
    close = difflib.get_close_matches(name, options, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"choose {join(options)}"
    if is_hydras:
        advice += ", or install its plugin"
    else:  # of a name with the suffix or folders of a path, too
        own = Path(config_dir or "DIR") / group / f"{Path(name).stem}.yaml"
        advice += f" (a file of your own is {own}, with --config-dir {config_dir or 'DIR'})"
    return f"there is no {group}={name}: {advice}"


def _unreadable(text: str, known: Collection[str]) -> str:
    if "=" in text:
        return f"{text!r} cannot be read: write key=value, special characters as 'key=\"value\"'"
    # For commands with many other keys, suggest run= only if the argument looks like a path.
    names_run = "run" in known and ("/" in text or "budget" not in known)
    return f"{text!r} sets nothing: write {f'run={text}' if names_run else 'key=value'}"
