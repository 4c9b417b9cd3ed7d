"""Write one HTML page of all results: tables, plots, groups, folded networks, samples."""

import sys
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
        write_whole(out, text)
    app.echo(f"{out}: {len(text.encode()) / 1e6:.2g} MB, opens from disk")
    return Job(options.out)


main = entry.command(NAME, "report", Report, run)

if __name__ == "__main__":
    sys.exit(main())
