"""Print a table of published figures and ours, from the committed results.

npas-table                          # lists the tables
npas-table digits
npas-table wrn_cifar100
npas-table squad epoch=selected     # of the epochs chosen on held-out data, not the last ones
"""

import dataclasses
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from npas.cli import app, entry
from npas.cli.app import Job

NAME = "npas-table"


@dataclass(frozen=True)
class Table:
    """The keys of npas-table; by default `results` is the checkout's, or else ./results."""

    name: str = ""
    results: str | None = None
    epoch: Literal["last", "selected"] = "last"

    def __post_init__(self) -> None:
        if self.results is not None and not Path(self.results).is_dir():
            raise ValueError(
                f"there is no folder results={self.results}: name one that holds runs/"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run npas-table and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    bare = list(itertools.takewhile(lambda word: not re.search("^-|=", word), arguments))
    if bare:  # several words are an unknown table's name, whose error lists the tables
        arguments[: len(bare)] = [f"name={' '.join(bare)}"]
    return entry.main(app.Command.of(NAME, "table", Table, run), arguments)


def run(options: Table) -> Job:
    """Print the table; without a name, list all tables."""
    from npas.reporting import definitions, tables
    from npas.reporting.run_index import results_root

    if not options.name:
        names = definitions.names()
        width = max(map(len, names))
        for name in names:
            print(f"{name:{width}}  {definitions.table(name).title}")
        return Job("tables")
    table = dataclasses.replace(definitions.table(options.name), epoch=options.epoch)
    folder = Path(options.results) if options.results else results_root()
    print(tables.markdown(table, tables.load(table, folder / "runs")), end="")
    return Job(table.name)
