"""Write one HTML page of all results: tables, plots, groups, folded networks, samples.

npas-report                               # report.html, of the committed results
npas-report runs=runs out=mine.html       # of the runs in a folder
npas-report runs=runs results=results     # of both
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npas.cli import app, entry
from npas.cli.app import Job

NAME = "npas-report"


@dataclass(frozen=True)
class Report:
    """The keys of npas-report; by default it shows the committed results."""

    out: str = "report.html"
    results: str | None = None
    runs: str | None = None

    def __post_init__(self) -> None:
        for key, folder in (("results", self.results), ("runs", self.runs)):
            if folder is not None and not Path(folder).is_dir():
                raise ValueError(f"there is no folder {key}={folder}: name one that exists")
        app.check_out(self.out, ".html")


def main(argv: Sequence[str] | None = None) -> int:
    """Run npas-report and return its exit code."""
    return entry.main(app.Command.of(NAME, "report", Report, run), argv)


def run(options: Report) -> Job:
    """Write the page atomically."""
    from npas.reporting import report
    from npas.reporting.run_index import results_root
    from npas.utils.files import write_whole

    results, runs = (Path(name) if name else None for name in (options.results, options.runs))
    if results is None and runs is None:
        results = results_root()
    text = report.page(results, runs)
    out = Path(options.out)
    with app.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, text)
    app.echo(f"{out}: {len(text.encode()) / 1e6:.2g} MB, opens from disk")
    return Job(options.out)


if __name__ == "__main__":
    sys.exit(main())
