"""Turn what went wrong with the user's arguments into one line that says what to change.

Our own errors are `ValueError`s and say so already. Hydra's and OmegaConf's take several lines and
advise to force a key in with `+`; the table at the end says each in one line.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import npas
from npas.config import NO_PACKAGE
from npas.config.typed import unknown_key
from npas.utils.checks import join


def explain(
    error: BaseException, known: Collection[str], arguments: Sequence[str] = ()
) -> str | None:
    """Return the line for an error that the user can fix, None for any other error.

    `known` are the full names of the command's keys, to suggest from.
    """
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text = str(error)
    if isinstance(error, YAMLError):  # of a file of the user's own; the text names file and line
        return _one_line(f"a file is not YAML, correct it: {text}")
    if isinstance(error, OverrideParseException):
        return _one_line(_unreadable(error.override.lstrip("+"), known))
    if isinstance(error, HydraException):
        for pattern, rewrite in _REWRITES:
            if match := re.search(pattern, text, re.DOTALL):
                return _one_line(rewrite(match, known))
        return _one_line(text.split("\nConfig search path:")[0].split("\nSee https:")[0])
    if isinstance(error, OmegaConfBaseException):
        where = f" (in {error.full_key})" if error.full_key else ""
        return _one_line(f"{text.splitlines()[0]}{where}")
    if text.startswith("Config group override must be"):  # by Hydra, which leaves out which
        return _one_line(next(_no_names(arguments, known), text))
    if isinstance(error, (ValueError, OSError)):
        return _one_line(text)
    return None


_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_SWITCHES = (
    *("--help -h", "--hydra-help", "--resolve", "--run -r", "--multirun -m"),
    "--shell-completion -sc",
)
_VALUES = (
    *("--package -p", "--config-path -cp", "--config-name -cn", "--config-dir -cd"),
    "--experimental-rerun",
)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the flags of Hydra 1.3 and the overrides; ValueError for one that it does not have.

    `--version` prints that of npas and exits.
    """

    def fail(message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the keys and --hydra-help the flags")

    parser = argparse.ArgumentParser(add_help=False)
    parser.error = fail  # type: ignore[method-assign]
    for flags in _SWITCHES:
        parser.add_argument(*flags.split(), action="store_true")
    for flags in _VALUES:
        parser.add_argument(*flags.split())
    parser.add_argument("--version", action="version", version=f"npas {npas.__version__}")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=_INFO)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(list(arguments))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _unknown(match: re.Match[str], known: Collection[str]) -> str:
    key = match["key"].replace("/", ".")
    if key == "exp" and "defaults list" in match.string:
        return f"{key}= needs a plus: write {match['advice']}"
    if key.startswith("hydra"):
        return f"unknown key {key!r}: it is none of Hydra's; --hydra-help lists them"
    return unknown_key(key, known)


def _no_option(match: re.Match[str], known: Collection[str]) -> str:
    group, _, name = match["path"].rpartition("/")
    if group != "hydra" and not group.startswith("hydra/"):
        group, _, name = match["path"].partition("/")
        if "/" in name or name.endswith(".yaml"):
            return _no_file(group, Path(name))
    options = match["options"].split()
    close = difflib.get_close_matches(name, options, n=1)
    advice = f"did you mean {close[0]!r}?" if close else f"choose {join(options)}"
    if group.startswith("hydra/"):
        advice += f", or install the plugin that brings it (hydra-{name}-{group[6:]})"
    elif folder := re.search(r"provider=command-line, path=(?:file://)?(\S+)", match.string):
        advice = f"no {Path(folder[1]) / group / name}.yaml is there; {advice}"
    return f"there is no {group}={name}: {advice}"


def _no_file(group: str, file: Path) -> str:
    """Return how to choose a file of the user's own, which the word has named by its path."""
    plus, folder, where = "+" if group == "exp" else "", "DIR", f"put it into DIR/{group}/ and "
    if file.absolute().parent.name == group and file.with_suffix(".yaml").exists():
        folder, where = str(file.parent.parent), ""
    return (
        f"{plus}{group}={file} is a path, and {plus}{group}= takes a name: {where}write"
        f" --config-dir {folder} {plus}{group}={file.stem}"
    )


def _no_package(match: re.Match[str], known: Collection[str]) -> str:
    return f"{match['file']}: {NO_PACKAGE}"


def _several_values(match: re.Match[str], known: Collection[str]) -> str:
    return f"{match['word']} has several values: add -m to run each (a list is written in brackets)"


def _unreadable(word: str, known: Collection[str]) -> str:
    if "=" in word:
        return (
            f"{word!r} cannot be read: write key=value, and quote odd characters as 'key=\"value\"'"
        )
    # Of the commands that have many other keys, only what looks like a folder is meant as one.
    names_run = "run" in known and ("/" in word or "budget" not in known)
    return f"{word!r} sets nothing: write {f'run={word}' if names_run else 'key=value'}"


def _no_names(arguments: Sequence[str], known: Collection[str]) -> Iterator[str]:
    """Yield a line for each argument that gives a number or nothing for the name of a YAML."""
    for word in arguments:
        key, _, value = word.lstrip("+").partition("=")
        node = key == "exp" or any(name.startswith(f"{key}.") for name in known)
        if not key:
            yield _unreadable(word, known)
        elif node and re.fullmatch(r"null|true|false|[-+.\d][-+.\de]*", value, re.IGNORECASE):
            yield f"{word!r} names nothing to choose: write {key}=NAME"


_Rewrite = Callable[[re.Match[str], Collection[str]], str]
_REWRITES: list[tuple[str, _Rewrite]] = [
    (r"In '(?P<file>exp/[^']+)': Could not override '[^']*@exp[.']", _no_package),
    (r"Could not override '(?P<key>[^']+)'.*use (?P<advice>\S+)", _unknown),
    (r"Could not delete from config\. '(?P<key>[^']+)'", _unknown),
    (
        r"Could not find '(?P<path>[^']+)'.*Available options in [^\n]*:\n(?P<options>.*)\nConfig ",
        _no_option,
    ),
    (r"Ambiguous value for argument '(?P<word>[^\n]*)'", _several_values),
    (
        r"BasicSweeper does not support sweep type : INTERVAL",
        lambda *_: (
            "interval() is for a sweeper that searches: add hydra/sweeper=optuna, or list"
            " the values"
        ),
    ),
    (
        r"Could not append to config\. An item is already at '(?P<key>[^']+)'",
        lambda match, _: f"+{match['key']}= has a plus too many: write {match['key']}=VALUE",
    ),
    (
        r"Multiple values for (?P<key>\S+)\.",
        lambda match, _: (
            f"+{match['key']}= has a plus too many: write {match['key']}=NAME (in the defaults of a"
            f" file: override /{match['key']}: NAME)"
        ),
    ),
    (
        r"force-add of config groups is not supported: '\+\+(?P<key>[^=']+)=(?P<name>[^']*)'",
        lambda match, _: (
            f"++{match['key']}= has a plus too many: write "
            f"{'+' if match['key'] == 'exp' else ''}{match['key']}={match['name']}"
        ),
    ),
    (
        r"Sweep parameters '(?P<word>[^\n]*)' requires --multirun",
        lambda match, _: f"{match['word']} has several values: add -m to run each",
    ),
]
