"""Print a table of published figures and ours, from the committed results."""

import dataclasses
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
    check: bool = False
    epoch: Literal["last", "selected"] = "last"

    def __post_init__(self) -> None:
        if self.check and not self.name:
            raise ValueError("check=true needs a table's name; npas-table alone lists the tables")
        if self.check and self.epoch != "last":
            raise ValueError("committed tables are of the last epoch: leave check or epoch out")
        if self.results is not None and not Path(self.results).is_dir():
            raise ValueError(
                f"there is no folder results={self.results}: name one that holds runs/"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run npas-table and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not re.search("^-|=", arguments[0]):
        arguments[0] = f"name={arguments[0]}"
    return entry.command(NAME, "table", Table, run)(arguments)


def run(options: Table) -> Job:
    """Print the table or compare it with the committed one; without a name, list all tables."""
    from npas.reporting import definitions, tables
    from npas.reporting.run_index import results_root

    if not options.name:
        names = definitions.names()
        width = max(map(len, names))
        for name in names:
            app.echo(f"{name:{width}}  {definitions.table(name).title}")
        return Job("tables")
    table = dataclasses.replace(definitions.table(options.name), epoch=options.epoch)
    folder = Path(options.results) if options.results else results_root()
    text = tables.markdown(table, tables.load(table, folder / "runs"))
    if not options.check:
        app.echo(text.removesuffix("\n"))
        return Job(table.name)
    committed = folder / "tables" / f"{table.name}.md"
    if committed.exists() and committed.read_text(encoding="utf-8") == text:
        app.echo(f"{committed} matches the results")
        return Job(table.name)
    app.say(NAME, f"{committed} does not match the results: make it again")
    return Job(table.name, "failed")


if __name__ == "__main__":
    sys.exit(main())
